"""Changes asked of the zone: checked whole, and entered as jobs, each in one transaction.

What is refused here changes nothing; what is accepted is a row of `jobs` with its claims, which the worker carries out
(`work`). Claims decide who waits for whom: a job that changes a resource or its chains holds `resource` claims alone;
an export holds a `snapshot` claim, which keeps that snapshot from being deleted and nothing else. A disk is probed only
after its claims, in the same transaction: opening a disk that a job of ours is reading would break that job's lease.
"""

import json
import secrets
import sqlite3
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from snapshot_mcp.contract.errors import BadRequest, NotUsable, WrongResourceType
from snapshot_mcp.contract.keep_free import DEFAULT_KEEP_FREE, KeepFree
from snapshot_mcp.contract.models import SnapshotUpdate, first_repeated, format_time
from snapshot_mcp.contract.states import JobAction, JobStatus, ResourceType, SnapshotStatus, TransitionStatus
from snapshot_mcp.contract.terms import Terms
from snapshot_mcp.providers.local.agreed import (
    compare_deletion,
    compare_disks,
    deadline,
    named,
    outcome_of,
    probe_disks,
    refuse_shorter_grace,
)
from snapshot_mcp.providers.local.catalogue import LIVE, Catalogue, Row, is_grace_over, moment, now
from snapshot_mcp.providers.local.disk import CaptureSource, image_path
from snapshot_mcp.providers.local.lookup import (
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
from snapshot_mcp.providers.local.registration import check_disk, refuse_own_file, refuse_registered
from snapshot_mcp.providers.local.room import Room

_ALPHABET: Final = "abcdefghijklmnopqrstuvwxyz0123456789"


@dataclass(frozen=True, slots=True)
class Rules:
    """What the operator set for the zone.

    `recovery_seconds`: grace after a deletion. `chain_limit`: available snapshots in a chain before a new full one.
    `allow_fuzzy`: capture a disk that is in use although nothing proves that the copy is one state. `keep_free`: what
    backups and exports leave free on the zone's filesystem.
    """

    recovery_seconds: int = 7200
    chain_limit: int = 30
    allow_fuzzy: bool = False
    keep_free: KeepFree = DEFAULT_KEEP_FREE


DEFAULT_RULES: Final = Rules()


def new_id(prefix: str) -> str:
    """An id as the provider's: `ss-3k9x0c2p`. Unique by the table's key; a clash has a chance of one in 10¹²."""
    return f"{prefix}-" + "".join(secrets.choice(_ALPHABET) for _ in range(8))


def register(
    catalogue: Catalogue,
    path: Path,
    name: str,
    resource_type: ResourceType,
    home: Path | None = None,
    configuration: Sequence[Path] = (),
) -> Row:
    """Enter a disk image as a volume or an instance. One file is registered once (engine_notes.md, invariant 6).

    It is opened last: to open a disk that is registered would break the lease of a job that has it.
    """
    real = image_path(path)
    refuse_own_file(real, catalogue.folder, home, configuration)
    name = checked_name(name or real.name)
    with catalogue.transaction() as db:
        refuse_registered(catalogue, real)
        check_disk(real)
        resource_id = new_id("vol" if resource_type == ResourceType.VOLUME else "ins")
        insert_resource(db, resource_id, resource_type, name, real)
        row = catalogue.resource(resource_id)
    assert row is not None
    return row


def insert_resource(db: sqlite3.Connection, resource_id: str, resource_type: str, name: str, path: Path) -> None:
    db.execute(
        "INSERT INTO resources (resource_id, resource_type, name, path, created_at, status_at) VALUES (?, ?, ?, ?, ?, ?)",
        (resource_id, resource_type, name, str(path), now(), now()),
    )


def create(catalogue: Catalogue, resource_ids: Sequence[str], name: str, is_full: bool, rules: Rules) -> Row:
    """Enter a create and return the job. Raises BadRequest, NotFound, NotUsable, ResourceBusy."""
    check_ids("resources", resource_ids)
    name = checked_name(name)
    with catalogue.transaction():
        resources = [find_resource(catalogue, one) for one in resource_ids]
        refuse_busy(catalogue, resources)
        room = Room(catalogue, rules.keep_free)
        for resource in resources:
            refuse_incomplete(resource)
            with CaptureSource(resource["path"], label_of(resource), allow_fuzzy=rules.allow_fuzzy) as source:
                if is_full or parent_for(catalogue, resource, rules.chain_limit) is None:
                    room.add_full(source.fd)
                else:
                    room.add_incremental(resource["resource_id"])
        taken = room.take("the snapshot" if len(resources) == 1 else "the snapshots")
        snapshot_ids = [_insert_snapshot(catalogue, one, name, rules, is_full=is_full) for one in resources]
        return _insert_job(
            catalogue,
            JobAction.CREATE,
            {"snapshot_ids": snapshot_ids, "allow_fuzzy": rules.allow_fuzzy} | taken._asdict(),
            snapshot_ids,
            resource_claims=resource_ids,
        )


def _insert_snapshot(catalogue: Catalogue, resource: Row, name: str, rules: Rules, *, is_full: bool = False) -> str:
    """Enter a snapshot that is to be taken, and return its id."""
    parent = None if is_full else parent_for(catalogue, resource, rules.chain_limit)
    snapshot_id, created = new_id("ss"), now()
    catalogue.db.execute(
        """INSERT INTO snapshots (snapshot_id, name, resource_id, is_full, status, transition, created_at,
        status_at, snapshot_at, root_id, parent_id, depth) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)""",
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
        ),
    )
    return snapshot_id


