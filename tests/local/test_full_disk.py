"""No room left: a clear error, and nothing lost."""

import os
import shutil
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from snapshot_mcp.catalogue import jobs
from snapshot_mcp.contract.errors import InternalError, StorageFull, Unavailable
from snapshot_mcp.contract.keep_free import NOTHING_FREE
from snapshot_mcp.contract.models import ResourceFilter, SnapshotFilter
from snapshot_mcp.ground import reserve
from snapshot_mcp.providers.local import LocalZone
from snapshot_mcp.providers.local.folder import FolderCatalogue
from tests.disks import MIB, back_up, fill, finish, ids, make_image, succeed
from tests.patience import PATIENCE_SECONDS

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small filesystem needs root")]

INSERT_IMAGE = "INSERT INTO images (image_id, name, path, snapshot_id, created_at)"


async def test_a_backup_without_room_fails_whole_and_the_next_one_succeeds(small_disk: Path, tmp_path: Path) -> None:
    zone = LocalZone(small_disk / "zone", keep_free=NOTHING_FREE)
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
    zone = LocalZone(small_disk / "zone", keep_free=NOTHING_FREE)
    volume = await zone.add_resource(make_image(tmp_path / "disk.img", 16 * MIB))
    snapshot_id = await back_up(zone, volume.id)
    fill(small_disk, leave=4 * MIB)
    job = await finish(zone, await zone.create_volume(snapshot_id, "copy"))
    assert (job.status, job.error and job.error.code) == ("failed", "storage_full")
    assert "(16.0 MiB) in the zone's folder" in job.info
    assert list((zone.folder / "volumes").iterdir()) == []
    await zone.aclose()


async def test_a_roll_back_without_room_changes_no_byte(small_disk: Path, local_zone: LocalZone) -> None:
    """FORMAT.md, "A roll-back": the space is reserved before the first byte is written, and given back when it is not enough."""
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
    assert f"must be written to the filesystem of its file {str(image)!r}" in job.info
    assert image.read_bytes() == bytes(12 * MIB)
    assert image.stat().st_blocks == 0, "what was reserved is given back"
    (found,) = (await local_zone.list_volumes(ResourceFilter())).items
    assert found.status == "available"
    filler.unlink()
    await succeed(local_zone, await local_zone.apply_snapshots([snapshot_id]))
    assert image.read_bytes() == before


def test_a_transaction_without_room_says_so_and_leaves_the_catalogue_usable(small_disk: Path) -> None:
    """SQLite rolls back by itself when it has no room; rolling back again hid the reason."""
    with FolderCatalogue(small_disk / "zone") as catalogue:
        filler = fill(small_disk)
        with pytest.raises(sqlite3.OperationalError, match="full"), catalogue.transaction() as db:
            db.executemany(
                f"{INSERT_IMAGE} VALUES (?, ?, '', '', 0)",
                [(one, "n" * 8 * MIB) for one in "ab"],
            )
        filler.unlink()
        with catalogue.transaction() as db:
            db.execute("DELETE FROM images")


async def test_a_job_that_cannot_be_entered_for_want_of_room_says_so(small_disk: Path, tmp_path: Path) -> None:
    """Found by a newcomer: the tool answered "Error executing tool", and `zone add` a traceback."""
    zone = LocalZone(small_disk / "zone")
    volume = await zone.add_resource(make_image(tmp_path / "disk.img"))
    other = make_image(tmp_path / "other.img")
    (small_disk / "zone" / reserve.NAME).unlink(missing_ok=True)
    filler = fill(small_disk)
    for _ in range(2):
        with pytest.raises(StorageFull, match=r"Not enough space|is full"):
            await zone.create_snapshots([volume.id], "no room")
        with pytest.raises(StorageFull, match=r"Not enough space|is full"):
            await zone.add_resource(other)
    fresh = LocalZone(small_disk / "zone")
    with pytest.raises(StorageFull, match=r"Not enough space|is full"):
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
    with pytest.raises(StorageFull, match=r"Not enough space|is full"):
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


async def test_a_worker_that_cannot_be_started_for_want_of_room_is_said_and_the_job_withdrawn(
    small_disk: Path, tmp_path: Path
) -> None:
    """ "Once entered it is answered as a job, or the entry is withdrawn in the same breath"."""
    zone = LocalZone(small_disk / "zone")
    volume = await zone.add_resource(make_image(tmp_path / "disk.img"))
    (zone.folder / "worker.lock").mkdir()
    with pytest.raises(Unavailable, match="could not be started"):
        await zone.create_snapshots([volume.id], "withdrawn")
    (zone.folder / "worker.lock").rmdir()
    assert await zone.list_unfinished_jobs() == ()
    await back_up(zone, volume.id, "now")
    assert {one.snapshot_name for one in (await zone.list_snapshots(SnapshotFilter())).items} == {"now"}
    await zone.aclose()


def test_a_full_btrfs_ends_no_process(tmp_path: Path) -> None:
    """SQLite's shared memory was copied on write, and SIGBUS ended whoever wrote to it without room for the copy."""
    if shutil.which("mkfs.btrfs") is None:
        pytest.skip("needs mkfs.btrfs")
    backing, mount_point = tmp_path / "backing", tmp_path / "mounted"
    with backing.open("wb") as file:
        file.truncate(128 * MIB)
    mount_point.mkdir()
    subprocess.run(["mkfs.btrfs", "-q", str(backing)], check=True, stderr=subprocess.DEVNULL)
    subprocess.run(["mount", "-o", "loop", str(backing), str(mount_point)], check=True)
    script = textwrap.dedent("""
        import os, sys
        from pathlib import Path
        from snapshot_mcp.providers.local.folder import FolderCatalogue
        folder = Path(sys.argv[1])
        with FolderCatalogue(folder / "zone") as catalogue:
            filler = os.open(folder / "filler", os.O_WRONLY | os.O_CREAT)
            for size in (1 << 20, 4096):
                try:
                    while True:
                        os.write(filler, os.urandom(size))
                except OSError:
                    os.sync()
            for _ in range(20):
                try:
                    with catalogue.transaction() as db:
                        columns = "image_id, name, path, snapshot_id, created_at"
                        db.execute(f"INSERT INTO images ({columns}) VALUES (hex(randomblob(8)), '', '', '', 0)")
                except catalogue.db.OperationalError:
                    pass
                os.sync()
            print("lives")
            os._exit(0)
    """)
    try:
        done = subprocess.run([sys.executable, "-c", script, str(mount_point)], capture_output=True, text=True)
    finally:
        subprocess.run(["umount", "--lazy", str(mount_point)], check=True)
    assert (done.returncode, done.stdout) == (0, "lives\n"), done.stderr


async def test_a_job_that_cannot_be_ended_for_want_of_room_ends_when_there_is_some(
    here: LocalZone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread died instead: the job stayed `working` and its disk busy until the worker had been idle."""
    failures = 3
    release = jobs.release_claims

    def full(*arguments: Any) -> None:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise sqlite3.OperationalError("database or disk is full")
        release(*arguments)

    monkeypatch.setattr(jobs, "release_claims", full)
    monkeypatch.setattr(jobs, "RETRY_SECONDS", 0.01)
    volume = await here.add_resource(make_image(tmp_path / "disk.img"))
    snapshot_id = await back_up(here, volume.id)
    (here.folder / "snapshots" / f"{snapshot_id}.snap").unlink()
    job = await finish(here, await here.create_volume(snapshot_id, "copy"), timeout_seconds=PATIENCE_SECONDS)
    assert (job.error and job.error.code, failures) == ("damaged", -1)
