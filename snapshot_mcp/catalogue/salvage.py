"""Take in again what a store found without rows: snapshots with their chains, and the disks that they are of.

CATALOGUE.md, "A lost catalogue". Everything here runs within the caller's transaction.
"""

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from snapshot_mcp.catalogue.database import IS_UNFINISHED, Catalogue
from snapshot_mcp.catalogue.snapshots import Taken
from snapshot_mcp.catalogue.store import Row
from snapshot_mcp.contract.errors import OutcomeUnknown
from snapshot_mcp.contract.states import JobStatus, SnapshotStatus

KEPT = (SnapshotStatus.AVAILABLE, SnapshotStatus.SUSPENDED, SnapshotStatus.DELETED)
"""Statuses of the snapshots that have their bytes."""

UNKNOWN_END = "The zone's catalogue was lost while this job ran or waited, so its end is unknown. Look at the disks."


@dataclass(frozen=True, slots=True)
class FoundSnapshot:
    """A snapshot whose bytes are whole as far as its header and map say; `chain` begins with its root and ends with itself.

    `resource_path` is where its disk was: shown, never opened. `order` tells snapshots of one second apart.
    `is_damaged`: it does not fit what it builds on, or was known to be damaged.
    """

    chain: tuple[str, ...]
    resource_id: str
    resource_type: str
    taken: Taken
    created_at: float
    order: int
    name: str = ""
    description: str = ""
    tags: tuple[str, ...] = ()
    resource_name: str = ""
    resource_path: str = ""
    taken_with: tuple[str, ...] = ()
    verified_at: int | None = None
    is_damaged: bool = False

    @property
    def snapshot_id(self) -> str:
        """Return its id."""
        return self.chain[-1]

    @property
    def parent_id(self) -> str | None:
        """Return the id of what it builds on, None for a full snapshot."""
        return self.chain[-2] if len(self.chain) > 1 else None


def take_in(catalogue: Catalogue, found: Sequence[FoundSnapshot]) -> None:
    """Insert snapshots as available, parents first, and their disks; the next snapshot of each disk is full.

    A disk without a row has no path until a person gives it one. An ancestor without bytes gets a row that is `ceased` and
    damaged, so that nothing that builds on it counts as good.
    """
    for one in _in_order(found):
        _add_disk(catalogue, one)
        for depth, ancestor_id in enumerate(one.chain[:-1]):
            _account_for(catalogue, one, depth, ancestor_id)
        _insert(catalogue, one, SnapshotStatus.AVAILABLE, one.snapshot_id, len(one.chain) - 1)
    for root_id in {one.chain[0] for one in found}:
        catalogue.mark_affected(root_id)
    heads = [(resource_id,) for resource_id in {one.resource_id for one in found}]
    catalogue.db.executemany("UPDATE resources SET head_id = NULL WHERE resource_id = ?", heads)


def _in_order(found: Sequence[FoundSnapshot]) -> list[FoundSnapshot]:
    """Return them in the order in which they were made: parents first, whatever a clock said."""
    times: dict[str, float] = {}
    for one in sorted(found, key=lambda one: len(one.chain)):
        times[one.snapshot_id] = max(one.taken.taken_at, times.get(one.parent_id or "", 0))
    return sorted(found, key=lambda one: (times[one.snapshot_id], len(one.chain), one.order, one.snapshot_id))


def _add_disk(catalogue: Catalogue, one: FoundSnapshot) -> None:
    if catalogue.resource(one.resource_id) is None:
        catalogue.add_resource(one.resource_id, one.resource_type, one.resource_name or one.resource_id, "")
        catalogue.db.execute(
            "UPDATE resources SET former_path = ?, created_at = ? WHERE resource_id = ?",
            (one.resource_path, one.created_at, one.resource_id),
        )


def _account_for(catalogue: Catalogue, one: FoundSnapshot, depth: int, ancestor_id: str) -> None:
    """Make an ancestor what its descendant proves: not deleted; lost, if nothing is left of it."""
    row = catalogue.snapshot(ancestor_id)
    if row is None:
        _insert(catalogue, one, SnapshotStatus.CEASED, ancestor_id, depth)
    elif row["status"] == SnapshotStatus.CEASED:
        catalogue.mark_damaged(ancestor_id, is_damaged=True)
    elif row["deletion_id"] is not None:
        undelete(catalogue, [row["deletion_id"]])


