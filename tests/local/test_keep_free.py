"""`keep_free`: an export or a backup that would leave less room is refused before it starts, and a running one stops."""

import os
import random
import shutil
import signal
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from snapshot_mcp.contract.errors import StorageFull
from snapshot_mcp.contract.keep_free import KeepFree
from snapshot_mcp.contract.models import Job
from snapshot_mcp.providers.local import LocalZone, capture, restore
from snapshot_mcp.providers.local.folder import FolderCatalogue
from snapshot_mcp.providers.local.snapshot_file.reader import Chain
from snapshot_mcp.providers.local.snapshot_file.writer import SnapshotWriter
from snapshot_mcp.providers.local.source import RawFile
from snapshot_mcp.providers.local.worker import run as run_worker
from tests.conftest import end_worker
from tests.disks import MIB, back_up, fill, finish, free_bytes, get, ids, make_image, succeed, worker_pid
from tests.patience import PATIENCE_SECONDS

pytestmark = pytest.mark.anyio

KEPT = 4 * MIB
KEEP = KeepFree(share=None, size_bytes=KEPT)


@pytest.fixture
async def small_zone(small_disk: Path) -> AsyncIterator[LocalZone]:
    """A zone on a filesystem of 24 MiB, of which 4 have to stay free."""
    zone = LocalZone(small_disk / "zone", keep_free=KEEP)
    yield zone
    await zone.aclose()
    end_worker(zone.folder)


def noise(path: Path, size_bytes: int) -> Path:
    path.write_bytes(random.Random(size_bytes).randbytes(size_bytes))
    return path


async def refused(start: Callable[[], Any]) -> str:
    with pytest.raises(StorageFull) as refusal:
        await start()
    return str(refusal.value)


async def test_exports_never_fill_the_zones_filesystem(small_zone: LocalZone, tmp_path: Path) -> None:
    """ "Unguarded exports filled 2.5 GB in 6 s": what is under way counts, also what waits."""
    volume = await small_zone.add_resource(noise(tmp_path / "disk.img", 3 * MIB))
    snapshot_id = await back_up(small_zone, volume.id)
    expected = (free_bytes(small_zone.folder) - KEPT) // (3 * MIB)
    worker = worker_pid(small_zone.folder)
    assert worker
    os.kill(worker, signal.SIGSTOP)
    jobs: list[Job] = []
    try:
        text = ""
        while not text:
            try:
                jobs.append(await small_zone.create_volume(snapshot_id, "copy"))
            except StorageFull as refusal:
                text = str(refusal)
    finally:
        os.kill(worker, signal.SIGCONT)
    assert len(jobs) in {expected - 1, expected}, "the catalogue grows a little"
    assert f"({3 * len(jobs)}.0 MiB of it for running jobs)" in text
    for job in jobs:
        await succeed(small_zone, job)
        assert free_bytes(small_zone.folder) >= KEPT
    assert "3.0 MiB" in await refused(lambda: small_zone.create_volume(snapshot_id, "copy"))


async def test_an_export_is_refused_before_it_starts_and_names_the_room(
    small_zone: LocalZone, small_disk: Path, tmp_path: Path
) -> None:
    """Named are what is free, what is needed, what is kept, and the next step; nothing was entered."""
    volume = await small_zone.add_resource(noise(tmp_path / "disk.img", 3 * MIB))
    snapshot_id = await back_up(small_zone, volume.id)
    filler = fill(small_disk, leave=6 * MIB)
    assert await refused(lambda: small_zone.create_volume(snapshot_id, "copy")) == (
        f"Not enough space for an export of snapshot {snapshot_id}: about 3.0 MiB needed; the zone's filesystem has"
        " 6.0 MiB free, and 4.0 MiB must stay free. Free some space there (the command `zone purge` frees what was"
        " deleted) and try again, or lower `keep_free` of the zone in the settings."
    )
    assert await small_zone.list_unfinished_jobs() == ()
    filler.unlink()
    await succeed(small_zone, await small_zone.create_volume(snapshot_id, "copy"))


async def test_an_export_of_holes_takes_no_room(small_zone: LocalZone, small_disk: Path, tmp_path: Path) -> None:
    """An export's estimate is the bytes that are not zero, not the disk's size."""
    image = noise(tmp_path / "disk.img", MIB)
    os.truncate(image, 1 << 30)
    volume = await small_zone.add_resource(image)
    snapshot_id = await back_up(small_zone, volume.id)
    job = await succeed(small_zone, await small_zone.create_volume(snapshot_id, "copy"))
    assert Path(job.details["path"]).stat().st_size == 1 << 30


