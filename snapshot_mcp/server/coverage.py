"""What protects each disk: from the zone where it keeps counts, else from one list of its restore points."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import anyio

from snapshot_mcp.contract.errors import ZoneError
from snapshot_mcp.contract.models import Coverage, Image, Job, Resource, Snapshot, SnapshotFilter
from snapshot_mcp.contract.states import SnapshotStatus
from snapshot_mcp.contract.text import clean_text
from snapshot_mcp.contract.tree import SnapshotTree, is_fuzzy, taken_at
from snapshot_mcp.server.results import action_of
from snapshot_mcp.zones import Zone
from snapshot_mcp.zones.finding import read_list, try_find_snapshots

MAX_COUNTED = 1000
"""Restore points that a call counts in a zone that keeps no counts."""

MAX_RUNNING = 5
"""Unfinished jobs that are shown of a disk."""

COUNT_SECONDS = 20.0
"""How long the counting may take; the list of disks comes without it then."""


@dataclass(frozen=True, slots=True)
class Protection:
    """What protects the disks of a page, and what runs on them, by resource id; `note` says what is not counted."""

    coverage: Mapping[str, Coverage] = field(default_factory=dict)
    running: Mapping[str, list[str]] = field(default_factory=dict)
    note: str = ""


async def protection_of(zone: Zone, resources: Sequence[Resource]) -> Protection:
    """Look up what protects these disks. Raises no ZoneError: a list of disks is worth having without it."""
    disks = [one for one in resources if not isinstance(one, Image)]
    if not disks:
        return Protection()
    told = {one.id: one.coverage for one in disks if one.coverage}
    running = await _running(zone)
    if len(told) == len(disks):
        return Protection(told, running)
    reason = "the zone did not answer in time."
    with anyio.move_on_after(COUNT_SECONDS):
        try:
            counted, note = await _counted(zone, disks)
            return Protection(counted | told, running, note)
        except ZoneError as error:
            reason = clean_text(error.message, 200)
    return Protection(told, running, f"The restore points could not be counted: {reason}")


async def _counted(zone: Zone, disks: Sequence[Resource]) -> tuple[dict[str, Coverage], str]:
    statuses = (SnapshotStatus.AVAILABLE, SnapshotStatus.SUSPENDED)
    query = SnapshotFilter(status=statuses, verbose=1)
    snapshots, total = await read_list(zone.provider.list_snapshots, query, MAX_COUNTED)
    of: dict[str, list[Snapshot]] = {one.id: [] for one in disks}
    for snapshot in snapshots:
        of.get(snapshot.resource.resource_id, []).append(snapshot)
    if total <= len(snapshots):
        return {resource_id: _coverage(points) for resource_id, points in of.items()}, ""
    of = {resource_id: _whole_chains(points) for resource_id, points in of.items()}
    note = f"Only the newest {len(snapshots)} of {total} restore points were read; what builds on older ones is not counted."
    return {resource_id: _coverage(points) for resource_id, points in of.items()}, note


def _whole_chains(points: Sequence[Snapshot]) -> list[Snapshot]:
    """Return the points whose every ancestor is among them: of the others it is not known whether they are good."""
    tree = SnapshotTree(points)
    return [one for one in points if all(map(tree.is_placed, _lineage(tree, one.snapshot_id)))]


def _lineage(tree: SnapshotTree, snapshot_id: str) -> list[str]:
    return [snapshot_id, *(one.snapshot_id for one in tree.ancestors(snapshot_id))]


def _coverage(points: Sequence[Snapshot]) -> Coverage:
    tree = SnapshotTree(points)
    good = [one for one in points if one.snapshot_id in tree.good]
    newest = max(good, key=lambda one: moment.timestamp() if (moment := taken_at(one)) else 0.0, default=None)
    fuzzy = sum(one.snapshot_id in tree.sound and is_fuzzy(one) for one in points)
    return Coverage(
        newest_good_id=newest.snapshot_id if newest else "",
        newest_good_time=taken_at(newest) if newest else None,
        newest_good_consistency=(newest.consistency or "") if newest else "",
        good_count=len(good),
        fuzzy_count=fuzzy,
        damaged_count=sum(one.is_available for one in points) - len(good) - fuzzy,
        stored_bytes=sum(one.stored_bytes for one in points),
        verified_at=newest.verified_at if newest else None,
    )


async def _running(zone: Zone) -> dict[str, list[str]]:
    """Return the unfinished jobs by the disk that they concern; a job may name a disk, or only its restore points."""
    found: dict[str, list[str]] = {}
    with suppress(ZoneError):
        jobs = await zone.list_unfinished_jobs()
        ids = [one for job in jobs for one in job.resource_ids]
        disks = {one.snapshot_id: one.resource.resource_id for one in (await try_find_snapshots(zone.provider, ids))[0]}
        for job in jobs:
            for disk in dict.fromkeys(disks.get(one, one) for one in job.resource_ids):
                found.setdefault(disk, []).append(_shown(job))
    return {disk: _cut(shown) for disk, shown in found.items()}


def _cut(shown: list[str]) -> list[str]:
    more = len(shown) - MAX_RUNNING
    return [*shown[:MAX_RUNNING], f"{more} more: list_jobs"] if more > 0 else shown


def _shown(job: Job) -> str:
    percent = f" {job.progress.fraction * 100:.0f} %" if job.progress else ""
    return f"{action_of(job)} {clean_text(job.job_id)} {clean_text(job.status)}{percent}"
