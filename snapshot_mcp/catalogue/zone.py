"""`CatalogueZone`: a Provider over a catalogue: a thin async shell that reads and enqueues jobs for a worker.

Nothing is created before the first change. Any number of processes may call any method on one catalogue.
"""

import logging
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from typing import Any, Final, Generic, TypeVar

import anyio
import anyio.to_thread

from snapshot_mcp.catalogue import admission, deletion, listing, withdrawal
from snapshot_mcp.catalogue.admission import ZoneRules
from snapshot_mcp.catalogue.answers import to_job
from snapshot_mcp.catalogue.database import IS_UNFINISHED, Catalogue
from snapshot_mcp.catalogue.lookup import unknown_job
from snapshot_mcp.catalogue.store import Row
from snapshot_mcp.catalogue.turn import FOR_EVER, Turn
from snapshot_mcp.contract.errors import BadRequest, Unavailable, ZoneError
from snapshot_mcp.contract.models import (
    Image,
    Instance,
    Job,
    Page,
    Quota,
    ResourceFilter,
    Snapshot,
    SnapshotFilter,
    SnapshotUpdate,
    Volume,
)
from snapshot_mcp.contract.provider import Feature
from snapshot_mcp.contract.states import JobAction
from snapshot_mcp.contract.terms import Terms
from snapshot_mcp.contract.text import clean_text

ALIVE_SECONDS: Final = 1.0
"""Interval at which a watcher makes sure that unfinished jobs have a worker."""

CLOSE_SECONDS: Final = 3.0
"""How long closing waits for a call, which may wait much longer for another process's lock on the catalogue."""

UNFINISHED_JOBS: Final = f"SELECT * FROM jobs WHERE {IS_UNFINISHED} ORDER BY created_at, change"

OWN_FEATURES: Final = frozenset(Feature) - {Feature.SEPARATE}
"""What every zone of ours can do; whether restore points are kept apart from the disks depends on its store."""

Result = TypeVar("Result")
C = TypeVar("C", bound=Catalogue)

log = logging.getLogger(__name__)


