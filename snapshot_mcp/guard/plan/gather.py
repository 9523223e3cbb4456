"""Reads the facts that a plan is made from through the Provider: the only file of this room with I/O. It decides nothing.

Lists are read whole (`verbose=1`, for exact sizes and known damage) and read again if they changed between two pages: a
snapshot that was missed would be destroyed without having been shown. See GUARD.md, "Facts".
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress

from snapshot_mcp.contract.errors import (
    BadRequest,
    Damaged,
    Forbidden,
    NotFound,
    NotUsable,
    ResourceBusy,
    Unsupported,
    WrongResourceType,
)
from snapshot_mcp.contract.models import (
    MAX_LIMIT,
    Instance,
    Job,
    ResourceFilter,
    Snapshot,
    SnapshotFilter,
    SnapshotResource,
    Volume,
    first_repeated,
)
from snapshot_mcp.contract.provider import Feature, Provider, shares_fate
from snapshot_mcp.contract.states import GONE_SNAPSHOT_STATUSES, JobAction, ResourceType, SnapshotStatus
from snapshot_mcp.contract.text import MESSAGE_CHARACTERS, clean_text, quoted
from snapshot_mcp.contract.tree import SnapshotTree
from snapshot_mcp.guard.plan.facts import DeletionFacts, Disk, RollbackFacts, RollbackTarget, label_of
from snapshot_mcp.zones.finding import find_snapshots, read_list, read_whole

STOPPED = frozenset({"stopped", "suspended", "terminated", "ceased"})

READING = frozenset({JobAction.CAPTURE_INSTANCE, JobAction.CREATE_VOLUME, JobAction.VERIFY, JobAction.COPY})
"""Exports read a snapshot and do not touch its disk (CONTRACT.md, "Busy")."""


async def gather_deletion_facts(provider: Provider, zone: str, snapshot_id: str) -> DeletionFacts:
    """Read what a deletion of `snapshot_id` touches.

    Raises: NotFound; NotUsable if it is already deleted; ResourceBusy if it is still being created.
    """
    snapshot = (await _get_snapshots(provider, [snapshot_id]))[0]
    await _refuse_beforehand(provider, JobAction.DELETE, [snapshot_id])
    if snapshot.status == SnapshotStatus.PENDING:
        await _refuse_unfinished(provider, snapshot)
    disk = await _disk_of(provider, zone, snapshot)
    resource_id = disk.resource_id
    root_id = snapshot.snapshot_id if snapshot.is_full else snapshot.root_id
    if not root_id and not resource_id:
        raise NotUsable(
            f"Zone {zone} does not report which chain snapshot {snapshot_id} belongs to; what else would be deleted is unknown.",
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
        shares_fate=shares_fate(provider.features),
    )


async def _refuse_beforehand(provider: Provider, action: JobAction, snapshot_ids: Sequence[str]) -> None:
    """Raise what the zone would refuse the act with, if it can say so before: nobody is asked to agree to what cannot be done."""
    if refuse := getattr(provider, "refuse_beforehand", None):
        await refuse(action, snapshot_ids)


async def _refuse_unfinished(provider: Provider, snapshot: Snapshot) -> None:
    """Raise ResourceBusy if a job is still creating the snapshot. A zone that lists no jobs refuses the deletion itself."""
    with suppress(Unsupported, Forbidden):
        for job in await provider.list_unfinished_jobs():
            if snapshot.snapshot_id in job.resource_ids:
                raise ResourceBusy(
                    f"Snapshot {quoted(snapshot.snapshot_id)} is still being created by job {clean_text(job.job_id)}.",
                    hint="Nothing was deleted. Wait for the job with wait_for_job.",
                    job_id=job.job_id,
                )


def _named(one: Snapshot, disk: SnapshotResource) -> Snapshot:
    """Return the snapshot with `disk` filled in, unless the zone reported both its id and its name."""
    known = one.resource
    return one if known.resource_id and known.resource_name else one.model_copy(update={"resource": disk})


def _refuse_unplaced(zone: str, snapshot: Snapshot, tree: SnapshotTree) -> None:
    """Raise NotUsable if another snapshot may build on this one without the zone reporting it."""
    goes_anyway = {snapshot.snapshot_id, *tree.descendants(snapshot.snapshot_id)}
    root_id = snapshot.snapshot_id if snapshot.is_full else snapshot.root_id
    for one in tree.points:
        if one.snapshot_id not in goes_anyway and not tree.is_placed(one.snapshot_id) and one.root_id in {"", root_id}:
            raise NotUsable(
                f"Zone {zone} does not report what snapshot {quoted(one.snapshot_id)} builds on, so it may be deleted"
                f" together with {snapshot.snapshot_id}.",
                hint="Nothing was deleted.",
            )


async def gather_rollback_facts(provider: Provider, zone: str, snapshot_ids: Sequence[str]) -> RollbackFacts:
    """Read what a roll-back to `snapshot_ids` touches. Raises: NotFound; NotUsable; BadRequest for two of one disk."""
    targets: list[RollbackTarget] = []
    for snapshot in await _get_snapshots(provider, snapshot_ids):
        if not snapshot.is_available:
            state = snapshot.transition_status or snapshot.status
            raise NotUsable(
                f"Snapshot {snapshot.snapshot_id} is {quoted(state)}; only an available snapshot can be rolled back to.",
                hint="List usable ones with list_snapshots and status available.",
            )
        targets.append(await _gather_target(provider, zone, snapshot))
    await _refuse_beforehand(provider, JobAction.APPLY, snapshot_ids)
    repeated = first_repeated(target.resource.id for target in targets)
    if repeated:
        raise BadRequest(
            f"Two of the snapshots belong to the same disk, {quoted(repeated)}.",
            hint="Pass at most one snapshot per disk.",
        )
    fate = shares_fate(provider.features)
    return RollbackFacts(zone=zone, location=provider.location, targets=tuple(targets), shares_fate=fate)


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
    """Raise Damaged if the snapshot, or one that it builds on, is known to be damaged."""
    for one in (snapshot, *tree.ancestors(snapshot.snapshot_id)):
        if one.is_damaged:
            on = "" if one is snapshot else f" builds on {quoted(one.snapshot_id)}, which"
            raise Damaged(
                f"Snapshot {quoted(snapshot.snapshot_id)}{on} is known to be damaged; rolling back to it would fail.",
                hint="Nothing was done. show_chain marks damaged snapshots; choose one that does not build on any of them.",
            )


async def _points_of(provider: Provider, resource_id: str) -> tuple[Snapshot, ...]:
    """Return the disk's snapshots, dropping those of other disks that the zone may have added."""
    points = await _list_all(provider, SnapshotFilter(resource_id=resource_id))
    return tuple(one for one in points if one.resource.resource_id in {"", resource_id})


