"""From what a model wrote to what is meant: an id, or a resource's exact name where only one bears it.

An exact id beats a name, a name that two bear is refused with both ids, repeats are refused after that.
"""

from collections.abc import AsyncIterator, Sequence

import anyio

from snapshot_mcp.contract.errors import BadRequest, NotFound, ZoneError
from snapshot_mcp.contract.models import (
    MAX_LIMIT,
    Instance,
    ResourceFilter,
    Snapshot,
    SnapshotFilter,
    Volume,
    first_repeated,
)
from snapshot_mcp.contract.text import clean_text, format_bytes, quoted
from snapshot_mcp.zones import Zone

MAX_NAMESAKES = 1000
"""As many resources as are looked through for a name; a zone has names that tell its disks apart, or ids must do."""

LOOK_SECONDS = 5.0
"""As long as an answer waits for what it merely adds; with the longest wait it stays below what hosts wait for."""


async def find_resource(zone: Zone, text: str) -> Volume | Instance:
    """Return the volume or instance with this id, else the one with exactly this name. Raises NotFound, BadRequest."""
    by_id = ResourceFilter(ids=(text,), limit=1)
    for found in (await _volumes(zone, by_id), await _instances(zone, by_id)):
        for resource in found:
            if resource.id == text:
                return resource
    named: list[Volume | Instance] = []
    similar: list[Volume | Instance] = []
    async for resource in _search(zone, text):
        (named if resource.name == text else similar).append(resource)
    if len(named) == 1:
        return named[0]
    if named:
        raise BadRequest(
            f"{len(named)} resources in zone {zone.name} are named {quoted(text)}.", hint=f"Use an id: {_row(named)}."
        )
    raise NotFound(
        f"There is no disk or machine {quoted(text)} in zone {zone.name}.",
        hint=f"Near to it: {_row(similar)}." if similar else "list_resources shows what there is.",
    )


async def find_resources(zone: Zone, texts: Sequence[str]) -> list[Volume | Instance]:
    """Return them in the order asked. Raises BadRequest when two texts mean the same one."""
    found = [await find_resource(zone, text) for text in texts]
    if (repeated := first_repeated(one.id for one in found)) is not None:
        raise BadRequest(f"{clean_text(repeated)} is meant twice.", hint="Name each disk or machine once.")
    return found


async def find_snapshot(zone: Zone, snapshot_id: str) -> Snapshot:
    """Return the snapshot with this id, gone or not. Raises NotFound."""
    page = await zone.provider.list_snapshots(SnapshotFilter(snapshots=(snapshot_id,), verbose=1, limit=1))
    for snapshot in page.items:
        if snapshot.snapshot_id == snapshot_id:
            return snapshot
    raise NotFound(
        f"There is no snapshot {quoted(snapshot_id)} in zone {zone.name}.",
        hint="Snapshots are named by id; list_snapshots with search finds it by name.",
    )


async def all_snapshots(zone: Zone, query: SnapshotFilter, limit: int) -> tuple[list[Snapshot], int]:
    """Return up to `limit` snapshots that match, each once, and how many there are."""
    found: dict[str, Snapshot] = {}
    offset = 0
    while True:
        page = await zone.provider.list_snapshots(query.model_copy(update={"offset": offset, "limit": MAX_LIMIT}))
        before = len(found)
        found |= {one.snapshot_id: one for one in page.items}
        offset += len(page.items)
        if len(found) == before or offset >= min(page.total_count, limit):
            return list(found.values())[:limit], page.total_count


async def look_at(zone: Zone, ids: Sequence[str]) -> tuple[list[Snapshot], bool]:
    """Return those of `ids` that are snapshots, in this order, and whether all could be looked at. Raises no ZoneError.

    For what an answer says beside its matter, which has been done already: one call, and no long one.
    """
    wanted = tuple(dict.fromkeys(ids))
    asked = wanted[:MAX_LIMIT]
    if not asked:
        return [], True
    with anyio.move_on_after(LOOK_SECONDS):
        try:
            page = await zone.provider.list_snapshots(SnapshotFilter(snapshots=asked, verbose=1, limit=MAX_LIMIT))
        except ZoneError:
            return [], False
        found = {one.snapshot_id: one for one in page.items}
        return [found[one] for one in asked if one in found], asked == wanted
    return [], False


async def _search(zone: Zone, text: str) -> AsyncIterator[Volume | Instance]:
    for offset in range(0, MAX_NAMESAKES, MAX_LIMIT):
        query = ResourceFilter(search_word=text, offset=offset, limit=MAX_LIMIT)
        volumes, instances = await _volumes(zone, query), await _instances(zone, query)
        for volume in volumes:
            yield volume
        for instance in instances:
            yield instance
        if max(len(volumes), len(instances)) < MAX_LIMIT:
            return


async def _volumes(zone: Zone, query: ResourceFilter) -> Sequence[Volume]:
    try:
        return (await zone.provider.list_volumes(query)).items
    except NotFound:
        return ()


async def _instances(zone: Zone, query: ResourceFilter) -> Sequence[Instance]:
    try:
        return (await zone.provider.list_instances(query)).items
    except NotFound:
        return ()


def _row(resources: Sequence[Volume | Instance]) -> str:
    shown = [f"{clean_text(one.id)} ({quoted(one.name)}, {format_bytes(one.byte_size)})" for one in resources[:5]]
    return ", ".join(shown) + (f" and {len(resources) - 5} more" if len(resources) > 5 else "")
