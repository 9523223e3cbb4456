"""Waiting for jobs: one connection to each zone, any number of waiters.

While somebody waits, a watcher follows the zone's job stream. It also polls the jobs, slowly, because the stream carries
changes of status and a person wants progress; without a working stream, polling is what detects their ends. Each stream begins
with the unfinished jobs, and a watched job that is not among them is read at once, so no end is missed. A wait that ends
early, is cancelled or times out never affects its job.
"""

import logging
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager

import anyio

from snapshot_mcp.contract.errors import Forbidden, InternalError, NotFound, Unavailable, Unsupported, ZoneError
from snapshot_mcp.contract.models import Job
from snapshot_mcp.contract.provider import Feature, Provider
from snapshot_mcp.contract.text import clean_text, quoted

PROGRESS_SECONDS = 2.0
"""Interval of polling for progress while a stream is followed."""
POLL_SECONDS = 1.0
"""Interval of polling without a stream, before jitter."""
JITTER = 0.2
"""Fraction by which an interval varies, so that many servers do not poll in step."""
STREAM_RETRY_SECONDS = (1.0, 2.0, 5.0, 15.0, 30.0)
"""Pauses before a broken stream is retried, by consecutive failures."""
LINGER_SECONDS = 5.0
"""How long the stream is kept open after the last waiter; a model that loops calls again within this time."""
FIRST_READ_SECONDS = 20.0
"""Time limit of a job's first read, even if the wait is shorter: without it there is nothing to return."""
STREAM_GRACE_SECONDS = 0.25
"""Time for the stream to report many ended jobs before they are read one by one."""
CONCURRENT_READS = 8
"""Maximum number of concurrent reads of single jobs in one zone."""
REMEMBERED_ENDS = 4096
"""Number of ended jobs remembered, so that a late answer about one is not taken for news."""

log = logging.getLogger(__name__)


