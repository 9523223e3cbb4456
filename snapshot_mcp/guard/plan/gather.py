"""Reads the facts that a plan is made from through the Provider: the only file of this room with I/O. It decides nothing.

Lists are read whole (`verbose=1`, for exact sizes and known damage) and read again when they moved between two pages: a
snapshot that slipped through would be a loss that nobody was told of. What a zone says of a disk that it looks at closely:
GUARD.md, "Zones without terms".
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
    Unavailable,
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
from snapshot_mcp.contract.provider import Feature, Provider
from snapshot_mcp.contract.states import GONE_SNAPSHOT_STATUSES, JobAction, ResourceType, SnapshotStatus
from snapshot_mcp.contract.text import MESSAGE_CHARACTERS, clean_text, quoted
from snapshot_mcp.contract.tree import SnapshotTree
from snapshot_mcp.guard.plan.facts import DeletionFacts, Disk, RollbackFacts, RollbackTarget, label_of
from snapshot_mcp.zones.finding import MAX_LISTED, find_snapshots, read_whole

STOPPED = frozenset({"stopped", "suspended", "terminated", "ceased"})

SHARING = frozenset({JobAction.CAPTURE_INSTANCE, JobAction.CREATE_VOLUME})
"""Exports read a snapshot and leave its disk alone (CONTRACT.md, "Busy")."""


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


# Disks


async def find_disk(
    provider: Provider, zone: str, snapshot: Snapshot, *, closely: bool = False
) -> tuple[Disk, ResourceType]:
    """The disk that a snapshot is of; where the provider left it out, by listing every resource's snapshots.

    A zone that does not look at the filter would claim it for the first: it does so for what is no resource at all, too.
    """
    resource_id = snapshot.resource.resource_id
    is_unclear = not resource_id and await _is_of_anything(provider, snapshot)
    found = None if is_unclear else await _search(provider, snapshot)
    if found is None:
        none_there = f": there is no resource {quoted(resource_id)} in zone {zone}" if resource_id else ""
        why = f": zone {zone} says the same of every id" if is_unclear else none_there
        raise NotUsable(
            f"Which disk snapshot {snapshot.snapshot_id} is of is unknown{why}.",
            hint="Nothing was changed. export_to_volume restores it into a new volume.",
        )
    disk, kind = found
    return (await _look_closely(provider, disk) if closely else disk), kind


async def running_host(provider: Provider, disk: Disk) -> str:
    """The machine that a roll-back restarts, "" for none; one whose state is unknown counts as running."""
    if isinstance(disk, Instance):
        return "" if _is_stopped(disk) else disk.name or disk.id
    attached = disk.instance
    if attached is None or not attached.instance_id:
        return ""
    page = await provider.list_instances(ResourceFilter(ids=(attached.instance_id,), limit=MAX_LIMIT))
    host = next((one for one in page.items if one.id == attached.instance_id), None)
    return "" if host and _is_stopped(host) else attached.instance_name or attached.instance_id


async def in_the_way(provider: Provider, disk: Disk, snapshot_ids: Iterable[str]) -> ResourceBusy | None:
    """Who has the disk, or which job changes it or a snapshot of it, as the error that would come of a roll-back now."""
    ids = {disk.id, *snapshot_ids}
    busy: Job | None = None
    if disk.held_by or Feature.TERMS not in provider.features:
        busy = next((job for job in await _changing_jobs(provider) if ids & set(job.resource_ids)), None)
    if disk.held_by:
        holder = clean_text(disk.held_by, MESSAGE_CHARACTERS)
        return ResourceBusy(
            f"Disk {label_of(disk)} is in use, so it cannot be rolled back now: {holder}.",
            hint="Nothing was done. Stop what uses it, or wait until the job has ended, then repeat the call.",
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
    """Unfinished jobs that do not only read; none where the zone lists no jobs, or not to us."""
    with suppress(Unsupported, Forbidden, NotFound):
        return tuple(job for job in await provider.list_unfinished_jobs() if job.action not in SHARING)
    return ()


async def _look_closely(provider: Provider, disk: Disk) -> Disk:
    if Feature.TERMS not in provider.features:
        return disk
    listing = provider.list_volumes if isinstance(disk, Volume) else provider.list_instances
    page = await listing(ResourceFilter(ids=(disk.id,), verbose=1, limit=MAX_LIMIT))
    for one in page.items:
        if one.id == disk.id:
            return one
    raise NotUsable(
        f"Disk {label_of(disk)} is not there any more.",
        hint="Nothing was changed. export_to_volume restores the snapshot into a new volume.",
    )


async def _search(provider: Provider, snapshot: Snapshot) -> tuple[Disk, ResourceType] | None:
    resource_id = snapshot.resource.resource_id
    query = ResourceFilter(ids=(resource_id,) if resource_id else (), limit=MAX_LIMIT)
    for listing, kind in (
        (provider.list_volumes, ResourceType.VOLUME),
        (provider.list_instances, ResourceType.INSTANCE),
    ):
        offset = 0
        while True:
            page = await listing(query.model_copy(update={"offset": offset}))
            for disk in page.items:
                if resource_id == disk.id or (not resource_id and await _is_of(provider, snapshot, disk.id)):
                    return disk, kind
            offset += len(page.items)
            if not page.items or offset >= page.total_count:
                break
            refuse_endless(offset, "disks and machines")
    return None


def refuse_endless(count: int, what: str) -> None:
    """Raises: Unavailable."""
    if count > MAX_LISTED:
        raise Unavailable(
            f"The zone lists more than {MAX_LISTED} {what}, too many to make a plan from.", hint="Nothing was done."
        )


async def _is_of(provider: Provider, snapshot: Snapshot, resource_id: str) -> bool:
    page = await provider.list_snapshots(SnapshotFilter(resource_id=resource_id, snapshots=(snapshot.snapshot_id,)))
    return any(one.snapshot_id == snapshot.snapshot_id for one in page.items)


async def _is_of_anything(provider: Provider, snapshot: Snapshot) -> bool:
    """Whether the zone claims the snapshot for what is no resource; one that refuses to look for that does not."""
    try:
        return await _is_of(provider, snapshot, snapshot.snapshot_id)
    except (BadRequest, NotFound, WrongResourceType):
        return False


def _is_stopped(instance: Instance) -> bool:
    """Whether it stands still for certain: one that is just being started does not."""
    return instance.status in STOPPED and not instance.transition_status
