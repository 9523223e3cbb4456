"""The facts that a plan is made from, read through the Provider. All I/O of planning is here, no decision is.

Lists are read whole (`verbose=1`, for exact sizes and known damage) and read again when they moved between two pages: a
snapshot that slipped through would be a loss that nobody was told of.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

from snapshot_mcp.contract.errors import (
    BadRequest,
    Damaged,
    Forbidden,
    NotUsable,
    ResourceBusy,
    Unsupported,
    ZoneError,
)
from snapshot_mcp.contract.models import Snapshot, SnapshotFilter, SnapshotResource, first_repeated
from snapshot_mcp.contract.provider import Feature, Provider
from snapshot_mcp.contract.states import GONE_SNAPSHOT_STATUSES, ResourceType, SnapshotStatus
from snapshot_mcp.contract.text import clean_text, quoted
from snapshot_mcp.contract.tree import SnapshotTree
from snapshot_mcp.guard.disks import (
    Disk,
    find_disk,
    in_the_way,
    running_host,
    unwritable,
    without_way_back,
)
from snapshot_mcp.zones.finding import find_snapshots, read_whole


@dataclass(frozen=True)
class DeletionFacts:
    """`restore_points`: every snapshot of the same resource and of the same chain that is not gone, `snapshot` among them."""

    zone: str
    location: str
    snapshot: Snapshot
    restore_points: tuple[Snapshot, ...]
    recovery_seconds: int

    @cached_property
    def tree(self) -> SnapshotTree:
        return SnapshotTree(self.restore_points)


@dataclass(frozen=True)
class RollbackTarget:
    """One disk that would be overwritten. `host` is the name of the running machine that restarts with it, "" for none.

    `in_the_way` is the error that a roll-back would end with just now, because something has the disk.
    """

    snapshot: Snapshot
    resource: Disk
    resource_type: ResourceType
    host: str
    restore_points: tuple[Snapshot, ...]
    in_the_way: ResourceBusy | None = None

    @cached_property
    def tree(self) -> SnapshotTree:
        return SnapshotTree(self.restore_points)


@dataclass(frozen=True, slots=True)
class RollbackFacts:
    zone: str
    location: str
    targets: tuple[RollbackTarget, ...]

    def obstacles(self, *, safety_snapshot: bool) -> tuple[ZoneError, ...]:
        """Why it cannot be now, whatever a person says; empty if it can, as far as the zone says."""
        found: list[ZoneError | None] = []
        for target in self.targets:
            found += [target.in_the_way, unwritable(target.resource)]
            if safety_snapshot:
                found.append(without_way_back(target.resource))
        return tuple(one for one in found if one is not None)


async def gather_deletion_facts(provider: Provider, zone: str, snapshot_id: str) -> DeletionFacts:
    """Read what a deletion of `snapshot_id` touches.

    Raises: NotFound, NotUsable for one that is already gone, ResourceBusy for one that is still being made.
    """
    snapshot = (await _get_snapshots(provider, [snapshot_id]))[0]
    if snapshot.status == SnapshotStatus.PENDING:
        await _refuse_in_the_making(provider, snapshot)
    disk = await _disk_of(provider, zone, snapshot)
    resource_id = disk.resource_id
    root_id = snapshot.snapshot_id if snapshot.is_full else snapshot.root_id
    if not root_id and not resource_id:
        raise NotUsable(
            f"Zone {zone} does not say which chain snapshot {snapshot_id} belongs to, so what goes with it is unknown.",
            hint="Nothing was deleted.",
        )
    chain = await _list_all(provider, SnapshotFilter(root_id=root_id)) if root_id else ()
    chain = tuple(one for one in chain if root_id in {one.snapshot_id, one.root_id} or not one.root_id)
    others = await _points_of(provider, resource_id) if resource_id else ()
    found = {one.snapshot_id: one for one in (snapshot, *chain, *others)}
    _refuse_unplaced(zone, snapshot, SnapshotTree(found.values()))
    return DeletionFacts(
        zone=zone,
        location=provider.location,
        snapshot=_named(snapshot, disk),
        restore_points=tuple(_named(one, disk) for one in found.values()),
        recovery_seconds=_recovery_seconds(provider, snapshot),
    )


async def _refuse_in_the_making(provider: Provider, snapshot: Snapshot) -> None:
    """A person is not asked about what has no content yet; where the zone lists no jobs, it is the zone that refuses."""
    with suppress(Unsupported, Forbidden):
        for job in await provider.list_unfinished_jobs():
            if snapshot.snapshot_id in job.resource_ids:
                raise ResourceBusy(
                    f"Snapshot {quoted(snapshot.snapshot_id)} is still being made, by job {clean_text(job.job_id)}.",
                    hint="Nothing was deleted. Wait for the job with wait_for_job.",
                    job_id=job.job_id,
                )


def _named(one: Snapshot, disk: SnapshotResource) -> Snapshot:
    """The snapshot with its disk, where the zone left that out; a name that it tells stays, for rules know the disk by it."""
    told = one.resource
    return one if told.resource_id and told.resource_name else one.model_copy(update={"resource": disk})


def _refuse_unplaced(zone: str, snapshot: Snapshot, tree: SnapshotTree) -> None:
    """Raises: NotUsable where something may be built on the snapshot without the zone's saying so."""
    goes_anyway = {snapshot.snapshot_id, *tree.descendants(snapshot.snapshot_id)}
    root_id = snapshot.snapshot_id if snapshot.is_full else snapshot.root_id
    for one in tree.points:
        if one.snapshot_id not in goes_anyway and not tree.is_placed(one.snapshot_id) and one.root_id in {"", root_id}:
            raise NotUsable(
                f"Zone {zone} does not say what snapshot {quoted(one.snapshot_id)} is built on, so whether it would go with"
                f" {snapshot.snapshot_id} is unknown.",
                hint="Nothing was deleted.",
            )


