"""Check each requested change and enqueue it as a job, in one transaction.

A refused change has no effect; an accepted one is a row of `jobs` with its claims, which the worker carries out (`work`).
A job that changes a resource or its chains holds exclusive `resource` claims; an export holds a `snapshot` claim, which
only keeps that snapshot from being deleted. A disk is probed after its claims are checked, in the same transaction:
opening a disk that a job of ours is reading would break that job's lease.
"""

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from snapshot_mcp.catalogue import agreement
from snapshot_mcp.catalogue.database import IS_UNFINISHED, LIVE, Catalogue, moment
from snapshot_mcp.catalogue.lookup import (
    busy,
    check_ids,
    checked_name,
    find_resource,
    find_snapshot,
    find_usable,
    label_of,
    not_usable,
    owner_of,
    refuse_busy,
    refuse_going,
    refuse_incomplete,
    refuse_needed,
)
from snapshot_mcp.catalogue.room import Room
from snapshot_mcp.catalogue.snapshots import new_id, parent_for, plan_snapshot
from snapshot_mcp.catalogue.store import Row
from snapshot_mcp.contract.errors import BadRequest, NotUsable, WrongResourceType
from snapshot_mcp.contract.keep_free import DEFAULT_KEEP_FREE, KeepFree
from snapshot_mcp.contract.models import SnapshotUpdate, first_repeated, format_time
from snapshot_mcp.contract.states import JobAction, JobStatus, ResourceType, SnapshotStatus
from snapshot_mcp.contract.terms import Terms

RECOVERY_SECONDS = 7200
CHAIN_LIMIT = 30


@dataclass(frozen=True, slots=True)
class ZoneRules:
    """The operator's settings for the zone."""

    recovery_seconds: int = RECOVERY_SECONDS
    """Grace period after a deletion."""
    chain_limit: int = CHAIN_LIMIT
    """Available snapshots in a chain before the next one is full."""
    allow_fuzzy: bool = False
    """Capture a disk that is in use even if the copy may be inconsistent."""
    keep_free: KeepFree = DEFAULT_KEEP_FREE
    """Space that backups and exports leave free on the zone's filesystem."""


def create(catalogue: Catalogue, resource_ids: Sequence[str], name: str, is_full: bool, rules: ZoneRules) -> Row:
    """Enqueue a create and return the job. Raises BadRequest, NotFound, NotUsable, ResourceBusy."""
    check_ids("resources", resource_ids)
    name = checked_name(name)
    with catalogue.transaction():
        resources = [find_resource(catalogue, one) for one in resource_ids]
        refuse_busy(catalogue, resources)
        room = Room(catalogue, rules.keep_free)
        for resource in resources:
            refuse_incomplete(catalogue, resource)
            catalogue.store.check_capture(
                resource,
                room,
                is_full=is_full or parent_for(catalogue, resource, rules.chain_limit) is None,
                allow_fuzzy=rules.allow_fuzzy,
            )
        taken = room.take("the snapshot" if len(resources) == 1 else "the snapshots")
        snapshot_ids = [plan_snapshot(catalogue, one, name, rules.chain_limit, is_full=is_full) for one in resources]
        return insert_job(
            catalogue,
            JobAction.CREATE,
            {"snapshot_ids": snapshot_ids, "allow_fuzzy": rules.allow_fuzzy} | taken._asdict(),
            snapshot_ids,
            resource_claims=resource_ids,
        )


def delete(catalogue: Catalogue, snapshot_id: str, rules: ZoneRules, terms: Terms | None = None) -> Row:
    """Enqueue the deletion of a snapshot and its descendants. Raises TermsChanged if the terms do not cover all of them."""
    with catalogue.transaction():
        snapshot = find_snapshot(catalogue, snapshot_id)
        refuse_busy(catalogue, [owner_of(catalogue, snapshot)])
        if snapshot["status"] not in LIVE:
            raise not_usable(snapshot, "deleted")
        going = [row["snapshot_id"] for row in catalogue.subtree(snapshot_id, *LIVE)]
        for one in going:
            if holder := catalogue.row("SELECT job_id FROM claims WHERE kind = 'snapshot' AND id = ?", one):
                raise busy(catalogue, f"Snapshot {one}", holder["job_id"])
        refuse_needed(catalogue, going)
        bounds = terms.model_dump(include={"may_go", "must_stay", "must_exist"}) if terms else {}
        agreement.compare_deletion(catalogue, snapshot["resource_id"], going, bounds)
        agreement.refuse_shorter_grace(terms, rules.recovery_seconds)
        free_at = catalogue.now() + rules.recovery_seconds
        return insert_job(
            catalogue,
            JobAction.DELETE,
            {"snapshot_id": snapshot_id, "recovery_seconds": rules.recovery_seconds, **bounds},
            going,
            resource_claims=[snapshot["resource_id"]],
            begin_by=agreement.deadline(catalogue, terms),
            extra={"space_free_at": format_time(moment(free_at)), "recoverable_seconds": rules.recovery_seconds}
            | agreement.named(terms),
        )


