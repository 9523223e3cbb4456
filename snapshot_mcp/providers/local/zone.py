"""`LocalZone`: the embedded zone as a Provider. A thin async shell: it checks, enters jobs, and reads; the worker works.

Nothing is made on disk before the first change. Every method may be called from any number of processes on one folder.
"""

import logging
import sqlite3
import threading
from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import anyio
import anyio.to_thread

from snapshot_mcp.contract.errors import BadRequest, NotFound, Unavailable, ZoneError
from snapshot_mcp.contract.keep_free import DEFAULT_KEEP_FREE, KeepFree
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
from snapshot_mcp.contract.states import JobAction, ResourceType
from snapshot_mcp.contract.terms import Terms
from snapshot_mcp.contract.text import clean_text
from snapshot_mcp.providers.local import admission, listing, registration, withdrawal
from snapshot_mcp.providers.local.admission import Rules
from snapshot_mcp.providers.local.answers import to_job, to_resource
from snapshot_mcp.providers.local.catalogue import IS_UNFINISHED, Catalogue, Row
from snapshot_mcp.providers.local.check import Advance, CheckReport, check
from snapshot_mcp.providers.local.work import delete
from snapshot_mcp.providers.local.work.outcome import from_os_error, from_sqlite_error
from snapshot_mcp.providers.local.worker import ensure_worker

WATCH_SECONDS: Final = 0.03
"""Between two looks for a change; a look costs microseconds."""

ALIVE_SECONDS: Final = 1.0
"""How often a watcher makes sure that a worker lives while there is work."""

UNFINISHED_JOBS: Final = f"SELECT * FROM jobs WHERE {IS_UNFINISHED} ORDER BY created_at, change"

Answer = TypeVar("Answer")

log = logging.getLogger(__name__)


