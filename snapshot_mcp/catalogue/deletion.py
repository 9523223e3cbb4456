"""Delete, recover, purge: what one deletion takes is recovered and purged together (CATALOGUE.md, "Deletion")."""

import json
from collections.abc import Collection
from typing import Any

from snapshot_mcp.catalogue.agreement import compare_deletion, refuse_overdue
from snapshot_mcp.catalogue.database import LIVE, Catalogue, moment
from snapshot_mcp.catalogue.lookup import busy, find_resource, find_snapshot, owner_of, refuse_busy, refuse_needed
from snapshot_mcp.catalogue.outcome import succeed
from snapshot_mcp.catalogue.progress import JobProgress
from snapshot_mcp.catalogue.store import Row
from snapshot_mcp.contract.errors import NotUsable, TermsChanged
from snapshot_mcp.contract.models import format_time
from snapshot_mcp.contract.states import SnapshotStatus


def carry_out(catalogue: Catalogue, job: Row, request: dict[str, Any], progress: JobProgress) -> None:
    """Mark a snapshot and its descendants as deleted; their bytes stay until the grace period ends (`purge`).

    Raises Expired, TermsChanged: the terms are compared in the transaction that marks.
    """
    with catalogue.transaction() as db:
        snapshot = find_snapshot(catalogue, request["snapshot_id"])
        resource = owner_of(catalogue, snapshot)
        going = [row["snapshot_id"] for row in catalogue.subtree(snapshot["snapshot_id"], *LIVE)]
        refuse_overdue(catalogue, job)
        compare_deletion(catalogue, resource["resource_id"], going, request)
        present = catalogue.clock.read()
        deleted_at = int(present.wall)
        purge_at = deleted_at + int(request["recovery_seconds"])
        ids = job["job_id"], resource["resource_id"]
        db.execute(
            "INSERT INTO deletions (deletion_id, resource_id, deleted_at, purge_at, head_before, state, boot, uptime)"
            " VALUES (?, ?, ?, ?, ?, 'deleted', ?, ?)",
            (*ids, deleted_at, purge_at, resource["head_id"], present.boot, present.uptime),
        )
        for one in going:
            db.execute(
                "UPDATE snapshots SET status = ?, transition = '', status_at = ?, deletion_id = ? WHERE snapshot_id = ?",
                (SnapshotStatus.DELETED, deleted_at, job["job_id"], one),
            )
        if resource["head_id"] in going:
            path = catalogue.ancestors(resource["head_id"])
            head = next((row["snapshot_id"] for row in path if row["status"] in LIVE), None)
            db.execute("UPDATE resources SET head_id = ? WHERE resource_id = ?", (head, resource["resource_id"]))
        succeed(catalogue, job, {"space_free_at": format_time(moment(purge_at))})
        catalogue.set_job(job["job_id"], resource_ids=json.dumps(going))


def recover(catalogue: Catalogue, job: Row, request: dict[str, Any], progress: JobProgress) -> None:
    """Recover everything that these deletions took. Raises NotUsable if one was purged in the meantime."""
    with catalogue.transaction() as db:
        for deletion_id in request["deletion_ids"]:
            deletion = catalogue.row("SELECT * FROM deletions WHERE deletion_id = ?", deletion_id)
            assert deletion is not None
            coming = catalogue.rows("SELECT * FROM snapshots WHERE deletion_id = ? ORDER BY rowid DESC", deletion_id)
            if deletion["state"] != "deleted" or any(row["status"] != SnapshotStatus.DELETED for row in coming):
                raise NotUsable(
                    "The snapshots were purged before they could be recovered.",
                    hint="List the snapshots to see which ones exist.",
                )
            db.execute(
                "UPDATE snapshots SET status = ?, status_at = ?, deletion_id = NULL WHERE deletion_id = ?",
                (SnapshotStatus.AVAILABLE, catalogue.now(), deletion_id),
            )
            db.execute("UPDATE deletions SET state = 'recovered' WHERE deletion_id = ?", (deletion_id,))
            ids = [row["snapshot_id"] for row in coming]
            head = deletion["head_before"] if deletion["head_before"] in ids else ids[0]
            db.execute(
                "UPDATE resources SET head_id = ? WHERE resource_id = ? AND head_id IS NULL",
                (head, deletion["resource_id"]),
            )
        succeed(catalogue, job)


