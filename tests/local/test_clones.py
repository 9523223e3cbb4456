"""An incremental reads what was written since its parent, by a kept clone, and is right (FORMAT.md, "Kept clones")."""

import fcntl
import json
import mmap
import os
import random
import shutil
import struct
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import anyio
import pytest

from snapshot_mcp.providers.local import LocalZone, clones
from snapshot_mcp.providers.local.extents import changed_spans
from snapshot_mcp.providers.local.folder import FolderCatalogue
from snapshot_mcp.providers.local.platform import clone_into, write_zeros
from snapshot_mcp.providers.local.snapshot_file.reader import SnapshotFile
from snapshot_mcp.providers.local.source import RawFile
from snapshot_mcp.providers.local.worker import LOCK_NAME
from tests.disks import MIB, back_up, change, end_process, get, make_image, succeed, worker_pid
from tests.marks import long
from tests.patience import PATIENCE_SECONDS

pytestmark = pytest.mark.anyio

SIZE = 16 * MIB
_CLONE_RANGE, _DEDUPE = 0x4020940D, 0xC0189436


@pytest.fixture
def read_bytes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How much each read of a raw disk took."""
    lengths: list[int] = []
    read = RawFile.read

    def count(self: RawFile, length: int, offset: int) -> bytes:
        lengths.append(length)
        return read(self, length, offset)

    monkeypatch.setattr(RawFile, "read", count)
    return lengths


def kept(zone: LocalZone, folder: Path) -> list[Path]:
    """The clones that are kept, in the zone's folder or beside the disk."""
    return sorted((*zone.folder.glob("clones/*.clone"), *folder.glob(".snapshot-mcp.*.clone")))


async def content(zone: LocalZone, snapshot_id: str, path: Path) -> bytes:
    with path.open("w+b") as file:
        await zone.read_out(snapshot_id, file.fileno())
        return path.read_bytes()


async def test_an_incremental_reads_only_what_was_written_since(
    reflink_folder: Path, here: LocalZone, read_bytes: list[int], tmp_path: Path
) -> None:
    image = make_image(reflink_folder / "disk.img", SIZE)
    volume = await here.add_resource(image)
    for number in range(3):
        change(image, 64 << 10, seed=number, count=1)
        read_bytes.clear()
        snapshot_id = await back_up(here, volume.id)
        assert await content(here, snapshot_id, tmp_path / "out") == image.read_bytes()
        assert sum(read_bytes) <= 3 * 64 << 10 or number == 0
        assert len(kept(here, reflink_folder)) == 1


async def test_a_clone_in_the_zones_folder_serves_a_disk_of_another_folder(
    reflink_folder: Path, read_bytes: list[int], tmp_path: Path
) -> None:
    """On btrfs in another subvolume, which has a device number of its own."""
    home = reflink_folder / "home"
    if (
        shutil.which("btrfs") is None
        or subprocess.run(["btrfs", "-q", "subvolume", "create", home], check=False).returncode
    ):
        home.mkdir()
    zone = LocalZone(home / "zone")
    image = make_image(reflink_folder / "disk.img", SIZE)
    volume = await zone.add_resource(image)
    parent = await back_up(zone, volume.id)
    change(image, 4096, count=1)
    child = await back_up(zone, volume.id)
    assert await content(zone, child, tmp_path / "out") == image.read_bytes()
    assert [one.parent for one in kept(zone, reflink_folder)] == [zone.folder / "clones"]
    with (
        FolderCatalogue(zone.folder) as catalogue,
        image.open("rb") as file,
        SnapshotFile(zone.folder / "snapshots", child) as snapshot,
    ):
        assert not list(catalogue.store.clones.changes(file.fileno(), child, snapshot.hash))
        assert list(catalogue.store.clones.changes(file.fileno(), parent, snapshot.hash)) == [(0, SIZE)]
    await zone.aclose()
    end_process(zone.folder / LOCK_NAME)
    with anyio.fail_after(PATIENCE_SECONDS):
        while worker_pid(zone.folder):
            await anyio.sleep(0.01)