def _insert(catalogue: Catalogue, one: FoundSnapshot, status: SnapshotStatus, snapshot_id: str, depth: int) -> None:
    """Insert a snapshot, or put it in the place of its row; one that is `ceased` stands for an ancestor that is lost."""
    is_lost = status == SnapshotStatus.CEASED
    number = catalogue.row("SELECT rowid FROM snapshots WHERE snapshot_id = ?", snapshot_id)
    catalogue.db.execute("DELETE FROM snapshots WHERE snapshot_id = ?", (snapshot_id,))
    columns = {
        "rowid": number[0] if number else None,
        "snapshot_id": snapshot_id,
        "name": "" if is_lost else one.name,
        "description": "" if is_lost else one.description,
        "tags": "[]" if is_lost else json.dumps(one.tags),
        "resource_id": one.resource_id,
        "is_full": int(depth == 0),
        "status": status,
        "transition": "",
        "created_at": one.created_at,
        "status_at": catalogue.now(),
        "snapshot_at": one.taken.taken_at,
        "is_taken": 1,
        "root_id": one.chain[0],
        "parent_id": one.chain[depth - 1] if depth else None,
        "depth": depth,
        "size_bytes": 0 if is_lost else one.taken.size_bytes,
        "virtual_bytes": one.taken.virtual_bytes,
        "consistency": "" if is_lost else one.taken.consistency,
        "is_damaged": int(is_lost or one.is_damaged),
        "verified_at": None if is_lost else one.verified_at,
    }
    marks = ", ".join("?" * len(columns))
    catalogue.db.execute(f"INSERT INTO snapshots ({', '.join(columns)}) VALUES ({marks})", (*columns.values(),))


def undelete(catalogue: Catalogue, deletion_ids: Iterable[str]) -> list[str]:
    """Make all that these deletions took available again, and return the ids."""
    ids: list[str] = []
    for one in deletion_ids:
        ids += [row["snapshot_id"] for row in catalogue.rows("SELECT * FROM snapshots WHERE deletion_id = ?", one)]
        catalogue.db.execute(
            "UPDATE snapshots SET status = ?, status_at = ?, deletion_id = NULL WHERE deletion_id = ?",
            (SnapshotStatus.AVAILABLE, catalogue.now(), one),
        )
        catalogue.db.execute("UPDATE deletions SET state = 'recovered' WHERE deletion_id = ?", (one,))
    return ids


def end_jobs(catalogue: Catalogue) -> list[str]:
    """End the jobs that a lost worker left, since how they went on is unknown; return their ids.

    A roll-back that had begun to write waits for a person. What was being created ends; its files are taken in like others.
    """
    jobs = catalogue.rows(f"SELECT * FROM jobs WHERE {IS_UNFINISHED}")
    for job in jobs:
        end = {"status": JobStatus.FAILED, "finished_at": catalogue.now(), "error_code": OutcomeUnknown.code}
        catalogue.set_job(job["job_id"], info=UNKNOWN_END, **end)
    catalogue.db.execute("DELETE FROM claims")
    catalogue.db.execute("UPDATE resources SET is_stopped = 1 WHERE applying_id IS NOT NULL")
    catalogue.db.execute(
        "UPDATE snapshots SET status = ?, transition = '' WHERE status = ?",
        (SnapshotStatus.CEASED, SnapshotStatus.PENDING),
    )
    return [job["job_id"] for job in jobs]


def drop_missing(catalogue: Catalogue, present_ids: Collection[str]) -> list[str]:
    """End the snapshots of an old catalogue that have no bytes any more: purged since, or lost. Return their ids.

    One on which a snapshot with bytes builds is lost, since a deletion takes everything below it: it is marked as damaged.
    """
    going = [row for row in _kept(catalogue) if row["snapshot_id"] not in present_ids]
    for row in going:
        catalogue.db.execute(
            "UPDATE snapshots SET status = ?, status_at = ?, deletion_id = NULL WHERE snapshot_id = ?",
            (SnapshotStatus.CEASED, catalogue.now(), row["snapshot_id"]),
        )
    for row in going:
        if any(one["status"] in KEPT for one in catalogue.subtree(row["snapshot_id"])):
            catalogue.mark_damaged(row["snapshot_id"], is_damaged=True)
    return [row["snapshot_id"] for row in going]


def count_kept(catalogue: Catalogue) -> int:
    """Return how many snapshots have their bytes."""
    return len(_kept(catalogue))


def find_lost_parents(catalogue: Catalogue) -> list[tuple[str, str]]:
    """Return the snapshots with bytes that build on one without, each with the nearest such one."""
    lost: list[tuple[str, str]] = []
    for row in catalogue.rows("SELECT * FROM snapshots WHERE is_affected AND parent_id IS NOT NULL"):
        above = catalogue.ancestors(row["snapshot_id"])[1:]
        missing = next((one["snapshot_id"] for one in above if one["status"] == SnapshotStatus.CEASED), None)
        if row["status"] in KEPT and missing:
            lost.append((row["snapshot_id"], missing))
    return lost


def _kept(catalogue: Catalogue) -> list[Row]:
    return catalogue.rows("SELECT * FROM snapshots WHERE status IN (?, ?, ?) ORDER BY depth", *KEPT)