def apply(
    catalogue: Catalogue,
    snapshot_ids: Sequence[str],
    rules: ZoneRules,
    terms: Terms | None = None,
    safety_name: str = "",
) -> Row:
    """Enqueue a roll-back; with a `safety_name` it first takes a safety snapshot of each disk.

    Raises ResourceBusy, also if another program uses a disk, and TermsChanged if a disk is not the approved one.
    """
    check_ids("snapshots", snapshot_ids)
    name = checked_name(safety_name)
    with catalogue.transaction():
        resources = [owner_of(catalogue, find_usable(catalogue, one)) for one in snapshot_ids]
        by_id = {resource["resource_id"]: resource for resource in resources}
        if repeated := first_repeated(resource["resource_id"] for resource in resources):
            raise BadRequest(
                f"Two of the snapshots belong to {repeated}; a resource can be rolled back to only one of them.",
                hint="Give one snapshot per resource.",
            )
        refuse_busy(catalogue, resources)
        disks = agreement.probe_disks(catalogue, by_id, has_safety=bool(name))
        agreement.compare_disks(catalogue, terms, disks, by_id)
        safety = {one: plan_snapshot(catalogue, row, name, rules.chain_limit) for one, row in by_id.items() if name}
        return insert_job(
            catalogue,
            JobAction.APPLY,
            {"targets": dict(zip(by_id, snapshot_ids, strict=True)), "disks": disks, "safety": safety},
            list(by_id),
            resource_claims=list(by_id),
            begin_by=agreement.deadline(catalogue, terms),
            extra={"resources": {one: agreement.outcome_of(catalogue, resource) for one, resource in by_id.items()}}
            | ({"safety_snapshots": safety} if safety else {})
            | agreement.named(terms),
        )


def export(
    catalogue: Catalogue, action: JobAction, snapshot_id: str, name: str, rules: ZoneRules, form: str = ""
) -> Row:
    """Enqueue an export to a volume or an image (`action`), in a format of the store. Raises WrongResourceType, StorageFull."""
    name = checked_name(name)
    with catalogue.transaction():
        snapshot = find_usable(catalogue, snapshot_id)
        resource = owner_of(catalogue, snapshot)
        is_image = action == JobAction.CAPTURE_INSTANCE
        wanted = ResourceType.INSTANCE if is_image else ResourceType.VOLUME
        if resource["resource_type"] != wanted:
            raise WrongResourceType(
                f"Snapshot {snapshot_id} belongs to {label_of(resource)}; {'an image' if is_image else 'a volume'} can be"
                f" created only from a snapshot of a{'n' if is_image else ''} {wanted}.",
                hint=f"Export it to {'a volume' if is_image else 'an image'} instead.",
            )
        refuse_incomplete(catalogue, resource)
        refuse_going(catalogue, snapshot)
        room = Room(catalogue, rules.keep_free)
        catalogue.store.check_export(snapshot_id, room)
        taken = room.take(f"an export of snapshot {snapshot_id}")
        new = new_id("img" if is_image else "vol")
        request = {"snapshot_id": snapshot_id, "name": name, "new_id": new, "format": form} | taken._asdict()
        return insert_job(catalogue, action, request, [new], snapshot_claims=[snapshot_id])


