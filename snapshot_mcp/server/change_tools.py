"""Tools that change something without destroying anything. Most submit a job and return its id at once.

A create is idempotent for ten minutes: the same disks and name return the existing backup, so that a model whose answer was
lost can simply repeat the call.
"""

from collections.abc import Sequence
from typing import Annotated

from mcp.server.mcpserver import Context
from mcp.types import CallToolResult
from pydantic import Field

from snapshot_mcp.contract.errors import BadRequest, Forbidden, ResourceBusy, Unsupported
from snapshot_mcp.contract.models import (
    MAX_DESCRIPTION_CHARACTERS,
    MAX_IDS,
    MAX_LIMIT,
    MAX_NAME_CHARACTERS,
    Job,
    Snapshot,
    SnapshotFilter,
    SnapshotUpdate,
    format_time,
)
from snapshot_mcp.contract.provider import Feature
from snapshot_mcp.contract.states import JobAction, SnapshotStatus
from snapshot_mcp.contract.text import clean_text, format_bytes, quoted
from snapshot_mcp.server.deadline import preparing
from snapshot_mcp.server.elicitation import HostClient
from snapshot_mcp.server.elsewhere import follows, one_file
from snapshot_mcp.server.endings import JobResult, WaitSeconds, follow, try_list
from snapshot_mcp.server.lines import ahead_in_words
from snapshot_mcp.server.past import note_submitted
from snapshot_mcp.server.read_tools import ANY, ZoneArgument
from snapshot_mcp.server.repeats import find_repeated
from snapshot_mcp.server.results import Change, Renamed, Submitted, mixture_warning
from snapshot_mcp.server.state import state_of
from snapshot_mcp.zones import Zone
from snapshot_mcp.zones.finding import find_resources, find_snapshot, try_find_snapshots

Name = Annotated[str, Field(pattern=r"\S", max_length=MAX_NAME_CHARACTERS)]
"""A zone takes any text; a blank name is a mistake."""
SnapshotId = Annotated[str, Field(min_length=1)]
SnapshotIds = Annotated[list[SnapshotId], Field(min_length=1, max_length=MAX_IDS)]

IN_PROGRESS = "In progress: call wait_for_job."

MAX_TAGS = 20

MAX_HEADS = 3
"""Disks of a recovery whose head is looked up."""


async def create_snapshots(
    ctx: Context,
    resource_ids: Annotated[
        list[Annotated[str, Field(min_length=1)]],
        Field(min_length=1, max_length=MAX_IDS, description="Ids or exact names of disks and machines"),
    ],
    name: Name,
    full: Annotated[bool, Field(description="Full even if an incremental is possible")] = False,
    wait_seconds: WaitSeconds = 0.0,
    zone: ZoneArgument = "",
) -> Annotated[CallToolResult, Change]:
    """Save the current state of a disk, volume, VM or server as a restore point, to be able to go back after an
    upgrade or patch, or to have it copied off this machine; several at the same moment. Submits a job; the first is
    full, later ones store the changes. The same disks and name within ten minutes return the existing one."""
    state = state_of(ctx)
    place = state.zones.get(zone)
    with preparing():
        resources = await find_resources(place.provider, resource_ids)
    ids = [one.id for one in resources]
    async with state.create_lock(place):
        with preparing():
            repeated = await find_repeated(state, place, ids, name)
        if not repeated.existing:
            try:
                job = await place.provider.create_snapshots(ids, name, is_full=full)
            except ResourceBusy:
                repeated = await find_repeated(state, place, ids, name)
                if not repeated.existing:
                    raise
    if repeated.existing:
        return await _existing_result(ctx, place, repeated.existing, wait_seconds, wants_full=full)
    made = [clean_text(one) for one in job.resource_ids if one not in ids]
    points = [Snapshot(snapshot_id=one, snapshot_name=name) for one in job.resource_ids if one not in ids]
    await note_submitted(ctx, place, job, JobAction.CREATE, disks=resources, snapshots=points)
    ending = (await follow(ctx, place, job, wait_seconds)).and_say(
        ahead_in_words((one.snapshot_id, one.create_time) for one in repeated.ahead)
    )
    ending = ending.and_say(follows(place))
    size = sum(one.byte_size for one in resources)
    result = _submitted(place, job, ending, snapshot_ids=made or None, disk_bytes=size)
    disks = f"{', '.join(quoted(one.name) for one in resources)} ({format_bytes(size)})"
    head = f"Backup {quoted(name)} of {disks} in zone {place.name} is submitted as job {result.job_id}."
    return result.with_text(head, _ids_line(made), *ending.lines)


