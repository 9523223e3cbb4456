"""`Worker`: the loop of a process that carries out a zone's jobs until there are none; a store has its own kind of it.

A server never owns a job: it inserts a row and makes sure that a worker runs, which takes the row and runs it in a thread.
"""

import logging
import sqlite3
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from snapshot_mcp.catalogue import rollback
from snapshot_mcp.catalogue.database import IS_UNFINISHED, Catalogue
from snapshot_mcp.catalogue.jobs import RETRY_SECONDS
from snapshot_mcp.catalogue.store import Row
from snapshot_mcp.contract.states import JobAction

IDLE_SECONDS: Final = 10.0
"""How long an idle worker stays, since starting one takes a fifth of a second."""

PARALLEL_JOBS: Final = 4
"""Jobs that run at the same time, so that a short one does not wait for a long one."""

PARALLEL_OF_A_KIND: Final = {JobAction.VERIFY: 2, JobAction.COPY: 2}
"""Jobs of a kind that run at the same time: they may take hours, and nobody's backup waits for all of them."""

C = TypeVar("C", bound=Catalogue)

log = logging.getLogger(__name__)


class Worker(ABC, Generic[C]):
    """Takes jobs from the catalogue and runs each in a thread."""

    poll_seconds = 0.02
    """Interval between checks of the catalogue's version."""

    def __init__(self, catalogue: C, idle_seconds: float = IDLE_SECONDS) -> None:
        self.catalogue, self.idle_seconds = catalogue, idle_seconds
        self.threads: dict[str, threading.Thread] = {}

    @property
    def is_in_place(self) -> bool:
        """Whether the catalogue is still the zone's; a worker whose zone was removed ends."""
        return True

    @property
    def may_take(self) -> bool:
        """Whether jobs may be begun now."""
        return True

    @abstractmethod
    def prepare(self) -> None:
        """Clear up after a worker that died, and go on with its jobs."""

    @abstractmethod
    def upkeep(self) -> None:
        """Purge, and forget what ended long ago; in a thread at the start, and once the worker is idle."""

    @abstractmethod
    def run_job(self, job_id: str) -> None:
        """Carry out a job that is `working`, in the thread that calls it."""

    def leave(self) -> None:
        """Do what an idle worker does before it ends."""

    def wait(self) -> None:
        """Wait until the catalogue may have changed."""
        time.sleep(self.poll_seconds)

    def look_around(self) -> bool:
        """Do what is due between two looks at the catalogue; return whether there is still something to wait for."""
        return False

    def claim(self, job: Row) -> bool:
        """Return whether this worker may take a waiting job."""
        return True

    def serve(self) -> None:
        """Carry out jobs until there were none for a while, or the zone is removed."""
        log.info("worker started")
        self.prepare()
        rollback.resume(self.catalogue)
        self.in_thread("upkeep", self.upkeep)
        version, idle_since = -1, time.monotonic()
        while True:
            self.threads = {name: thread for name, thread in self.threads.items() if thread.is_alive()}
            if not self.is_in_place:
                return
            is_waiting = self.look_around()
            seen = self.catalogue.version()
            if seen != version or self.threads:
                version = seen
                try:
                    while job_id := self._take(only_urgent=len(self.threads) >= PARALLEL_JOBS):
                        self.start(job_id)
                except sqlite3.OperationalError as error:  # full or busy, which ends no running job
                    log.warning("cannot start a job yet: %s", error)
                    version = -1
                    time.sleep(RETRY_SECONDS)
            if self.threads or is_waiting:
                idle_since = time.monotonic()
            elif time.monotonic() - idle_since > self.idle_seconds:
                self.upkeep()  # again: at the start a job may have held what was to be purged
                self.leave()
                log.info("worker is idle and exits")
                return
            self.wait()

    def _take(self, *, only_urgent: bool) -> str | None:
        """Mark the next job as working and return it, None if there is none.

        Jobs with a deadline to start come first; `only_urgent` returns no others.
        """
        if not self.may_take or self._next(only_urgent=only_urgent) is None:
            return None
        with self.catalogue.transaction():
            job = self._next(only_urgent=only_urgent)
            if job is None:
                return None
            self.catalogue.set_job(job["job_id"], status="working", begun_at=self.catalogue.now(), run_count=1)
            self.note_taken(job["job_id"])
            return str(job["job_id"])

    def note_taken(self, job_id: str) -> None:
        """Record whose the job is now, within the transaction that takes it."""

    def _next(self, *, only_urgent: bool) -> Row | None:
        running = "(SELECT count(*) FROM jobs WHERE status = 'working' AND action = '{}')"
        bounds = (
            f"(action != '{action}' OR {running.format(action)} < {most})"
            for action, most in PARALLEL_OF_A_KIND.items()
        )
        which = "begin_until != 0" if only_urgent else " AND ".join(bounds)
        waiting = self.catalogue.rows(
            f"""SELECT * FROM jobs WHERE {IS_UNFINISHED} AND status = 'pending' AND {which}
            ORDER BY begin_until != 0 DESC, created_at, change LIMIT 200"""
        )
        return next(filter(self.claim, waiting), None)

    def start(self, job_id: str) -> None:
        """Run a job in a thread."""
        self.in_thread(job_id, lambda: self.run_job(job_id))

    def in_thread(self, name: str, target: Callable[[], None]) -> None:
        """Run something in a thread that the worker waits for."""
        thread = threading.Thread(target=target, name=name, daemon=True)
        self.threads[name] = thread
        thread.start()
