"""Record how far a job is, for whoever watches it."""

import json
import sqlite3
import time
from typing import Final

from snapshot_mcp.catalogue.database import Catalogue
from snapshot_mcp.catalogue.outcome import refuse_cancelled
from snapshot_mcp.catalogue.room import Floor
from snapshot_mcp.catalogue.store import Row

PROGRESS_SECONDS: Final = 0.25
"""Interval at which a running job commits its progress and checks whether it was cancelled."""


class JobProgress:
    """How far a job is within its present phase, written to the catalogue at intervals.

    `start` and `advance` raise Cancelled if the job was cancelled. With a `floor`, `advance` raises StorageFull before the job
    fills the zone's filesystem.
    """

    def __init__(self, catalogue: Catalogue, job: Row) -> None:
        self._catalogue, self._job, self._job_id = catalogue, job, job["job_id"]
        self._phase, self._done, self._total = "", 0, 0
        self._written = 0.0
        self.floor: Floor | None = None

    def start(self, phase: str, total: int) -> None:
        """Begin a phase of `total` bytes."""
        self._phase, self._done, self._total = phase, 0, total
        self._write()
        refuse_cancelled(self._catalogue, self._job)

    def advance(self, amount: int) -> None:
        """Count bytes as done."""
        self._done += amount
        if self.floor:
            self.floor.check()
        if time.monotonic() - self._written >= PROGRESS_SECONDS:
            self._write()
            refuse_cancelled(self._catalogue, self._job)

    def finish(self) -> None:
        """Count the whole phase as done."""
        self._done = self._total
        self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        text = json.dumps({"done": self._done, "total": self._total, "phase": self._phase, "unit": "bytes"})
        try:
            with self._catalogue.transaction():
                self._catalogue.set_job(self._job_id, progress=text)
        except sqlite3.OperationalError:
            """A full disk or a busy catalogue must not end the job for the sake of its progress."""