async def export_to_image(
    ctx: Context, snapshot_id: SnapshotId, image_name: Name, wait_seconds: WaitSeconds = 0.0, zone: ZoneArgument = ""
) -> Annotated[CallToolResult, Change]:
    """Turn the snapshot or backup of a server (machine, instance, VM) into a golden image or template, to launch more
    servers like it. Submits a job; destroys nothing."""
    place = state_of(ctx).zones.get(zone)
    with preparing():
        snapshot = await find_snapshot(place.provider, snapshot_id)
    job = await place.provider.capture_instance(snapshot.snapshot_id, image_name)
    await note_submitted(ctx, place, job, JobAction.CAPTURE_INSTANCE, snapshots=[snapshot], makes=image_name)
    return await _exported(ctx, place, job, wait_seconds, snapshot, f"image {quoted(image_name)}")


async def export_to_volume(
    ctx: Context, snapshot_id: SnapshotId, volume_name: Name, wait_seconds: WaitSeconds = 0.0, zone: ZoneArgument = ""
) -> Annotated[CallToolResult, Change]:
    """Get the content of a snapshot on a new, separate disk beside the original: a clone, a lost disk, or one file
    from a backup. Submits a job; destroys nothing, so prefer it to a roll-back."""
    place = state_of(ctx).zones.get(zone)
    with preparing():
        snapshot = await find_snapshot(place.provider, snapshot_id)
    job = await place.provider.create_volume(snapshot.snapshot_id, volume_name)
    await note_submitted(ctx, place, job, JobAction.CREATE_VOLUME, snapshots=[snapshot], makes=volume_name)
    return await _exported(
        ctx, place, job, wait_seconds, snapshot, f"new volume {quoted(volume_name)}", one_file(place)
    )


async def rename_snapshot(
    ctx: Context,
    snapshot_id: SnapshotId,
    name: Annotated[
        str, Field(pattern=r"^$|\S", max_length=MAX_NAME_CHARACTERS, description="Unchanged if unset")
    ] = "",
    description: Annotated[
        str, Field(max_length=MAX_DESCRIPTION_CHARACTERS, description="Unchanged if unset; a blank removes it")
    ] = "",
    tags: Annotated[
        list[Annotated[str, Field(max_length=MAX_NAME_CHARACTERS)]],
        Field(max_length=MAX_TAGS, description='All its tags; [""] removes them'),
    ] = ANY,
    zone: ZoneArgument = "",
) -> Annotated[CallToolResult, Renamed]:
    """Change the name, description or tags of a backup: call it something else, fix its name, add a tag to a restore
    point. At once, without a job."""
    if not (name or description or tags):
        raise BadRequest("Neither name, description nor tags were given.", hint="Give at least one of them.")
    state = state_of(ctx)
    place = state.zones.get(zone)
    snapshot = await find_snapshot(place.provider, snapshot_id)
    update = SnapshotUpdate(
        snapshot_name=name or None,
        description=description.strip() if description else None,
        tags=tuple(dict.fromkeys(one.strip() for one in tags if one.strip())) if tags else None,
    )
    if tags and Feature.TAGS not in place.provider.features:
        raise Unsupported(f"Zone {place.name} keeps no tags. Nothing was changed.", hint="Use the name or description.")
    guard = await state.guard()
    if reason := await guard.refuse_rename(place, snapshot):
        raise Forbidden(reason)
    async with guard.renaming(place, snapshot, update, HostClient(ctx)):
        await place.provider.update_snapshot(snapshot.snapshot_id, update)
    await state.announce_zone(place.name)
    shown = clean_text(snapshot.snapshot_id)
    done = ", ".join(_changes(snapshot, update))
    result = Renamed(zone=place.name, status="done", snapshot_id=shown, hint=f"{done[0].upper()}{done[1:]}.")
    return result.with_text(f"Done. Snapshot {shown} in zone {place.name}: {done}.")


