"""Reading a list of several pages: whole, each item once, to an end."""

from collections.abc import Callable

import pytest

from snapshot_mcp.contract.errors import BadRequest, Unavailable
from snapshot_mcp.contract.models import Page, Snapshot, SnapshotFilter
from snapshot_mcp.providers.local import LocalZone
from snapshot_mcp.zones.finding import MAX_LISTED, find_resources, find_snapshots, read_list, read_whole
from tests.disks import make_image

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
