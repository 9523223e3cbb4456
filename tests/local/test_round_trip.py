"""Real bytes out and back: what a snapshot holds is what the disk was."""

import hashlib
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from snapshot_mcp.contract.models import ResourceFilter, SnapshotFilter, Volume
from snapshot_mcp.contract.states import ResourceType
from snapshot_mcp.providers.local import LocalZone, restore
from snapshot_mcp.providers.local import platform as local_platform
from snapshot_mcp.providers.local.folder import FolderCatalogue
from snapshot_mcp.providers.local.snapshot_file import reader
from tests.disks import MIB, back_up, change, finish, get, ids, make_image, succeed
from tests.marks import long
from tests.patience import PATIENCE_SECONDS

pytestmark = pytest.mark.anyio


def digest(path: Path | str) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


async def exported(zone: LocalZone, snapshot_id: str) -> str:
    job = await succeed(zone, await zone.create_volume(snapshot_id, "copy"))
    (volume,) = (await zone.list_volumes(ResourceFilter(ids=job.resource_ids))).items
    assert volume.path is not None
    return volume.path


@pytest.mark.long
async def test_256_mib_go_back_and_forth_to_the_byte(local_zone: LocalZone, tmp_path: Path) -> None:
    """Random, zero and hole regions, 1 % changed, roll back, forward, export each."""
    image = make_image(tmp_path / "disk.img", 256 * MIB)
    original = digest(image)
    volume = await local_zone.add_resource(image, "db")
    full = await back_up(local_zone, volume.id, "full")
    change(image, 256 * MIB // 100, count=20)
    changed = digest(image)
    assert changed != original
    incremental = await back_up(local_zone, volume.id, "incremental")
    assert (await get(local_zone, incremental)).parent == full
    assert (await get(local_zone, incremental)).stored_bytes < 12 * MIB

    await succeed(local_zone, await local_zone.apply_snapshots([full]))
    assert digest(image) == original
    await succeed(local_zone, await local_zone.apply_snapshots([incremental]))
    assert digest(image) == changed
    assert digest(await exported(local_zone, full)) == original
    assert digest(await exported(local_zone, incremental)) == changed
    assert (await local_zone.check()).is_clean


async def test_deleting_in_the_middle_takes_exactly_what_is_below(local_zone: LocalZone, tmp_path: Path) -> None:
    """Deleting an incremental deletes everything that was built on it (CONTRACT.md, "A chain is a tree")."""
    image = make_image(tmp_path / "disk.img")
    volume = await local_zone.add_resource(image)
    contents: dict[str, str] = {}
    chain = []
    for seed in range(4):
        change(image, 4096, seed=seed)
        chain.append(await back_up(local_zone, volume.id, f"number {seed}"))
        contents[chain[-1]] = digest(image)
    await succeed(local_zone, await local_zone.apply_snapshots([chain[1]]))
    change(image, 4096, seed=9)
    branch = await back_up(local_zone, volume.id, "branch")
    contents[branch] = digest(image)
    assert (await get(local_zone, branch)).parent == chain[1]

    job = await succeed(local_zone, await local_zone.delete_snapshot(chain[2]))
    assert set(job.resource_ids) == {chain[2], chain[3]}
    assert await ids(local_zone) == {chain[0], chain[1], branch}
    assert (await local_zone.purge()) == tuple(sorted((chain[2], chain[3])))
    for survivor in (chain[0], branch, chain[1]):
        await succeed(local_zone, await local_zone.apply_snapshots([survivor]))
        assert digest(image) == contents[survivor]
    assert (await local_zone.check()).is_clean


async def test_a_disk_that_grew_and_shrank_comes_back_at_its_size(local_zone: LocalZone, tmp_path: Path) -> None:
    """CONTRACT.md, "Size": a snapshot knows the size at its time, a roll-back gives it back."""
    image = make_image(tmp_path / "disk.img", 3 * MIB + 777)
    volume = await local_zone.add_resource(image)
    contents = {}
    for size in (3 * MIB + 777, 5 * MIB + 1, MIB + 13, 65536, 0, 2 * MIB):
        with image.open("r+b") as file:
            file.truncate(size)
            if size:
                file.seek(size - 1)
                file.write(b"x")
        contents[await back_up(local_zone, volume.id)] = image.read_bytes()
    for snapshot_id, content in contents.items():
        await succeed(local_zone, await local_zone.apply_snapshots([snapshot_id]))
        assert image.read_bytes() == content, len(content)
    assert (await local_zone.check()).is_clean


async def test_several_disks_are_one_point_in_time(local_zone: LocalZone, tmp_path: Path) -> None:
    """CONTRACT.md, "Several resources": one job, one snapshot_time; one apply brings both back."""
    images = [make_image(tmp_path / f"{name}.img", seed=seed) for seed, name in enumerate(("data", "log"))]
    before = [image.read_bytes() for image in images]
    volumes = [await local_zone.add_resource(image) for image in images]
    job = await succeed(local_zone, await local_zone.create_snapshots([one.id for one in volumes], "both"))
    pair = [await get(local_zone, one) for one in job.resource_ids]
    assert len({one.snapshot_time for one in pair}) == 1
    assert [one.resource.resource_id for one in pair] == [one.id for one in volumes]
    for image in images:
        change(image, 8192)
    job = await succeed(local_zone, await local_zone.apply_snapshots(job.resource_ids))
    assert job.details["resources"] == {one.id: "applied" for one in volumes}
    assert [image.read_bytes() for image in images] == before


async def test_an_instances_snapshot_exports_to_an_image_only(local_zone: LocalZone, tmp_path: Path) -> None:
    """CONTRACT.md, "Snapshot": capture_instance needs a snapshot of an instance, create_volume one of a volume."""
    disk = make_image(tmp_path / "web.img")
    instance = await local_zone.add_resource(disk, "web", ResourceType.INSTANCE)
    snapshot_id = await back_up(local_zone, instance.id)
    job = await succeed(local_zone, await local_zone.capture_instance(snapshot_id, "golden"))
    (image,) = (await local_zone.list_images(ResourceFilter())).items
    assert (image.image_id, image.image_name, image.provider) == (job.resource_ids[0], "golden", "self")
    assert image.path is not None
    assert Path(image.path).read_bytes() == disk.read_bytes()


async def test_an_exported_volume_is_a_volume_like_any_other(local_zone: LocalZone, tmp_path: Path) -> None:
    image = make_image(tmp_path / "disk.img")
    volume = await local_zone.add_resource(image)
    job = await succeed(local_zone, await local_zone.create_volume(await back_up(local_zone, volume.id), "copy"))
    first = await back_up(local_zone, job.resource_ids[0])
    assert (await get(local_zone, first)).is_full
    assert await ids(local_zone, resource_id=job.resource_ids[0]) == {first}


async def test_zeros_and_holes_cost_nothing(local_zone: LocalZone, tmp_path: Path) -> None:
    image = tmp_path / "empty.img"
    with image.open("wb") as file:
        file.truncate(1 << 36)
    volume = await local_zone.add_resource(image)
    snapshot = await get(local_zone, await back_up(local_zone, volume.id))
    assert snapshot.virtual_size_bytes == 1 << 36
    assert snapshot.stored_bytes < 100_000
    await succeed(local_zone, await local_zone.apply_snapshots([snapshot.snapshot_id]))
    assert image.stat().st_blocks == 0


@pytest.mark.parametrize("missing", ["HAS_SEEK_DATA", "HAS_PUNCH_HOLE", "HAS_LEASE", "HAS_CLONE"])
async def test_portable_fallbacks_keep_every_byte(
    missing: str, here: LocalZone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is the system's own lives in `platform`; the test forces its fallbacks."""
    monkeypatch.setattr(local_platform, missing, False)
    image = make_image(tmp_path / "disk.img")
    before = image.read_bytes()
    volume = await here.add_resource(image)
    full = await back_up(here, volume.id)
    change(image, 50_000)
    after = image.read_bytes()
    incremental = await back_up(here, volume.id)
    await succeed(here, await here.apply_snapshots([full]))
    assert image.read_bytes() == before
    await succeed(here, await here.apply_snapshots([incremental]))
    assert image.read_bytes() == after
    assert Path(await exported(here, full)).read_bytes() == before
    expected = "fuzzy" if missing == "HAS_LEASE" else "unchanged"
    assert (await get(here, full)).consistency == expected


async def test_the_chain_says_where_new_incrementals_go(local_zone: LocalZone, tmp_path: Path) -> None:
    """CONTRACT.md, "Head" and Snapshot: is_head, head_chain, root_id, parent_id, totals on full ones."""
    image = make_image(tmp_path / "disk.img")
    volume = await local_zone.add_resource(image)
    one = await back_up(local_zone, volume.id)
    two = await back_up(local_zone, volume.id)
    other = await back_up(local_zone, volume.id, is_full=True)
    found = {one.snapshot_id: one for one in (await local_zone.list_snapshots(SnapshotFilter(verbose=1))).items}
    assert [found[one].is_head for one in (one, two, other)] == [0, 0, 1]
    assert [found[one].head_chain for one in (one, two, other)] == [0, 0, 1]
    assert [found[one].root_id for one in (one, two, other)] == [one, one, other]
    assert [found[one].parent_id for one in (one, two, other)] == ["self", one, "self"]
    assert [found[one].total_count for one in (one, two, other)] == [2, 0, 1]
    await succeed(local_zone, await local_zone.apply_snapshots([one]))
    assert (await get(local_zone, one)).is_head == 1
    assert (await get(local_zone, await back_up(local_zone, volume.id))).parent == one


async def test_the_job_of_a_failed_create_says_why_and_its_snapshot_ceases(here: LocalZone, tmp_path: Path) -> None:
    """CONTRACT.md, "Failed create"."""
    image = make_image(tmp_path / "disk.img")
    volume = await here.add_resource(image)
    kept = await back_up(here, volume.id)
    assert isinstance(volume, Volume)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("snapshot_mcp.providers.local.capture.os.pread", _broken_read)
        job = await finish(here, await here.create_snapshots([volume.id], "broken"))
    assert (job.status, job.error and job.error.code) == ("failed", "internal_error")
    assert "Input/output error" in job.info
    assert (await get(here, job.resource_ids[0])).status == "ceased"
    assert await ids(here) == {kept}
    assert not list((here.folder / "snapshots").glob(f"*{job.resource_ids[0]}*"))


def _broken_read(fd: int, length: int, offset: int) -> bytes:
    raise OSError(5, "Input/output error")


async def test_empty_room_costs_a_roll_back_and_an_export_little(local_zone: LocalZone, tmp_path: Path) -> None:
    """FORMAT.md, "Speed": an empty disk costs nothing. 96 GiB, chunk by chunk, would take half a minute."""
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate(96 << 30)
        file.write(b"beginning")
    volume = await local_zone.add_resource(image)
    snapshot_id = await back_up(local_zone, volume.id)
    with image.open("r+b") as file:
        file.write(b"overwritten")
        file.seek(50 << 30)
        file.write(b"to go")
    await succeed(local_zone, await local_zone.apply_snapshots([snapshot_id]), timeout_seconds=PATIENCE_SECONDS)
    exported = await succeed(
        local_zone, await local_zone.create_volume(snapshot_id, "copy"), timeout_seconds=PATIENCE_SECONDS
    )
    for path in (image, Path(exported.details["path"])):
        with path.open("rb") as file:
            assert file.read(11) == b"beginning\0\0"
            file.seek(50 << 30)
            assert file.read(5) == bytes(5)


@pytest.mark.parametrize(("hard_limit", "expected"), [long(None, "successful"), (68, "internal_error")])
@pytest.mark.long
async def test_many_long_chains_go_back_at_once(
    hard_limit: int | None, expected: str, zone_folder: Path, tmp_path: Path
) -> None:
    """A roll-back may name 100 disks, each with a chain of 30 files; too few files allowed is no damage of a snapshot."""
    script = textwrap.dedent("""
        import resource, sys, anyio
        from pathlib import Path
        from snapshot_mcp.providers.local import LocalZone
        from tests.disks import finish, make_image, succeed

        async def main(folder, images, hard_limit):
            _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (68, int(hard_limit or most)))
            zone = LocalZone(Path(folder))
            disks = [(await zone.add_resource(make_image(Path(images, str(one)), 65536))).id for one in range(6)]
            for _ in range(10):
                job = await succeed(zone, await zone.create_snapshots(disks, ""))
            job = await finish(zone, await zone.apply_snapshots(job.resource_ids))
            print(job.error.code if job.error else job.status)

        anyio.run(main, *sys.argv[1:])
    """)
    command = [sys.executable, "-c", script, str(zone_folder), str(tmp_path), str(hard_limit or "")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.stdout.strip() == expected, done.stderr
    with FolderCatalogue(zone_folder) as catalogue:
        assert catalogue.rows("SELECT * FROM snapshots WHERE is_damaged") == []


async def test_a_roll_back_decompresses_a_chunk_once_and_keeps_no_more_than_its_limit(
    here: LocalZone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is verified before the first byte is written is kept for writing, in bounded memory."""
    image = make_image(tmp_path / "disk.img", 4 * MIB)
    volume = await here.add_resource(image)
    snapshot_id = await back_up(here, volume.id)
    before = image.read_bytes()
    count = 0
    decompress = reader.decompress

    def counted(codec: int, stored: bytes, limit: int) -> bytes | None:
        nonlocal count
        count += limit == 64 << 10
        return decompress(codec, stored, limit)

    monkeypatch.setattr(reader, "decompress", counted)
    for limit, expected in ((16 * MIB, 8), (3 << 16, 13)):
        monkeypatch.setattr(restore.VerifiedChunks, "LIMIT_BYTES", limit)
        with image.open("r+b") as file:
            file.write(bytes(8 << 16))
        count = 0
        await succeed(here, await here.apply_snapshots([snapshot_id]))
        assert image.read_bytes() == before
        assert count == expected