def purge(catalogue: Catalogue, *, at_once: Collection[str] | None = (), needed: Collection[str] = ()) -> list[str]:
    """Purge the deletions whose grace period has ended, children before parents, and return the ids that are now ceased.

    `at_once`: ids to purge now; a deletion whose ids are all in it does not wait for its grace period (None: none waits).
    `needed`: ids that are kept, with all that was deleted with them, because something that the catalogue does not know builds
    on them.
    First the catalogue says `ceased`, then the bytes are removed, so a crash leaves unused bytes, which the next purge
    removes, and never a snapshot without bytes. So are bytes that cannot be removed now.
    """
    with catalogue.transaction() as db:
        # in order of insertion: an earlier deletion lies below a later one, whatever the clock said
        deleted = catalogue.rows("SELECT * FROM deletions WHERE state = 'deleted' ORDER BY rowid")
        ceased: list[str] = []
        busy = {row["id"] for row in catalogue.rows("SELECT id FROM claims WHERE kind = 'resource'")}
        for row in deleted:
            going = catalogue.rows("SELECT * FROM snapshots WHERE deletion_id = ?", row["deletion_id"])
            ids = {one["snapshot_id"] for one in going}
            if not (at_once is None or ids <= set(at_once) or catalogue.is_grace_over(row)):
                continue
            below = [
                one
                for snapshot in going
                for one in catalogue.subtree(snapshot["snapshot_id"])
                if one["status"] != SnapshotStatus.CEASED and one["snapshot_id"] not in ids
            ]
            if below or not ids.isdisjoint(needed) or any(one["resource_id"] in busy for one in going):
                continue
            for one in ids:
                db.execute(
                    "UPDATE snapshots SET status = ?, status_at = ? WHERE snapshot_id = ?",
                    (SnapshotStatus.CEASED, catalogue.now(), one),
                )
            db.execute("UPDATE deletions SET state = 'purged' WHERE deletion_id = ?", (row["deletion_id"],))
            ceased += sorted(ids)
    _sweep(catalogue)
    return ceased


def forget(catalogue: Catalogue, resource_id: str, agreed: Collection[str]) -> list[str]:
    """Destroy all restore points of a disk at once and for ever; return their ids.

    Raises NotFound, ResourceBusy; NotUsable for one that a roll-back needs; TermsChanged if there are others than `agreed`.
    """
    with catalogue.transaction() as db:
        refuse_busy(catalogue, [find_resource(catalogue, resource_id)])
        kept = f"resource_id = ? AND status != '{SnapshotStatus.CEASED}'"
        rows = catalogue.rows(f"SELECT * FROM snapshots WHERE {kept} ORDER BY depth DESC", resource_id)
        ids = [row["snapshot_id"] for row in rows]
        for one in ids:
            if holder := catalogue.row("SELECT job_id FROM claims WHERE kind = 'snapshot' AND id = ?", one):
                raise busy(catalogue, f"Snapshot {one}", holder["job_id"])
        refuse_needed(catalogue, ids)
        if more := sorted(set(ids) - set(agreed)):
            raise TermsChanged(f"There are restore points now that were not agreed to: {', '.join(more[:5])}.")
        if not ids:
            return []
        db.execute(
            f"UPDATE snapshots SET status = ?, transition = '', status_at = ? WHERE {kept}",
            (SnapshotStatus.CEASED, catalogue.now(), resource_id),
        )
        db.execute("UPDATE deletions SET state = 'freed' WHERE resource_id = ? AND state = 'deleted'", (resource_id,))
        db.execute("UPDATE resources SET head_id = NULL WHERE resource_id = ?", (resource_id,))
    catalogue.store.remove(ids)
    return ids


def _sweep(catalogue: Catalogue) -> None:
    """Remove the bytes of purged snapshots, deepest first; a file without a row is never touched."""
    gone = catalogue.rows(
        """SELECT snapshot_id, deletion_id FROM deletions JOIN snapshots USING (deletion_id)
        WHERE state = 'purged' ORDER BY depth DESC"""
    )
    if gone:
        left = catalogue.store.remove([row["snapshot_id"] for row in gone])
        acts = {row["deletion_id"] for row in gone} - {row["deletion_id"] for row in gone if row["snapshot_id"] in left}
        with catalogue.transaction() as db:
            db.executemany("UPDATE deletions SET state = 'freed' WHERE deletion_id = ?", [(one,) for one in acts])
