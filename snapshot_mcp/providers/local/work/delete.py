"""Delete, recover, purge: a deletion is one act that goes together and comes back together (contract.md, "Deletion")."""

import json
from collections.abc import Collection
from typing import Any

from snapshot_mcp.contract.errors import NotUsable
from snapshot_mcp.contract.models import format_time
from snapshot_mcp.contract.states import SnapshotStatus
from snapshot_mcp.ground.clock import running_since
from snapshot_mcp.ground.files import fsync_folder
from snapshot_mcp.providers.local.agreed import compare_deletion, refuse_overdue
from snapshot_mcp.providers.local.catalogue import LIVE, Catalogue, Row, is_grace_over, moment, now
from snapshot_mcp.providers.local.snapshot_file.format import file_name
from snapshot_mcp.providers.local.work.outcome import succeed
from snapshot_mcp.providers.local.work.progress import Progress


def carry_out(catalogue: Catalogue, job: Row, request: dict[str, Any], progress: Progress) -> None:
    """One act: everything goes together; the files stay until the grace is over (`purge`).

    Raises Expired, TermsChanged: what was agreed to is compared in the transaction that marks.
    """
    with catalogue.transaction() as db:
        snapshot = catalogue.snapshot(request["snapshot_id"])
        assert snapshot is not None
        resource = catalogue.resource(snapshot["resource_id"])
        assert resource is not None, "a foreign key"
        going = [row["snapshot_id"] for row in catalogue.subtree(snapshot["snapshot_id"], *LIVE)]
        refuse_overdue(job)
        compare_deletion(catalogue, resource["resource_id"], going, request)
        deleted_at = now()
        purge_at = deleted_at + int(request["recovery_seconds"])
        db.execute(
            "INSERT INTO deletions (deletion_id, resource_id, deleted_at, purge_at, head_before, state, boot, uptime)"
            " VALUES (?, ?, ?, ?, ?, 'deleted', ?, ?)",
            (job["job_id"], resource["resource_id"], deleted_at, purge_at, resource["head_id"], *running_since()),
        )
        for one in going:
            db.execute(
                "UPDATE snapshots SET status = ?, transition = '', status_at = ?, deletion_id = ? WHERE snapshot_id = ?",
                (SnapshotStatus.DELETED, deleted_at, job["job_id"], one),
            )
        if resource["head_id"] in going:
            surviving = (
                row["snapshot_id"] for row in catalogue.ancestors(resource["head_id"]) if row["status"] in LIVE
            )
            db.execute(
                "UPDATE resources SET head_id = ? WHERE resource_id = ?",
                (next(surviving, None), resource["resource_id"]),
            )
        succeed(catalogue, job, {"space_free_at": format_time(moment(purge_at))})
        catalogue.set_job(job["job_id"], resource_ids=json.dumps(going))


def recover(catalogue: Catalogue, job: Row, request: dict[str, Any], progress: Progress) -> None:
    with catalogue.transaction() as db:
        for deletion_id in request["deletion_ids"]:
            deletion = catalogue.row("SELECT * FROM deletions WHERE deletion_id = ?", deletion_id)
            assert deletion is not None
            coming = catalogue.rows("SELECT * FROM snapshots WHERE deletion_id = ? ORDER BY rowid DESC", deletion_id)
            if deletion["state"] != "deleted" or any(row["status"] != SnapshotStatus.DELETED for row in coming):
                raise NotUsable("The snapshots were purged meanwhile.", hint="They cannot be brought back.")
            db.execute(
                "UPDATE snapshots SET status = ?, status_at = ?, deletion_id = NULL WHERE deletion_id = ?",
                (SnapshotStatus.AVAILABLE, now(), deletion_id),
            )
            db.execute("UPDATE deletions SET state = 'recovered' WHERE deletion_id = ?", (deletion_id,))
            ids = [row["snapshot_id"] for row in coming]
            head = deletion["head_before"] if deletion["head_before"] in ids else ids[0]
            db.execute(
                "UPDATE resources SET head_id = ? WHERE resource_id = ? AND head_id IS NULL",
                (head, deletion["resource_id"]),
            )
        succeed(catalogue, job)


def purge(catalogue: Catalogue, *, at_once: Collection[str] | None = ()) -> list[str]:
    """Unlink what was deleted and whose grace is over; children before parents.

    `at_once`: the ids of which a deletion may end its grace now, if it took nothing else (None: every deletion).

    First the catalogue says `ceased`, then the files go, so that a crash leaves files without use and never a snapshot
    without its file; what a crash left is swept by the next one. Returns the ids that ceased now.
    """
    with catalogue.transaction() as db:
        # what was deleted first lies below what was deleted later, whatever the clock said
        deleted = catalogue.rows("SELECT * FROM deletions WHERE state = 'deleted' ORDER BY rowid")
        ceased: list[str] = []
        busy = {row["id"] for row in catalogue.rows("SELECT id FROM claims WHERE kind = 'resource'")}
        for row in deleted:
            going = catalogue.rows("SELECT * FROM snapshots WHERE deletion_id = ?", row["deletion_id"])
            ids = {one["snapshot_id"] for one in going}
            if not (at_once is None or ids <= set(at_once) or is_grace_over(row)):
                continue
            below = [
                one
                for snapshot in going
                for one in catalogue.subtree(snapshot["snapshot_id"])
                if one["status"] != SnapshotStatus.CEASED and one["snapshot_id"] not in ids
            ]
            if below or any(one["resource_id"] in busy for one in going):
                continue
            for one in ids:
                db.execute(
                    "UPDATE snapshots SET status = ?, status_at = ? WHERE snapshot_id = ?",
                    (SnapshotStatus.CEASED, now(), one),
                )
            db.execute("UPDATE deletions SET state = 'purged' WHERE deletion_id = ?", (row["deletion_id"],))
            ceased += sorted(ids)
    _sweep(catalogue)
    return ceased


def _sweep(catalogue: Catalogue) -> None:
    """Unlink the files of what was purged, deepest first; a file without a row is never touched."""
    folder = catalogue.folder / "snapshots"
    gone = catalogue.rows(
        """SELECT snapshot_id, deletion_id FROM deletions JOIN snapshots USING (deletion_id)
        WHERE state = 'purged' ORDER BY depth DESC"""
    )
    for row in gone:
        (folder / file_name(row["snapshot_id"])).unlink(missing_ok=True)
    if gone:
        fsync_folder(folder)
        with catalogue.transaction() as db:
            acts = {(row["deletion_id"],) for row in gone}
            db.executemany("UPDATE deletions SET state = 'freed' WHERE deletion_id = ?", acts)