async def _disk_of(provider: Provider, zone: str, snapshot: Snapshot) -> SnapshotResource:
    """Return the snapshot's disk, looked up if the zone left it out, because rules protect disks; empty if unknown."""
    known = snapshot.resource
    if known.resource_id and known.resource_name:
        return known
    try:
        resource, kind = await find_disk(provider, zone, snapshot)
    except NotUsable:
        return known
    return SnapshotResource(resource_id=resource.id, resource_name=resource.name, resource_type=kind)


async def _get_snapshots(provider: Provider, ids: Sequence[str]) -> list[Snapshot]:
    """Return the snapshots in the given order. Raises: NotFound; NotUsable if one is already deleted."""
    found = await find_snapshots(provider, ids)
    for one in found:
        if one.status in GONE_SNAPSHOT_STATUSES:
            raise NotUsable(
                f"Snapshot {one.snapshot_id} is already {one.status}.",
                hint="recover_snapshots may restore it." if one.status == "deleted" else "",
            )
    return found


async def _list_all(provider: Provider, query: SnapshotFilter) -> tuple[Snapshot, ...]:
    points = await read_whole(provider.list_snapshots, query.model_copy(update={"verbose": 1}))
    return tuple(one for one in points if one.status not in GONE_SNAPSHOT_STATUSES)


def _recovery_seconds(provider: Provider, snapshot: Snapshot) -> int:
    needed = Feature.RECOVER if snapshot.is_full else Feature.RECOVER_INCREMENTALS
    return provider.recovery_seconds if needed in provider.features and Feature.RECOVER in provider.features else 0


# Disks


async def find_disk(
    provider: Provider, zone: str, snapshot: Snapshot, *, closely: bool = False
) -> tuple[Disk, ResourceType]:
    """Return the snapshot's disk, found by listing every disk's snapshots if the provider left it out.

    A zone that ignores the filter would match the first disk; asking for an id that cannot exist reveals that.
    """
    resource_id = snapshot.resource.resource_id
    is_unclear = not resource_id and await _is_of_anything(provider, snapshot)
    found = None if is_unclear else await _search(provider, snapshot)
    if found is None:
        missing = f": zone {zone} has no disk {quoted(resource_id)}" if resource_id else ""
        why = f": zone {zone} gives the same answer for every id" if is_unclear else missing
        raise NotUsable(
            f"The disk of snapshot {snapshot.snapshot_id} is unknown{why}.",
            hint="Nothing was changed. export_to_volume restores the snapshot into a new volume.",
        )
    disk, kind = found
    return (await _look_closely(provider, disk) if closely else disk), kind


