"""No room left: a clear error, and nothing lost (issue "A real disk", bad input)."""

import os
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapshot_mcp.contract.errors import InternalError, StorageFull
from snapshot_mcp.contract.models import ResourceFilter
from snapshot_mcp.providers.local import LocalZone
from snapshot_mcp.providers.local.catalogue import Catalogue
from tests.disks import MIB, back_up, finish, ids, make_image, succeed

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small filesystem needs root")]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 24 MiB."""
    mount_point = tmp_path / "small"
    mount_point.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={24 * MIB}", "tmpfs", str(mount_point)], check=True)
    yield mount_point
    subprocess.run(["umount", "--lazy", str(mount_point)], check=True)


def fill(folder: Path, leave: int = 0) -> Path:
    """Take all the room but `leave` bytes."""
    filler = folder / "filler"
    free = os.statvfs(folder)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize - leave)
    return filler


async def test_a_backup_without_room_fails_whole_and_the_next_one_succeeds(small_disk: Path, tmp_path: Path) -> None:
    zone = LocalZone(small_disk / "zone")
    image = make_image(tmp_path / "disk.img", 32 * MIB)
    volume = await zone.add_resource(image)
    filler = fill(small_disk, leave=6 * MIB)
    job = await finish(zone, await zone.create_snapshots([volume.id], "too large"))
    assert (job.status, job.error and job.error.code) == ("failed", "storage_full")
    assert "Free some space" in job.info
    assert await ids(zone) == set()
    assert list((zone.folder / "snapshots").iterdir()) == []
    filler.unlink()
    before = image.read_bytes()
    snapshot_id = await back_up(zone, volume.id)
    image.write_bytes(bytes(32 * MIB))
    await succeed(zone, await zone.apply_snapshots([snapshot_id]))
    assert image.read_bytes() == before
    await zone.aclose()


async def test_an_export_without_room_makes_nothing(small_disk: Path, tmp_path: Path) -> None:
    zone = LocalZone(small_disk / "zone")
    volume = await zone.add_resource(make_image(tmp_path / "disk.img", 16 * MIB))
    snapshot_id = await back_up(zone, volume.id)
    fill(small_disk, leave=4 * MIB)
    job = await finish(zone, await zone.create_volume(snapshot_id, "copy"))
    assert (job.status, job.error and job.error.code) == ("failed", "storage_full")
    assert "There is no room for 16.0 MiB" in job.info
    assert list((zone.folder / "volumes").iterdir()) == []
    await zone.aclose()


async def test_a_roll_back_without_room_changes_no_byte(small_disk: Path, local_zone: LocalZone) -> None:
    """engine_notes.md: the space is reserved before the first byte is written, and given back when it is not enough."""
    image = make_image(small_disk / "disk.img", 12 * MIB)
    volume = await local_zone.add_resource(image)
    before = image.read_bytes()
    snapshot_id = await back_up(local_zone, volume.id)
    image.unlink()
    with image.open("wb") as file:
        file.truncate(12 * MIB)
    filler = fill(small_disk, leave=MIB)
    job = await finish(local_zone, await local_zone.apply_snapshots([snapshot_id]))
    assert (job.status, job.error and job.error.code) == ("failed", "storage_full")
    assert image.read_bytes() == bytes(12 * MIB)
    assert image.stat().st_blocks == 0, "what was reserved is given back"
    (found,) = (await local_zone.list_volumes(ResourceFilter())).items
    assert found.status == "available"
    filler.unlink()
    await succeed(local_zone, await local_zone.apply_snapshots([snapshot_id]))
    assert image.read_bytes() == before


def test_a_transaction_without_room_says_so_and_leaves_the_catalogue_usable(small_disk: Path) -> None:
    """SQLite rolls back by itself when it has no room; rolling back again hid the reason."""
    with Catalogue(small_disk / "zone") as catalogue:
        filler = fill(small_disk)
        with pytest.raises(sqlite3.OperationalError, match="full"), catalogue.transaction() as db:
            db.executemany("INSERT INTO images VALUES (?, ?, '', '', 0)", [(one, "n" * 8 * MIB) for one in "ab"])
        filler.unlink()
        with catalogue.transaction() as db:
            db.execute("DELETE FROM images")


async def test_a_job_that_cannot_be_entered_for_want_of_room_says_so(small_disk: Path, tmp_path: Path) -> None:
    """Found by a newcomer: the tool answered "Error executing tool", and `zone add` a traceback."""
    zone = LocalZone(small_disk / "zone")
    volume = await zone.add_resource(make_image(tmp_path / "disk.img"))
    other = make_image(tmp_path / "other.img")
    filler = fill(small_disk)
    for _ in range(2):
        with pytest.raises(StorageFull, match="no room"):
            await zone.create_snapshots([volume.id], "no room")
        with pytest.raises(StorageFull, match="no room"):
            await zone.add_resource(other)
    fresh = LocalZone(small_disk / "zone")
    with pytest.raises(StorageFull, match="no room"):
        await fresh.add_resource(other)
    filler.unlink()
    await fresh.add_resource(other)
    await back_up(zone, volume.id)
    assert len(await ids(zone)) == 1
    await fresh.aclose()
    await zone.aclose()


async def test_a_first_disk_on_a_full_filesystem_is_refused_in_words(small_disk: Path, tmp_path: Path) -> None:
    filler = fill(small_disk)
    zone = LocalZone(small_disk / "zone")
    image = make_image(tmp_path / "disk.img")
    with pytest.raises(StorageFull, match="no room"):
        await zone.add_resource(image)
    filler.unlink()
    await zone.add_resource(image)
    await zone.aclose()


async def test_a_folder_that_cannot_be_made_is_refused_in_words(tmp_path: Path) -> None:
    zone = LocalZone(Path("/proc/nowhere/zone"))
    with pytest.raises(InternalError, match="/proc/nowhere") as caught:
        await zone.add_resource(make_image(tmp_path / "disk.img"))
    assert "permissions" in caught.value.hint
    await zone.aclose()
