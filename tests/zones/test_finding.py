"""Reading a list of several pages: whole, each item once, to an end."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from snapshot_mcp.contract.errors import BadRequest, NotFound, Unavailable, UnknownZone
from snapshot_mcp.contract.models import Page, Snapshot, SnapshotFilter
from snapshot_mcp.providers.local import LocalZone
from snapshot_mcp.zones import Zones
from snapshot_mcp.zones.finding import (
    MAX_LISTED,
    find_resource,
    find_resources,
    find_snapshots,
    near_names,
    read_list,
    read_whole,
    sorted_names,
)
from tests.disks import back_up, make_image

pytestmark = pytest.mark.anyio


class Listing:
    """A list of snapshots by number, in pages; `before_page` gets the number of each page before it is read."""

    def __init__(self, count: int) -> None:
        self.numbers = list(range(count))
        self.pages = 0
        self.before_page: Callable[[int], None] = lambda page: None

    async def page(self, query: SnapshotFilter) -> Page[Snapshot]:
        self.before_page(self.pages)
        self.pages += 1
        some = self.numbers[query.offset : query.offset + query.limit]
        return Page(tuple(Snapshot(snapshot_id=str(number)) for number in some), len(self.numbers))


async def test_a_list_is_read_to_its_end_or_to_the_limit() -> None:
    listing = Listing(250)
    found, total = await read_list(listing.page, SnapshotFilter())
    assert ([one.snapshot_id for one in found], total) == ([str(number) for number in range(250)], 250)
    assert listing.pages == 3
    found, total = await read_list(listing.page, SnapshotFilter(), 50)
    assert (len(found), total, listing.pages) == (50, 250, 4)
    assert await read_list(Listing(0).page, SnapshotFilter()) == ([], 0)


async def test_a_list_that_moved_between_two_pages_is_read_again() -> None:
    """A new first item shifts all others: one of them comes twice, and of one that goes another is missed."""
    listing = Listing(250)

    def shift(page: int) -> None:
        if page == 1:
            listing.numbers.pop(0)

    listing.before_page = shift
    whole = await read_whole(listing.page, SnapshotFilter())
    assert [one.snapshot_id for one in whole] == [str(number) for number in range(1, 250)]


async def test_a_list_that_keeps_moving_is_refused() -> None:
    listing = Listing(250)
    listing.before_page = lambda page: listing.numbers.append(1000 + page)
    with pytest.raises(Unavailable, match="kept changing"):
        await read_whole(listing.page, SnapshotFilter())


async def test_a_list_without_an_end_is_refused() -> None:
    with pytest.raises(Unavailable, match=f"more than {MAX_LISTED}"):
        await read_list(Listing(2 * MAX_LISTED).page, SnapshotFilter())
    assert len((await read_list(Listing(MAX_LISTED).page, SnapshotFilter()))[0]) == MAX_LISTED


async def test_a_zone_that_ignores_the_offset_is_read_once() -> None:
    listing = Listing(250)
    found, total = await read_list(lambda query: listing.page(query.model_copy(update={"offset": 0})), SnapshotFilter())
    assert (len(found), total, listing.pages) == (100, 250, 2)


async def test_what_is_listed_twice_is_refused(zone_folder, tmp_path) -> None:  # type: ignore[no-untyped-def]
    zone = LocalZone(zone_folder)
    volume = await zone.add_resource(make_image(tmp_path / "disk", 1 << 16), "pg-data")
    with pytest.raises(BadRequest, match=f"{volume.id} is listed twice"):
        await find_resources(zone, [volume.id, "pg-data"])
    with pytest.raises(BadRequest, match="“ss-1” is listed twice"):
        await find_snapshots(zone, ["ss-1", "ss-1"])
    await zone.aclose()


async def test_a_name_that_differs_in_case_comes_first_under_what_is_similar(zone_folder: Path, tmp_path: Path) -> None:
    """Five longer names came before it, and pushed it out of the list; a letter beyond ASCII was not found at all."""
    zone = LocalZone(zone_folder)
    for number, name in enumerate(["Db", "Ärzte", *(f"my-db-{number}" for number in range(6))]):
        added = await zone.add_resource(make_image(tmp_path / str(number), 1 << 16), name)
        if name == "Db":
            first = added.id
    for text, name in (("dB", "Db"), ("ärzte", "Ärzte"), ("ärzte", "Ärzte"), (first.upper(), "Db")):
        with pytest.raises(NotFound) as missing:
            await find_resource(zone, text)
        assert re.search(r"Similar names: \S+ \(“(\w+)”", missing.value.hint)[1] == name, missing.value.hint
    await zone.aclose()


def test_near_names_begin_with_those_that_differ_in_case() -> None:
    names = ["backup-1", "backup-2", "my backup", "backups", "old backup", "BACKUP", "Backup "]
    assert near_names("backup", names)[:2] == ["BACKUP", "Backup "]
    assert sorted_names("Main", ["prod", "local", "main"]) == ["main", "prod", "local"]


async def test_an_unknown_zone_that_differs_in_case_is_named_first() -> None:
    zones = Zones({"local": object, "Prod": object})  # type: ignore[dict-item]
    with pytest.raises(UnknownZone, match=r"There is no zone “prod”\. Zones: Prod, local\."):
        zones.get("prod")


async def test_a_name_in_place_of_a_snapshots_id_leads_to_the_id(local_zone: LocalZone, tmp_path: Path) -> None:
    volume = await local_zone.add_resource(make_image(tmp_path / "disk", 1 << 16))
    await back_up(local_zone, volume.id, "monday again")
    snapshot_id = await back_up(local_zone, volume.id, "Monday")
    for text in ("monday", snapshot_id.upper()):
        with pytest.raises(NotFound) as missing:
            await find_snapshots(local_zone, [text])
        assert missing.value.hint.startswith(f"Similar: {snapshot_id} (“Monday”)")