async def test_a_full_backup_that_would_leave_too_little_is_refused(small_zone: LocalZone, tmp_path: Path) -> None:
    volume = await small_zone.add_resource(noise(tmp_path / "disk.img", 24 * MIB))
    text = await refused(lambda: small_zone.create_snapshots([volume.id], "too large"))
    assert "Not enough space for the snapshot: about 24.0 MiB needed" in text
    assert (await ids(small_zone), await small_zone.list_unfinished_jobs()) == (set(), ())


async def test_several_disks_are_counted_together(small_zone: LocalZone, tmp_path: Path) -> None:
    """CONTRACT.md, "All or nothing": each alone has room."""
    disks = [await small_zone.add_resource(noise(tmp_path / f"{size}.img", size * MIB)) for size in (11, 12)]
    text = await refused(lambda: small_zone.create_snapshots([one.id for one in disks], "both"))
    assert "Not enough space for the snapshots: about 23.0 MiB needed" in text
    await back_up(small_zone, disks[0].id)


async def test_a_disk_that_compresses_well_is_not_refused(small_zone: LocalZone, tmp_path: Path) -> None:
    """Where what the disk has allocated would not fit, a sample of it is compressed."""
    image = tmp_path / "disk.img"
    image.write_bytes(b"a line of a log file, repeated\n" * (64 * MIB // 31))
    volume = await small_zone.add_resource(image)
    assert (await get(small_zone, await back_up(small_zone, volume.id))).stored_bytes < MIB


async def test_an_incremental_is_taken_to_be_as_large_as_the_last_one(
    small_zone: LocalZone, small_disk: Path, tmp_path: Path
) -> None:
    """It is unknown without reading the disk; the first one counts nothing, and needs the kept room to be there."""
    image = noise(tmp_path / "disk.img", 3 * MIB)
    volume = await small_zone.add_resource(image)
    await back_up(small_zone, volume.id)
    with image.open("r+b") as file:
        file.write(os.urandom(2 * MIB))
    await back_up(small_zone, volume.id)
    filler = fill(small_disk, leave=KEPT + MIB)
    text = await refused(lambda: small_zone.create_snapshots([volume.id], "as large"))
    assert "about 2.0 MiB needed; the zone's filesystem has 5.0 MiB free" in text
    filler.unlink()
    await back_up(small_zone, volume.id)
    assert (await get(small_zone, await back_up(small_zone, volume.id))).stored_bytes < 65536


async def test_below_the_kept_room_nothing_starts(small_zone: LocalZone, small_disk: Path, tmp_path: Path) -> None:
    volume = await small_zone.add_resource(noise(tmp_path / "disk.img", MIB))
    await back_up(small_zone, volume.id)
    fill(small_disk, leave=KEPT - MIB)
    assert "about 0 bytes needed" in await refused(lambda: small_zone.create_snapshots([volume.id], "small"))


async def test_a_safety_snapshot_may_use_the_kept_room(small_zone: LocalZone, small_disk: Path, tmp_path: Path) -> None:
    """ "Safety snapshots excepted": what is kept free is kept for them."""
    image = noise(tmp_path / "disk.img", MIB)
    volume = await small_zone.add_resource(image)
    before = image.read_bytes()
    snapshot_id = await back_up(small_zone, volume.id)
    with image.open("r+b") as file:
        file.write(os.urandom(MIB))
    fill(small_disk, leave=KEPT - MIB)
    job = await small_zone.apply_snapshots([snapshot_id], safety_snapshot_name="before")
    await succeed(small_zone, job)
    assert image.read_bytes() == before
    (safety,) = job.details["safety_snapshots"].values()
    assert (await get(small_zone, safety)).stored_bytes >= MIB


# a job that runs


@pytest.fixture
async def small_here(small_disk: Path) -> AsyncIterator[LocalZone]:
    """As `small_zone`, its worker a thread of this process."""
    folder = small_disk / "zone"
    folder.mkdir()
    worker = threading.Thread(target=run_worker, args=(folder, 3600.0), daemon=True)
    worker.start()
    zone = LocalZone(folder, keep_free=KEEP)
    yield zone
    await zone.aclose()
    shutil.rmtree(folder)
    worker.join(PATIENCE_SECONDS)


def once_filled(monkeypatch: pytest.MonkeyPatch, place: Any, name: str, small_disk: Path) -> None:
    """Let another program take the room at the first call of a function."""
    real = getattr(place, name)
    rooms = iter([KEPT + 65536])

    def filling(*arguments: Any) -> Any:
        for leave in rooms:
            fill(small_disk, leave=leave)
        return real(*arguments)

    monkeypatch.setattr(place, name, filling)


async def test_a_running_export_stops_when_too_little_would_be_left(
    small_here: LocalZone, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program fills the filesystem meanwhile: the job ends, and gives back what it had taken."""
    volume = await small_here.add_resource(noise(tmp_path / "disk.img", 4 * MIB))
    snapshot_id = await back_up(small_here, volume.id)
    once_filled(monkeypatch, restore, "read_verified", small_disk)
    job = await finish(small_here, await small_here.create_volume(snapshot_id, "copy"))
    assert job.error
    assert (job.error.code, list((small_here.folder / "volumes").iterdir())) == ("storage_full", [])
    assert "4.0 MiB must stay free. The job was stopped" in job.info


async def test_a_running_backup_stops_when_too_little_would_be_left(
    small_here: LocalZone, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = await small_here.add_resource(noise(tmp_path / "disk.img", 8 * MIB))
    once_filled(monkeypatch, SnapshotWriter, "add_chunk", small_disk)
    job = await finish(small_here, await small_here.create_snapshots([volume.id], "stopped"))
    assert job.error
    assert (job.error.code, list((small_here.folder / "snapshots").iterdir())) == ("storage_full", [])
    assert "must stay free" in job.info


async def test_a_queued_export_looks_again_when_it_starts(
    small_zone: LocalZone, small_disk: Path, tmp_path: Path
) -> None:
    """The room was there when it was entered; not a byte is written when it is gone."""
    volume = await small_zone.add_resource(noise(tmp_path / "disk.img", 4 * MIB))
    snapshot_id = await back_up(small_zone, volume.id)
    worker = worker_pid(small_zone.folder)
    assert worker
    os.kill(worker, signal.SIGSTOP)
    job = await small_zone.create_volume(snapshot_id, "copy")
    fill(small_disk, leave=KEPT + MIB)
    os.kill(worker, signal.SIGCONT)
    job = await finish(small_zone, job)
    assert job.error
    assert job.error.code == "storage_full"
    assert "Not enough space for another 4.0 MiB" in job.info


# the estimates


def naive_room(chain: Chain) -> int:
    found = (restore.chunks(chain, window) for window in restore.windows(chain))
    return sum(length for window in found for _, length, place in window if not place.is_zero)


@pytest.mark.parametrize("size", [1, 65536, 65537, 3 * 65536 - 1, 64 * MIB, 64 * MIB + 5, 130 * MIB + 777])
@pytest.mark.parametrize("places", [(), (0,), (-1,), (0, -1), (0.3, 0.5, 0.99)])
def test_the_room_of_an_export_is_counted_to_the_byte(
    size: int, places: tuple[float, ...], tmp_path: Path, zone_folder: Path
) -> None:
    """The last chunk may be short, the last region empty."""
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate(size)
        for place in places:
            file.seek(size - 1 if place == -1 else int(place * size))
            file.write(b"x")
    with FolderCatalogue(zone_folder) as catalogue:
        catalogue.add_resource("vol-1", "volume", "disk", str(image))
        header = capture_header(size)
        with image.open("rb") as file, SnapshotWriter(zone_folder / "snapshots", header) as writer:
            capture.capture(RawFile(file.fileno()), header, None, writer, lambda amount: None)
            writer.commit("held")
        with Chain(zone_folder / "snapshots", "ss-1") as chain:
            assert restore.room_needed(chain) == naive_room(chain)


def capture_header(size: int) -> Any:
    from snapshot_mcp.providers.local.snapshot_file.format import Header, chunk_size_for

    return Header(
        snapshot_id="ss-1",
        resource_id="vol-1",
        resource_type="volume",
        chain=("ss-1",),
        snapshot_time="2026-01-01T00:00:00Z",
        virtual_size_bytes=size,
        chunk_size=chunk_size_for(size),
    )


async def test_a_damaged_snapshot_is_found_by_its_export_not_by_its_estimate(
    local_zone: LocalZone, tmp_path: Path
) -> None:
    """The job says that it is damaged, and that is remembered."""
    volume = await local_zone.add_resource(make_image(tmp_path / "disk.img", MIB))
    snapshot_id = await back_up(local_zone, volume.id)
    (local_zone.folder / "snapshots" / f"{snapshot_id}.snap").unlink()
    job = await finish(local_zone, await local_zone.create_volume(snapshot_id, "copy"))
    assert (job.error and job.error.code) == "damaged"
