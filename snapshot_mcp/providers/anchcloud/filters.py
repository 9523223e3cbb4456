"""Check a list against its filter, and filter it here if the provider did not: pure.

A provider may ignore a filter, a limit or an offset. A caller that relies on a filter would then count another disk's restore
points as copies of its own. So items that do not match are never passed on: a complete list is filtered here, and an
incomplete one is rejected.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

from snapshot_mcp.contract.errors import Unavailable
from snapshot_mcp.contract.models import Page, Resource, ResourceFilter, Snapshot, SnapshotFilter
from snapshot_mcp.contract.states import GONE_SNAPSHOT_STATUSES
from snapshot_mcp.contract.text import quoted

Item = TypeVar("Item")
Listed = TypeVar("Listed", bound=Resource)


class FilterIgnored(Unavailable):
    """The zone ignores a filter, and its list is incomplete, so it cannot be filtered here."""


def snapshots_page(query: SnapshotFilter, items: Sequence[Snapshot], total_count: int, what: str) -> Page[Snapshot]:
    """Return the page of snapshots that `query` asks for. Raises FilterIgnored."""
    asks_for_gone = bool(query.status or query.snapshots)

    def fits(one: Snapshot) -> bool:
        if query.resource_id and not one.resource.resource_id:
            raise _ignored(one.snapshot_id, what)  # its disk is unknown
        is_there = asks_for_gone or one.status not in GONE_SNAPSHOT_STATUSES
        is_tagged = not query.tags or not set(query.tags).isdisjoint(one.tags)
        return is_there and is_tagged and _has_word(query.search_word, one.snapshot_id, one.snapshot_name)

    return _page(query, items, total_count, lambda one: _is_other_snapshot(query, one), fits, what)


def resources_page(query: ResourceFilter, items: Sequence[Listed], total_count: int, what: str) -> Page[Listed]:
    """Return the page of resources that `query` asks for. Raises FilterIgnored."""

    def is_other(one: Listed) -> bool:
        return _is_other(query.ids, id_of(one)) or _is_other(query.status, one.status)

    def fits(one: Listed) -> bool:
        return _has_word(query.search_word, id_of(one), getattr(one, "name", ""))

    return _page(query, items, total_count, is_other, fits, what)


def _page(
    query: SnapshotFilter | ResourceFilter,
    items: Sequence[Item],
    total_count: int,
    is_other: Callable[[Item], bool],
    fits: Callable[[Item], bool],
    what: str,
) -> Page[Item]:
    """Return the page. `is_other`: certainly not a match. `fits`: the rest of the filter, applied if the zone ignored it."""
    strangers = [one for one in items if is_other(one)]
    is_whole = len(items) >= total_count
    is_cut_here = bool(strangers) or (is_whole and len(items) > query.limit)
    if strangers:
        if not is_whole:
            raise _ignored(id_of(strangers[0]), what)
        items = [one for one in items if not is_other(one) and fits(one)]
        total_count = len(items)
    start = query.offset if is_cut_here else 0
    return Page(tuple(items[start : start + query.limit]), total_count)


def _is_other_snapshot(query: SnapshotFilter, one: Snapshot) -> bool:
    chains = (one.root_id, one.snapshot_id) if one.root_id else ()
    types = (one.snapshot_type,) if "snapshot_type" in one.model_fields_set else ()
    return (
        _is_other(query.snapshots, one.snapshot_id)
        or bool(query.root_id and chains and query.root_id not in chains)
        or bool(query.resource_id and one.resource.resource_id not in {"", query.resource_id})
        or bool(query.snapshot_type is not None and types and query.snapshot_type not in types)
        or _is_other(query.status, one.status)
    )


def _is_other(wanted: Sequence[str], value: str) -> bool:
    return bool(wanted) and value.casefold() not in {one.casefold() for one in wanted}


def _has_word(word: str, *places: str) -> bool:
    return any(word.casefold() in place.casefold() for place in places)


def id_of(item: object) -> str:
    """Return the id of a snapshot or a resource."""
    return item.snapshot_id if isinstance(item, Snapshot) else str(getattr(item, "id", ""))


def _ignored(item_id: str, what: str) -> FilterIgnored:
    return FilterIgnored(
        f"{what}: the zone returned {quoted(item_id)}, which does not match the filter: it ignores the filter.",
        hint="Its lists cannot be used for this.",
    )
