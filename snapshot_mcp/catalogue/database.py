"""`Catalogue`: a zone's resources, snapshots, images and jobs in SQL tables (`schema`), and the store that keeps their bytes.

Only the catalogue says what is available or deleted; facts that decide bytes are read from the store. Times are whole
seconds, as in the contract.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from typing import Final

from snapshot_mcp.catalogue.store import Row, Store
from snapshot_mcp.contract.states import JobStatus, SnapshotStatus
from snapshot_mcp.ground.clock import Clock, Moment, SystemClock
from snapshot_mcp.ground.closing import Closing
from snapshot_mcp.ground.sqlite import transaction


def path_bytes(path: str) -> bytes:
    """Return a path for `CAST(? AS TEXT)`: SQLite accepts no text that is not Unicode, but keeps any bytes."""
    return path.encode("utf-8", "surrogateescape")


class Catalogue(Closing):
    """One connection to a zone's catalogue, for one thread at a time; `db` is open and migrated (`schema.open_catalogue`).

    A store that keeps its truth outside of this database synchronises the two in `transaction`, `reading` and `version`.
    Raises sqlite3.Error for bugs and broken disks.
    """

    def __init__(self, db: sqlite3.Connection, store: Store, clock: Clock | None = None) -> None:
        self.db, self.store, self.clock = db, store, clock or SystemClock()
        self.problem = ""
        """What keeps everything here from being changed, "" normally; each disk shows it."""

    def close(self) -> None:
        """Close the connection."""
        self.db.close()

    def transaction(self) -> AbstractContextManager[sqlite3.Connection]:
        """Begin a transaction that may write; it is committed at the end of the block and rolled back by an exception."""
        return transaction(self.db)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Begin a transaction that only reads, so that all its reads see one state."""
        self.db.execute("BEGIN")
        try:
            yield
        finally:
            self.db.execute("COMMIT")

    def version(self) -> int:
        """Return a number that changes whenever another connection commits; costs microseconds."""
        return self.count("PRAGMA data_version")

    def row(self, query: str, *values: object) -> Row | None:
        """Return the first row of a query, None if there is none."""
        found: Row | None = self.db.execute(query, values).fetchone()
        return found

    def rows(self, query: str, *values: object) -> list[Row]:
        """Return all rows of a query."""
        return self.db.execute(query, values).fetchall()

    def count(self, query: str, *values: object) -> int:
        """Return the single number that a query yields."""
        return int(self.db.execute(query, values).fetchone()[0])

    def snapshot(self, snapshot_id: str) -> Row | None:
        """Return a snapshot by its id, None if there is none."""
        return self.row("SELECT * FROM snapshots WHERE snapshot_id = ?", snapshot_id)

    def resource(self, resource_id: str) -> Row | None:
        """Return a disk by its id, even if it was unregistered; None if there is none."""
        return self.row("SELECT * FROM resources WHERE resource_id = ?", resource_id)

    def job(self, job_id: str) -> Row | None:
        """Return a job by its id, None if there is none."""
        return self.row("SELECT * FROM jobs WHERE job_id = ?", job_id)

    def subtree(self, snapshot_id: str, *statuses: str) -> list[Row]:
        """Return the snapshot and its descendants, parents first; only those with one of `statuses`, if any are given."""
        found = self.rows(
            """
            WITH RECURSIVE below (id) AS (
                VALUES (?) UNION SELECT s.snapshot_id FROM snapshots s JOIN below ON s.parent_id = below.id
            )
            SELECT s.* FROM snapshots s JOIN below ON s.snapshot_id = below.id ORDER BY s.depth, s.snapshot_id
            """,
            snapshot_id,
        )
        return [row for row in found if not statuses or row["status"] in statuses]

    def ancestors(self, snapshot_id: str) -> list[Row]:
        """Return the snapshot and everything that it builds on, itself first."""
        return self.rows(
            """
            WITH RECURSIVE above (id) AS (
                VALUES (?) UNION SELECT s.parent_id FROM snapshots s JOIN above ON s.snapshot_id = above.id
                WHERE s.parent_id IS NOT NULL
            )
            SELECT s.* FROM snapshots s JOIN above ON s.snapshot_id = above.id ORDER BY s.depth DESC
            """,
            snapshot_id,
        )

    def add_resource(self, resource_id: str, resource_type: str, name: str, path: str, layout: str = "") -> None:
        """Insert a disk; `path` is where its store finds it, `layout` what the store keeps of its form."""
        self.db.execute(
            """INSERT INTO resources (resource_id, resource_type, name, path, created_at, status_at, layout)
            VALUES (?, ?, ?, CAST(? AS TEXT), ?, ?, ?)""",
            (resource_id, resource_type, name, path_bytes(path), self.now(), self.now(), layout),
        )

    def add_image(self, image_id: str, name: str, path: str, snapshot_id: str) -> None:
        """Insert an image that was exported from a snapshot."""
        self.db.execute(
            "INSERT INTO images (image_id, name, path, snapshot_id, created_at) VALUES (?, ?, CAST(? AS TEXT), ?, ?)",
            (image_id, name, path_bytes(path), snapshot_id, self.now()),
        )

    def record_export(self, new_id: str, identity: str, mtime_ns: int, snapshot_id: str) -> None:
        """Record of a volume or an image which file the store made for it, when it was last written, and from which snapshot."""
        made = "SET made_identity = ?, made_mtime_ns = ?"
        values = identity, mtime_ns
        self.db.execute(f"UPDATE resources {made}, made_from = ? WHERE resource_id = ?", (*values, snapshot_id, new_id))
        self.db.execute(f"UPDATE images {made} WHERE image_id = ?", (*values, new_id))

    def set_job(self, job_id: str, **columns: object) -> None:
        """Update a job so that watchers notice the change."""
        names = "".join(f"{name} = ?, " for name in columns)
        self.db.execute(
            f"UPDATE jobs SET {names} change = (SELECT max(change) + 1 FROM jobs) WHERE job_id = ?",
            (*columns.values(), job_id),
        )

    def mark_damaged(self, snapshot_id: str, *, is_damaged: bool) -> None:
        """Record durably whether a snapshot is damaged, and that what builds on it is affected."""
        changed = self.db.execute(
            "UPDATE snapshots SET is_damaged = ? WHERE snapshot_id = ? AND is_damaged != ?",
            (int(is_damaged), snapshot_id, int(is_damaged)),
        )
        if changed.rowcount:
            self.mark_affected(snapshot_id)

    def mark_affected(self, snapshot_id: str) -> None:
        """Record of a snapshot and its descendants, parents first, whether they or anything that they build on is damaged."""
        for row in self.subtree(snapshot_id):
            self.db.execute(
                """UPDATE snapshots SET is_affected = is_damaged OR coalesce((SELECT p.is_affected FROM snapshots p
                WHERE p.snapshot_id = snapshots.parent_id), 0) WHERE snapshot_id = ?""",
                (row["snapshot_id"],),
            )

    def mark_verified(self, snapshot_ids: Sequence[str]) -> None:
        """Record that these snapshots, and all that they build on, have just been read back whole."""
        now = self.now()
        self.db.executemany(
            "UPDATE snapshots SET verified_at = ? WHERE snapshot_id = ?", [(now, one) for one in snapshot_ids]
        )

    def now(self) -> int:
        """Return the wall-clock time in whole seconds since 1970."""
        return int(self.instant())

    def instant(self) -> float:
        """Return the wall-clock time in seconds since 1970, as exactly as snapshots of one second are kept in order by it."""
        return self.clock.read().wall

    def may_expire(self, job: Row) -> bool:
        """Return whether a waiting job whose time has passed may be ended here; false for another machine's."""
        return True

    def is_grace_over(self, deletion: Row) -> bool:
        """Return whether a deletion's grace period has ended, by uptime within one boot and by the wall clock after that.

        A clock that jumps ahead (when one without a battery is first set) must not free what was deleted a minute ago, and
        one that is set back must not keep it for years.
        """
        made = Moment(deletion["deleted_at"], deletion["boot"], deletion["uptime"])
        return made.is_over(self.clock.read(), deletion["purge_at"] - deletion["deleted_at"])


def moment(seconds: float | None) -> datetime | None:
    """Return seconds since 1970 as a time in UTC; a second is the unit of the contract."""
    return None if seconds is None else datetime.fromtimestamp(int(seconds), UTC)


def placeholders(values: Sequence[object]) -> str:
    """Return one question mark per value, for an SQL list."""
    return ",".join("?" * len(values))


IS_UNFINISHED: Final = f"status IN ('{JobStatus.PENDING}', '{JobStatus.WORKING}')"
"""Exactly the condition of the index `jobs_unfinished`; a query without it scans every job ever made."""

LIVE: Final = (SnapshotStatus.AVAILABLE, SnapshotStatus.SUSPENDED)
"""Statuses of the snapshots that a deletion takes."""
