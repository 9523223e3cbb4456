"""Find resources and snapshots by id or name, and read lists page by page, with any provider.

An exact id takes precedence over a name; a name that several resources share is rejected with their ids.
"""

import unicodedata
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import anyio

from snapshot_mcp.contract.errors import BadRequest, NotFound, Unavailable, ZoneError
from snapshot_mcp.contract.models import (
    MAX_LIMIT,
    Image,
    Instance,
    Page,
    ResourceFilter,
    Snapshot,
    SnapshotFilter,
    Volume,
    first_repeated,
)
from snapshot_mcp.contract.provider import Provider
from snapshot_mcp.contract.text import clean_text, format_bytes, quoted

MAX_LISTED = 20_000
"""Upper bound on items read of one list; a longer one is endless or too long for one call."""

PASSES = 4
"""Attempts to read a list that changes while it is read; enough for a zone where a backup ends every second."""

CONCURRENT_READS = 8
"""Things that a zone is asked for at once."""

MAX_COMPARED = 500
"""Most names of each kind that are compared with one that does not exist; a zone seldom has more disks."""

MAX_NEAR = 5
NEAR = 0.6
"""Least similarity of a near name, of 1: a letter more, less or different in a short one."""

COMPARED_CHARACTERS = 80
"""What of a name is compared with another: the time for it grows with the square."""

TRY_SECONDS = 5.0
"""Time limit for looking up optional details; with the longest wait it stays below the hosts' own limits."""

Query = TypeVar("Query", SnapshotFilter, ResourceFilter)
Item = TypeVar("Item")

Resource = Volume | Instance | Image
ListPage = Callable[[ResourceFilter], Awaitable[Page[Any]]]
"""One of a provider's lists of resources."""


async def read_list(
    list_page: Callable[[Query], Awaitable[Page[Item]]], query: Query, limit: int = MAX_LISTED
) -> tuple[list[Item], int]:
    """Return the first `limit` distinct items of a list and its total count. Raises Unavailable past MAX_LISTED items."""
    found, totals = await _read(list_page, query, limit)
    return found[:limit], totals[-1]


async def read_whole(list_page: Callable[[Query], Awaitable[Page[Item]]], query: Query) -> tuple[Item, ...]:
    """Return a whole list, read again if it changed during reading. Raises Unavailable if it keeps changing or is too long."""
    for _ in range(PASSES):
        found, totals = await _read(list_page, query)
        if set(totals) == {len(found)}:
            return tuple(found)
    raise Unavailable(
        "The zone's list kept changing while it was read, so its content is unknown.",
        hint="Repeat the call in a moment.",
    )


async def find_resource(provider: Provider, text: str) -> Volume | Instance:
    """Return the disk or machine with this id, else the only one of this name. Raises NotFound, BadRequest if ambiguous."""
    found = await _find(provider.zone, text, (provider.list_volumes, provider.list_instances), "disk or machine")
    assert not isinstance(found, Image)
    return found


async def find_listed(provider: Provider, text: str) -> Resource:
    """Return the disk, machine or image with this id, else the only one of this name. Raises as `find_resource`."""
    lists: tuple[ListPage, ...] = (provider.list_volumes, provider.list_instances, provider.list_images)
    return await _find(provider.zone, text, lists, "disk, machine or image")


async def _find(zone: str, text: str, lists: Sequence[ListPage], noun: str) -> Resource:
    for resource in await _resources(lists, ResourceFilter(ids=(text,))):
        if resource.id == text:
            return resource
    similar = await _resources(lists, ResourceFilter(search_word=text))
    named = [resource for resource in similar if resource.name == text]
    if len(named) == 1:
        return named[0]
    if named:
        raise BadRequest(
            f"{len(named)} resources in zone {zone} are named {quoted(text)}.", hint=f"Use an id: {_row(named)}."
        )
    similar = nearest_first(text, similar) or await _near(lists, text)
    raise NotFound(
        f"There is no {noun} {quoted(text)} in zone {zone}.",
        hint=f"Similar names: {_row(similar)}." if similar else "list_resources lists all of them.",
    )


