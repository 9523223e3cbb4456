"""The zone's worker: one process per folder that carries out the jobs, started on demand and stopped when idle.

A server never owns a job: it inserts a row and makes sure that a worker runs (`ensure_worker`). The worker holds an
exclusive lock on `worker.lock` while it runs, so the kernel knows whether there is one, even after a SIGKILL. A server tests
the lock after it enqueued a job, and the worker checks for jobs again after it released the lock, so no job is missed.

The worker is detached (its own session, no parent, no terminal), so a backup continues when the client disconnects.
"""

import logging
import os
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from snapshot_mcp.catalogue import deletion, jobs, rollback, schema
from snapshot_mcp.catalogue.database import IS_UNFINISHED
from snapshot_mcp.catalogue.jobs import RETRY_SECONDS
from snapshot_mcp.contract.errors import Unavailable
from snapshot_mcp.contract.states import JobAction
from snapshot_mcp.ground import reserve
from snapshot_mcp.ground.clock import Clock
from snapshot_mcp.ground.detached import say_who, shorten_log, start_detached, take_lock
from snapshot_mcp.ground.permissions import obstacle_of, reason_of
from snapshot_mcp.providers.local.folder import FOLDERS, FolderCatalogue, file_at
from snapshot_mcp.providers.local.holders import is_locked
from snapshot_mcp.providers.local.in_use import LOCK_NAME
from snapshot_mcp.providers.local.platform import lift_file_limit
from snapshot_mcp.providers.local.spare import keep_copy
from snapshot_mcp.providers.local.strays import needed_by_strays
from snapshot_mcp.providers.local.whereabouts import is_a_copy
from snapshot_mcp.providers.local.work import carry_out

LOG_NAME: Final = "worker.log"
IDLE_SECONDS: Final = 10.0
"""How long an idle worker stays, since starting one takes a fifth of a second."""

POLL_SECONDS: Final = 0.02
"""Interval between checks of the catalogue's version, which cost microseconds."""

PARALLEL_JOBS: Final = 4
"""Jobs that run at the same time, so that a short one does not wait for a long one."""

PARALLEL_VERIFICATIONS: Final = 2
"""Verifications that run at the same time: they may take hours, and nobody's backup waits for all of them."""

_VERIFYING: Final = f"(SELECT count(*) FROM jobs WHERE status = 'working' AND action = '{JobAction.VERIFY}')"

log = logging.getLogger(__name__)


def _take_lock(folder: Path) -> int | None:
    """Return a descriptor that holds the worker's lock, None if another process has it."""
    return take_lock(folder / LOCK_NAME)


def find_worker(folder: Path) -> int:
    """Return the process that is the folder's worker, 0 if none is; its lock is not touched."""
    lock = folder / LOCK_NAME
    try:
        return int(lock.read_text() or 0) if is_locked(lock) else 0
    except (OSError, ValueError):
        return 0


def ensure_worker(folder: Path) -> None:
    """Start a worker unless one is running; call it after enqueuing a job. Raises Unavailable if it does not start.

    The worker inherits the lock taken here, so no second one can start in between.
    """
    try:
        fd = _take_lock(folder)
        if fd is None:
            return
        try:
            _launch(folder, fd)
        finally:
            os.close(fd)
    except (OSError, subprocess.SubprocessError) as error:
        why, obstacle = str(error), None
        if isinstance(error, OSError):
            why, obstacle = reason_of(error, folder), obstacle_of(error, folder)
        step = obstacle.hint if obstacle else f"See {folder / LOG_NAME}."
        raise Unavailable(
            f"The embedded zone's worker could not be started: {why}.", hint=f"Jobs cannot run without it. {step}"
        ) from None


def _launch(folder: Path, lock_fd: int) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SNAPSHOT_MCP_API_")}
    os.ftruncate(lock_fd, 0)
    start_detached(
        (__name__, "main"), [str(folder), str(lock_fd)], keep=[lock_fd], log=folder / LOG_NAME, environ=environment
    )


def main(folder_name: str, lock_fd: str) -> None:
    """Run the worker's process, with the lock inherited from the process that started it.

    An unexpected error exits at once, as a SIGKILL does, since its threads must not run alongside the next worker's.
    """
    folder = Path(folder_name)
    shorten_log(folder / LOG_NAME)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(levelname)s %(message)s")
    lift_file_limit()  # a roll-back of 100 disks opens all their chains, up to 30 files each
    try:
        run(folder, IDLE_SECONDS, int(lock_fd))
    except BaseException:
        log.exception("unexpected error, the worker exits")
        os._exit(1)


def run(folder: Path, idle_seconds: float, lock_fd: int | None = None, clock: Clock | None = None) -> None:
    """Carry out the folder's jobs until there were none for `idle_seconds` or the folder is removed.

    It checks for jobs again after releasing the lock: for one enqueued before that, no other worker was started.
    """
    try:
        while _serve_once(folder, idle_seconds, lock_fd, clock):
            lock_fd = None
    except (OSError, sqlite3.Error):
        if file_at(folder) is not None:
            raise