class _Wait:
    """A caller's wait: the latest state of each of its jobs, and an event for changes."""

    def __init__(self, job_ids: Sequence[str]) -> None:
        self.job_ids = tuple(job_ids)
        self.jobs: dict[str, Job] = {}
        self.error: ZoneError | None = None
        self.has_changed = anyio.Event()

    def is_known(self) -> bool:
        return self.jobs.keys() >= set(self.job_ids)

    def is_over(self) -> bool:
        return self.is_known() and all(job.is_finished for job in self.jobs.values())

    def states(self) -> tuple[Job, ...]:
        return tuple(self.jobs[job_id] for job_id in self.job_ids)

    async def until(
        self, is_reached: Callable[[], bool], on_change: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        while not is_reached():
            if self.error is not None:
                raise self.error
            await self.has_changed.wait()
            self.has_changed = anyio.Event()
            if on_change is not None and self.is_known():
                await on_change()


class JobWatcher:
    """Waits for jobs of one zone while its `run` is running; `Zones` sees to that."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self._waits: dict[str, set[_Wait]] = {}
        self._observers: dict[object, Callable[[Job], None]] = {}
        self._unread: set[str] = set()
        self._running: dict[str, Job] = {}
        self._ended: dict[str, None] = {}
        self._is_streaming = False
        self._trouble: ZoneError | None = None
        self._arrived = anyio.Event()
        self._left = anyio.Event()
        self._to_read = anyio.Event()

    async def wait(
        self,
        job_ids: Sequence[str],
        timeout_seconds: float,
        on_change: Callable[[tuple[Job, ...]], Awaitable[None]] | None = None,
    ) -> tuple[Job, ...]:
        """Return the jobs in the given order, once all have finished or the time is up.

        `on_change` receives all of them first and again whenever one has changed. Raises NotFound for an unknown id, and the
        zone's error if it cannot be read when the time is up.
        """
        wait = _Wait(job_ids)
        deadline = anyio.current_time() + timeout_seconds

        async def report() -> None:
            if on_change is not None:
                await on_change(wait.states())

        self._add(wait)
        try:
            with anyio.move_on_after(max(timeout_seconds, FIRST_READ_SECONDS)):
                await wait.until(wait.is_known)
            if not wait.is_known():
                raise Unavailable(
                    f"Zone {self._provider.zone!r} did not answer in time.", hint="Its jobs continue. Try again."
                )
            await report()
            with anyio.CancelScope(deadline=deadline):
                await wait.until(wait.is_over, report)
        finally:
            self._remove(wait)
        if self._trouble is not None and not wait.is_over():
            raise self._trouble
        return wait.states()

    @contextmanager
    def observing(self, note: Callable[[Job], None]) -> Iterator[None]:
        """Call `note` once with each change of a job that the zone's stream reports, waited for or not.

        Without a stream it hears only of jobs that are waited for.
        """
        token = object()
        self._observers[token] = note
        self._arrived.set()
        try:
            yield
        finally:
            del self._observers[token]
            self._left.set()

    async def run(self) -> None:
        """Serve the waiters until cancelled; the zone is contacted only while somebody waits."""
        while True:
            await self._arrived.wait()
            self._arrived = anyio.Event()
            try:
                await self._serve()
            except Exception:
                log.exception("the watcher of zone %s failed", self._provider.zone)
                error = InternalError("The jobs cannot be followed.", hint="They continue; wait for them again.")
                for wait in set().union(*self._waits.values()):
                    wait.error = error
                    wait.has_changed.set()

    def _add(self, wait: _Wait) -> None:
        for job_id in wait.job_ids:
            self._waits.setdefault(job_id, set()).add(wait)
        self._unread.update(wait.job_ids)
        self._arrived.set()
        self._to_read.set()

    def _remove(self, wait: _Wait) -> None:
        for job_id in set(wait.job_ids):
            self._waits[job_id].discard(wait)
            if not self._waits[job_id]:
                del self._waits[job_id]
        self._left.set()

    def _report(self, job: Job) -> None:
        if self._is_news(job):
            for note in tuple(self._observers.values()):
                note(job)
        for wait in self._waits.get(job.job_id, ()):
            known = wait.jobs.get(job.job_id)
            if known is None or not (known.is_finished or known == job):
                wait.jobs[job.job_id] = job
                wait.has_changed.set()

    def _is_news(self, job: Job) -> bool:
        """Remember the job's state; return whether it is a new one. A stream and a read may both report it, or out of order."""
        if job.job_id in self._ended or self._running.get(job.job_id) == job:
            return False
        if job.is_finished:
            self._running.pop(job.job_id, None)
            self._ended[job.job_id] = None
            if len(self._ended) > REMEMBERED_ENDS:
                del self._ended[next(iter(self._ended))]
        else:
            self._running[job.job_id] = job
        return True

    def _fail(self, job_id: str, error: ZoneError) -> None:
        """Pass the error to the waits that have not seen the job yet; the others continue with its last state."""
        for wait in self._waits.get(job_id, ()):
            if job_id not in wait.jobs:
                wait.error = error
                wait.has_changed.set()

    def _forget(self, job_id: str, error: NotFound) -> None:
        """Fail every wait for a job that the zone no longer knows: whether it succeeded cannot be found out."""
        self._running.pop(job_id, None)
        for wait in self._waits.get(job_id, ()):
            known = wait.jobs.get(job_id)
            if known is None:
                wait.error = error
            elif not known.is_finished:
                wait.error = NotFound(
                    f"Zone {self._provider.zone} no longer knows job {clean_text(job_id)}, last {quoted(known.status)}. "
                    "Whether it succeeded is unknown.",
                    hint="Check what it was to make or change.",
                )
            wait.has_changed.set()

    async def _serve(self) -> None:
        self._running = {}
        async with anyio.create_task_group() as tasks:
            if Feature.WATCH in self._provider.features:
                tasks.start_soon(self._follow)
            tasks.start_soon(self._poll)
            while self._waits or self._observers:
                self._left = anyio.Event()
                await self._left.wait()
                if not self._waits and not self._observers:
                    self._arrived = anyio.Event()
                    with anyio.move_on_after(LINGER_SECONDS):
                        await self._arrived.wait()
            tasks.cancel_scope.cancel()

    async def _follow(self) -> None:
        """Follow the stream; reconnect after a pause when it breaks."""
        failures = 0
        while True:
            try:
                async with aclosing(self._provider.watch_jobs()) as stream:
                    async for jobs in stream:
                        failures = 0
                        self._trouble = None
                        for job in jobs:
                            self._report(job)
                        if not self._is_streaming:
                            self._begin(jobs)
            except ZoneError as error:
                log.info("the job stream of zone %s broke: %s", self._provider.zone, error.message)
            finally:
                self._is_streaming = False
            await anyio.sleep(_jittered(STREAM_RETRY_SECONDS[min(failures, len(STREAM_RETRY_SECONDS) - 1)]))
            failures += 1

    def _begin(self, unfinished: tuple[Job, ...]) -> None:
        """Read watched jobs that are no longer unfinished at once: they ended before the stream began."""
        self._is_streaming = True
        self._unread |= (self._unfinished() | self._running.keys()) - {job.job_id for job in unfinished}
        self._to_read.set()

    async def _poll(self) -> None:
        """Read new jobs at once and all unfinished ones at intervals, which are shorter without a stream."""
        due_at = anyio.current_time()
        while True:
            self._to_read = anyio.Event()
            if anyio.current_time() >= due_at:
                self._unread = set()
                await self._read(self._unfinished())
                due_at = anyio.current_time() + _jittered(PROGRESS_SECONDS if self._is_streaming else POLL_SECONDS)
            elif self._unread:
                unread, self._unread = self._unread, set()
                await self._read(unread)
            with anyio.CancelScope(deadline=due_at):
                await self._to_read.wait()

    def _unfinished(self) -> set[str]:
        return {job_id for job_id in self._waits if self._is_wanted(job_id)}

    def _is_wanted(self, job_id: str) -> bool:
        """Return whether a wait or an observer still needs its end."""
        if self._observers and job_id in self._running:
            return True
        waits = self._waits.get(job_id, ())
        return any(job_id not in wait.jobs or not wait.jobs[job_id].is_finished for wait in waits)

    async def _read(self, job_ids: set[str]) -> None:
        """Read jobs: several with one call for the unfinished ones, the rest one by one."""
        troubles: list[ZoneError] = []
        missing = set(filter(self._is_wanted, job_ids))
        if not missing:
            return
        if len(missing) > 1:
            try:
                for job in await self._provider.list_unfinished_jobs():
                    missing.discard(job.job_id)
                    self._report(job)
            except (Forbidden, Unsupported):
                pass  # read one by one instead
            except ZoneError as error:
                troubles.append(error)
                for job_id in missing:
                    self._fail(job_id, error)
                missing = set()
        while self._is_streaming and len(missing) > CONCURRENT_READS:
            if any(job_id not in wait.jobs for job_id in missing for wait in self._waits.get(job_id, ())):
                break  # a wait has not seen its job yet
            await anyio.sleep(STREAM_GRACE_SECONDS)
            unreported = set(filter(self._is_wanted, missing))
            if len(unreported) == len(missing):
                break  # the stream does not report them
            missing = unreported
        limiter = anyio.Semaphore(CONCURRENT_READS)

        async def read_one(job_id: str) -> None:
            async with limiter:
                if not self._is_wanted(job_id):
                    return
                try:
                    self._report(await self._provider.get_job(job_id))
                except NotFound as error:
                    self._forget(job_id, error)
                except ZoneError as error:
                    troubles.append(error)
                    self._fail(job_id, error)

        async with anyio.create_task_group() as tasks:
            for job_id in missing:
                tasks.start_soon(read_one, job_id)
        self._trouble = troubles[0] if troubles else None


def _jittered(seconds: float) -> float:
    return seconds * random.uniform(1 - JITTER, 1 + JITTER)
