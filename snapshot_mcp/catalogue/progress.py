"""How far a job is, written down for whoever watches."""

import json
import sqlite3
import time
from typing import Final

from snapshot_mcp.catalogue.database import Catalogue
from snapshot_mcp.catalogue.outcome import refuse_cancelled
from snapshot_mcp.catalogue.room import Floor
from snapshot_mcp.catalogue.store import Row

PROGRESS_SECONDS: Final = 0.25
"""So often progress is written down, each time with a commit, and a running job looks whether it was called off."""


class JobProgress:
    """How far a job is, written to the catalogue now and then; `total` is known from the start of a phase.

    `start` and `advance` raise Cancelled when the job was called off.
    With a `floor` a job is stopped before it fills the zone's filesystem (`advance` raises StorageFull).
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
        """Count bytes as done, and write it down now and then."""
        self._done += amount
        if self.floor:
            self.floor.check()
        if time.monotonic() - self._written >= PROGRESS_SECONDS:
            self._write()
            refuse_cancelled(self._catalogue, self._job)

    def finish(self) -> None:
        """Count the phase as done."""
        self._done = self._total
        self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        text = json.dumps({"done": self._done, "total": self._total, "phase": self._phase, "unit": "bytes"})
        try:
            with self._catalogue.transaction():
                self._catalogue.set_job(self._job_id, progress=text)
        except sqlite3.OperationalError:
            """Progress is a courtesy: a full disk or a busy catalogue must not end the job through it."""
