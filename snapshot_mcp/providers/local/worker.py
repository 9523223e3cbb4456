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
from pathlib import Path
from typing import Final

from snapshot_mcp.catalogue import deletion, jobs, schema
from snapshot_mcp.catalogue.database import IS_UNFINISHED
from snapshot_mcp.catalogue.store import Row
from snapshot_mcp.catalogue.worker import IDLE_SECONDS, Worker
from snapshot_mcp.contract.errors import Unavailable
from snapshot_mcp.contract.parts import Copier
from snapshot_mcp.contract.states import JobAction
from snapshot_mcp.ground import reserve
from snapshot_mcp.ground.clock import Clock
from snapshot_mcp.ground.detached import say_who, shorten_log, start_detached, take_lock
from snapshot_mcp.ground.permissions import obstacle_of, reason_of
from snapshot_mcp.providers import WorkerProgram
from snapshot_mcp.providers.local.clones import FOLDER_NAME as CLONES
from snapshot_mcp.providers.local.folder import FOLDERS, FolderCatalogue, file_at
from snapshot_mcp.providers.local.holders import is_locked
from snapshot_mcp.providers.local.in_use import LOCK_NAME
from snapshot_mcp.providers.local.machine.disk import connect
from snapshot_mcp.providers.local.machine.left import sweep
from snapshot_mcp.providers.local.platform import lift_file_limit
from snapshot_mcp.providers.local.spare import keep_copy
from snapshot_mcp.providers.local.strays import needed_by_strays
from snapshot_mcp.providers.local.whereabouts import is_a_copy
from snapshot_mcp.providers.local.work import carry_out

LOG_NAME: Final = "worker.log"

PROGRAM: Final = WorkerProgram(__name__, "main")
"""A worker that copies nothing elsewhere."""

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


def ensure_worker(folder: Path, program: WorkerProgram = PROGRAM) -> None:
    """Start a worker unless one is running; call it after enqueuing a job. Raises Unavailable if it does not start.

    The worker inherits the lock taken here, so no second one can start in between.
    """
    try:
        fd = _take_lock(folder)
        if fd is None:
            return
        try:
            _launch(folder, fd, program)
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


def _launch(folder: Path, lock_fd: int, program: WorkerProgram) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SNAPSHOT_MCP_API_")}
    environment |= program.variables
    os.ftruncate(lock_fd, 0)
    start_detached(
        (program.module, program.function),
        [str(folder), str(lock_fd)],
        keep=[lock_fd],
        log=folder / LOG_NAME,
        environ=environment,
    )


def main(folder_name: str, lock_fd: str, copier: Copier | None = None) -> None:
    """Run the worker's process, with the lock inherited from the process that started it.

    An unexpected error exits at once, as a SIGKILL does, since its threads must not run alongside the next worker's.
    """
    folder = Path(folder_name)
    shorten_log(folder / LOG_NAME)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(levelname)s %(message)s")
    lift_file_limit()  # a roll-back of 100 disks opens all their chains, up to 30 files each
    try:
        run(folder, IDLE_SECONDS, int(lock_fd), copier=copier)
    except BaseException:
        log.exception("unexpected error, the worker exits")
        os._exit(1)


def run(
    folder: Path,
    idle_seconds: float,
    lock_fd: int | None = None,
    clock: Clock | None = None,
    copier: Copier | None = None,
) -> None:
    """Carry out the folder's jobs until there were none for `idle_seconds` or the folder is removed.

    It checks for jobs again after releasing the lock: for one enqueued before that, no other worker was started.
    """
    try:
        while _serve_once(folder, idle_seconds, lock_fd, clock, copier):
            lock_fd = None
    except (OSError, sqlite3.Error):
        if file_at(folder) is not None:
            raise


def _serve_once(
    folder: Path, idle_seconds: float, lock_fd: int | None, clock: Clock | None, copier: Copier | None
) -> bool:
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
        _Worker(catalogue, idle_seconds, copier).serve()
    os.close(fd)  # not after an error: jobs may still run, and exiting releases the lock
    with FolderCatalogue(folder, create=False) as catalogue:
        return catalogue.row(f"SELECT 1 FROM jobs WHERE {IS_UNFINISHED}") is not None


class _Worker(Worker[FolderCatalogue]):
    """The worker of a folder, whose jobs each have a connection of their own."""

    def __init__(self, catalogue: FolderCatalogue, idle_seconds: float, copier: Copier | None = None) -> None:
        super().__init__(catalogue, idle_seconds)
        self.copier = copier

    @property
    def is_in_place(self) -> bool:
        """Whether the catalogue that is open is still the folder's."""
        return self.catalogue.is_in_place

    @property
    def may_take(self) -> bool:
        """Whether no newer program has migrated the catalogue."""
        return not schema.is_newer(self.catalogue.db)

    def prepare(self) -> None:
        """Remove what a worker that died left unfinished, also in running machines, and go on with its jobs."""
        self._remove_partials()
        sweep(self.catalogue.folder, connect)
        orphans = self.catalogue.rows(
            f"SELECT job_id, run_count FROM jobs WHERE {IS_UNFINISHED} AND status = 'working' ORDER BY created_at"
        )
        for orphan in orphans:
            log.info("resuming job %s", orphan["job_id"])
            with self.catalogue.transaction():
                self.catalogue.set_job(orphan["job_id"], run_count=orphan["run_count"] + 1)
            self.start(orphan["job_id"])

    def claim(self, job: Row) -> bool:
        """Let two runs of one copy follow each other."""
        if job["action"] != JobAction.COPY:
            return True
        query = f"SELECT 1 FROM jobs WHERE {IS_UNFINISHED} AND status = 'working' AND action = ? AND request = ?"
        return self.catalogue.row(query, JobAction.COPY, job["request"]) is None

    def run_job(self, job_id: str) -> None:
        """Carry a job out over a connection of its own."""
        with self._connect() as catalogue:
            carry_out(catalogue, job_id, self.copier)

    def _connect(self) -> FolderCatalogue:
        return FolderCatalogue(self.catalogue.folder, create=False, clock=self.catalogue.clock)

    def upkeep(self) -> None:
        """Purge what nothing builds on, forget old jobs, and put the reserve back."""
        try:
            with self._connect() as catalogue:
                for snapshot_id in deletion.purge(catalogue, needed=needed_by_strays(catalogue, catalogue.folder)):
                    log.info("purged %s", snapshot_id)
                catalogue.store.clones.tidy(catalogue)
                jobs.forget_old(catalogue)
            reserve.make(self.catalogue.folder)
        except (OSError, sqlite3.Error):
            if self.catalogue.is_in_place:
                raise

    def leave(self) -> None:
        """Keep the copy of the catalogue fresh; without one a rebuild knows less, so a failure is only logged."""
        try:
            if keep_copy(self.catalogue):
                log.info("copied the catalogue")
        except (sqlite3.Error, OSError) as error:
            log.warning("cannot copy the catalogue: %s", error)

    def _remove_partials(self) -> None:
        """Remove files that a dead worker left unfinished; nobody else writes them while this one holds the lock."""
        for name in ("", *FOLDERS, CLONES):
            for partial in (self.catalogue.folder / name).glob(".*.partial"):
                partial.unlink(missing_ok=True)