async def gather_rollback_facts(provider: Provider, zone: str, snapshot_ids: Sequence[str]) -> RollbackFacts:
    """Read what a roll-back to `snapshot_ids` touches. Raises: NotFound, NotUsable, BadRequest for two of one resource."""
    targets: list[RollbackTarget] = []
    for snapshot in await _get_snapshots(provider, snapshot_ids):
        if not snapshot.is_available:
            state = snapshot.transition_status or snapshot.status
            raise NotUsable(
                f"Snapshot {snapshot.snapshot_id} is {quoted(state)}; only an available one can be rolled back to.",
                hint="See list_snapshots with status available.",
            )
        targets.append(await _gather_target(provider, zone, snapshot))
    repeated = first_repeated(target.resource.id for target in targets)
    if repeated:
        raise BadRequest(
            f"Two of the snapshots are of the same resource {quoted(repeated)}.",
            hint="Give at most one snapshot of a resource.",
        )
    return RollbackFacts(zone=zone, location=provider.location, targets=tuple(targets))


async def _gather_target(provider: Provider, zone: str, snapshot: Snapshot) -> RollbackTarget:
    resource, resource_type = await find_disk(provider, zone, snapshot, closely=True)
    points = await _points_of(provider, resource.id)
    _refuse_damaged(snapshot, SnapshotTree(points))
    return RollbackTarget(
        snapshot=snapshot,
        resource=resource,
        resource_type=resource_type,
        host=await running_host(provider, resource),
        restore_points=points,
        in_the_way=await in_the_way(provider, resource, (one.snapshot_id for one in points)),
    )


def _refuse_damaged(snapshot: Snapshot, tree: SnapshotTree) -> None:
    """Nobody is asked for what is known to fail. Raises: Damaged, naming which of the snapshots it stands on."""
    for one in (snapshot, *tree.ancestors(snapshot.snapshot_id)):
        if one.is_damaged:
            on = "" if one is snapshot else f" builds on {quoted(one.snapshot_id)}, which"
            raise Damaged(
                f"Snapshot {quoted(snapshot.snapshot_id)}{on} is known to be damaged, so it cannot be rolled back to.",
                hint="Nothing was done. show_chain marks what is damaged; what neither is nor builds on it can be restored.",
            )


async def _points_of(provider: Provider, resource_id: str) -> tuple[Snapshot, ...]:
    """A disk's snapshots; of a zone that answers more than it was asked for, not another disk's."""
    points = await _list_all(provider, SnapshotFilter(resource_id=resource_id))
    return tuple(one for one in points if one.resource.resource_id in {"", resource_id})


async def _disk_of(provider: Provider, zone: str, snapshot: Snapshot) -> SnapshotResource:
    """What the snapshot is of, looked up where the zone leaves it out: rules protect disks by id and name. Empty if unknown."""
    told = snapshot.resource
    if told.resource_id and told.resource_name:
        return told
    try:
        resource, kind = await find_disk(provider, zone, snapshot)
    except NotUsable:
        return told
    return SnapshotResource(resource_id=resource.id, resource_name=resource.name, resource_type=kind)


async def _get_snapshots(provider: Provider, ids: Sequence[str]) -> list[Snapshot]:
    """The snapshots in the order asked, all or none."""
    found = await find_snapshots(provider, ids)
    for one in found:
        if one.status in GONE_SNAPSHOT_STATUSES:
            raise NotUsable(
                f"Snapshot {one.snapshot_id} is already {one.status}.",
                hint="recover_snapshots may bring a deleted one back." if one.status == "deleted" else "",
            )
    return found


async def _list_all(provider: Provider, query: SnapshotFilter) -> tuple[Snapshot, ...]:
    points = await read_whole(provider.list_snapshots, query.model_copy(update={"verbose": 1}))
    return tuple(one for one in points if one.status not in GONE_SNAPSHOT_STATUSES)


def _recovery_seconds(provider: Provider, snapshot: Snapshot) -> int:
    needed = Feature.RECOVER if snapshot.is_full else Feature.RECOVER_INCREMENTALS
    return provider.recovery_seconds if needed in provider.features and Feature.RECOVER in provider.features else 0
