"""The tools that only look: snapshots, resources, chains.

None, filtered away, not permitted and unreachable are four answers: the last two are errors that name the zone.
"""

from functools import lru_cache
from typing import Annotated, Any, Literal

from mcp.server.mcpserver import Context
from mcp.types import CallToolResult
from pydantic import Field

from snapshot_mcp.contract.errors import NotFound
from snapshot_mcp.contract.models import (
    MAX_LIMIT,
    MAX_OFFSET,
    Image,
    Instance,
    Page,
    ResourceFilter,
    Snapshot,
    SnapshotFilter,
    SnapshotResource,
    Volume,
)
from snapshot_mcp.contract.states import GONE_SNAPSHOT_STATUSES, SnapshotStatus, SnapshotType
from snapshot_mcp.contract.text import clean_text, format_bytes, quoted
from snapshot_mcp.contract.tree import is_fuzzy
from snapshot_mcp.server import chain
from snapshot_mcp.server.face import Face, face_of
from snapshot_mcp.server.results import Chain, ResourceList, ResourceRow, SnapshotList, SnapshotRow
from snapshot_mcp.zones import Zone
from snapshot_mcp.zones.finding import find_resource, read_list

ZoneArgument = Annotated[str, Field(description="Zone; the default one if left out")]
Offset = Annotated[int, Field(ge=0, le=MAX_OFFSET)]
Limit = Annotated[int, Field(ge=1, le=MAX_LIMIT)]
Kind = Literal["volume", "instance", "image"]

ANY: list[str] = []
"""A filter's default; never written to."""

MAX_CHAIN_NODES = 100
"""As many restore points as are drawn: some 33,000 characters, which the hosts' limits on a result still let through."""


async def list_snapshots(
    ctx: Context,
    snapshot_ids: list[str] = ANY,
    resource_id: Annotated[str, Field(description="Id or exact name of a disk or machine")] = "",
    snapshot_type: Literal["full", "incremental"] | None = None,
    status: Annotated[
        list[str], Field(description="pending, available, suspended, deleted, ceased; without it the gone are left out")
    ] = ANY,
    search: Annotated[str, Field(description="Part of an id or a name")] = "",
    root_id: Annotated[str, Field(description="Only this chain")] = "",
    tags: Annotated[list[str], Field(description="Any of these")] = ANY,
    verbose: Annotated[bool, Field(description="With description, tags, disk and chain sizes")] = False,
    offset: Offset = 0,
    limit: Limit = 10,
    zone: ZoneArgument = "",
) -> Annotated[CallToolResult, SnapshotList]:
    """List restore points (snapshots), newest first. size_bytes is what each one stores."""
    place = face_of(ctx).zone(zone)
    resource = await _resource_filter(place, resource_id)
    query = SnapshotFilter(
        snapshots=tuple(snapshot_ids),
        resource_id=resource,
        snapshot_type=SnapshotType[snapshot_type.upper()] if snapshot_type else None,
        status=tuple(status),
        search_word=search,
        tags=tuple(tags),
        verbose=1,
        offset=offset,
        limit=limit,
        root_id=root_id,
    )
    page = await place.provider.list_snapshots(query)
    if resource_id and not page.total_count:
        await find_resource(place.provider, resource_id)
    is_filtered = query != _all_of(query)
    hint = " ".join(filter(None, (_missing_hint(query, page), await _hint(place, page, query))))
    shown = [_shown(one, verbose) for one in page.items]
    rows = [row for row, _ in shown]
    result = SnapshotList(zone=place.name, total_count=page.total_count, snapshots=rows, hint=hint)
    head = f"{_count_of(page.total_count, 'snapshot')}{_match(page) if is_filtered else ''} in zone {place.name}"
    return result.with_text(_counted(head, page, offset), *(line for _, line in shown), hint)


async def list_resources(
    ctx: Context,
    kind: Annotated[Kind | None, Field(description="All kinds if left out")] = None,
    search: Annotated[str, Field(description="Part of an id or a name")] = "",
    status: list[str] = ANY,
    offset: Offset = 0,
    limit: Limit = 20,
    zone: ZoneArgument = "",
) -> Annotated[CallToolResult, ResourceList]:
    """List what there is: volumes (disks) and instances (machines), which can be backed up, and images."""
    face = face_of(ctx)
    place = face.zone(zone)
    query = ResourceFilter(status=tuple(status), search_word=search, verbose=1, offset=offset, limit=limit)
    page = await _resources(place, query, kind)
    is_filtered = bool(search or status)
    hint = await _resource_hint(face, place, page, query, kind)
    rows = [ResourceRow.of(one) for one in page.items]
    result = ResourceList(zone=place.name, total_count=page.total_count, resources=rows, hint=hint)
    head = (
        f"{_count_of(page.total_count, kind or 'resource')}{_match(page) if is_filtered else ''} in zone {place.name}"
    )
    return result.with_text(_counted(head, page, offset), *map(_resource_line, rows), hint)