def parent_for(catalogue: Catalogue, resource: Row, chain_limit: int) -> Row | None:
    """What the next incremental builds on; None where the next snapshot must be a full one.

    Full are: the first of a resource, one without a head, one whose chain has reached its limit, and one whose chain
    has known damage (contract.md, "Head", "Limit"; engine_notes.md, invariant 3).
    """
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


def delete(catalogue: Catalogue, snapshot_id: str, rules: Rules, terms: Terms | None = None) -> Row:
    """Enter the deletion of a snapshot and everything below it; its answer says when the space comes free.

    Raises TermsChanged where that is more than the terms say.
    """
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
        agreed = terms.model_dump(include={"may_go", "must_stay", "must_exist"}) if terms else {}
        compare_deletion(catalogue, snapshot["resource_id"], going, agreed)
        refuse_shorter_grace(terms, rules.recovery_seconds)
        free_at = now() + rules.recovery_seconds
        return _insert_job(
            catalogue,
            JobAction.DELETE,
            {"snapshot_id": snapshot_id, "recovery_seconds": rules.recovery_seconds, **agreed},
            going,
            resource_claims=[snapshot["resource_id"]],
            begin_by=deadline(terms),
            extra={"space_free_at": format_time(moment(free_at)), "recoverable_seconds": rules.recovery_seconds}
            | named(terms),
        )


def apply(
    catalogue: Catalogue,
    snapshot_ids: Sequence[str],
    rules: Rules,
    terms: Terms | None = None,
    safety_name: str = "",
) -> Row:
    """Enter a roll-back; with a `safety_name` it takes a safety snapshot of each disk first.

    Raises ResourceBusy also when a disk is in use, naming by whom, and TermsChanged when it is not the one of the terms.
    """
    check_ids("snapshots", snapshot_ids)
    name = checked_name(safety_name)
    with catalogue.transaction():
        resources = [owner_of(catalogue, find_usable(catalogue, one)) for one in snapshot_ids]
        by_id = {resource["resource_id"]: resource for resource in resources}
        if repeated := first_repeated(resource["resource_id"] for resource in resources):
            raise BadRequest(
                f"Two of the snapshots are of {repeated}; a resource can go back to one point only.",
                hint="Name one snapshot a resource.",
            )
        refuse_busy(catalogue, resources)
        disks = probe_disks(by_id, has_safety=bool(name))
        compare_disks(terms, disks, {one: label_of(resource) for one, resource in by_id.items()})
        safety = {one: _insert_snapshot(catalogue, resource, name, rules) for one, resource in by_id.items() if name}
        return _insert_job(
            catalogue,
            JobAction.APPLY,
            {"targets": dict(zip(by_id, snapshot_ids, strict=True)), "disks": disks, "safety": safety},
            list(by_id),
            resource_claims=list(by_id),
            begin_by=deadline(terms),
            extra={"resources": {one: outcome_of(resource) for one, resource in by_id.items()}}
            | ({"safety_snapshots": safety} if safety else {})
            | named(terms),
        )