class LocalZone:
    """The embedded zone in `folder` (see `contract.Provider` for the methods).

    `recovery_seconds`: grace after a deletion; `chain_limit`: available snapshots in a chain before the next is full;
    `allow_fuzzy`: capture disks that are in use although the copy may be a mixture (and say so).
    """

    features = frozenset(
        {
            Feature.RECOVER,
            Feature.RECOVER_INCREMENTALS,
            Feature.WATCH,
            Feature.TAGS,
            Feature.PROGRESS,
            Feature.TERMS,
            Feature.ONE_HOLD,
            Feature.CANCEL,
        }
    )

    def __init__(
        self,
        folder: Path,
        zone: str = "local",
        recovery_seconds: int = 7200,
        chain_limit: int = 30,
        allow_fuzzy: bool = False,
        keep_free: KeepFree = DEFAULT_KEEP_FREE,
        home: Path | None = None,
        configuration: Sequence[Path] = (),
    ) -> None:
        self.folder = folder.absolute()
        self.zone = zone
        self.recovery_seconds = recovery_seconds
        self.keep_free = keep_free
        self.home = home
        self.configuration = tuple(configuration)
        self._rules = Rules(recovery_seconds, chain_limit, allow_fuzzy, keep_free)
        self._catalogue: Catalogue | None = None
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"LocalZone({self.zone!r}, {str(self.folder)!r})"

    @property
    def location(self) -> str:
        return str(self.folder)

    async def aclose(self) -> None:
        def close() -> None:
            with self._lock:
                if self._catalogue:
                    self._catalogue.close()
                    self._catalogue = None

        await anyio.to_thread.run_sync(close)

    # changes

    async def add_resource(
        self, path: Path, name: str = "", resource_type: ResourceType = ResourceType.VOLUME
    ) -> Volume | Instance:
        """Register a raw disk image (`registration`). Raises BadRequest, NotUsable, ResourceBusy, Unsupported."""
        return await self._write(
            lambda catalogue: to_resource(
                admission.register(catalogue, path, name, resource_type, self.home, self.configuration)
            )
        )

    async def remove_resource(self, resource_id: str) -> Volume | Instance:
        """Forget a disk image; its file and its snapshots stay. Raises NotFound, ResourceBusy."""
        return await self._write(lambda catalogue: to_resource(registration.unregister(catalogue, resource_id)))

    async def create_snapshots(self, resource_ids: Sequence[str], snapshot_name: str, *, is_full: bool = False) -> Job:
        return await self._enter(
            partial(admission.create, resource_ids=resource_ids, name=snapshot_name, is_full=is_full, rules=self._rules)
        )

    async def delete_snapshot(self, snapshot_id: str, *, terms: Terms | None = None) -> Job:
        return await self._enter(partial(admission.delete, snapshot_id=snapshot_id, rules=self._rules, terms=terms))

    async def apply_snapshots(
        self, snapshot_ids: Sequence[str], *, terms: Terms | None = None, safety_snapshot_name: str = ""
    ) -> Job:
        return await self._enter(
            partial(
                admission.apply,
                snapshot_ids=snapshot_ids,
                rules=self._rules,
                terms=terms,
                safety_name=safety_snapshot_name,
            )
        )

    async def capture_instance(self, snapshot_id: str, image_name: str) -> Job:
        return await self._enter(
            partial(
                admission.export,
                action=JobAction.CAPTURE_INSTANCE,
                snapshot_id=snapshot_id,
                name=image_name,
                rules=self._rules,
            )
        )

    async def create_volume(self, snapshot_id: str, volume_name: str) -> Job:
        return await self._enter(
            partial(
                admission.export,
                action=JobAction.CREATE_VOLUME,
                snapshot_id=snapshot_id,
                name=volume_name,
                rules=self._rules,
            )
        )

    async def recover_snapshots(self, snapshot_ids: Sequence[str]) -> Job:
        return await self._enter(partial(admission.recover, snapshot_ids=snapshot_ids))

    async def cancel_job(self, job_id: str) -> Job:
        job = await self._write(lambda catalogue: to_job(withdrawal.cancel(catalogue, job_id), self.zone))
        return job if job.is_finished else await self._with_worker(job)

    async def update_snapshot(self, snapshot_id: str, update: SnapshotUpdate) -> None:
        await self._write(lambda catalogue: admission.update(catalogue, snapshot_id, update))

    async def purge(self, snapshot_ids: Collection[str] | None = None) -> tuple[str, ...]:
        """Free the space of these deleted snapshots at once (None: of all), and of those whose grace is over; what ceased.

        What one deletion took goes together: with an id that is not named it waits for the end of its grace.
        """
        return tuple(await self._write(lambda catalogue: delete.purge(catalogue, at_once=snapshot_ids)))

    # looks

    async def check(self, advance: Advance = lambda done, total: None) -> CheckReport:
        """Read back and verify every byte of every snapshot (`check.check`); remembers what is damaged."""

        def run() -> CheckReport:
            if not Catalogue.exists(self.folder):
                return CheckReport(0, 0, ())
            with _in_our_words(), Catalogue(self.folder) as catalogue:
                return check(catalogue, advance)

        return await anyio.to_thread.run_sync(run)

    async def list_snapshots(self, query: SnapshotFilter) -> Page[Snapshot]:
        return await self._read(lambda catalogue: listing.snapshots(catalogue, query), Page((), 0))

    async def list_volumes(self, query: ResourceFilter) -> Page[Volume]:
        return await self._read(lambda catalogue: listing.volumes(catalogue, query), Page((), 0))

    async def list_instances(self, query: ResourceFilter) -> Page[Instance]:
        return await self._read(lambda catalogue: listing.instances(catalogue, query), Page((), 0))

    async def list_images(self, query: ResourceFilter) -> Page[Image]:
        return await self._read(lambda catalogue: listing.images(catalogue, query), Page((), 0))

    async def list_quota_left(self) -> tuple[Quota, ...]:
        limit = self._rules.chain_limit
        return await self._read(lambda catalogue: listing.quotas(catalogue, limit), ())

    async def get_job(self, job_id: str) -> Job:
        def read(catalogue: Catalogue) -> Job | None:
            withdrawal.expire(catalogue)
            row = catalogue.job(job_id)
            return to_job(row, self.zone) if row else None

        job = await self._read(read, None)
        if job is None:
            raise NotFound(
                f"There is no job {clean_text(job_id)!r} in zone {self.zone}.", hint="List the unfinished jobs."
            )
        return job if job.is_finished else await self._with_worker(job)

    async def list_unfinished_jobs(self) -> tuple[Job, ...]:
        def read(catalogue: Catalogue) -> tuple[Job, ...]:
            withdrawal.expire(catalogue)
            return tuple(to_job(row, self.zone) for row in catalogue.rows(UNFINISHED_JOBS))

        nothing: tuple[Job, ...] = ()
        jobs = await self._read(read, nothing)
        return (await self._with_worker(jobs[0]), *jobs[1:]) if jobs else ()

    async def watch_jobs(self) -> AsyncGenerator[tuple[Job, ...], None]:
        """List the unfinished jobs, then yield what changes its status or progress; keep a worker alive for them."""
        nothing: list[Row] = []
        seen, unfinished = await self._read(_unfinished_at, (0, nothing))
        yield tuple(to_job(row, self.zone) for row in unfinished)
        version, checked_at = (-1, -1), anyio.current_time()
        while True:
            await anyio.sleep(WATCH_SECONDS)
            current = await self._read(_version, (-1, -1))
            if current != version:
                version = current
                if changed := await self._read(partial(_changed_since, change=seen), nothing):
                    seen = changed[-1]["change"]
                    yield tuple(to_job(row, self.zone) for row in changed)
            if anyio.current_time() - checked_at > ALIVE_SECONDS:
                checked_at = anyio.current_time()
                await self.list_unfinished_jobs()

    # the shell

    async def _enter(self, admit: Callable[[Catalogue], Row]) -> Job:
        """Enter a job, see to it that a worker lives, and answer the job as it was entered.

        Where no worker can be started the entry is withdrawn before the refusal is answered; where it cannot be withdrawn
        (a worker has taken it, or the catalogue cannot be written) it is answered as the job that it is.
        """

        def enter() -> Job:
            with self._lock, _in_our_words():
                job = to_job(admit(self._opened()), self.zone)
            try:
                ensure_worker(self.folder)
            except Unavailable as error:
                if self._is_withdrawn(job.job_id, error):
                    raise
            return job

        return await _finish_in_thread(enter)

    def _is_withdrawn(self, job_id: str, reason: Unavailable) -> bool:
        try:
            with self._lock, _in_our_words():
                return withdrawal.withdraw(self._opened(), job_id, reason)
        except ZoneError:
            log.exception("job %s could not be withdrawn, so it stays entered", job_id)
            return False

    async def _with_worker(self, job: Job) -> Job:
        """See to it that a worker lives, and answer the job; where none can be started, it says so."""
        try:
            await _finish_in_thread(partial(ensure_worker, self.folder))
        except Unavailable as error:
            return job.model_copy(update={"info": str(error)})
        return job

    async def _write(self, work: Callable[[Catalogue], Answer]) -> Answer:
        def locked() -> Answer:
            with self._lock, _in_our_words():
                return work(self._opened())

        return await _finish_in_thread(locked)

    async def _read(self, work: Callable[[Catalogue], Answer], empty: Answer) -> Answer:
        """Read, or answer `empty` where there is no catalogue yet: looking makes none."""

        def locked() -> Answer:
            with self._lock, _in_our_words():
                if self._catalogue is None and not Catalogue.exists(self.folder):
                    return empty
                return work(self._opened())

        return await anyio.to_thread.run_sync(locked)

    def _opened(self) -> Catalogue:
        if self._catalogue is None:
            self._catalogue = Catalogue(self.folder)
        return self._catalogue