async def show_chain(
    ctx: Context,
    resource_id: Annotated[str, Field(description="Id or exact name of a disk or machine")],
    zone: ZoneArgument = "",
) -> Annotated[CallToolResult, Chain]:
    """Draw a disk's or machine's restore points as the tree they are: what builds on what, where the head is, what is
    damaged. Deleting one takes everything below it."""
    place = face_of(ctx).zone(zone)
    found, snapshots, total = await _snapshots_of(place, resource_id)
    gone = await _count(place, resource_id=found.resource_id, status=tuple(sorted(GONE_SNAPSHOT_STATUSES)))
    result = picture(place, found, snapshots, total_count=total, gone_count=gone)
    return result.with_text(*picture_text(result, found, snapshots, total), result.hint)


def picture(
    zone: Zone, resource: SnapshotResource, snapshots: list[Snapshot], *, total_count: int, gone_count: int
) -> Chain:
    """The chain as a tool and a resource answer it; `snapshots` are the newest of `total_count`."""
    is_cut = total_count > len(snapshots)
    head = next((clean_text(one.snapshot_id) for one in snapshots if one.is_head), None)
    if not snapshots:
        hint = "It has no restore point. create_snapshots takes the first one; it will be full."
    elif any(one.is_damaged for one in snapshots):
        hint = "What is damaged, and everything below it, cannot be restored. create_snapshots with full starts a sound chain."
    elif head is not None:
        hint = "The next incremental becomes a child of the head."
    else:
        hint = "The head is not among them." if is_cut else "No head: the next snapshot will be full."
    if any(map(is_fuzzy, snapshots)):
        hint += " What is fuzzy may be a mixture of states and does not count as a good restore point."
    if is_cut:
        hint = f"Only the newest {len(snapshots)} of {total_count} are drawn; list_snapshots pages through all. {hint}"
    return Chain(
        zone=zone.name,
        resource_id=clean_text(resource.resource_id),
        resource_name=clean_text(resource.resource_name),
        head_id=head,
        total_bytes=sum(one.stored_bytes for one in snapshots),
        gone_count=gone_count,
        nodes=chain.layout(snapshots),
        hint=hint,
    )


def picture_text(result: Chain, resource: SnapshotResource, snapshots: list[Snapshot], total_count: int) -> list[str]:
    """The tree and a line above it."""
    chains = len({one.root_id for one in snapshots})
    which = f"the newest {len(snapshots)} of " if total_count > len(snapshots) else ""
    head = (
        f"{clean_text(resource.resource_type) or 'resource'} {quoted(resource.resource_name)} ({result.resource_id}) in zone "
        f"{result.zone}: {which}{_count_of(total_count, 'restore point')} in {_count_of(chains, 'chain')}, "
        f"{format_bytes(result.total_bytes)} stored"
    )
    gone = f"; {result.gone_count} gone" if result.gone_count else ""
    return [f"{head}{gone}.", "", *chain.draw(snapshots), ""] if snapshots else [f"{head}{gone}."]


async def _snapshots_of(zone: Zone, resource_id: str) -> tuple[SnapshotResource, list[Snapshot], int]:
    """The resource, the newest of its live snapshots, and how many there are; one that is gone still has its snapshots."""
    try:
        resource = await find_resource(zone.provider, resource_id)
    except NotFound:
        query = SnapshotFilter(resource_id=resource_id, verbose=1)
        snapshots, total = await read_list(zone.provider.list_snapshots, query, MAX_CHAIN_NODES)
        if not snapshots:
            raise
        return snapshots[0].resource, snapshots, total
    kind = "volume" if isinstance(resource, Volume) else "instance"
    found = SnapshotResource(resource_id=resource.id, resource_name=resource.name, resource_type=kind)
    query = SnapshotFilter(resource_id=resource.id, verbose=1)
    return found, *await read_list(zone.provider.list_snapshots, query, MAX_CHAIN_NODES)


async def _count(zone: Zone, **query: Any) -> int:
    return (await zone.provider.list_snapshots(SnapshotFilter(limit=1, **query))).total_count


async def _resource_filter(zone: Zone, text: str) -> str:
    """The id behind an id or a name; what is unknown is passed on, because snapshots outlive their disk."""
    if not text:
        return ""
    try:
        return (await find_resource(zone.provider, text)).id
    except NotFound:
        return text