class CatalogueZone(ABC, Generic[C]):
    """A zone of ours (see `contract.Provider` for the methods); a subclass provides its catalogue and its worker."""

    watch_seconds = 0.03
    """Interval between checks for a change; in a zone of files a check costs microseconds."""
    wait_seconds = FOR_EVER  # that a call may wait for those before it
    export_format = ""
    """The format of exports, in the store's words."""

    def __init__(self, zone: str, rules: ZoneRules) -> None:
        self.zone, self._rules = zone, rules
        self._catalogue: C | None = None
        self._opened_as: object = None
        self._openings = 0
        self._lock = Turn(self.wait_seconds)
        self._reads: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._turn = anyio.Lock()

    @abstractmethod
    def _exists(self) -> bool:
        """Return whether there is a catalogue, without creating one."""

    @abstractmethod
    def _open(self) -> C:
        """Open the catalogue, creating it if needed."""

    @abstractmethod
    def _identity(self) -> object:
        """Return which catalogue is in its place now, None if there is none; costs microseconds."""

    def _check_change(self, catalogue: C) -> None:
        """Raise a ZoneError if nothing may be changed in this catalogue."""

    @abstractmethod
    def _ensure_worker(self) -> None:
        """Start a worker if none is running. Raises Unavailable."""

    @abstractmethod
    def _translate(self, error: Exception) -> ZoneError | None:
        """Translate an error of the store or of the catalogue; None for a bug."""

    async def aclose(self) -> None:
        """Close the catalogue, unless a call that was abandoned still waits for another process's lock."""

        def close() -> None:
            if self._lock.acquire(timeout=CLOSE_SECONDS):
                try:
                    if self._catalogue:
                        self._catalogue.close()
                        self._catalogue = None
                finally:
                    self._lock.release()

        await anyio.to_thread.run_sync(close)

    async def create_snapshots(self, resource_ids: Sequence[str], snapshot_name: str, *, is_full: bool = False) -> Job:
        """Enqueue a create."""
        return await self._enqueue(lambda one: admission.create(one, resource_ids, snapshot_name, is_full, self._rules))

    async def delete_snapshot(self, snapshot_id: str, *, terms: Terms | None = None) -> Job:
        """Enqueue a deletion."""
        return await self._enqueue(lambda one: admission.delete(one, snapshot_id, self._rules, terms))

    async def apply_snapshots(
        self, snapshot_ids: Sequence[str], *, terms: Terms | None = None, safety_snapshot_name: str = ""
    ) -> Job:
        """Enqueue a roll-back."""
        return await self._enqueue(
            lambda one: admission.apply(one, snapshot_ids, self._rules, terms, safety_snapshot_name)
        )

    async def capture_instance(self, snapshot_id: str, image_name: str) -> Job:
        """Enqueue an export to an image."""
        return await self._export(JobAction.CAPTURE_INSTANCE, snapshot_id, image_name)

    async def create_volume(self, snapshot_id: str, volume_name: str) -> Job:
        """Enqueue an export to a volume."""
        return await self._export(JobAction.CREATE_VOLUME, snapshot_id, volume_name)

    async def _export(self, action: JobAction, snapshot_id: str, name: str) -> Job:
        form = self.export_format
        return await self._enqueue(lambda one: admission.export(one, action, snapshot_id, name, self._rules, form))

    async def recover_snapshots(self, snapshot_ids: Sequence[str]) -> Job:
        """Enqueue a recovery."""
        return await self._enqueue(partial(admission.recover, snapshot_ids=snapshot_ids))

    async def verify_snapshots(self, snapshot_ids: Sequence[str]) -> Job:
        """Enqueue a verification."""
        return await self._enqueue(partial(admission.verify, snapshot_ids=snapshot_ids))

    async def cancel_job(self, job_id: str) -> Job:
        """Cancel a job that has had no effect yet."""
        job = await self._write(lambda catalogue: to_job(withdrawal.cancel(catalogue, job_id), self.zone))
        return job if job.is_finished else await self._with_worker(job)

    async def update_snapshot(self, snapshot_id: str, update: SnapshotUpdate) -> None:
        """Rename, describe or tag a snapshot."""
        await self._write(lambda catalogue: admission.update(catalogue, snapshot_id, update))

    async def purge(self, snapshot_ids: Collection[str] | None = None) -> tuple[str, ...]:
        """Purge these deleted snapshots now (None: all), and those whose grace period has ended; return the purged ids.

        What one deletion took is purged together, so if `snapshot_ids` lacks one of its ids, it waits for its grace period.
        """
        return tuple(await self._write(lambda catalogue: deletion.purge(catalogue, at_once=snapshot_ids)))

    async def list_snapshots(self, query: SnapshotFilter) -> Page[Snapshot]:
        """Return a page of the snapshots."""
        return await self._read(lambda catalogue: listing.snapshots(catalogue, query), Page((), 0))

    async def list_volumes(self, query: ResourceFilter) -> Page[Volume]:
        """Return a page of the volumes."""
        return await self._read(lambda catalogue: listing.volumes(catalogue, query), Page((), 0))

    async def list_instances(self, query: ResourceFilter) -> Page[Instance]:
        """Return a page of the instances."""
        return await self._read(lambda catalogue: listing.instances(catalogue, query), Page((), 0))

    async def list_images(self, query: ResourceFilter) -> Page[Image]:
        """Return a page of the images."""
        return await self._read(lambda catalogue: listing.images(catalogue, query), Page((), 0))

    async def list_quota_left(self) -> tuple[Quota, ...]:
        """Return what is left of each limit."""
        limit = self._rules.chain_limit
        return await self._read(lambda catalogue: listing.quotas(catalogue, limit), ())

    async def get_job(self, job_id: str) -> Job:
        """Return a job; an unfinished one gets a worker. Raises NotFound."""

        def read(catalogue: Catalogue) -> Job | None:
            withdrawal.expire(catalogue)
            row = catalogue.job(job_id)
            return to_job(row, self.zone) if row else None

        job = await self._read(read, None)
        if job is None:
            raise unknown_job(job_id)
        return job if job.is_finished else await self._with_worker(job)

    async def list_unfinished_jobs(self) -> tuple[Job, ...]:
        """Return the unfinished jobs, oldest first, and make sure that they have a worker."""

        def read(catalogue: Catalogue) -> tuple[Job, ...]:
            withdrawal.expire(catalogue)
            return tuple(to_job(row, self.zone) for row in catalogue.rows(UNFINISHED_JOBS))

        nothing: tuple[Job, ...] = ()
        jobs = await self._read(read, nothing)
        return (await self._with_worker(jobs[0]), *jobs[1:]) if jobs else ()

    async def list_finished_jobs(self, since: datetime, limit: int) -> Page[Job]:
        """Return the newest of the jobs that ended since then."""
        return await self._read(lambda one: listing.finished_jobs(one, since, limit, self.zone), Page((), 0))

    async def watch_jobs(self) -> AsyncGenerator[tuple[Job, ...], None]:
        """Yield the unfinished jobs, then every job whose status or progress changes; keep a worker running for them."""
        nothing: list[Row] = []
        seen, unfinished = await self._read(_unfinished_at, (0, nothing))
        yield tuple(to_job(row, self.zone) for row in unfinished)
        version, checked_at, openings = (-1, -1), anyio.current_time(), self._openings
        while True:
            await anyio.sleep(self.watch_seconds)
            current = await self._read(_version, (-1, -1))
            if self._openings != openings and openings:
                raise Unavailable(f"Zone {self.zone!r} was removed or replaced while its jobs were watched.")
            openings = self._openings
            if current != version:
                version = current
                if changed := await self._read(partial(_changed_since, change=seen), nothing):
                    seen = changed[-1]["change"]
                    yield tuple(to_job(row, self.zone) for row in changed)
            if anyio.current_time() - checked_at > ALIVE_SECONDS:
                checked_at = anyio.current_time()
                await self.list_unfinished_jobs()

    # the shell

    async def _enqueue(self, admit: Callable[[C], Row]) -> Job:
        """Enqueue a job, make sure that it has a worker, and return it.

        If no worker can be started, the job is withdrawn and Unavailable raised; if it cannot be withdrawn either (a worker has
        taken it, or the catalogue cannot be written), it is returned.
        """

        def enqueue() -> Job:
            with self._lock, self._errors_translated():
                job = to_job(admit(self._opened_for_change()), self.zone)
            try:
                self._ensure_worker()
            except Unavailable as error:
                if self._try_to_withdraw(job.job_id, error):
                    raise
            return job

        return await _finish_in_thread(enqueue)

    def _try_to_withdraw(self, job_id: str, reason: Unavailable) -> bool:
        try:
            with self._lock, self._errors_translated():
                return withdrawal.withdraw(self._opened(), job_id, reason)
        except ZoneError:
            log.exception("job %s could not be withdrawn and stays in the queue", job_id)
            return False

    async def _with_worker(self, job: Job) -> Job:
        """Make sure that a worker runs, and return the job; its `info` says if none can be started."""
        try:
            await _finish_in_thread(self._ensure_worker)
        except Unavailable as error:
            return job.model_copy(update={"info": str(error)})
        return job

    async def _write(self, work: Callable[[C], Result]) -> Result:
        def locked() -> Result:
            with self._lock, self._errors_translated():
                return work(self._opened_for_change())

        return await _finish_in_thread(locked)

    async def _read(self, work: Callable[[C], Result], empty: Result) -> Result:
        """Read, or return `empty` if there is no catalogue yet, without creating one.

        Reads that wait at the same time share one trip to a thread, which costs more than a read.
        """
        future: Future[Result] = Future()
        self._reads.append((future, partial(self._read_now, work, empty, time.monotonic())))
        async with self._turn:
            if not future.done():
                await anyio.to_thread.run_sync(self._read_waiting)
        return future.result()

    def _read_waiting(self) -> None:
        while self._reads:
            future, read = self._reads.popleft()
            try:
                future.set_result(read())
            except Exception as error:
                future.set_exception(error)

    def _read_now(self, work: Callable[[C], Result], empty: Result, since: float) -> Result:
        self._lock.refuse_late(since)
        with self._lock, self._errors_translated():
            self._close_replaced()
            if self._catalogue is None and not self._exists():
                return empty
            return work(self._opened())

    def _opened(self) -> C:
        """Return the catalogue that is in its place now."""
        self._close_replaced()
        if self._catalogue is None:
            self._catalogue = self._open()
            self._opened_as = self._identity()
            self._openings += 1
        return self._catalogue

    def _opened_for_change(self) -> C:
        catalogue = self._opened()
        self._check_change(catalogue)
        return catalogue

    def _close_replaced(self) -> None:
        """Close a catalogue that is no longer in its place: what is written to it no worker and no other process sees."""
        if self._catalogue is not None and self._identity() != self._opened_as:
            log.warning("the catalogue of zone %s was removed or replaced while it was open", self.zone)
            self._catalogue.close()
            self._catalogue = None
            self._openings += 1

    @contextmanager
    def _errors_translated(self) -> Iterator[None]:
        """Translate expected errors: invalid Unicode (JSON can spell half a surrogate pair), a full disk, a damaged catalogue."""
        try:
            yield
        except ZoneError:
            raise
        except UnicodeEncodeError as error:
            text = f"{clean_text(error.object)!r} is not valid Unicode text."
            raise BadRequest(text, hint="Use another text.") from None
        except Exception as error:
            known = self._translate(error)
            if known is None:
                raise
            raise known from error


async def _finish_in_thread(work: Callable[[], Result]) -> Result:
    """Run `work` in a thread to its end even if the caller is cancelled: a change is enqueued completely or not at all."""
    answers: list[Result] = []
    with anyio.CancelScope(shield=True):
        answers.append(await anyio.to_thread.run_sync(work))
    return answers[0]


def _unfinished_at(catalogue: Catalogue) -> tuple[int, list[Row]]:
    """Return the number of the latest change and the jobs that are unfinished as of it."""
    with catalogue.reading():
        return catalogue.count("SELECT coalesce(max(change), 0) FROM jobs"), catalogue.rows(UNFINISHED_JOBS)


def _version(catalogue: Catalogue) -> tuple[int, int]:
    """Return a value that changes with every commit, of other connections and of this zone's own (a cancellation)."""
    return catalogue.version(), catalogue.db.total_changes


def _changed_since(catalogue: Catalogue, change: int) -> list[Row]:
    return catalogue.rows("SELECT * FROM jobs WHERE change > ? ORDER BY change", change)