@pytest.mark.parametrize("reflink_folder", ["btrfs"], indirect=True)
async def test_a_file_without_copy_on_write_in_an_ordinary_folder_is_cloned(
    reflink_folder: Path, here: LocalZone, tmp_path: Path
) -> None:
    """`chattr +C`: btrfs clones only into a file that is alike."""
    image = reflink_folder / "disk.img"
    image.touch()
    subprocess.run(["chattr", "+C", str(image)], check=True)
    image.write_bytes(make_image(tmp_path / "content", SIZE).read_bytes())
    volume = await here.add_resource(image)
    with image.open("r+b") as machine:
        assert (await get(here, await back_up(here, volume.id))).consistency == "instant"
        machine.write(b"written while it runs")
        machine.flush()
        child = await back_up(here, volume.id)
        assert (await get(here, child)).consistency == "instant"
    assert await content(here, child, tmp_path / "out") == image.read_bytes()


def write(path: Path, chance: random.Random) -> None:
    with path.open("r+b") as file:
        for _ in range(chance.randrange(1, 30)):
            file.seek(chance.randrange(max(1, path.stat().st_size)))
            file.write(chance.randbytes(chance.choice([1, 512, 4096, 70_000])))


def write_through_a_mapping(path: Path, chance: random.Random) -> None:
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        for _ in range(10):
            at = chance.randrange(len(view) - 100)
            view[at : at + 100] = chance.randbytes(100)


def punch(path: Path, chance: random.Random) -> None:
    with path.open("r+b") as file:
        for _ in range(5):
            write_zeros(file.fileno(), chance.randrange(path.stat().st_size), chance.randrange(1, 300_000))


def resize(path: Path, chance: random.Random) -> None:
    os.truncate(path, max(MIB, path.stat().st_size + chance.choice([-MIB, -4096, -1, 1, 70_001, MIB])))


def preallocate(path: Path, chance: random.Random) -> None:
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), chance.randrange(path.stat().st_size), MIB)