async def _resources(zone: Zone, query: ResourceFilter, kind: Kind | None) -> Page[Any]:
    """One kind, or all of them one after the other as if they were one list."""
    lists: dict[Kind, Any] = {
        "volume": zone.provider.list_volumes,
        "instance": zone.provider.list_instances,
        "image": zone.provider.list_images,
    }
    if kind:
        page: Page[Any] = await lists[kind](query)
        return page
    items: list[Volume | Instance | Image] = []
    total = 0
    for list_kind in lists.values():
        wanted = query.limit - len(items)
        update = {"offset": max(0, query.offset - total), "limit": max(1, wanted)}
        page = await list_kind(query.model_copy(update=update))
        items += page.items[:wanted]
        total += page.total_count
    return Page(tuple(items), total)


def _all_of(query: SnapshotFilter) -> SnapshotFilter:
    """The same page without a filter."""
    return SnapshotFilter(verbose=query.verbose, offset=query.offset, limit=query.limit)


def _missing_hint(query: SnapshotFilter, page: Page[Snapshot]) -> str:
    """Which of the ids asked for are not there; of a part of them only how many."""
    wanted = dict.fromkeys(query.snapshots)
    if len(page.items) < page.total_count:
        count = len(wanted) - page.total_count
        return f"Without a match: {count} of the {len(wanted)} ids." if count > 0 else ""
    missing = list(wanted.keys() - {one.snapshot_id for one in page.items})
    if not missing:
        return ""
    shown = ", ".join(quoted(one) for one in sorted(missing)[:5])
    more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
    is_alone = query == _all_of(query).model_copy(update={"snapshots": query.snapshots})
    return f"{'Not found' if is_alone else 'Not found or filtered away'}: {shown}{more}."


async def _hint(zone: Zone, page: Page[Snapshot], query: SnapshotFilter) -> str:
    if page.total_count > query.offset + len(page.items) and page.items:
        return f"More: offset={query.offset + len(page.items)}."
    if page.items:
        return ""
    if page.total_count:
        return f"offset={query.offset} is beyond the last one."
    if unknown := sorted(set(query.status) - set(SnapshotStatus)):
        return f"No status: {', '.join(map(quoted, unknown))}. There are {', '.join(SnapshotStatus)}."
    is_filtered = query != _all_of(query)
    if is_filtered and (there := await _count(zone)):
        gone = "" if query.status or query.snapshots else '; deleted ones show with status=["deleted"]'
        return f"The filter leaves none of {there}{gone}."
    if SnapshotStatus.DELETED not in query.status and (deleted := await _count(zone, status=(SnapshotStatus.DELETED,))):
        return f'All are deleted: status=["deleted"] shows {deleted}; recover_snapshots may bring them back.'
    return "The zone has no snapshots yet. list_resources shows what can be backed up, create_snapshots does it."


async def _resource_hint(face: Face, zone: Zone, page: Page[Any], query: ResourceFilter, kind: Kind | None) -> str:
    if page.total_count > query.offset + len(page.items) and page.items:
        return f"More: offset={query.offset + len(page.items)}."
    if page.items or page.total_count:
        return "" if page.items else f"offset={query.offset} is beyond the last one."
    if query.search_word or query.status:
        there = (await _resources(zone, ResourceFilter(limit=1), kind)).total_count
        if there:
            return f"The filter leaves none of {there}."
    if kind == "image":
        return "No images yet. export_to_image makes one of a machine's snapshot."
    command = f"{await face.command()} zone add PATH"
    return f"There is nothing here yet. In a local zone the operator registers a disk with `{command}`."


def _counted(head: str, page: Page[Any], offset: int) -> str:
    if page.items and (offset or len(page.items) < page.total_count):
        return f"{head}; {offset + 1} to {offset + len(page.items)}:"
    return f"{head}{':' if page.items else '.'}"


def _match(page: Page[Any]) -> str:
    return " matches" if page.total_count == 1 else " match"


def _count_of(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


@lru_cache(maxsize=4096)
def _shown(one: Snapshot, verbose: bool) -> tuple[SnapshotRow, str]:
    """A snapshot's row and its line of text; of equal snapshots they are the same, and lists show the same ones again."""
    row = SnapshotRow.of(one, verbose=verbose)
    marks = f"{' head' if row.is_head else ''}{' DAMAGED' if row.is_damaged else ''}"
    line = (
        f"{row.snapshot_id}  {row.type}  {row.status}{marks}  {row.snapshot_time or 'not taken yet'}  "
        f"{format_bytes(row.size_bytes)}  {quoted(row.name)} of {quoted(row.resource_name)} ({row.resource_id})"
        f"{f'  {row.consistency}' if row.consistency else ''}"
    )
    return row, line


def _resource_line(row: ResourceRow) -> str:
    attached = f"  on {row.attached_to}" if row.attached_to else ""
    held = f"  IN USE: {row.held_by}" if row.held_by else ""
    problem = f"  PROBLEM: {row.problem}" if row.problem else ""
    what = f"{row.resource_id}  {row.kind}  {row.status}  {format_bytes(row.size_bytes)}  {quoted(row.name)}"
    return f"{what}{attached}{held}{problem}"
