"""Which disk a snapshot is of, what restarts with it, and what keeps it from being rolled back. Reads through the Provider.

With `Feature.TERMS` the zone says more of a disk when it looks closely (`ResourceFilter.verbose`): which one it is, who has it
open, how many names its file has. Without it, unfinished jobs are all that is known to be in the way.
"""

from collections.abc import Iterable
from contextlib import suppress

from snapshot_mcp.contract.errors import (
    BadRequest,
    Forbidden,
    NotFound,
    NotUsable,
    ResourceBusy,
    Unavailable,
    Unsupported,
    WrongResourceType,
)
from snapshot_mcp.contract.models import MAX_LIMIT, Instance, Job, ResourceFilter, Snapshot, SnapshotFilter, Volume
from snapshot_mcp.contract.provider import Feature, Provider
from snapshot_mcp.contract.states import JobAction, ResourceType
from snapshot_mcp.contract.text import MESSAGE_CHARACTERS, clean_text, quoted

STOPPED = frozenset({"stopped", "suspended", "terminated", "ceased"})

MAX_LISTED = 20_000
"""More than this of one kind is a list without an end, or one that no plan can be made from within a call."""

SHARING = frozenset({JobAction.CAPTURE_INSTANCE, JobAction.CREATE_VOLUME})
"""Exports read a snapshot and leave its disk alone (contract.md, "Busy")."""

Disk = Volume | Instance


async def find_disk(
    provider: Provider, zone: str, snapshot: Snapshot, *, closely: bool = False
) -> tuple[Disk, ResourceType]:
    """The disk that a snapshot is of; where the provider left it out, by listing every resource's snapshots.

    A zone that does not look at the filter would claim it for the first: it does so for what is no resource at all, too.
    """
    resource_id = snapshot.resource.resource_id
    if not resource_id and await _is_of_anything(provider, snapshot):
        raise NotUsable(
            f"Which disk snapshot {snapshot.snapshot_id} is of is unknown: zone {zone} says the same of every id.",
            hint="Nothing was changed. export_to_volume restores it into a new volume.",
        )
    found = await _search(provider, snapshot)
    if found is None:
        raise NotUsable(
            f"Which disk snapshot {snapshot.snapshot_id} would overwrite is unknown"
            + (f": there is no resource {quoted(resource_id)} in zone {zone}." if resource_id else "."),
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


def without_way_back(disk: Disk) -> NotUsable | None:
    """Why no sound safety snapshot of the disk can be taken, as an error; None if one can, as far as the zone says.

    A disk that is `pending` is half overwritten, or not made yet: what it holds is no state to go back to.
    """
    if disk.status != "pending":
        return None
    why = clean_text(disk.problem or "what was begun on it is not finished", MESSAGE_CHARACTERS).rstrip(".")
    return NotUsable(
        f"No sound safety snapshot of disk {label_of(disk)} can be taken: {why}.",
        hint="Nothing was done. A roll-back without one needs a person's yes to that: repeat the call with"
        " safety_snapshot=false.",
    )


def unwritable(disk: Disk) -> NotUsable | None:
    """Why the disk cannot be overwritten at all, as an error: a zone that knows its disks does not know this one."""
    if not disk.problem or disk.identity is not None or disk.status == "pending":
        return None
    why = clean_text(disk.problem, MESSAGE_CHARACTERS).rstrip(".")
    return NotUsable(
        f"Disk {label_of(disk)} cannot be rolled back: {why}.",
        hint="Nothing was done. export_to_volume restores the snapshot into a new volume.",
    )


def label_of(disk: Disk) -> str:
    return f"{quoted(disk.name)} ({clean_text(disk.id)})" if disk.name else clean_text(disk.id)


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