def move_blocks(path: Path, chance: random.Random) -> None:
    """Reflinks within the disk: the same physical block at another place."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())
        blocks = path.stat().st_size // 4096
        for _ in range(10):
            source, target = (chance.randrange(blocks - 16) * 4096 for _ in range(2))
            with suppress(OSError):  # one that overlaps itself
                fcntl.ioctl(file, _CLONE_RANGE, struct.pack("qQQQ", file.fileno(), source, 16 * 4096, target))


def swap_back(path: Path, chance: random.Random) -> None:
    """Something is written and the old content is written again, so only its place differs."""
    before = path.read_bytes()
    write(path, chance)
    path.write_bytes(before) if chance.random() < 0.5 else None


def defragment(path: Path, chance: random.Random) -> None:
    for command in (["btrfs", "-q", "filesystem", "defragment", str(path)], ["xfs_fsr", str(path)]):
        if shutil.which(command[0]):
            subprocess.run(command, check=False, capture_output=True)


ACTS: list[Callable[[Path, random.Random], None]] = [
    write,
    write_through_a_mapping,
    punch,
    resize,
    preallocate,
    move_blocks,
    swap_back,
    defragment,
]


@pytest.mark.parametrize("seed", [1, *map(long, range(2, 12))])
async def test_whatever_happens_to_the_disk_every_incremental_equals_it(
    reflink_folder: Path, here: LocalZone, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    image = make_image(reflink_folder / "disk.img", SIZE, seed)
    volume = await here.add_resource(image)
    taken: dict[str, bytes] = {}
    for number in range(20 if seed > 1 else 5):
        for act in chance.choices(ACTS, k=chance.randrange(0, 4)) or [write]:
            act(image, chance)
        if number % 4 == 3:
            back = chance.choice(list(taken))
            await succeed(here, await here.apply_snapshots([back]))
            assert image.read_bytes() == taken[back]
            write(image, chance)
        snapshot_id = await back_up(here, volume.id)
        taken[snapshot_id] = image.read_bytes()
        assert await content(here, snapshot_id, tmp_path / "out") == taken[snapshot_id], number
    for one in chance.sample(list(taken), 3):
        assert await content(here, one, tmp_path / "out") == taken[one]


async def test_a_clone_that_was_touched_or_is_another_snapshots_is_not_believed(
    reflink_folder: Path, here: LocalZone, tmp_path: Path, read_bytes: list[int]
) -> None:
    image = make_image(reflink_folder / "disk.img", SIZE)
    volume = await here.add_resource(image)
    await back_up(here, volume.id)

    def write_to_it(clone: Path, record: Path) -> None:
        with clone.open("r+b") as file:
            file.write(b"something else")
        os.utime(clone, ns=(clone.stat().st_atime_ns, json.loads(record.read_text())["proof"].split()[2] and 1))

    def replace_it(clone: Path, record: Path) -> None:
        clone.with_suffix(".new").write_bytes(clone.read_bytes())
        clone.with_suffix(".new").replace(clone)

    def forge(clone: Path, record: Path) -> None:
        record.write_text(json.dumps(json.loads(record.read_text()) | {"file_hash": "00" * 32}))

    def spoil(clone: Path, record: Path) -> None:
        record.write_text("not json")

    for harm in (write_to_it, replace_it, forge, spoil):
        (clone,), (record,) = kept(here, reflink_folder), here.folder.glob("clones/*.json")
        harm(clone, record)
        change(image, 4096, count=1)
        read_bytes.clear()
        snapshot_id = await back_up(here, volume.id)
        assert await content(here, snapshot_id, tmp_path / "out") == image.read_bytes()
        assert sum(read_bytes) > SIZE // 4, harm
        record.unlink(missing_ok=True)
        clone.unlink(missing_ok=True)


async def test_a_mixture_is_no_parent_for_a_hint(
    reflink_folder: Path, here: LocalZone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_bytes: list[int]
) -> None:
    """What did not change since a fuzzy copy may still be wrong in it."""
    image = make_image(reflink_folder / "disk.img", SIZE)
    volume = await here.add_resource(image)
    with monkeypatch.context() as patch:
        patch.setattr("snapshot_mcp.providers.local.snapshot_file.writer.Trailer", _fuzzy)
        await back_up(here, volume.id)
    assert len(kept(here, reflink_folder)) == 1
    read_bytes.clear()
    await back_up(here, volume.id)
    assert sum(read_bytes) > SIZE // 4


def _fuzzy(consistency: str, **facts: int) -> object:
    from snapshot_mcp.providers.local.snapshot_file.format import Trailer

    return Trailer(consistency="fuzzy", **facts)


async def test_a_clone_goes_with_its_snapshot(reflink_folder: Path, here: LocalZone) -> None:
    image = make_image(reflink_folder / "disk.img", SIZE)
    volume = await here.add_resource(image)
    await back_up(here, volume.id)
    child = await back_up(here, volume.id)
    assert len(kept(here, reflink_folder)) == 1
    await succeed(here, await here.delete_snapshot(child))
    await here.purge()
    assert not kept(here, reflink_folder)
    assert not list(here.folder.glob("clones/*"))


async def test_no_clone_is_kept_where_space_is_low(
    reflink_folder: Path, here: LocalZone, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = make_image(reflink_folder / "disk.img", SIZE)
    volume = await here.add_resource(image)
    await back_up(here, volume.id)
    assert len(kept(here, reflink_folder)) == 1
    with FolderCatalogue(here.folder) as catalogue:
        monkeypatch.setattr(clones, "FREE_SHARE", 0.001)
        catalogue.store.clones.tidy(catalogue)
        assert not kept(here, reflink_folder)
        await back_up(here, volume.id)
        assert not kept(here, reflink_folder)
        monkeypatch.undo()
        await back_up(here, volume.id)
        assert catalogue.store.make_room()
    assert not kept(here, reflink_folder)
    assert (await get(here, await back_up(here, volume.id))).consistency == "instant"


def test_extents_that_both_share_are_the_only_ones_that_count_as_unchanged(reflink_folder: Path) -> None:
    image = make_image(reflink_folder / "disk.img", SIZE)
    copy = reflink_folder / "copy"
    with image.open("r+b") as file, copy.open("w+b") as clone:
        assert clone_into(clone.fileno(), file.fileno())
        assert not list(changed_spans(clone.fileno(), file.fileno()))
        file.seek(MIB)
        file.write(b"x")
        file.flush()
        os.fsync(file.fileno())
        ((start, end),) = changed_spans(clone.fileno(), file.fileno())
        assert start == MIB
        assert end - start <= 64 << 10
        unrelated = reflink_folder / "unrelated"
        unrelated.write_bytes(image.read_bytes())
        with unrelated.open("rb") as other:
            spans = list(changed_spans(clone.fileno(), other.fileno()))
        assert sum(end - start for start, end in spans) >= SIZE // 3