async def find_resources(provider: Provider, texts: Sequence[str]) -> list[Volume | Instance]:
    """Return several resources in the given order. Raises BadRequest if two texts name the same one."""
    by_text: dict[str, Volume | Instance] = {}

    async def look(text: str) -> None:
        by_text[text] = await find_resource(provider, text)

    await at_once(look, list(dict.fromkeys(texts)))
    found = [by_text[text] for text in texts]
    if (repeated := first_repeated(one.id for one in found)) is not None:
        raise BadRequest(f"{clean_text(repeated)} is listed twice.", hint="List each disk or machine once.")
    return found


async def at_once(look: Callable[[str], Awaitable[None]], texts: Sequence[str]) -> None:
    """Call `look` for each text, some at once. Raises the first text's ZoneError, as if they had been looked up in turn."""
    limiter, errors = anyio.Semaphore(CONCURRENT_READS), dict[str, ZoneError]()

    async def bounded(text: str) -> None:
        async with limiter:
            try:
                await look(text)
            except ZoneError as error:
                errors[text] = error

    async with anyio.create_task_group() as tasks:
        for text in texts:
            tasks.start_soon(bounded, text)
    for text in texts:
        if text in errors:
            raise errors[text]


async def find_snapshot(provider: Provider, snapshot_id: str) -> Snapshot:
    """Return the snapshot with this id, deleted or not. Raises NotFound."""
    return (await find_snapshots(provider, [snapshot_id]))[0]


async def find_snapshots(provider: Provider, ids: Sequence[str]) -> list[Snapshot]:
    """Return these snapshots, deleted or not, in the given order. Raises NotFound, and BadRequest for a repeated id."""
    if not ids:
        raise BadRequest("No snapshot id was given.", hint="Give at least one; list_snapshots lists them.")
    if (repeated := first_repeated(ids)) is not None:
        raise BadRequest(f"Snapshot {quoted(repeated)} is listed twice.", hint="List each snapshot once.")
    found: dict[str, Snapshot] = {}
    for start in range(0, len(ids), MAX_LIMIT):
        batch = tuple(ids[start : start + MAX_LIMIT])
        page = await provider.list_snapshots(SnapshotFilter(snapshots=batch, verbose=1, limit=MAX_LIMIT))
        found |= {one.snapshot_id: one for one in page.items}
    for one in ids:
        if one not in found:
            raise NotFound(
                f"There is no snapshot {quoted(one)} in zone {provider.zone}.",
                hint=f"{await _like(provider, one)}Use a snapshot id; list_snapshots with search finds it by name.",
            )
    return [found[one] for one in ids]


async def _like(provider: Provider, text: str) -> str:
    """Return a sentence with the snapshots that are called like a text that is not an id, "" if there are none."""
    page = await provider.list_snapshots(SnapshotFilter(search_word=text, limit=MAX_LIMIT))
    word = folded_name(text)
    found = sorted(page.items, key=lambda one: word not in (folded_name(one.snapshot_name), one.snapshot_id))[:MAX_NEAR]
    shown = ", ".join(f"{clean_text(one.snapshot_id)} ({quoted(one.snapshot_name)})" for one in found)
    return f"Similar: {shown}. " if shown else ""


async def try_find_snapshots(provider: Provider, ids: Sequence[str]) -> tuple[list[Snapshot], bool]:
    """Return the snapshots among `ids`, in this order, and whether all could be looked up. Raises no ZoneError.

    For optional details of something already done: one call, bounded in time.
    """
    wanted = tuple(dict.fromkeys(ids))
    asked = wanted[:MAX_LIMIT]
    if not asked:
        return [], True
    with anyio.move_on_after(TRY_SECONDS):
        try:
            page = await provider.list_snapshots(SnapshotFilter(snapshots=asked, verbose=1, limit=MAX_LIMIT))
        except ZoneError:
            return [], False
        found = {one.snapshot_id: one for one in page.items}
        return [found[one] for one in asked if one in found], asked == wanted
    return [], False


