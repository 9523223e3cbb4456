"""A zone that was moved, copied, or replaced under whoever has it open."""

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from snapshot_mcp.contract.errors import NotFound, NotUsable, Unavailable, ZoneError
from snapshot_mcp.contract.models import ResourceFilter, SnapshotFilter
from snapshot_mcp.providers.local import LocalZone
from tests.disks import MIB, back_up, change, finish, make_image, succeed
from tests.local.test_agreed import standing_still
from tests.local.test_crash import kill_worker
from tests.patience import PATIENCE_SECONDS

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[LocalZone]:
    zone = LocalZone(folder)
    try:
        yield zone
    finally:
        await zone.aclose()
        await kill_worker(folder)


async def with_own_volume(zone: LocalZone, tmp_path: Path) -> tuple[Path, str, str]:
    """Back up a disk outside of the zone and export it; return its path, the new volume's id and a restore point of that."""
    image = make_image(tmp_path / "disk.img", MIB)
    outside = (await zone.add_resource(image, "outside")).id
    job = await succeed(zone, await zone.create_volume(await back_up(zone, outside), "own"))
    own = job.resource_ids[0]
    return image, own, await back_up(zone, own)


async def path_of(zone: LocalZone, resource_id: str) -> Path:
    (found,) = (await zone.list_volumes(ResourceFilter(ids=(resource_id,), verbose=1))).items
    return Path(found.path or "")


async def settled(zone: LocalZone) -> None:
    """Close it, and end its worker."""
    await zone.aclose()
    await kill_worker(zone.folder)


async def test_a_zone_that_was_moved_finds_what_is_its_own(local_zone: LocalZone, tmp_path: Path) -> None:
    """Its volumes were "missing", because they were known by an absolute path."""
    image, own, snapshot_id = await with_own_volume(local_zone, tmp_path)
    await settled(local_zone)
    there = tmp_path / "elsewhere" / "zone"
    there.parent.mkdir()
    local_zone.folder.rename(there)
    async with opened(there) as zone:
        path = await path_of(zone, own)
        assert path.is_relative_to(there)
        sound = path.read_bytes()
        change(path, 4096, seed=3)
        await succeed(zone, await zone.apply_snapshots([snapshot_id]))
        assert path.read_bytes() == sound
        outside = next(
            one for one in (await zone.list_volumes(ResourceFilter(verbose=1))).items if one.name == "outside"
        )
        assert Path(outside.path or "") == image
        await back_up(zone, outside.id)
        assert (await zone.check()).is_clean


async def test_a_copy_changes_nothing_until_a_person_adopts_it(local_zone: LocalZone, tmp_path: Path) -> None:
    """A roll-back in the copy overwrote the original's volume."""
    image, own, snapshot_id = await with_own_volume(local_zone, tmp_path)
    await settled(local_zone)
    copy = tmp_path / "copy"
    shutil.copytree(local_zone.folder, copy)
    originals = await path_of(local_zone, own)
    change(originals, 4096, seed=3)
    change(image, 4096, seed=4)
    before = originals.read_bytes(), image.read_bytes()
    async with opened(copy) as zone:
        assert (await zone.list_snapshots(SnapshotFilter())).total_count == 2
        assert str(local_zone.folder) in await zone.copy_problem()
        for attempt in (
            zone.apply_snapshots([snapshot_id]),
            zone.delete_snapshot(snapshot_id),
            zone.create_snapshots([own], "x"),
            zone.purge(),
        ):
            with pytest.raises(NotUsable, match=r"is a copy of the one in .*zone adopt"):
                await attempt
        (detached,) = await zone.adopt()
        with pytest.raises(NotUsable, match="is not a copy"):
            await zone.adopt()
        copys = await path_of(zone, own)
        assert copys.is_relative_to(copy)
        change(copys, 4096, seed=5)
        await succeed(zone, await zone.apply_snapshots([snapshot_id]))
        assert (originals.read_bytes(), image.read_bytes()) == before
        assert copys.read_bytes() != before[0]
        with pytest.raises(ZoneError, match="zone move"):
            await back_up(zone, detached)
        await zone.move_resource(await zone.plan_move(detached, shutil.copy(image, tmp_path / "mine.img")))
        await back_up(zone, detached)
    await back_up(local_zone, own)


async def test_a_job_that_was_copied_is_not_carried_out_twice(local_zone: LocalZone, tmp_path: Path) -> None:
    image, _, _ = await with_own_volume(local_zone, tmp_path)
    (first, *_) = (await local_zone.list_snapshots(SnapshotFilter(search_word="", limit=1, offset=1))).items
    change(image, 4096, seed=3)
    content = image.read_bytes()
    with standing_still(local_zone):
        job = await local_zone.apply_snapshots([first.snapshot_id])
        copy = tmp_path / "copy"
        shutil.copytree(local_zone.folder, copy)
        await kill_worker(local_zone.folder)
        async with opened(copy) as zone:
            assert [one.job_id for one in await zone.list_unfinished_jobs()] == [job.job_id]
            await anyio.sleep(0.5)
            assert image.read_bytes() == content
            await zone.adopt()
            ended = await zone.get_job(job.job_id)
            assert ended.error
            assert ended.error.code == "cancelled"
            assert image.read_bytes() == content
    await finish(local_zone, job)