def recover(catalogue: Catalogue, snapshot_ids: Sequence[str]) -> Row:
    """Enqueue a recovery: everything that one deletion took is recovered together (CATALOGUE.md, "Deletion")."""
    check_ids("resources", snapshot_ids)
    with catalogue.transaction():
        snapshots = [find_snapshot(catalogue, one) for one in snapshot_ids]
        for snapshot in snapshots:
            if snapshot["status"] != SnapshotStatus.DELETED:
                raise not_usable(snapshot, "recovered")
        deletion_ids = list(dict.fromkeys(snapshot["deletion_id"] for snapshot in snapshots))
        coming: list[Row] = []
        for one in deletion_ids:
            deletion = catalogue.row("SELECT * FROM deletions WHERE deletion_id = ?", one)
            taken = catalogue.rows("SELECT * FROM snapshots WHERE deletion_id = ? ORDER BY depth, snapshot_id", one)
            if deletion is None or catalogue.is_grace_over(deletion):
                raise NotUsable(
                    f"Snapshot {taken[0]['snapshot_id']} can no longer be recovered: its grace period has ended.",
                    hint="List the snapshots to see which ones exist.",
                )
            coming += taken
        ids = {row["snapshot_id"] for row in coming}
        for row in coming:
            if row["parent_id"] is None or row["parent_id"] in ids:
                continue
            parent = catalogue.snapshot(row["parent_id"])
            if parent is None or parent["status"] not in LIVE:
                raise NotUsable(
                    f"Snapshot {row['snapshot_id']} is based on {row['parent_id']}, which was deleted separately.",
                    hint=f"Recover {row['parent_id']} first.",
                )
        resources = [owner_of(catalogue, snapshot) for snapshot in snapshots]
        refuse_busy(catalogue, resources)
        claims = list(dict.fromkeys(resource["resource_id"] for resource in resources))
        request = {"deletion_ids": deletion_ids}
        return insert_job(catalogue, JobAction.LEASE, request, sorted(ids), resource_claims=claims)


def verify(catalogue: Catalogue, snapshot_ids: Sequence[str]) -> Row:
    """Enqueue a verification, which keeps the snapshots from being deleted meanwhile; return an equal unfinished one.

    Raises NotFound, NotUsable.
    """
    check_ids("snapshots", snapshot_ids)
    with catalogue.transaction():
        for one in snapshot_ids:
            refuse_going(catalogue, find_usable(catalogue, one))
        request = {"verify_ids": list(snapshot_ids)}
        query = f"SELECT * FROM jobs WHERE {IS_UNFINISHED} AND action = ? AND request = ? AND NOT is_cancelled"
        if equal := catalogue.row(query, JobAction.VERIFY, json.dumps(request)):
            return equal
        return insert_job(catalogue, JobAction.VERIFY, request, snapshot_ids, snapshot_claims=snapshot_ids)


def update(catalogue: Catalogue, snapshot_id: str, changes: SnapshotUpdate) -> None:
    """Rename, describe or tag a snapshot; this needs no job. Raises NotFound, BadRequest, NotUsable."""
    with catalogue.transaction() as db:
        snapshot = find_snapshot(catalogue, snapshot_id)
        if snapshot["status"] == SnapshotStatus.CEASED:
            raise not_usable(snapshot, "changed")
        columns = {
            "name": None if changes.snapshot_name is None else checked_name(changes.snapshot_name),
            "description": changes.description,
            "tags": None if changes.tags is None else json.dumps(changes.tags),
        }
        for column, value in columns.items():
            if value is not None:
                db.execute(f"UPDATE snapshots SET {column} = ? WHERE snapshot_id = ?", (value, snapshot_id))


def insert_job(
    catalogue: Catalogue,
    action: JobAction,
    request: dict[str, Any],
    ids: Sequence[str],
    *,
    resource_claims: Sequence[str] = (),
    snapshot_claims: Sequence[str] = (),
    begin_by: tuple[str, float] = ("", 0.0),
    has_effect: bool = False,
    extra: dict[str, Any] | None = None,
) -> Row:
    """Insert a job with its claims, within the caller's transaction."""
    job_id = str(uuid.uuid4())
    columns = (job_id, action, JobStatus.PENDING, json.dumps(request), json.dumps(list(ids)), catalogue.now())
    catalogue.db.execute(
        """INSERT INTO jobs (job_id, action, status, request, resource_ids, created_at, extra, begin_boot, begin_until,
        has_effect, change) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, (SELECT coalesce(max(change), 0) + 1 FROM jobs))""",
        (*columns, json.dumps(extra or {}), *begin_by, int(has_effect)),
    )
    claims = [("resource", one) for one in resource_claims] + [("snapshot", one) for one in snapshot_claims]
    catalogue.db.executemany(
        "INSERT INTO claims (job_id, kind, id) VALUES (?, ?, ?)", [(job_id, *claim) for claim in claims]
    )
    job = catalogue.job(job_id)
    assert job is not None
    return job
