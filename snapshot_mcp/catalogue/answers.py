"""Convert rows of the catalogue to the contract's models."""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

from snapshot_mcp.catalogue.copied import copies_of, newest_copied
from snapshot_mcp.catalogue.database import Catalogue, moment, placeholders
from snapshot_mcp.catalogue.lookup import Half, half_in_place, prospect_of
from snapshot_mcp.catalogue.store import Row, Use
from snapshot_mcp.contract.copied import Copied
from snapshot_mcp.contract.models import (
    Coverage,
    Image,
    Instance,
    Job,
    JobError,
    Snapshot,
    SnapshotResource,
    Volume,
    gigabytes,
    megabytes,
)
from snapshot_mcp.contract.states import ResourceType, SnapshotStatus, SnapshotType
from snapshot_mcp.contract.text import encodable

NEWEST_FIRST: Final = "snapshot_at DESC, snapshot_id"


def to_job(row: Row, zone: str) -> Job:
    """Convert a row of `jobs`."""
    extra: dict[str, Any] = json.loads(row["extra"])
    if row["progress"]:
        extra["progress"] = json.loads(row["progress"])
    return Job(
        job_id=row["job_id"],
        id_prefix="job",
        action=row["action"],
        request_id=row["job_id"],
        status=row["status"],
        create_time=moment(row["created_at"]),
        begin_time=moment(row["begun_at"]),
        finished_time=moment(row["finished_at"]),
        info=row["info"],
        extra=extra,
        zone=zone,
        resource_ids=tuple(json.loads(row["resource_ids"])),
        error=JobError(code=row["error_code"], message=row["info"]) if row["error_code"] else None,
    )


def to_snapshots(catalogue: Catalogue, rows: Sequence[Row], *, is_verbose: bool) -> tuple[Snapshot, ...]:
    """Convert rows of `snapshots`; full ones get the totals of their chains (of a deleted one: of what was deleted)."""
    if not rows:
        return ()
    roots = [row["snapshot_id"] for row in rows if row["is_full"]]
    totals = {
        (row["root_id"], row["status"]): row
        for row in catalogue.rows(
            f"""SELECT root_id, status, count(*) AS number, sum(size_bytes) AS size, max(snapshot_at) AS latest FROM snapshots
            WHERE root_id IN ({placeholders(roots)}) AND +status IN ('available', 'deleted') GROUP BY root_id, status""",
            *roots,
        )
    }
    acts = list({row["deletion_id"] for row in rows if row["deletion_id"]}) if is_verbose else []
    deletions = _deletions(catalogue, acts)
    resource_ids = list({row["resource_id"] for row in rows})
    resources = {
        row["resource_id"]: row
        for row in catalogue.rows(
            f"""SELECT r.*, h.root_id AS head_root FROM resources r LEFT JOIN snapshots h ON h.snapshot_id = r.head_id
            WHERE r.resource_id IN ({placeholders(resource_ids)})""",
            *resource_ids,
        )
    }
    copies = copies_of(catalogue, [row["snapshot_id"] for row in rows]) if is_verbose else {}
    named = {resource_id: _named(row) for resource_id, row in resources.items()}
    return tuple(
        _to_snapshot(
            row,
            resources[row["resource_id"]],
            named[row["resource_id"]],
            totals.get((row["snapshot_id"], row["status"])),
            deletions.get(row["deletion_id"]) if row["status"] == SnapshotStatus.DELETED else None,
            is_verbose,
            copies.get(row["snapshot_id"], ()),
        )
        for row in rows
    )


def _deletions(catalogue: Catalogue, ids: Sequence[str]) -> dict[str, Row]:
    if not ids:
        return {}
    found = catalogue.rows(f"SELECT * FROM deletions WHERE deletion_id IN ({placeholders(ids)})", *ids)
    return {row["deletion_id"]: row for row in found}


@lru_cache(maxsize=1024)
def _named(row: Row) -> SnapshotResource:
    return SnapshotResource(
        resource_id=row["resource_id"], resource_name=row["name"], resource_type=row["resource_type"]
    )


@lru_cache(maxsize=4096)  # lists show the same rows again and again
def _to_snapshot(
    row: Row,
    resource: Row,
    named: SnapshotResource,
    total: Row | None,
    deletion: Row | None,
    is_verbose: bool,
    copies: tuple[Copied, ...],
) -> Snapshot:
    ours: dict[str, Any] = {}
    if is_verbose:
        ours = {
            "size_bytes": row["size_bytes"],
            "virtual_size_bytes": row["virtual_bytes"],
            "consistency": row["consistency"],
            "is_damaged": row["is_damaged"],
            "verified_at": moment(row["verified_at"]),
            "deleted_at": moment(deletion["deleted_at"]) if deletion else None,
            "recoverable_until": moment(deletion["purge_at"]) if deletion else None,
            "created_boot": row["boot"],
            "created_uptime": row["uptime"],
            "copies": copies,
        }
    return Snapshot(
        snapshot_id=row["snapshot_id"],
        snapshot_name=row["name"],
        description=row["description"],
        snapshot_type=SnapshotType(row["is_full"]),
        status=row["status"],
        transition_status=row["transition"],
        create_time=moment(row["created_at"]),
        status_time=moment(row["status_at"]),
        snapshot_time=moment(row["snapshot_at"]),
        is_taken=row["is_taken"],
        is_head=int(resource["head_id"] == row["snapshot_id"]),
        head_chain=int(resource["head_root"] == row["root_id"]),
        root_id=row["root_id"],
        parent_id=row["parent_id"] or "self",
        size=megabytes(row["size_bytes"]),
        total_size=megabytes(total["size"]) if total else 0,
        total_count=total["number"] if total else 0,
        lastest_snapshot_time=moment(total["latest"]) if total else None,
        resource=named,
        tags=tuple(json.loads(row["tags"])),
        **ours,
    )


