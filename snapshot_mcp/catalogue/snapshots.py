"""Record snapshots as they are planned, made full, taken, or discarded."""

import logging
import secrets
from collections.abc import Sequence
from typing import Final, NamedTuple

from snapshot_mcp.catalogue.database import Catalogue
from snapshot_mcp.catalogue.store import DamagedSnapshot, Row
from snapshot_mcp.contract.states import SnapshotStatus, TransitionStatus

log = logging.getLogger(__name__)


class Taken(NamedTuple):
    """The store's facts about a snapshot that is complete and durable; `taken_at` in seconds since 1970."""

    taken_at: float
    size_bytes: int
    virtual_bytes: int
    consistency: str


_ALPHABET: Final = "abcdefghijklmnopqrstuvwxyz0123456789"


def new_id(prefix: str) -> str:
    """Return a random id such as `ss-3k9x0c2p`; the table's key catches a collision (one in 10¹²)."""
    return f"{prefix}-" + "".join(secrets.choice(_ALPHABET) for _ in range(8))


def plan_snapshot(catalogue: Catalogue, resource: Row, name: str, chain_limit: int, *, is_full: bool = False) -> str:
    """Insert a snapshot that is to be taken and return its id."""
    parent = None if is_full else parent_for(catalogue, resource, chain_limit)
    snapshot_id, now = new_id("ss"), catalogue.clock.read()
    created = now.wall
    catalogue.db.execute(
        """INSERT INTO snapshots (snapshot_id, name, resource_id, is_full, status, transition, created_at,
        status_at, snapshot_at, root_id, parent_id, depth, boot, uptime) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)""",
        (
            snapshot_id,
            name,
            resource["resource_id"],
            int(parent is None),
            SnapshotStatus.PENDING,
            TransitionStatus.CREATING,
            created,
            created,
            created,
            parent["root_id"] if parent else snapshot_id,
            parent["snapshot_id"] if parent else None,
            parent["depth"] + 1 if parent else 0,
            now.boot,
            now.uptime,
        ),
    )
    return snapshot_id


def parent_for(catalogue: Catalogue, resource: Row, chain_limit: int) -> Row | None:
    """Return what the next incremental builds on, None if the next snapshot must be full (CATALOGUE.md, "Chains")."""
    head = catalogue.snapshot(resource["head_id"]) if resource["head_id"] else None
    if head is None or head["status"] != SnapshotStatus.AVAILABLE:
        return None
    chain = catalogue.row(
        """SELECT count(*) FILTER (WHERE status = 'available') AS number, max(is_damaged) AS is_damaged FROM snapshots
        WHERE root_id = ? AND status NOT IN ('ceased')""",
        head["root_id"],
    )
    assert chain is not None
    return None if chain["number"] >= chain_limit or chain["is_damaged"] else head


def make_full(catalogue: Catalogue, snapshot_id: str, error: DamagedSnapshot) -> None:
    """Turn a pending snapshot into a full one because its parent is damaged."""
    log.warning("snapshot %s will be full: %s", snapshot_id, error)
    with catalogue.transaction() as db:
        catalogue.mark_damaged(error.snapshot_id, is_damaged=True)
        db.execute(
            "UPDATE snapshots SET is_full = 1, root_id = snapshot_id, parent_id = NULL, depth = 0, is_affected = 0"
            " WHERE snapshot_id = ?",
            (snapshot_id,),
        )


def make_available(catalogue: Catalogue, snapshot_id: str, taken: Taken) -> None:
    """Mark a snapshot as available and as the head of its disk, within the caller's transaction."""
    catalogue.db.execute(
        """UPDATE snapshots SET status = ?, transition = ?, status_at = ?, snapshot_at = ?, is_taken = 1,
        size_bytes = ?, virtual_bytes = ?, consistency = ? WHERE snapshot_id = ?""",
        (SnapshotStatus.AVAILABLE, TransitionStatus.NONE, catalogue.now(), *taken, snapshot_id),
    )
    catalogue.db.execute(
        "UPDATE resources SET head_id = ? WHERE resource_id = (SELECT resource_id FROM snapshots WHERE snapshot_id = ?)",
        (snapshot_id, snapshot_id),
    )


def discard(catalogue: Catalogue, snapshot_ids: Sequence[str]) -> None:
    """Mark pending snapshots as ceased and remove their bytes, within the caller's transaction."""
    if snapshot_ids:
        catalogue.store.remove(snapshot_ids)
    for snapshot_id in snapshot_ids:
        catalogue.db.execute(
            "UPDATE snapshots SET status = ?, transition = ?, status_at = ? WHERE snapshot_id = ?",
            (SnapshotStatus.CEASED, TransitionStatus.NONE, catalogue.now(), snapshot_id),
        )
