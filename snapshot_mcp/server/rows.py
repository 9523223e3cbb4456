"""Rows of what the reading tools list: restore points, disks with what protects them, chains."""

from collections.abc import Sequence
from typing import Any, Literal, Self

from snapshot_mcp.contract.copied import copied_in_words
from snapshot_mcp.contract.models import Coverage, Resource, Snapshot, Volume, format_time
from snapshot_mcp.contract.text import MESSAGE_CHARACTERS, clean_text
from snapshot_mcp.server.results import Result, consistency_of, status_of, type_of


class SnapshotRow(Result):
    """A restore point in a list. `root_id` is unset for a full one, which is its own; the last four are for `verbose` only."""

    snapshot_id: str
    name: str
    type: str
    status: str
    resource_id: str
    resource_name: str
    snapshot_time: str
    stored_bytes: int
    root_id: str | None = None
    parent_id: str | None = None
    consistency: str | None = None
    is_head: bool | None = None
    is_damaged: bool | None = None
    deleted_at: str | None = None
    recoverable_until: str | None = None
    verified_at: str | None = None
    copied: str | None = None
    description: str | None = None
    tags: list[str] | None = None
    disk_bytes: int | None = None
    chain_count: int | None = None

    @classmethod
    def of(cls, snapshot: Snapshot, *, verbose: bool = False) -> Self:
        """Build a row from a snapshot."""
        details: dict[str, Any] = {}
        if verbose:
            details = {
                "description": clean_text(snapshot.description, MESSAGE_CHARACTERS) or None,
                "tags": [clean_text(tag) for tag in snapshot.tags] or None,
                "disk_bytes": snapshot.virtual_size_bytes,
                "chain_count": snapshot.total_count if snapshot.is_full else None,
            }
        return cls(
            snapshot_id=clean_text(snapshot.snapshot_id),
            name=clean_text(snapshot.snapshot_name),
            type=type_of(snapshot),
            status=status_of(snapshot),
            resource_id=clean_text(snapshot.resource.resource_id),
            resource_name=clean_text(snapshot.resource.resource_name),
            snapshot_time=format_time(snapshot.snapshot_time or snapshot.create_time),
            stored_bytes=snapshot.stored_bytes,
            root_id=None if snapshot.is_full else clean_text(snapshot.root_id),
            parent_id=clean_text(snapshot.parent) if snapshot.parent else None,
            consistency=consistency_of(snapshot),
            is_head=True if snapshot.is_head else None,
            is_damaged=True if snapshot.is_damaged else None,
            deleted_at=format_time(snapshot.deleted_at) or None,
            recoverable_until=format_time(snapshot.recoverable_until) or None,
            verified_at=format_time(snapshot.verified_at) or None,
            copied=copied_in_words(snapshot.copies, is_long=True) or None,
            **details,
        )


class SnapshotList(Result):
    """A page of restore points; `filter` names what was applied."""

    zone: str
    total_count: int
    filter: str = ""
    snapshots: list[SnapshotRow]
    hint: str = ""


class ResourceRow(Result):
    """A disk, machine or image, with what protects it: the newest good restore point, how many there are of each worth, what
    they store. `running`: unfinished jobs on it.
    """

    resource_id: str
    name: str
    kind: Literal["volume", "instance", "image"]
    status: str = "available"
    disk_bytes: int
    format: str = ""
    attached_to: str | None = None
    path: str | None = None
    held_by: str | None = None
    problem: str | None = None
    newest_good_id: str | None = None
    newest_good_time: str | None = None
    consistency: str | None = None
    verified_at: str | None = None
    good_count: int | None = None
    damaged_count: int | None = None
    fuzzy_count: int | None = None
    stored_bytes: int | None = None
    copied: str | None = None
    running: list[str] | None = None

    @classmethod
    def of(cls, resource: Resource, coverage: Coverage | None = None, running: Sequence[str] = ()) -> Self:
        """Build a row from a resource, what protects it, and what runs on it."""
        host = resource.instance if isinstance(resource, Volume) else None
        return cls(
            resource_id=clean_text(resource.id),
            name=clean_text(resource.name),
            kind=resource.kind,
            status=clean_text(resource.transition_status or resource.status),
            disk_bytes=resource.byte_size,
            format=clean_text(resource.format or ""),
            attached_to=clean_text(host.instance_id) or None if host else None,
            path=clean_text(resource.path or "", MESSAGE_CHARACTERS) or None,
            held_by=clean_text(resource.held_by or "", MESSAGE_CHARACTERS) or None,
            problem=clean_text(resource.problem or "", MESSAGE_CHARACTERS) or None,
            **(_protection(coverage) if coverage else {}),
            running=list(running) or None,
        )


def _copied(coverage: Coverage) -> str | None:
    """Return which good restore point copies elsewhere have, None for none."""
    if not coverage.copied_id:
        return None
    of = f" of {format_time(coverage.copied_time)}" if coverage.copied_time else ""
    return f"{clean_text(coverage.copied_id)}{of} in {clean_text(coverage.copied_to)}"


def _protection(coverage: Coverage) -> dict[str, Any]:
    return {
        "newest_good_id": clean_text(coverage.newest_good_id) or None,
        "newest_good_time": format_time(coverage.newest_good_time) or None,
        "consistency": clean_text(coverage.newest_good_consistency) or None,
        "verified_at": format_time(coverage.verified_at) or None,
        "good_count": coverage.good_count,
        "damaged_count": coverage.damaged_count or None,
        "fuzzy_count": coverage.fuzzy_count or None,
        "stored_bytes": coverage.stored_bytes,
        "copied": _copied(coverage),
    }


class ResourceList(Result):
    """A page of disks, machines and images; `filter` names what was applied."""

    zone: str
    total_count: int
    filter: str = ""
    resources: list[ResourceRow]
    hint: str = ""


Worth = Literal["good", "fuzzy", "damaged", "unsound", "unknown"]
"""What a restore point can be used for: `fuzzy` ones are sound but do not count; an `unsound` one builds on what cannot be
restored; of an `unknown` one not all that it builds on was read. One that is not available has none."""


class ChainNode(Result):
    """A restore point in a tree, for programs that draw it; `art` is what stands before it, two characters a column."""

    snapshot_id: str
    parent_id: str | None = None
    root_id: str
    depth: int
    name: str
    type: str
    status: str
    snapshot_time: str
    stored_bytes: int
    consistency: str | None = None
    is_head: bool = False
    is_damaged: bool = False
    verified_at: str | None = None
    worth: Worth | None = None
    art: str = ""


class ChainPicture(Result):
    """Restore points of a resource, drawn as trees in `lines`; the result's `_meta` has the `nodes`, parents before children,
    and their `total_count`.

    `stored_bytes` is what those shown store; `frees_bytes` what deleting all but the newest chain gives back.
    """

    zone: str
    resource_id: str
    resource_name: str
    head_id: str | None = None
    stored_bytes: int
    frees_bytes: int | None = None
    gone_count: int | None = None
    lines: list[str]
    hint: str = ""
