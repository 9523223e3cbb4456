"""`Catalogue`: a zone's resources, snapshots, images and jobs in SQL tables (`schema`), with the store that keeps their bytes.

It alone says what is available or deleted; facts that decide bytes are read from the store. Times are whole seconds, since
the contract's are.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from typing import Final, Self

from snapshot_mcp.catalogue.store import Row, Store
from snapshot_mcp.contract.states import JobStatus, SnapshotStatus
from snapshot_mcp.ground.clock import Clock, Moment, SystemClock
from snapshot_mcp.ground.sqlite import transaction


class Catalogue:
    """One connection to a zone's catalogue; one thread at a time.

    A store whose truth is elsewhere than in this database keeps the two in step in `transaction`, `reading` and `version`.
    `db` is open and up to date (`schema.open_catalogue`). Raises sqlite3.Error for what is not a decision of ours: a bug, or
    a broken disk.
    """

    def __init__(self, db: sqlite3.Connection, store: Store, clock: Clock | None = None) -> None:
        self.db, self.store, self.clock = db, store, clock or SystemClock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self.db.close()

    def transaction(self) -> AbstractContextManager[sqlite3.Connection]:
        """A transaction that may write: begun at once, committed at the end, rolled back by an exception."""
        return transaction(self.db)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Several reads of one state."""
        self.db.execute("BEGIN")
        try:
            yield
        finally:
            self.db.execute("COMMIT")

    def version(self) -> int:
        """A number that differs whenever another connection has committed; costs microseconds."""
        (number,) = self.db.execute("PRAGMA data_version").fetchone()
        return int(number)

    def row(self, query: str, *values: object) -> Row | None:
        """Return the first row of a query, None for none."""
        found: Row | None = self.db.execute(query, values).fetchone()
        return found

    def rows(self, query: str, *values: object) -> list[Row]:
        """Return all rows of a query."""
        return self.db.execute(query, values).fetchall()

    def snapshot(self, snapshot_id: str) -> Row | None:
        """Return a snapshot by its id, None for none."""
        return self.row("SELECT * FROM snapshots WHERE snapshot_id = ?", snapshot_id)

    def resource(self, resource_id: str) -> Row | None:
        """Return a disk by its id, also one that was forgotten; None for none."""
        return self.row("SELECT * FROM resources WHERE resource_id = ?", resource_id)

    def job(self, job_id: str) -> Row | None:
        """Return a job by its id, None for none."""
        return self.row("SELECT * FROM jobs WHERE job_id = ?", job_id)

    def subtree(self, snapshot_id: str, *statuses: str) -> list[Row]:
        """The snapshot and everything below it, parents first; only those of the statuses, where any are named."""
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
        """The snapshot and all that it builds on, itself first."""
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

    def set_job(self, job_id: str, **columns: object) -> None:
        """Change a job, and let the watchers see it."""
        names = "".join(f"{name} = ?, " for name in columns)
        self.db.execute(
            f"UPDATE jobs SET {names} change = (SELECT max(change) + 1 FROM jobs) WHERE job_id = ?",
            (*columns.values(), job_id),
        )

    def mark_damaged(self, snapshot_id: str, *, is_damaged: bool) -> None:
        """Remember durably what a read found."""
        self.db.execute(
            "UPDATE snapshots SET is_damaged = ? WHERE snapshot_id = ? AND is_damaged != ?",
            (int(is_damaged), snapshot_id, int(is_damaged)),
        )

    def now(self) -> int:
        """The time by the clock, in seconds since 1970."""
        return int(self.clock.read().wall)

    def is_grace_over(self, deletion: Row) -> bool:
        """Whether a deletion can no longer be recovered: in the same run of the system by its uptime, after that by the clock.

        A clock that jumps ahead (one without a battery, when it is first set) must not free what was deleted a minute ago,
        and one that is set back must not keep it for years.
        """
        made = Moment(deletion["deleted_at"], deletion["boot"], deletion["uptime"])
        return made.is_over(self.clock.read(), deletion["purge_at"] - deletion["deleted_at"])


def moment(seconds: int | None) -> datetime | None:
    """Return seconds since 1970 as a time in UTC."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def placeholders(values: Sequence[object]) -> str:
    """Return one question mark a value, for an SQL list."""
    return ",".join("?" * len(values))


IS_UNFINISHED: Final = f"status IN ('{JobStatus.PENDING}', '{JobStatus.WORKING}')"
"""Word for word the condition of the index `jobs_unfinished`; a query without it reads every job there ever was."""

LIVE: Final = (SnapshotStatus.AVAILABLE, SnapshotStatus.SUSPENDED)
"""Snapshots that a deletion takes."""
