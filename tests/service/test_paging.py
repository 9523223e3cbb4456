"""Every filter of the list, alone and combined, and pages over 1,000 snapshots (10,000 with `-m long`), through the wire."""

import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from snapshot_mcp.contract.models import Snapshot, SnapshotFilter
from snapshot_mcp.providers.anchcloud.zone import AnchCloudZone
from snapshot_mcp.providers.local import LocalZone
from snapshot_mcp.providers.local.folder import FolderCatalogue
from tests.conftest import end_worker
from tests.disks import back_up, make_image
from tests.marks import long
from tests.rest_face import client_of, served

pytestmark = pytest.mark.anyio

CHAIN = 20
STATUSES = ["available"] * 8 + ["deleted", "ceased"]
TAGS = ["[]", '["gold"]', '["gold", "weekly"]', '["silver"]']


@pytest.fixture(scope="module", params=[1_000, long(10_000)])
def count(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def large_folder(tmp_path_factory: pytest.TempPathFactory, count: int) -> Any:
    """A catalogue of so many snapshots; no file stands behind them, a list needs none."""
    folder = tmp_path_factory.mktemp("large") / "zone"
    catalogue = FolderCatalogue(folder)
    with catalogue.transaction() as db:
        for number in range(20):
            db.execute(
                "INSERT INTO resources (resource_id, resource_type, name, path, created_at, status_at)"
                " VALUES (?, 'volume', ?, ?, 1, 1)",
                (f"vol-{number:08}", f"disk {number}", f"/nowhere/{number}"),
            )
        chance = random.Random(5)
        db.executemany(
            "INSERT INTO snapshots (snapshot_id, name, tags, resource_id, is_full, status, transition, created_at,"
            " status_at, snapshot_at, root_id, parent_id, depth) VALUES (?, ?, ?, ?, ?, ?, '', ?, ?, ?, ?, ?, ?)",
            [_row(number, chance) for number in range(count)],
        )
    catalogue.close()
    yield folder
    end_worker(folder)


def _row(number: int, chance: random.Random) -> tuple[Any, ...]:
    place, second = number % CHAIN, 1_700_000_000 + number // 7  # several in one second: the id decides
    root = f"ss-{number - place:08}"
    parent = f"ss-{number - 1:08}" if place else None
    return (
        f"ss-{number:08}", f"night {number % 97} of rack-{number % 3}", chance.choice(TAGS), f"vol-{number // CHAIN % 20:08}",
        int(not place), chance.choice(STATUSES), second, second, second, root, parent, place,
    )  # fmt: skip


@pytest.fixture
async def large(large_folder: Path) -> AsyncIterator[AnchCloudZone]:
    zone = LocalZone(large_folder)
    async with served(zone) as face:
        client = face.client()
        yield client
        await client.aclose()
    await zone.aclose()


async def all_pages(client: AnchCloudZone, limit: int = 100, **query: Any) -> tuple[list[Snapshot], int]:
    found: list[Snapshot] = []
    while True:
        page = await client.list_snapshots(SnapshotFilter(offset=len(found), limit=limit, **query))
        found += page.items
        if not page.items or len(found) >= page.total_count:
            return found, page.total_count


async def test_all_snapshots_are_seen_exactly_once(large: AnchCloudZone, count: int) -> None:
    """In a quiet zone each is listed exactly once, and `total_count` is right."""
    found, total = await all_pages(large, status=("available", "deleted", "ceased"))
    assert total == count
    assert len(found) == count
    assert len({snapshot.snapshot_id for snapshot in found}) == count
    keys = [(-snapshot.snapshot_time.timestamp(), snapshot.snapshot_id) for snapshot in found if snapshot.snapshot_time]
    assert keys == sorted(keys)


async def test_filters_alone_and_combined_find_what_a_plain_search_finds(large: AnchCloudZone) -> None:
    """All filters of the list, alone and combined, against a filter in ten lines of Python."""
    everything, _ = await all_pages(large, status=("available", "deleted", "ceased"))
    chance = random.Random(7)
    filters: dict[str, Any] = {
        "snapshots": lambda: tuple(chance.choice(everything).snapshot_id for _ in range(50)),
        "resource_id": lambda: f"vol-{chance.randrange(21):08}",
        "snapshot_type": lambda: chance.choice([0, 1]),
        "status": lambda: tuple(chance.sample(["available", "deleted", "ceased", "suspended"], chance.randrange(1, 4))),
        "search_word": lambda: chance.choice(["night 9", "RACK-1", f"00{chance.randrange(99)}", "%", "_", "of rack-2"]),
        "tags": lambda: tuple(chance.sample(["gold", "silver", "weekly", "none"], chance.randrange(1, 3))),
        "root_id": lambda: chance.choice(everything).root_id,
    }
    queries = [{name: filters[name]()} for name in filters]
    queries += [
        {name: filters[name]() for name in chance.sample(list(filters), chance.randrange(2, 5))} for _ in range(40)
    ]
    for query in queries:
        expected = [snapshot.snapshot_id for snapshot in everything if matches(snapshot, query)]
        page = await large.list_snapshots(SnapshotFilter(limit=100, **query))
        assert [snapshot.snapshot_id for snapshot in page.items] == expected[:100], query
        assert page.total_count == len(expected), query
        offset = len(expected) // 2
        page = await large.list_snapshots(SnapshotFilter(limit=7, offset=offset, **query))
        assert [snapshot.snapshot_id for snapshot in page.items] == expected[offset : offset + 7], query


def matches(snapshot: Snapshot, query: dict[str, Any]) -> bool:
    """CONTRACT.md, "The six operations": several values match any; gone ones are listed only by status or id."""
    if "status" not in query and "snapshots" not in query and snapshot.status in {"deleted", "ceased"}:
        return False
    word = query.get("search_word", "").lower()
    return (
        snapshot.snapshot_id in query.get("snapshots", [snapshot.snapshot_id])
        and snapshot.status in query.get("status", [snapshot.status])
        and query.get("resource_id", snapshot.resource.resource_id) == snapshot.resource.resource_id
        and query.get("root_id", snapshot.root_id) == snapshot.root_id
        and query.get("snapshot_type", int(snapshot.is_full)) == int(snapshot.is_full)
        and (word in snapshot.snapshot_id or word in snapshot.snapshot_name.lower())
        and ("tags" not in query or bool(set(query["tags"]) & set(snapshot.tags)))
    )


async def test_none_is_missing_while_snapshots_are_made(large_folder: Path, tmp_path: Path) -> None:
    """While snapshots are being created, none that was there at the start is missing."""
    zone = LocalZone(large_folder)
    async with served(zone) as face:
        client = client_of(face.url)
        disk = (await zone.add_resource(make_image(tmp_path / "new", 1 << 16))).id
        there = {snapshot.snapshot_id for snapshot in (await all_pages(client))[0]}
        made = 0
        async with anyio.create_task_group() as tasks:

            async def make() -> None:
                nonlocal made
                while True:
                    await back_up(zone, disk, "made meanwhile")
                    made += 1

            tasks.start_soon(make)
            while made < 2:
                seen = {snapshot.snapshot_id for snapshot in (await all_pages(client))[0]}
                assert there <= seen
            tasks.cancel_scope.cancel()
        await client.aclose()
    await zone.aclose()
