"""The zone's worker: one process a folder that carries the jobs out, started on demand, gone when it is idle.

A server never owns a job: it enters a row and makes sure that a worker runs (`ensure_worker`). The worker holds an
exclusive lock on `worker.lock` for as long as it lives, so the kernel tells whether there is one, also after a SIGKILL.
Whoever enters a job tests the lock afterwards, and the worker looks for jobs once more after it gave the lock up: one
of the two sees the other, whatever the order.

It is detached (its own session, no parent, no terminal): the end of the conversation that asked ends no backup.
"""

import fcntl
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from snapshot_mcp.contract.errors import Unavailable
from snapshot_mcp.providers.local.catalogue import Catalogue, now
from snapshot_mcp.providers.local.work import apply, carry_out, delete

LOCK_NAME: Final = "worker.lock"
LOG_NAME: Final = "worker.log"
MAX_LOG_BYTES: Final = 1 << 20

IDLE_SECONDS: Final = 10.0
"""Starting a worker costs a fifth of a second; a person's next request often comes within this time."""

POLL_SECONDS: Final = 0.02
"""Between two looks at the catalogue's version, which costs microseconds."""

PARALLEL_JOBS: Final = 4
"""Jobs of different resources run side by side, so that a short one does not wait for a long one."""

START_SECONDS: Final = 2.0
"""A new worker tries so long to get the lock: a test of the lock by somebody else holds it for an instant."""

_LAUNCH: Final = (
    "import os, sys\n"
    "if os.fork(): os._exit(0)\n"
    "from snapshot_mcp.providers.local.worker import main\n"
    "main(sys.argv[1])\n"
)
"""Forks before anything is imported: the parent ends in milliseconds, and the worker belongs to no one."""

log = logging.getLogger(__name__)


def is_running(folder: Path) -> bool:
    """Whether a worker lives on the folder."""
    try:
        fd = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def ensure_worker(folder: Path) -> None:
    """Start a worker unless one lives; to be called after a job was entered. Raises Unavailable if it does not start."""
    if is_running(folder):
        return
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SNAPSHOT_MCP_API_")}
    try:
        with (folder / LOG_NAME).open("ab") as log_file:
            subprocess.run(
                [sys.executable, "-P", "-c", _LAUNCH, str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log_file,
                cwd="/",
                env=environment,
                start_new_session=True,
                check=True,
                timeout=30,
            )
    except (OSError, subprocess.SubprocessError) as error:
        raise Unavailable(
            f"The embedded zone's worker could not be started: {error}.",
            hint=f"See {folder / LOG_NAME}. The job is kept and starts with the next worker.",
        ) from None


@contextmanager
def _lock(folder: Path, patience_seconds: float) -> Iterator[bool]:
    """Hold the worker's lock, or not if another one has it."""
    fd = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + patience_seconds
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    yield False
                    return
                time.sleep(0.02)
            else:
                break
        os.ftruncate(fd, 0)
        os.write(fd, f"{os.getpid()}\n".encode())
        yield True
    finally:
        os.close(fd)


def main(folder_name: str) -> None:
    """The process: serve the folder until it is idle, and once more if a job came in at the last moment."""
    folder = Path(folder_name)
    log_path = folder / LOG_NAME
    if log_path.exists() and log_path.stat().st_size > MAX_LOG_BYTES:
        os.truncate(log_path, 0)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(levelname)s %(message)s")
    run(folder)


def run(folder: Path, idle_seconds: float = IDLE_SECONDS) -> None:
    """Carry out the folder's jobs until there were none for `idle_seconds`, unless another worker does."""
    patience = START_SECONDS
    while folder.exists():
        with _lock(folder, patience) as is_ours:
            if not is_ours:
                return
            with Catalogue(folder) as catalogue:
                _Worker(catalogue, idle_seconds).serve()
        if not folder.exists():
            return
        with Catalogue(folder) as catalogue:
            if not _has_unfinished(catalogue):
                return
        patience = 0.0


def _has_unfinished(catalogue: Catalogue) -> bool:
    return catalogue.row("SELECT 1 FROM jobs WHERE status IN ('pending', 'working')") is not None


class _Worker:
    """Takes jobs from the catalogue and runs each in a thread."""

    def __init__(self, catalogue: Catalogue, idle_seconds: float) -> None:
        self.catalogue, self.idle_seconds = catalogue, idle_seconds
        self.threads: dict[str, threading.Thread] = {}

    def serve(self) -> None:
        log.info("worker starts")
        self._remove_partials()
        orphans = self.catalogue.rows("SELECT job_id FROM jobs WHERE status = 'working' ORDER BY created_at")
        for orphan in orphans:
            log.info("takes over job %s", orphan["job_id"])
            with self.catalogue.transaction():
                self.catalogue.set_job(orphan["job_id"])
                self.catalogue.db.execute(
                    "UPDATE jobs SET run_count = run_count + 1 WHERE job_id = ?", (orphan["job_id"],)
                )
            self._start(orphan["job_id"])
        apply.resume(self.catalogue)
        self._in_thread("upkeep", self._purge)
        version, idle_since = -1, time.monotonic()
        while True:
            self.threads = {name: thread for name, thread in self.threads.items() if thread.is_alive()}
            if not self.catalogue.folder.exists():
                return
            seen = self.catalogue.version()
            if seen != version or self.threads:
                version = seen
                while len(self.threads) < PARALLEL_JOBS and (job_id := self._take()):
                    self._start(job_id)
            if self.threads:
                idle_since = time.monotonic()
            elif time.monotonic() - idle_since > self.idle_seconds:
                log.info("worker is idle and ends")
                return
            time.sleep(POLL_SECONDS)

    def _take(self) -> str | None:
        if self.catalogue.row("SELECT 1 FROM jobs WHERE status = 'pending'") is None:
            return None
        with self.catalogue.transaction():
            job = self.catalogue.row(
                "SELECT job_id FROM jobs WHERE status = 'pending' ORDER BY created_at, change LIMIT 1"
            )
            if job is None:
                return None
            self.catalogue.set_job(job["job_id"], status="working", begun_at=now(), run_count=1)
            return str(job["job_id"])

    def _start(self, job_id: str) -> None:
        def target() -> None:
            with Catalogue(self.catalogue.folder) as catalogue:
                carry_out(catalogue, job_id)

        self._in_thread(job_id, target)

    def _in_thread(self, name: str, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target, name=name, daemon=True)
        self.threads[name] = thread
        thread.start()

    def _purge(self) -> None:
        with Catalogue(self.catalogue.folder) as catalogue:
            for snapshot_id in delete.purge(catalogue):
                log.info("purged %s", snapshot_id)

    def _remove_partials(self) -> None:
        """What a dead worker left unfinished; we hold the lock, so nobody is writing them."""
        for name in ("snapshots", "volumes", "images"):
            for partial in (self.catalogue.folder / name).glob(".*.partial"):
                partial.unlink(missing_ok=True)