def enter_resumption(catalogue: Catalogue, resource: Row) -> Row:
    """Enter a roll-back that was broken off again, within a transaction of the caller's."""
    resource_id = resource["resource_id"]
    return _insert_job(
        catalogue,
        JobAction.APPLY,
        {"targets": {resource_id: resource["applying_id"]}},
        [resource_id],
        resource_claims=[resource_id],
        has_effect=True,
        extra={"resources": {resource_id: "incomplete"}, "resumed": True},
    )


def export(catalogue: Catalogue, action: JobAction, snapshot_id: str, name: str, rules: Rules = DEFAULT_RULES) -> Row:
    """Enter an export to a volume or an image (`action`).

    Raises WrongResourceType for the other kind's snapshot, StorageFull where it would leave less than `rules.keep_free`.
    """
    name = checked_name(name)
    with catalogue.transaction():
        snapshot = find_usable(catalogue, snapshot_id)
        resource = owner_of(catalogue, snapshot)
        is_image = action == JobAction.CAPTURE_INSTANCE
        wanted = ResourceType.INSTANCE if is_image else ResourceType.VOLUME
        if resource["resource_type"] != wanted:
            raise WrongResourceType(
                f"Snapshot {snapshot_id} is of {label_of(resource)}; {'an image' if is_image else 'a volume'} can be made"
                f" only from a snapshot of a{'n' if is_image else ''} {wanted}.",
                hint=f"Export it to {'a volume' if is_image else 'an image'} instead.",
            )
        refuse_incomplete(resource)
        refuse_going(catalogue, snapshot)
        room = Room(catalogue, rules.keep_free)
        room.add_export(snapshot_id)
        taken = room.take(f"an export of snapshot {snapshot_id}")
        new = new_id("img" if is_image else "vol")
        request = {"snapshot_id": snapshot_id, "name": name, "new_id": new} | taken._asdict()
        return _insert_job(catalogue, action, request, [new], snapshot_claims=[snapshot_id])


def recover(catalogue: Catalogue, snapshot_ids: Sequence[str]) -> Row:
    """Enter a recovery: each snapshot's whole act of deletion comes back (contract.md, "Deletion")."""
    check_ids("resources", snapshot_ids)
    with catalogue.transaction():
        snapshots = [find_snapshot(catalogue, one) for one in snapshot_ids]
        for snapshot in snapshots:
            if snapshot["status"] != SnapshotStatus.DELETED:
                raise not_usable(snapshot, "recovered")
        acts = list(dict.fromkeys(snapshot["deletion_id"] for snapshot in snapshots))
        coming: list[Row] = []
        for act in acts:
            deletion = catalogue.row("SELECT * FROM deletions WHERE deletion_id = ?", act)
            act_rows = catalogue.rows("SELECT * FROM snapshots WHERE deletion_id = ? ORDER BY depth, snapshot_id", act)
            if deletion is None or is_grace_over(deletion):
                raise NotUsable(
                    f"The time to recover snapshot {act_rows[0]['snapshot_id']} is over.",
                    hint="It cannot be brought back.",
                )
            coming += act_rows
        ids = {row["snapshot_id"] for row in coming}
        for row in coming:
            if row["parent_id"] is None or row["parent_id"] in ids:
                continue
            parent = catalogue.snapshot(row["parent_id"])
            if parent is None or parent["status"] not in LIVE:
                raise NotUsable(
                    f"Snapshot {row['snapshot_id']} builds on {row['parent_id']}, which was deleted since by another act.",
                    hint=f"Recover {row['parent_id']} first.",
                )
        resources = [owner_of(catalogue, snapshot) for snapshot in snapshots]
        refuse_busy(catalogue, resources)
        claims = list(dict.fromkeys(resource["resource_id"] for resource in resources))
        return _insert_job(catalogue, JobAction.LEASE, {"deletion_ids": acts}, sorted(ids), resource_claims=claims)


def update(catalogue: Catalogue, snapshot_id: str, changes: SnapshotUpdate) -> None:
    """Rename, describe or tag a snapshot; no job. Raises NotFound, BadRequest, NotUsable."""
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


def _insert_job(
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
    job_id = str(uuid.uuid4())
    columns = (job_id, action, JobStatus.PENDING, json.dumps(request), json.dumps(list(ids)), now())
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