async def _read(
    list_page: Callable[[Query], Awaitable[Page[Item]]], query: Query, limit: int = MAX_LISTED
) -> tuple[list[Item], list[int]]:
    """Return at least `limit` items, if there are, and the total count of each page. A zone may repeat a page endlessly."""
    found: dict[str, Item] = {}
    totals: list[int] = []
    offset = 0
    while True:
        page = await list_page(query.model_copy(update={"offset": offset, "limit": MAX_LIMIT}))
        before = len(found)
        found |= {_id_of(one): one for one in page.items}
        if page.unread and limit == MAX_LISTED:
            raise Unavailable(page.unread[0], hint="What the zone lists is not known as a whole. Nothing was changed.")
        totals.append(page.total_count)
        offset += len(page.items)
        if len(found) == before or offset >= min(page.total_count, limit):
            break
    if len(found) >= MAX_LISTED and offset < totals[-1]:
        raise Unavailable(
            f"The zone lists more than {MAX_LISTED} items, too many for one call.", hint="Nothing was changed."
        )
    return list(found.values()), totals


def _id_of(item: Any) -> str:
    return str(item.snapshot_id if isinstance(item, Snapshot) else item.id)


async def _resources(lists: Sequence[ListPage], query: ResourceFilter, limit: int = MAX_LISTED) -> list[Resource]:
    """Return the items of each list in turn; a zone may support only one kind."""
    found: list[Resource] = []
    for list_page in lists:
        with suppress(NotFound):
            found += (await read_list(list_page, query, limit))[0]
    return found


async def _near(lists: Sequence[ListPage], text: str) -> list[Resource]:
    """Return those of the newest whose name is near to `text`."""
    known = await _resources(lists, ResourceFilter(limit=MAX_LIMIT), MAX_COMPARED)
    names = near_names(text, [one.name for one in known])
    return sorted((one for one in known if one.name in names), key=lambda one: names.index(one.name))


def folded_name(name: str) -> str:
    """Return a name as it sounds: without case, the forms of its letters, and blanks at its ends."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold()).strip()


def nearest_first(text: str, found: Iterable[Resource]) -> list[Resource]:
    """Return the resources in order, but first those whose name or id differs from `text` only in case or form."""
    word = folded_name(text)
    return sorted(found, key=lambda one: word not in (folded_name(one.name), folded_name(one.id)))


def sorted_names(text: str, names: Sequence[str]) -> list[str]:
    """Return all names in order, but the nearest to `text` first."""
    return list(dict.fromkeys([*near_names(text, names), *names]))


def near_names(text: str, names: Sequence[str]) -> list[str]:
    """Return the names nearest to `text`: first those that differ only in case, then by a common part or few letters."""
    from difflib import get_close_matches

    whole = {name: folded_name(name) for name in dict.fromkeys(names)}
    same = [name for name, one in whole.items() if one == folded_name(text)]
    folded = {name: one[:COMPARED_CHARACTERS] for name, one in whole.items()}
    word = folded_name(text)[:COMPARED_CHARACTERS]
    parts = [name for name, one in folded.items() if len(word) > 1 and (word in one or (len(one) > 1 and one in word))]
    close = get_close_matches(word, list(folded.values()), n=MAX_NEAR, cutoff=NEAR)
    near = [*same, *parts, *(name for one in close for name in folded if folded[name] == one)]
    return list(dict.fromkeys(near))[:MAX_NEAR]


def _row(resources: Sequence[Resource]) -> str:
    shown = [f"{clean_text(one.id)} ({quoted(one.name)}, {format_bytes(one.byte_size)})" for one in resources[:5]]
    return ", ".join(shown) + (f" and {len(resources) - 5} more" if len(resources) > 5 else "")
