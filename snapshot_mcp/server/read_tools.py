"""Tools that only read: snapshots, resources, chains.

An empty zone, a filter without a match, a missing permission and an unreachable zone are reported differently; the last two
are errors that name the zone.
"""

from datetime import UTC, datetime
from time import time
from typing import Annotated, Any, Literal

from mcp.server.mcpserver import Context
from mcp.types import CallToolResult
from pydantic import Field

from snapshot_mcp.contract.errors import NotFound
from snapshot_mcp.contract.models import (
    MAX_LIMIT,
    MAX_NAME_CHARACTERS,
    MAX_OFFSET,
    Page,
    Resource,
    ResourceFilter,
    Snapshot,
    SnapshotFilter,
    SnapshotResource,
)
from snapshot_mcp.contract.provider import SHARED_FATE, shares_fate
from snapshot_mcp.contract.states import GONE_SNAPSHOT_STATUSES, SnapshotStatus, SnapshotType
from snapshot_mcp.contract.text import clean_text, format_bytes, quoted
from snapshot_mcp.contract.tree import is_fuzzy, taken_at
from snapshot_mcp.server import chain
from snapshot_mcp.server.coverage import protection_of
from snapshot_mcp.server.elsewhere import uncovered
from snapshot_mcp.server.lines import (
    ahead_in_words,
    bare_hint,
    count_of,
    filter_in_words,
    heading,
    resource_line,
    shown,
    unread_in_words,
)
from snapshot_mcp.server.rows import ChainPicture, ResourceList, ResourceRow, SnapshotList
from snapshot_mcp.server.state import ServerState, state_of
from snapshot_mcp.zones import Zone
from snapshot_mcp.zones.finding import find_resource, near_names, read_list

MAX_FILTER_VALUES = 1000
"""Most values of a filter: SQLite takes some 30,000 in one statement."""

ZoneArgument = Annotated[str, Field(description="Zone; default if unset")]
ResourceId = Annotated[str, Field(max_length=MAX_NAME_CHARACTERS, description="Id or exact name of disk or machine")]
Search = Annotated[str, Field(max_length=MAX_NAME_CHARACTERS, description="Part of an id or name")]
Offset = Annotated[
    int,
    Field(
        ge=0, le=MAX_OFFSET, description="Rows to skip", json_schema_extra=lambda schema: schema.pop("maximum", None)
    ),
]
Limit = Annotated[int, Field(ge=1, le=MAX_LIMIT, description=f"1 to {MAX_LIMIT}")]
Kind = Literal["any", "volume", "instance", "image"]

ANY: list[str] = []
"""Default of the list arguments; never modified."""

MAX_CHAIN_NODES = 100
"""Restore points drawn at most: some 33,000 characters, which is within the hosts' limits on a result."""


async def notice_of(place: Zone) -> str:
    """Return what the zone's lists cannot show, if it says so; "" for nothing."""
    notice = getattr(place.provider, "notice", None)
    return str(await notice()) if notice else ""


def fate_of(place: Zone) -> str:
    """Return that the zone's restore points are lost with its disks, "" where they are not."""
    return SHARED_FATE if shares_fate(place.provider.features) else ""


