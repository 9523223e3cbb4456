"""The catalogue: what it costs does not grow with what it holds (ARCHITECTURE.md, "Targets"), its counts are true, and
it knows its format.

Costs are counted in steps of SQLite's machine, which are the same on every run and every computer.
"""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from snapshot_mcp.catalogue import admission, schema
from snapshot_mcp.contract.errors import Unsupported
from snapshot_mcp.contract.models import SnapshotFilter
from snapshot_mcp.contract.states import SnapshotStatus, SnapshotType
from snapshot_mcp.providers.local import LocalZone, worker, zone
from snapshot_mcp.providers.local.folder import FolderCatalogue
from tests.disks import back_up, change, ids, make_image, succeed
from tests.large_zone import fill_zone, resource_id, snapshot_id

pytestmark = pytest.mark.anyio

SMALL, LARGE = 1_000, 20_000
STEPS_A_CALL = 50
MIDDLE = 400
PAGES = {
    "all": {},
    "a hundred": {"limit": 100, "verbose": 1},
    "ids": {"snapshots": (snapshot_id(MIDDLE), snapshot_id(7))},
    "a root": {"root_id": snapshot_id(MIDDLE)},
    "a resource": {"resource_id": resource_id(0)},
    "a resource and a status": {"resource_id": resource_id(0), "status": ("available",)},
    "a resource and a type": {"resource_id": resource_id(0), "snapshot_type": 0},
    "full": {"snapshot_type": 1},
    "incremental": {"snapshot_type": 0},
    "two statuses": {"status": ("deleted", "ceased"), "snapshot_type": 1},
} | {status: {"status": (status,)} for status in SnapshotStatus}


@pytest.fixture(scope="module")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small") / "zone"
    fill_zone(folder, SMALL, resource_count=1)
    return folder


@pytest.fixture(scope="module")
def large_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large") / "zone"
    fill_zone(folder, LARGE, resource_count=1)
    return folder


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One item for each `STEPS_A_CALL` steps that any connection of this process took."""
    taken: list[int] = []

    class Counted(FolderCatalogue):
        def __init__(self, folder: Path, **options: Any) -> None:
            super().__init__(folder, **options)
            self.db.set_progress_handler(lambda: taken.append(1), STEPS_A_CALL)

    monkeypatch.setattr(zone, "FolderCatalogue", Counted)
    monkeypatch.setattr(worker, "FolderCatalogue", Counted)
    return taken


@pytest.mark.parametrize("query", PAGES.values(), ids=PAGES)
async def test_a_first_page_costs_the_same_in_a_large_zone(
    query: dict[str, object], small_folder: Path, large_folder: Path, steps: list[int]
) -> None:
    costs = []
    for folder in (small_folder, large_folder):
        local = LocalZone(folder)
        steps.clear()
        page = await local.list_snapshots(SnapshotFilter(**query))  # type: ignore[arg-type]
        costs.append(len(steps))
        assert bool(page.items) == (query.get("status") not in {("pending",), ("suspended",)})
        await local.aclose()
    assert costs[1] <= 2 * costs[0] + 2


async def test_a_worker_that_starts_and_ends_reads_no_history(
    small_folder: Path, large_folder: Path, steps: list[int]
) -> None:
    costs = []
    for folder in (small_folder, large_folder):
        steps.clear()
        worker.run(folder, 0)
        costs.append(len(steps))
    assert costs[1] <= 2 * costs[0] + 2


def _counted(folder: Path) -> tuple[list[tuple[object, ...]], list[tuple[object, ...]]]:
    """The counts that are kept, and those that a look at every snapshot gives."""
    with FolderCatalogue(folder) as catalogue:
        kept = "SELECT * FROM snapshot_counts WHERE number != 0 ORDER BY 1, 2, 3"
        there = """SELECT resource_id, status, is_full, count(*) FROM snapshots GROUP BY 1, 2, 3
            UNION ALL SELECT '', status, is_full, count(*) FROM snapshots GROUP BY 2, 3 ORDER BY 1, 2, 3"""
        return [tuple(row) for row in catalogue.rows(kept)], [tuple(row) for row in catalogue.rows(there)]


async def test_counts_are_true_after_every_kind_of_change(local_zone: LocalZone, tmp_path: Path) -> None:
    image = make_image(tmp_path / "disk.img")
    volume = await local_zone.add_resource(image)
    first = await back_up(local_zone, volume.id)
    second = await back_up(local_zone, volume.id)
    (local_zone.folder / "snapshots" / f"{second}.snap").unlink()
    change(image, 65536)
    third = await back_up(local_zone, volume.id)  # entered as an incremental, and becomes a full one
    await succeed(local_zone, await local_zone.delete_snapshot(first))
    await succeed(local_zone, await local_zone.recover_snapshots([first]))
    await succeed(local_zone, await local_zone.delete_snapshot(second))
    await local_zone.purge()
    kept, there = _counted(local_zone.folder)
    assert kept == there
    assert ("", "ceased", 0, 1) in kept
    for kind, expected in ((SnapshotType.FULL, {first, third}), (SnapshotType.INCREMENTAL, set())):
        assert await ids(local_zone, snapshot_type=kind) == expected


async def test_a_zone_of_the_first_format_is_brought_up_to_date(zone_folder: Path) -> None:
    """Its snapshots are counted, its pages are the same, and files that its purge left behind go."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", schema.MIGRATIONS[:1])
        patch.setattr("snapshot_mcp.providers.local.folder.settle", lambda *_: None)  # it came with a later format
        fill_zone(zone_folder, 500, resource_count=3)
        with closing(sqlite3.connect(zone_folder / "catalogue.sqlite")) as db, db:
            gone = db.execute("SELECT snapshot_id FROM snapshots WHERE status = 'ceased'").fetchone()
            db.execute("INSERT INTO deletions VALUES ('act', 'vol-0', 1, 1, NULL, 'purged')")
            db.execute("UPDATE snapshots SET deletion_id = 'act' WHERE snapshot_id = ?", gone)
    left_over = zone_folder / "snapshots" / f"{gone[0]}.snap"
    left_over.write_bytes(b"what a crash left")
    kept, there = _counted(zone_folder)
    assert kept == there
    worker.run(zone_folder, 0)
    assert not left_over.exists()


async def test_a_zone_of_a_newer_version_is_refused_untouched(zone_folder: Path) -> None:
    """Rows of a format that is not known here would be read and written wrongly."""
    fill_zone(zone_folder, 1, resource_count=1)
    db = sqlite3.connect(zone_folder / "catalogue.sqlite")
    db.execute("PRAGMA user_version = 999")
    db.close()
    local = LocalZone(zone_folder)
    with pytest.raises(Unsupported, match="newer version"):
        await local.list_snapshots(SnapshotFilter())
    await local.aclose()


async def test_a_worker_leaves_the_jobs_of_a_newer_program_alone(zone_folder: Path, tmp_path: Path) -> None:
    """A server that was updated brings the catalogue up to date while the old program's worker still runs."""
    local = LocalZone(zone_folder)
    volume = await local.add_resource(make_image(tmp_path / "disk.img"))
    with FolderCatalogue(zone_folder) as catalogue:
        old = worker._Worker(catalogue, 0)
        admission.create(catalogue, [volume.id], "", False, admission.ZoneRules())
        catalogue.db.execute("PRAGMA user_version = 999")
        assert old._take(only_urgent=False) is None
        catalogue.db.execute(f"PRAGMA user_version = {len(schema.MIGRATIONS)}")
        assert old._take(only_urgent=False) is not None
    await local.aclose()