def _serve_once(folder: Path, idle_seconds: float, lock_fd: int | None, clock: Clock | None) -> bool:
    """Be the worker until idle, and return whether there are jobs again; False if another process is the worker."""
    fd = _take_lock(folder) if lock_fd is None else lock_fd
    if fd is None:
        return False
    say_who(fd)
    with FolderCatalogue(folder, create=False, clock=clock) as catalogue:
        if catalogue.original:
            log.warning("%s", is_a_copy(folder, catalogue.original))
            os.close(fd)
            return False
        _Worker(catalogue, idle_seconds).serve()
    os.close(fd)  # not after an error: jobs may still run, and exiting releases the lock
    with FolderCatalogue(folder, create=False) as catalogue:
        return catalogue.row(f"SELECT 1 FROM jobs WHERE {IS_UNFINISHED}") is not None


class _Worker:
    """Takes jobs from the catalogue and runs each in a thread."""

    def __init__(self, catalogue: FolderCatalogue, idle_seconds: float) -> None:
        self.catalogue, self.idle_seconds = catalogue, idle_seconds
        self.threads: dict[str, threading.Thread] = {}

    def serve(self) -> None:
        log.info("worker started")
        self._remove_partials()
        orphans = self.catalogue.rows(
            f"SELECT job_id, run_count FROM jobs WHERE {IS_UNFINISHED} AND status = 'working' ORDER BY created_at"
        )
        for orphan in orphans:
            log.info("resuming job %s", orphan["job_id"])
            with self.catalogue.transaction():
                self.catalogue.set_job(orphan["job_id"], run_count=orphan["run_count"] + 1)
            self._start(orphan["job_id"])
        rollback.resume(self.catalogue)
        self._in_thread("upkeep", self._purge)
        version, idle_since = -1, time.monotonic()
        while True:
            self.threads = {name: thread for name, thread in self.threads.items() if thread.is_alive()}
            if not self.catalogue.is_in_place:
                return
            seen = self.catalogue.version()
            if seen != version or self.threads:
                version = seen
                try:
                    while job_id := self._take(only_urgent=len(self.threads) >= PARALLEL_JOBS):
                        self._start(job_id)
                except sqlite3.OperationalError as error:  # full or busy, which ends no running job
                    log.warning("cannot start a job yet: %s", error)
                    version = -1
                    time.sleep(RETRY_SECONDS)
            if self.threads:
                idle_since = time.monotonic()
            elif time.monotonic() - idle_since > self.idle_seconds:
                self._purge()  # again: at the start a job may have held what was to be purged
                self._copy()
                log.info("worker is idle and exits")
                return
            time.sleep(POLL_SECONDS)

    def _take(self, *, only_urgent: bool) -> str | None:
        """Mark the next job as working and return it; None if there is none or a newer program migrated the catalogue.

        Jobs with a deadline to start come first; `only_urgent` returns no others.
        """
        which = (
            "begin_until != 0"
            if only_urgent
            else f"(action != '{JobAction.VERIFY}' OR {_VERIFYING} < {PARALLEL_VERIFICATIONS})"
        )
        query = f"""SELECT * FROM jobs WHERE {IS_UNFINISHED} AND status = 'pending' AND {which}
            ORDER BY begin_until != 0 DESC, created_at, change LIMIT 1"""
        if schema.is_newer(self.catalogue.db) or self.catalogue.row(query) is None:
            return None
        with self.catalogue.transaction():
            job = self.catalogue.row(query)
            if job is None:
                return None
            self.catalogue.set_job(job["job_id"], status="working", begun_at=self.catalogue.now(), run_count=1)
            return str(job["job_id"])

    def _connect(self) -> FolderCatalogue:
        return FolderCatalogue(self.catalogue.folder, create=False, clock=self.catalogue.clock)

    def _start(self, job_id: str) -> None:
        def target() -> None:
            with self._connect() as catalogue:
                carry_out(catalogue, job_id)

        self._in_thread(job_id, target)

    def _in_thread(self, name: str, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target, name=name, daemon=True)
        self.threads[name] = thread
        thread.start()

    def _purge(self) -> None:
        try:
            with self._connect() as catalogue:
                for snapshot_id in deletion.purge(catalogue, needed=needed_by_strays(catalogue, catalogue.folder)):
                    log.info("purged %s", snapshot_id)
                jobs.forget_old(catalogue)
            reserve.make(self.catalogue.folder)
        except (OSError, sqlite3.Error):
            if self.catalogue.is_in_place:
                raise

    def _copy(self) -> None:
        """Keep the copy of the catalogue fresh; without one a rebuild knows less, so a failure is only logged."""
        try:
            if keep_copy(self.catalogue):
                log.info("copied the catalogue")
        except (sqlite3.Error, OSError) as error:
            log.warning("cannot copy the catalogue: %s", error)

    def _remove_partials(self) -> None:
        """Remove files that a dead worker left unfinished; nobody else writes them while this one holds the lock."""
        for name in ("", *FOLDERS):
            for partial in (self.catalogue.folder / name).glob(".*.partial"):
                partial.unlink(missing_ok=True)