async def list_snapshots(
    ctx: Context,
    snapshot_ids: Annotated[list[str], Field(max_length=MAX_FILTER_VALUES)] = ANY,
    resource_id: ResourceId = "",
    snapshot_type: Literal["any", "full", "incremental"] = "any",
    status: Annotated[
        list[str],
        Field(
            max_length=MAX_FILTER_VALUES,
            description="pending, available, suspended, deleted, ceased; default: all but the last two",
        ),
    ] = ANY,
    search: Search = "",
    root_id: Annotated[str, Field(description="Only this chain")] = "",
    tags: Annotated[list[str], Field(max_length=MAX_FILTER_VALUES, description="Any of these")] = ANY,
    verbose: Annotated[bool, Field(description="With description, tags, disk and chain sizes")] = False,
    offset: Offset = 0,
    limit: Limit = 10,
    zone: ZoneArgument = "",
) -> Annotated[CallToolResult, SnapshotList]:
    """Is there a snapshot or backup with this name, id or tag, and when was it taken? Lists the restore points of a
    disk or of all, with time, size and status; full ones; deleted ones that can still come back. Newest first."""
    place = state_of(ctx).zones.get(zone)
    resource = await _resource_filter(place, resource_id)
    query = SnapshotFilter(
        snapshots=tuple(snapshot_ids),
        resource_id=resource,
        snapshot_type=None if snapshot_type == "any" else SnapshotType[snapshot_type.upper()],
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
    ahead = ahead_in_words((one.snapshot_id, taken_at(one)) for one in page.items)
    notice = await notice_of(place)
    hint = " ".join(
        filter(
            None, (notice, _missing_hint(query, page), unread_in_words(page), ahead, await _hint(place, page, query))
        )
    )
    minute = int(time() // 60)
    drawn = [shown(one, verbose, minute) for one in page.items]
    rows = [row for row, _ in drawn]
    applied = filter_in_words(
        snapshot_ids=snapshot_ids, resource_id=resource_id, snapshot_type=snapshot_type, status=status, search=search,
        root_id=root_id, tags=tags,
    )  # fmt: skip
    result = SnapshotList(zone=place.name, total_count=page.total_count, filter=applied, snapshots=rows, hint=hint)
    head = heading("snapshot", page, offset, place.name, applied)
    return result.with_text(head, *(line for _, line in drawn), hint)


async def list_resources(
    ctx: Context,
    kind: Kind = "any",
    search: Search = "",
    status: Annotated[list[str], Field(max_length=MAX_FILTER_VALUES)] = ANY,
    offset: Offset = 0,
    limit: Limit = 20,
    zone: ZoneArgument = "",
) -> Annotated[CallToolResult, ResourceList]:
    """Which disks, volumes, servers (machines, instances) and images are there, attached to what; which are unprotected,
    without a recent backup; the space of their backups."""
    state = state_of(ctx)
    place = state.zones.get(zone)
    query = ResourceFilter(status=tuple(status), search_word=search, verbose=1, offset=offset, limit=limit)
    page = await _resources(place, query, kind)
    found = await protection_of(place, page.items)
    rows = [ResourceRow.of(one, found.coverage.get(one.id), found.running.get(one.id, ())) for one in page.items]
    hint = await _resource_hint(state, place, page, query, kind)
    others = await _others_hint(place, page, query, kind)
    ahead = ahead_in_words((one.newest_good_id, one.newest_good_time) for one in found.coverage.values())
    hint = " ".join(
        filter(
            None,
            (
                await notice_of(place),
                others,
                hint,
                unread_in_words(page),
                found.note,
                ahead,
                bare_hint(rows),
                fate_of(place),
                uncovered(place) if any(one.good_count for one in rows) and page.total_count == len(rows) > 1 else "",
            ),
        )
    )
    applied = filter_in_words(kind=kind, search=search, status=status)
    result = ResourceList(zone=place.name, total_count=page.total_count, filter=applied, resources=rows, hint=hint)
    head = heading(_noun(kind), page, offset, place.name, filter_in_words(search=search, status=status))
    return result.with_text(head, *(resource_line(row, datetime.now(UTC)) for row in rows), hint)


async def show_chain(
    ctx: Context,
    resource_id: Annotated[ResourceId, Field(min_length=1)],
    zone: ZoneArgument = "",
) -> Annotated[CallToolResult, ChainPicture]:
    """Draw a disk's restore points as a tree: what would break if a full backup was removed, how incrementals build
    on each other, which restore point is the current head, what is damaged. Deleting one deletes everything below
    it."""
    place = state_of(ctx).zones.get(zone)
    found, snapshots, total = await snapshots_of(place, resource_id, MAX_CHAIN_NODES)
    gone = await _count(place, resource_id=found.resource_id, status=tuple(sorted(GONE_SNAPSHOT_STATUSES)))
    result = picture(place, found, snapshots, total_count=total, gone_count=gone)
    if notice := await notice_of(place):
        result = result.model_copy(update={"hint": f"{notice} {result.hint}"})
    drawn = result.with_text(*picture_text(result, found, snapshots, total), result.hint)
    nodes = [one.lean() for one in chain.layout(snapshots)]
    return drawn.model_copy(update={"meta": {"nodes": nodes, "total_count": total}})


def picture(
    zone: Zone, resource: SnapshotResource, snapshots: list[Snapshot], *, total_count: int, gone_count: int
) -> ChainPicture:
    """Build the result for a chain, of the tool and of the resource; `snapshots` are the newest of `total_count`."""
    is_cut = total_count > len(snapshots)
    head = next((clean_text(one.snapshot_id) for one in snapshots if one.is_head), None)
    if not snapshots:
        hint = "No restore points yet. create_snapshots takes the first one, which is full."
    elif any(one.is_damaged for one in snapshots):
        hint = "Damaged points and everything below them cannot be restored. create_snapshots with full starts a new chain."
    elif head is not None:
        hint = "The next incremental becomes a child of the head."
    else:
        hint = "The head is not among those shown." if is_cut else "No head: the next snapshot will be full."
    if any(map(is_fuzzy, snapshots)):
        hint += " A fuzzy point may be a mixture of states and does not count as a good restore point."
    if ahead := ahead_in_words((one.snapshot_id, taken_at(one)) for one in snapshots):
        hint = f"{hint} {ahead}"
    if fate := fate_of(zone):
        hint = f"{hint} {fate}"
    if is_cut:
        hint = f"Only the newest {len(snapshots)} of {total_count} are shown; list_snapshots lists all. {hint}"
    return ChainPicture(
        zone=zone.name,
        resource_id=clean_text(resource.resource_id),
        resource_name=clean_text(resource.resource_name),
        head_id=head,
        stored_bytes=sum(one.stored_bytes for one in snapshots),
        frees_bytes=None if is_cut else chain.bytes_beside_the_newest(snapshots) or None,
        gone_count=gone_count or None,
        lines=chain.draw(snapshots),
        hint=hint,
    )


def picture_text(
    result: ChainPicture, resource: SnapshotResource, snapshots: list[Snapshot], total_count: int
) -> list[str]:
    """Return the lines of text: a heading and the tree."""
    chains = len({one.root_id for one in snapshots})
    which = f"the newest {len(snapshots)} of " if total_count > len(snapshots) else ""
    head = (
        f"{clean_text(resource.resource_type) or 'resource'} {quoted(resource.resource_name)} ({result.resource_id}) in zone "
        f"{result.zone}: {which}{count_of(total_count, 'restore point')} in {count_of(chains, 'chain')}, "
        f"{format_bytes(result.stored_bytes)} stored"
    )
    gone = f"; {result.gone_count} gone" if result.gone_count else ""
    frees = f"; all but the newest chain: {format_bytes(result.frees_bytes)}" if result.frees_bytes else ""
    return [f"{head}{frees}{gone}.", "", *result.lines, ""] if snapshots else [f"{head}{gone}."]


async def snapshots_of(zone: Zone, resource_id: str, most: int) -> tuple[SnapshotResource, list[Snapshot], int]:
    """Return a resource, which may be gone, the newest of its existing snapshots, `most` at most, and their number."""
    try:
        resource = await find_resource(zone.provider, resource_id)
    except NotFound:
        query = SnapshotFilter(resource_id=resource_id, verbose=1)
        snapshots, total = await read_list(zone.provider.list_snapshots, query, most)
        if not snapshots:
            raise
        return snapshots[0].resource, snapshots, total
    found = SnapshotResource(resource_id=resource.id, resource_name=resource.name, resource_type=resource.kind)
    query = SnapshotFilter(resource_id=resource.id, verbose=1)
    return found, *await read_list(zone.provider.list_snapshots, query, most)


async def _count(zone: Zone, **query: Any) -> int:
    return (await zone.provider.list_snapshots(SnapshotFilter(limit=1, **query))).total_count


async def _resource_filter(zone: Zone, text: str) -> str:
    """Return the id for an id or a name; an unknown one is returned as it is, because snapshots outlive their disk."""
    if not text:
        return ""
    try:
        return (await find_resource(zone.provider, text)).id
    except NotFound:
        return text


def _noun(kind: Kind) -> str:
    return "resource" if kind == "any" else kind


async def _others_hint(zone: Zone, page: Page[Any], query: ResourceFilter, kind: Kind) -> str:
    """Return how many others a search hides, since a model takes what it sees for all there is."""
    if not query.search_word or not page.total_count:
        return ""
    existing = (await _resources(zone, ResourceFilter(limit=1), kind)).total_count
    return f"{page.total_count} of {existing} match the search." if existing > page.total_count else ""


async def _resources(zone: Zone, query: ResourceFilter, kind: Kind) -> Page[Any]:
    """Return a page of one kind, or of all kinds joined into one list."""
    lists: dict[Kind, Any] = {
        "volume": zone.provider.list_volumes,
        "instance": zone.provider.list_instances,
        "image": zone.provider.list_images,
    }
    if kind != "any":
        page: Page[Any] = await lists[kind](query)
        return page
    items: list[Resource] = []
    unread: tuple[str, ...] = ()
    total = 0
    for list_kind in lists.values():
        wanted = query.limit - len(items)
        update = {"offset": max(0, query.offset - total), "limit": max(1, wanted)}
        page = await list_kind(query.model_copy(update=update))
        items += page.items[:wanted]
        total += page.total_count
        unread += page.unread
    return Page(tuple(items), total, unread)


def _unfiltered(query: SnapshotFilter) -> SnapshotFilter:
    """Return the query for the same page without filters."""
    return SnapshotFilter(verbose=query.verbose, offset=query.offset, limit=query.limit)


def _missing_hint(query: SnapshotFilter, page: Page[Snapshot]) -> str:
    """Return which of the given ids are missing; only how many, if the page does not hold all matches."""
    wanted = dict.fromkeys(query.snapshots)
    if len(page.items) < page.total_count:
        count = len(wanted) - page.total_count
        return f"{count} of the {len(wanted)} ids have no match." if count > 0 else ""
    missing = list(wanted.keys() - {one.snapshot_id for one in page.items})
    if not missing:
        return ""
    shown = ", ".join(quoted(one) for one in sorted(missing)[:5])
    more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
    is_alone = query == _unfiltered(query).model_copy(update={"snapshots": query.snapshots})
    return f"{'Not found' if is_alone else 'Not found or filtered out'}: {shown}{more}."


def _paging_hint(page: Page[Any], offset: int) -> str:
    end = offset + len(page.items)
    if page.items:
        return f"More: offset={end}." if page.total_count > end else ""
    return f"offset={offset} is beyond the last one."


async def _hint(zone: Zone, page: Page[Snapshot], query: SnapshotFilter) -> str:
    if page.items or page.total_count:
        return _paging_hint(page, query.offset)
    if unknown := sorted(set(query.status) - set(SnapshotStatus)):
        return f"Unknown status {', '.join(map(quoted, unknown))}; expected: {', '.join(SnapshotStatus)}."
    if query != _unfiltered(query) and (existing := await _count(zone)):
        gone = "" if query.status or query.snapshots else '; status=["deleted"] lists deleted ones'
        return f"The filter matches none of {existing}{gone}.{await _near_snapshots(zone, query.search_word)}"
    if SnapshotStatus.DELETED not in query.status and (deleted := await _count(zone, status=(SnapshotStatus.DELETED,))):
        return f'All are deleted: status=["deleted"] lists {deleted}; recover_snapshots may bring them back.'
    return "The zone has no snapshots yet. list_resources lists what create_snapshots can back up."


async def _near_snapshots(zone: Zone, word: str) -> str:
    """Return which of the newest snapshots have a name near to a word that nothing matches."""
    if not word:
        return ""
    newest = await zone.provider.list_snapshots(SnapshotFilter(limit=MAX_LIMIT))
    near = near_names(word, [one.snapshot_name for one in newest.items])
    return f" Similar names: {', '.join(map(quoted, near))}." if near else ""


async def _resource_hint(state: ServerState, zone: Zone, page: Page[Any], query: ResourceFilter, kind: Kind) -> str:
    if page.items or page.total_count:
        return _paging_hint(page, query.offset)
    if query.search_word or query.status:
        known = await _resources(zone, ResourceFilter(limit=MAX_LIMIT), kind)
        if known.total_count:
            near = near_names(query.search_word, [one.name for one in known.items]) if query.search_word else []
            names = f" Similar names: {', '.join(map(quoted, near))}." if near else ""
            return f"The filter matches none of {known.total_count}.{names}"
    if kind == "image":
        return "No images yet. export_to_image makes one from a machine's snapshot."
    if shares_fate(zone.provider.features):
        return "The zone has none yet: every image of its pool is a disk, and is found by itself."
    command = f"{await state.command()} zone add PATH"
    return f"The zone has none yet. In a local zone the operator registers a disk with `{command}`."