@contextmanager
def _in_our_words() -> Iterator[None]:
    """Text that is none (JSON can spell half a surrogate pair), a full disk and a damaged catalogue are no bugs of ours."""
    try:
        yield
    except UnicodeEncodeError as error:
        raise BadRequest(f"{clean_text(error.object)!r} is no valid Unicode text.", hint="Use another one.") from None
    except sqlite3.Error as error:
        known = from_sqlite_error(error)
        if known is None:
            raise
        raise known from error
    except OSError as error:
        raise from_os_error(error) from error


async def _finish_in_thread(work: Callable[[], Answer]) -> Answer:
    """Run `work` in a thread to its end, also when the caller gives up: a change is entered whole or not at all."""
    answers: list[Answer] = []
    with anyio.CancelScope(shield=True):
        answers.append(await anyio.to_thread.run_sync(work))
    return answers[0]


def _unfinished_at(catalogue: Catalogue) -> tuple[int, list[Row]]:
    """Return the number of the latest change, and the jobs that were unfinished with it."""
    with catalogue.reading():
        latest = catalogue.row("SELECT coalesce(max(change), 0) AS change FROM jobs")
        return int(latest["change"]) if latest else 0, catalogue.rows(UNFINISHED_JOBS)


def _version(catalogue: Catalogue) -> tuple[int, int]:
    """Return what differs once anybody has committed: other connections, and this zone's own (a cancel, a withdrawal)."""
    return catalogue.version(), catalogue.db.total_changes


def _changed_since(catalogue: Catalogue, change: int) -> list[Row]:
    return catalogue.rows("SELECT * FROM jobs WHERE change > ? ORDER BY change", change)