def _changes(snapshot: Snapshot, update: SnapshotUpdate) -> list[str]:
    """Return in words what an update changes."""
    changes = (
        [f"{quoted(snapshot.snapshot_name)} is now {quoted(update.snapshot_name)}"] if update.snapshot_name else []
    )
    if update.description is not None:
        changes.append("its description was changed" if update.description else "its description was removed")
    if update.tags is not None:
        tags = ", ".join(map(quoted, update.tags))
        changes.append(f"its tags are now {tags}" if tags else "its tags were removed")
    return changes


async def verify_snapshots(
    ctx: Context, snapshot_ids: SnapshotIds, wait_seconds: WaitSeconds = 0.0, zone: ZoneArgument = ""
) -> Annotated[CallToolResult, Submitted]:
    """Prove that backups can really be restored: reads snapshots, and all that they build on, back whole, checking
    for corruption and damage. Submits a job. What cannot be read is marked; nothing else changes."""
    place = state_of(ctx).zones.get(zone)
    job = await place.provider.verify_snapshots(snapshot_ids)
    snapshots, _ = await try_find_snapshots(place.provider, snapshot_ids)
    await note_submitted(ctx, place, job, JobAction.VERIFY, snapshots=snapshots)
    ending = await follow(ctx, place, job, wait_seconds)
    ids = [clean_text(one) for one in snapshot_ids]
    head = f"Verification of {', '.join(ids)} in zone {place.name} is submitted as job {clean_text(job.job_id)}."
    fields = {key: value for key, value in ending.fields.items() if key != "made"}
    result = Submitted(zone=place.name, status="submitted", job_id=clean_text(job.job_id), snapshot_ids=ids, **fields)
    return result.with_text(head, *ending.lines)


async def recover_snapshots(
    ctx: Context, snapshot_ids: SnapshotIds, wait_seconds: WaitSeconds = 0.0, zone: ZoneArgument = ""
) -> Annotated[CallToolResult, Change]:
    """Undo the deletion of a backup: get a snapshot back that was deleted, removed or erased by mistake, while the
    zone still keeps it. What one deletion took comes back together. Submits a job."""
    place = state_of(ctx).zones.get(zone)
    job = await place.provider.recover_snapshots(snapshot_ids)
    coming, _ = await try_find_snapshots(place.provider, [*snapshot_ids, *job.resource_ids])
    await note_submitted(ctx, place, job, JobAction.LEASE, snapshots=coming)
    heads = await _describe_heads(place, coming)
    ending = (await follow(ctx, place, job, wait_seconds)).and_say(mixture_warning(coming)).and_say(heads)
    ids = [clean_text(one) for one in dict.fromkeys([*snapshot_ids, *job.resource_ids])]
    result = _submitted(place, job, ending, snapshot_ids=ids)
    shown = ", ".join(ids)
    return result.with_text(
        f"Recovery of {shown} in zone {place.name} is submitted as job {result.job_id}.", *ending.lines
    )