def to_resource(
    catalogue: Catalogue, row: Row, *, is_verbose: bool = False, use: Use | None = None, state: str = ""
) -> Volume | Instance:
    """Convert a row of `resources`; looks at the disk for its size and, if `is_verbose`, for its identity.

    `state` is that of the machine whose disk it is, "" if it has to be found.
    """
    half = half_in_place(catalogue, row)
    sight = catalogue.store.look_at(row, is_verbose=is_verbose)
    problem = "; ".join(filter(None, [catalogue.problem, _problem(catalogue, row, half, use), sight.problem]))
    common: dict[str, Any] = {
        "description": row["description"],
        "size": gigabytes(sight.size_bytes),
        "transition_status": "",
        "create_time": moment(row["created_at"]),
        "status_time": moment(row["status_at"]),
        "size_bytes": sight.size_bytes,
        "path": encodable(sight.place or row["path"]),
        "problem": problem or None,
        "held_by": use.held_by if use else None,
        "identity": sight.identity,
        "hard_links": sight.hard_links,
        "format": sight.format or None,
    }
    if row["resource_type"] == ResourceType.VOLUME:
        status = "pending" if half else "available"
        return Volume(volume_id=row["resource_id"], volume_name=row["name"], status=status, **common)
    status = "pending" if half else state or catalogue.store.find_states([row])[row["resource_id"]]
    return Instance(instance_id=row["resource_id"], instance_name=row["name"], status=status, **common)


def _problem(catalogue: Catalogue, row: Row, half: Half | None, use: Use | None) -> str:
    """Return what is wrong with a disk, "" for nothing: not while a job of ours is overwriting it."""
    if half and not half.problem and use and use.is_ours:
        return ""
    if row["applying_id"] is None:
        return str(row["problem"])
    if half is None:
        problem = row["problem"] or "a roll-back was interrupted"
        now = "; the one there now is complete" if catalogue.store.identity_of(row) else ""
        return f"{problem} (the disk that it was overwriting is not at its path{now})"
    why = f" ({half.problem})" if half.problem else ""
    return (
        f"a roll-back to {half.applying_id} is unfinished{why}, so the disk holds old and new content mixed."
        f" {prospect_of(row, half)}"
    )


def to_coverages(catalogue: Catalogue, resource_ids: Sequence[str]) -> dict[str, Coverage]:
    """Return what protects each disk, from counts that triggers keep (`schema`)."""
    among = f"resource_id IN ({placeholders(resource_ids)})"
    worth: dict[str, dict[str, Row]] = {one: {} for one in resource_ids}
    for row in catalogue.rows(f"SELECT * FROM snapshot_worth WHERE {among} AND worth != ''", *resource_ids):
        worth[row["resource_id"]][row["worth"]] = row
    return {one: _to_coverage(catalogue, one, found) for one, found in worth.items()}


def _to_coverage(catalogue: Catalogue, resource_id: str, worth: Mapping[str, Row]) -> Coverage:
    newest = catalogue.row(
        f"SELECT * FROM snapshots WHERE resource_id = ? AND worth = 'good' ORDER BY {NEWEST_FIRST} LIMIT 1", resource_id
    )
    numbers = {f"{kind}_count": worth[kind]["number"] if kind in worth else 0 for kind in ("good", "damaged", "fuzzy")}
    stored_bytes = sum(row["stored_bytes"] for row in worth.values())
    elsewhere = newest_copied(catalogue, resource_id)
    copied: dict[str, Any] = {}
    if elsewhere:
        moved = moment(elsewhere["snapshot_at"])
        copied = {"copied_id": elsewhere["snapshot_id"], "copied_time": moved, "copied_to": elsewhere["copies"]}
    if newest is None:
        return Coverage(stored_bytes=stored_bytes, **numbers)
    return Coverage(
        newest_good_id=newest["snapshot_id"],
        newest_good_time=moment(newest["snapshot_at"]),
        newest_good_consistency=newest["consistency"],
        verified_at=moment(newest["verified_at"]),
        stored_bytes=stored_bytes,
        **copied,
        **numbers,
    )


def to_image(catalogue: Catalogue, row: Row) -> Image:
    """Convert a row of `images`; looks at the image for its size."""
    sight = catalogue.store.look_at(row)
    return Image(
        image_id=row["image_id"],
        image_name=row["name"],
        status="available",
        provider="self",
        size=megabytes(sight.size_bytes),
        size_bytes=sight.size_bytes,
        path=encodable(sight.place or row["path"]),
        format=sight.format or None,
        problem=sight.problem or None,
        create_time=moment(row["created_at"]),
        status_time=moment(row["created_at"]),
    )