async def test_two_paths_to_one_folder_are_one_zone(local_zone: LocalZone, tmp_path: Path) -> None:
    _, own, snapshot_id = await with_own_volume(local_zone, tmp_path)
    link = tmp_path / "link"
    link.symlink_to(local_zone.folder)
    async with opened(link) as zone:
        await succeed(zone, await zone.apply_snapshots([snapshot_id]))
        assert (await path_of(zone, own)).is_relative_to(local_zone.folder)
    await succeed(local_zone, await local_zone.apply_snapshots([snapshot_id]))


@pytest.mark.parametrize("way", ["removed", "replaced"])
async def test_a_zone_that_vanishes_while_it_is_open_is_noticed(
    local_zone: LocalZone, tmp_path: Path, way: str
) -> None:
    """ "submitted", "the job is kept", for what no worker can see."""
    image, own, snapshot_id = await with_own_volume(local_zone, tmp_path)
    job = await local_zone.create_snapshots([own], "waits")
    shutil.move(local_zone.folder, tmp_path / "gone")
    if way == "replaced":
        async with opened(local_zone.folder) as other:
            await other.add_resource(image, "another")
    for attempt in (local_zone.create_snapshots([own], "x"), local_zone.apply_snapshots([snapshot_id])):
        with pytest.raises(NotFound):
            await attempt
    with pytest.raises(NotFound):
        await local_zone.get_job(job.job_id)
    names = [one.name for one in (await local_zone.list_volumes(ResourceFilter())).items]
    assert names == (["another"] if way == "replaced" else [])


async def test_who_watches_a_zone_hears_that_it_vanished(local_zone: LocalZone, tmp_path: Path) -> None:
    await with_own_volume(local_zone, tmp_path)

    async def watch() -> None:
        async for _ in local_zone.watch_jobs():
            if local_zone.folder.exists():
                await kill_worker(local_zone.folder)
                shutil.rmtree(local_zone.folder)

    with anyio.fail_after(PATIENCE_SECONDS), pytest.raises(Unavailable, match="removed or replaced"):
        await watch()


async def test_a_copy_in_the_place_of_the_original_is_noticed_whatever_the_inode_numbers(
    local_zone: LocalZone, tmp_path: Path
) -> None:
    """The renamed original has its inode still, as a btrfs snapshot has its original's; both name the same disks."""
    _, own, snapshot_id = await with_own_volume(local_zone, tmp_path)
    await settled(local_zone)
    there = tmp_path / "elsewhere"
    local_zone.folder.rename(there)
    shutil.copytree(there, local_zone.folder)
    async with opened(there) as zone:
        assert str(local_zone.folder) in await zone.copy_problem()
        with pytest.raises(NotUsable, match="is a copy"):
            await zone.apply_snapshots([snapshot_id])
    await succeed(local_zone, await local_zone.apply_snapshots([snapshot_id]))
    assert (await path_of(local_zone, own)).is_relative_to(local_zone.folder)


async def test_another_zone_in_the_old_place_makes_no_copy_of_a_moved_one(
    local_zone: LocalZone, tmp_path: Path
) -> None:
    """Moved to another filesystem, so that its inode is new; the same file may be registered in both."""
    image, own, snapshot_id = await with_own_volume(local_zone, tmp_path)
    await settled(local_zone)
    there = tmp_path / "elsewhere"
    shutil.copytree(local_zone.folder, there)
    shutil.rmtree(local_zone.folder)
    await local_zone.add_resource(image, "outside")
    async with opened(there) as zone:
        assert await zone.copy_problem() == ""
        await succeed(zone, await zone.apply_snapshots([snapshot_id]))
        assert (await path_of(zone, own)).is_relative_to(there)


async def test_a_zone_is_believed_to_be_a_copy_if_its_original_cannot_be_read(
    local_zone: LocalZone, tmp_path: Path
) -> None:
    _, own, _ = await with_own_volume(local_zone, tmp_path)
    await settled(local_zone)
    there = tmp_path / "elsewhere"
    shutil.copytree(local_zone.folder, there)
    (local_zone.folder / "catalogue.sqlite").write_bytes(b"not a database" * 100)
    async with opened(there) as zone:
        with pytest.raises(NotUsable, match="is a copy"):
            await zone.create_snapshots([own], "x")


@pytest.mark.parametrize("links", ["folders", pytest.param("files", marks=pytest.mark.long)])
async def test_a_copy_that_shares_files_with_its_original_is_not_adopted(
    local_zone: LocalZone, tmp_path: Path, links: str
) -> None:
    """A roll-back in it wrote to the original's volume, and a purge unlinked the original's restore points."""
    _, own, snapshot_id = await with_own_volume(local_zone, tmp_path)
    await settled(local_zone)
    if links == "folders":
        for name in ("snapshots", "volumes", "images"):
            (local_zone.folder / name).rename(tmp_path / name)
            (local_zone.folder / name).symlink_to(tmp_path / name)
    there = tmp_path / "elsewhere"
    how = {"symlinks": True} if links == "folders" else {"copy_function": os.link}
    shutil.copytree(local_zone.folder, there, **how)
    original = await path_of(local_zone, own)
    before = original.read_bytes()
    await local_zone.aclose()
    async with opened(there) as zone:
        with pytest.raises(NotUsable, match="in common with another place"):
            await zone.adopt()
        with pytest.raises(NotUsable, match="is a copy"):
            await zone.apply_snapshots([snapshot_id])
    assert original.read_bytes() == before
    assert await local_zone.copy_problem() == ""
