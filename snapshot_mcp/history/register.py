"""HOME/history.sqlite: the jobs that were submitted from this home, kept for 90 days; shared by all its processes.

Readable by its owner alone, because it names who asked for what. It is made with the first job. Blocking; call it in a worker
thread.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from snapshot_mcp.contract.errors import InternalError
from snapshot_mcp.contract.states import JobAction
from snapshot_mcp.contract.text import encodable
from snapshot_mcp.ground import reserve, sqlite
from snapshot_mcp.ground.files import make_private_folder
from snapshot_mcp.ground.permissions import obstacle_of, reason_of
from snapshot_mcp.history.entry import Entry, from_json, to_json

MAX_CREATES = 200
"""Creates that are searched for an equal one; more in ten minutes come from a program, which counts its names."""

KEPT_SECONDS = 90 * 24 * 3600.0
"""How long a job is kept after something last happened to it."""

BUSY_SECONDS = 1.5
"""How long to wait for the lock; transactions take milliseconds, and a job's answer waits for them."""

_TABLES = """
CREATE TABLE jobs (
    location TEXT NOT NULL,
    job_id TEXT NOT NULL,
    zone TEXT NOT NULL,
    action TEXT NOT NULL,
    status TEXT NOT NULL,
    error TEXT NOT NULL,
    submitted_at REAL,
    ended_at REAL,
    at REAL NOT NULL,
    about TEXT NOT NULL,
    PRIMARY KEY (location, job_id)
);

CREATE INDEX jobs_by_time ON jobs (at);
"""

MIGRATIONS: tuple[sqlite.Migration, ...] = (partial(sqlite.execute_script, script=_TABLES),)
"""Each migrates the file from the version of its index (`PRAGMA user_version`) to the next, in its own transaction."""


class JobRegister:
    """The register of a home; each method is one transaction. Raises InternalError if the file cannot be used."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self.path = home / "history.sqlite"

    def note(self, entries: Iterable[Entry]) -> None:
        """Add entries, or complete what is known of them; forget what is older than 90 days.

        A clock that jumps ahead by months makes nothing old: the newest job before it says about when that was.
        """
        entries = tuple(entries)
        if not entries:
            return
        with self._transaction() as db:
            newest = db.execute("SELECT max(at) FROM jobs").fetchone()[0]
            for entry in entries:
                known = _find(db, "location = ? AND job_id = ?", (entry.location, entry.job_id))
                new = known[0].completed(entry) if known else entry
                if [new] != known:
                    _write(db, new)
            last = newest + KEPT_SECONDS / 3 if newest else 0.0
            now = min(datetime.now(UTC).timestamp(), last)
            db.execute("DELETE FROM jobs WHERE at < ?", (now - KEPT_SECONDS,))

    def replace(self, entries: Iterable[Entry]) -> None:
        """Write these entries as they are now."""
        entries = tuple(entries)
        if entries:
            with self._transaction() as db:
                for entry in entries:
                    _write(db, entry)

    def list_since(self, since: datetime) -> list[Entry]:
        """Return what was submitted or has ended since then, and what has no known end."""
        return self._look("at >= ? OR status = ''", (since.timestamp(),))

    def list_creates(self, location: str) -> list[Entry]:
        """Return the newest creates that were submitted to a zone, the last one first, whatever the clocks said."""
        return self._look(
            "location = ? AND action = ?", (location, JobAction.CREATE), f"rowid DESC LIMIT {MAX_CREATES}"
        )

    def find(self, job_id: str) -> list[Entry]:
        """Return the jobs with this id: one, unless zones have given it twice."""
        return self._look("job_id = ?", (job_id,))

    def unended(self, location: str, job_ids: Sequence[str]) -> list[Entry]:
        """Return those of these jobs of a zone whose end is not recorded yet."""
        marks = ", ".join("?" * len(job_ids))
        return self._look(f"location = ? AND status IN ('', 'unknown') AND job_id IN ({marks})", (location, *job_ids))

    def _look(self, condition: str, parameters: tuple[object, ...], order: str = "at DESC") -> list[Entry]:
        """Read without creating the file, and beside whoever writes."""
        if not self.path.exists():
            return []
        with self._connection() as db:
            return _find(db, condition, parameters, order)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._connection() as connection, sqlite.transaction(connection):
            yield connection

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        try:
            reserve.relieve(self._home)
            with closing(self._connect()) as connection:
                yield connection
        except (sqlite3.Error, OSError) as error:
            obstacle = obstacle_of(error, self.path)
            step = obstacle.hint if obstacle else "Check the folder's permissions and the free space on its disk."
            raise InternalError(
                f"{self.path.name} in the home folder cannot be used: {reason_of(error, self.path)}.",
                hint=f"{step} Jobs are not affected.",
            ) from error

    def _connect(self) -> sqlite3.Connection:
        """Open the file that is in its place now: the home may have been removed, replaced or restored meanwhile."""
        make_private_folder(self._home)
        return sqlite.open_migrated(self.path, MIGRATIONS, busy_seconds=BUSY_SECONDS)


def _find(
    db: sqlite3.Connection, condition: str, parameters: tuple[object, ...], order: str = "at DESC"
) -> list[Entry]:
    rows = db.execute(f"SELECT * FROM jobs WHERE {condition} ORDER BY {order}", parameters)
    return [_read(row) for row in rows]


def _read(row: sqlite3.Row) -> Entry:
    """Return a row's entry; of one whose details cannot be read there is still the job, its end and the times."""
    try:
        about = from_json(json.loads(row["about"]))
    except (ValueError, TypeError, AttributeError):
        about = {}
    return Entry(
        location=row["location"],
        zone=row["zone"],
        job_id=row["job_id"],
        action=row["action"],
        status=row["status"],
        error=row["error"],
        submitted=_moment(row["submitted_at"]),
        ended=_moment(row["ended_at"]),
        **about,
    )


def _write(db: sqlite3.Connection, entry: Entry) -> None:
    submitted, ended = _seconds(entry.submitted), _seconds(entry.ended)
    columns = (entry.location, entry.job_id, entry.zone, entry.action, entry.status, entry.error)
    values = (*map(encodable, columns), submitted, ended, entry.at.timestamp(), json.dumps(to_json(entry)))
    db.execute("INSERT OR REPLACE INTO jobs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", values)


def _moment(seconds: float | None) -> datetime | None:
    with suppress(ValueError, OverflowError, OSError):
        return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
    return None


def _seconds(moment: datetime | None) -> float | None:
    return moment.timestamp() if moment else None