async def _describe_heads(zone: Zone, coming: Sequence[Snapshot]) -> str:
    """Return what the next backup of each disk will build on, "" where that cannot be found out."""
    names = {one.resource.resource_id: one.resource.resource_name for one in coming if one.resource.resource_id}
    lines = []
    for resource_id, name in list(names.items())[:MAX_HEADS]:
        query = SnapshotFilter(resource_id=resource_id, status=(SnapshotStatus.AVAILABLE,), limit=MAX_LIMIT)
        heads = [one for one in await try_list(zone.provider.list_snapshots, query) if one.is_head]
        lines += [
            f"The head of {quoted(name or resource_id)} stays where it is: the next incremental builds on "
            f"{clean_text(one.snapshot_id)} {quoted(one.snapshot_name)}."
            for one in heads[:1]
        ]
    return " ".join(lines)


def _submitted(
    zone: Zone, job: Job, ending: JobResult, *, snapshot_ids: list[str] | None, disk_bytes: int | None = None
) -> Change:
    return Change(
        zone=zone.name,
        status="submitted",
        job_id=clean_text(job.job_id),
        snapshot_ids=snapshot_ids,
        disk_bytes=disk_bytes,
        **ending.fields,
    )


def _ids_line(ids: Sequence[str]) -> str:
    return f"Snapshots, in this order: {', '.join(ids)}." if ids else ""


async def _exported(
    ctx: Context, zone: Zone, job: Job, wait_seconds: float, snapshot: Snapshot, what: str, note: str = ""
) -> CallToolResult:
    size = snapshot.virtual_size_bytes
    shown = clean_text(snapshot.snapshot_id)
    ending = await follow(ctx, zone, job, wait_seconds, source=snapshot)
    ending = ending.and_say(mixture_warning([snapshot])).and_say(note)
    result = _submitted(zone, job, ending, snapshot_ids=[shown], disk_bytes=size)
    of_size = f" ({format_bytes(size)})" if size else ""
    return result.with_text(
        f"Export of {shown} {quoted(snapshot.snapshot_name)} to {what}{of_size} in zone {zone.name} is submitted as job "
        f"{result.job_id}.",
        *ending.lines,
    )


async def _existing_result(
    ctx: Context, zone: Zone, existing: Sequence[Snapshot], wait_seconds: float, *, wants_full: bool
) -> CallToolResult:
    ids = [clean_text(one.snapshot_id) for one in existing]
    is_unfinished = any(one.status == SnapshotStatus.PENDING for one in existing)
    job = await _job_making(zone, existing) if is_unfinished else None
    ending = JobResult(hint=IN_PROGRESS if job else "")
    if job and wait_seconds:
        ending = await follow(ctx, zone, job, wait_seconds)
    is_other = wants_full and not all(one.is_full for one in existing)
    kind = "It is not a full snapshot. " if is_other else ""
    ending = ending.and_say(f"{kind}It does not contain later changes; for a new backup use another name.")
    ending = ending.and_say(mixture_warning(existing))
    sizes = [one.virtual_size_bytes or 0 for one in existing]
    size = sum(sizes) if all(sizes) else None
    result = Change(
        zone=zone.name,
        status="exists",
        job_id=clean_text(job.job_id) if job else None,
        snapshot_ids=ids,
        made_at=min(format_time(one.snapshot_time or one.create_time) for one in existing),
        disk_bytes=size,
        **ending.fields,
    )
    state = "is already being made, started" if is_unfinished else "already exists, made"
    return result.with_text(
        f"Nothing new was started: {', '.join(ids)} {quoted(existing[0].snapshot_name)}"
        f"{f' ({format_bytes(size)})' if size else ''} in zone {zone.name} {state} at "
        f"{result.made_at}.",
        f"Its job is {result.job_id}." if job else "",
        *ending.lines,
    )


async def _job_making(zone: Zone, snapshots: Sequence[Snapshot]) -> Job | None:
    wanted = {one.snapshot_id for one in snapshots} | {one.resource.resource_id for one in snapshots}
    jobs = await zone.list_unfinished_jobs()
    return next((one for one in jobs if one.action == JobAction.CREATE and wanted & set(one.resource_ids)), None)