async def running_host(provider: Provider, disk: Disk) -> str:
    """Return the machine that a roll-back restarts, "" for none; an unknown state counts as running."""
    if isinstance(disk, Instance):
        return "" if _is_stopped(disk) else disk.name or disk.id
    attached = disk.instance
    if attached is None or not attached.instance_id:
        return ""
    page = await provider.list_instances(ResourceFilter(ids=(attached.instance_id,), limit=MAX_LIMIT))
    host = next((one for one in page.items if one.id == attached.instance_id), None)
    return "" if host and _is_stopped(host) else attached.instance_name or attached.instance_id


async def in_the_way(provider: Provider, disk: Disk, snapshot_ids: Iterable[str]) -> ResourceBusy | None:
    """Return the error that a roll-back would fail with now, because a program or a job uses the disk; None if free."""
    ids = {disk.id, *snapshot_ids}
    busy: Job | None = None
    if disk.held_by or Feature.TERMS not in provider.features:
        busy = next((job for job in await _changing_jobs(provider) if ids & set(job.resource_ids)), None)
    if disk.held_by:
        holder = clean_text(disk.held_by, MESSAGE_CHARACTERS)
        return ResourceBusy(
            f"Disk {label_of(disk)} is in use, so it cannot be rolled back now: {holder}.",
            hint="Nothing was done. Stop what uses it, or wait for the job to end, then repeat the call.",
            job_id=busy.job_id if busy else "",
        )
    if busy:
        return ResourceBusy(
            f"Disk {label_of(disk)} cannot be rolled back now: job {clean_text(busy.job_id)} is changing it.",
            hint="Nothing was done. Wait for the job with wait_for_job, then repeat the call.",
            job_id=busy.job_id,
        )
    return None


async def _changing_jobs(provider: Provider) -> tuple[Job, ...]:
    """Return the unfinished jobs that do more than read; none if the zone does not list jobs to us."""
    with suppress(Unsupported, Forbidden, NotFound):
        return tuple(job for job in await provider.list_unfinished_jobs() if job.action not in READING)
    return ()


async def _look_closely(provider: Provider, disk: Disk) -> Disk:
    if Feature.TERMS not in provider.features:
        return disk
    listing = provider.list_volumes if isinstance(disk, Volume) else provider.list_instances
    for one in (await listing(ResourceFilter(ids=(disk.id,), verbose=1, limit=MAX_LIMIT))).items:
        if one.id == disk.id:
            return one
    raise NotUsable(
        f"Disk {label_of(disk)} no longer exists.",
        hint="Nothing was changed. export_to_volume restores the snapshot into a new volume.",
    )


async def _search(provider: Provider, snapshot: Snapshot) -> tuple[Disk, ResourceType] | None:
    resource_id = snapshot.resource.resource_id
    query = ResourceFilter(ids=(resource_id,) if resource_id else ())
    for kind in (ResourceType.VOLUME, ResourceType.INSTANCE):
        for disk in await _list_disks(provider, kind, query):
            if resource_id == disk.id or (not resource_id and await _is_of(provider, snapshot, disk.id)):
                return disk, kind
    return None


async def _list_disks(provider: Provider, kind: ResourceType, query: ResourceFilter) -> Sequence[Disk]:
    if kind is ResourceType.VOLUME:
        return (await read_list(provider.list_volumes, query))[0]
    return (await read_list(provider.list_instances, query))[0]


async def _is_of(provider: Provider, snapshot: Snapshot, resource_id: str) -> bool:
    page = await provider.list_snapshots(SnapshotFilter(resource_id=resource_id, snapshots=(snapshot.snapshot_id,)))
    return any(one.snapshot_id == snapshot.snapshot_id for one in page.items)


async def _is_of_anything(provider: Provider, snapshot: Snapshot) -> bool:
    """Whether the zone reports the snapshot even for an id that is not a disk, as one that ignores the filter does."""
    try:
        return await _is_of(provider, snapshot, snapshot.snapshot_id)
    except (BadRequest, NotFound, WrongResourceType):
        return False


def _is_stopped(instance: Instance) -> bool:
    """Whether it is certainly not running; one that is just starting is not."""
    return instance.status in STOPPED and not instance.transition_status
