"""A zone whose catalogue is lost, emptied, damaged, or older than its files is found out, and rebuilt from the files."""

import hashlib
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from snapshot_mcp.contract.errors import NotUsable, ResourceBusy, Unsupported, ZoneError
from snapshot_mcp.contract.models import ResourceFilter, Snapshot, SnapshotFilter, SnapshotUpdate
from snapshot_mcp.contract.states import SnapshotStatus
from snapshot_mcp.providers.local import LocalZone
from snapshot_mcp.providers.local.found import _seconds
from snapshot_mcp.providers.local.rebuild import RebuildReport
from snapshot_mcp.providers.local.snapshot_file.format import file_name
from tests.disks import back_up, change, finish, make_image, succeed
from tests.local.test_crash import kill_worker
from tests.local.test_damage import file_of

pytestmark = pytest.mark.anyio
KIB = 1024
CATALOGUE = "catalogue.sqlite"


async def available(zone: LocalZone) -> dict[str, Snapshot]:
    query = SnapshotFilter(status=(SnapshotStatus.AVAILABLE,), verbose=1, limit=100)
    return {one.snapshot_id: one for one in (await zone.list_snapshots(query)).items}


async def restored(zone: LocalZone, snapshot_id: str) -> bytes:
    """The content of a restore point, as an export writes it."""
    job = await succeed(zone, await zone.create_volume(snapshot_id, "copy"))
    (made,) = (await zone.list_volumes(ResourceFilter(ids=job.resource_ids, verbose=1))).items
    path = Path(made.path or "")
    content = path.read_bytes()
    path.unlink()
    await zone.remove_resource(made.id)
    return content


async def lose(zone: LocalZone, *, with_copy: bool = False) -> None:
    """End everything that has the zone open, and throw the catalogue away."""
    await zone.aclose()
    await kill_worker(zone.folder)
    for path in zone.folder.glob("catalogue*"):
        if not (with_copy and "copy" in path.name):
            path.unlink()


async def rebuilt(zone: LocalZone) -> RebuildReport:
    """Rebuild it, once its worker has ended."""
    await zone.aclose()
    await kill_worker(zone.folder)
    return await zone.rebuild()


async def chain(zone: LocalZone, tmp_path: Path) -> tuple[Path, str, dict[str, bytes]]:
    """A disk with a chain of three, one of them renamed and tagged; the content of each restore point."""
    image = make_image(tmp_path / "disk.img", 256 * KIB)
    disk = (await zone.add_resource(image, "web")).id
    contents = {}
    for number in range(3):
        change(image, 4 * KIB, seed=number)
        contents[await back_up(zone, disk, f"n{number}")] = image.read_bytes()
    return image, disk, contents


async def test_a_lost_catalogue_is_a_finding_everywhere_and_no_new_one_is_made(
    local_zone: LocalZone, tmp_path: Path
) -> None:
    """ "A zone without its catalogue is content: No disk is registered"."""
    image, disk, _ = await chain(local_zone, tmp_path)
    await lose(local_zone)
    (local_zone.folder / CATALOGUE).touch()
    for attempt in (
        local_zone.list_snapshots(SnapshotFilter()),
        local_zone.list_volumes(ResourceFilter()),
        local_zone.create_snapshots([disk], "x"),
        local_zone.add_resource(image),
        local_zone.check(),
    ):
        with pytest.raises(NotUsable, match=r"catalogue is empty, but 3 snapshot files .*zone rebuild"):
            await attempt
    assert (local_zone.folder / CATALOGUE).stat().st_size == 0


async def test_every_snapshot_comes_back_with_its_chain_and_restores(local_zone: LocalZone, tmp_path: Path) -> None:
    image, disk, contents = await chain(local_zone, tmp_path)
    before = await available(local_zone)
    await lose(local_zone)
    report = await local_zone.rebuild()
    assert sorted(report.taken_in) == sorted(contents)
    after = await available(local_zone)
    for one, known in before.items():
        again = after[one]
        for name in (
            "snapshot_name",
            "parent_id",
            "root_id",
            "snapshot_type",
            "size_bytes",
            "consistency",
            "create_time",
        ):
            assert getattr(again, name) == getattr(known, name), name
        assert again.resource.resource_name == "web"
        assert await restored(local_zone, one) == contents[one]
    (found,) = (await local_zone.list_volumes(ResourceFilter(ids=(disk,), verbose=1))).items
    assert str(image) in (found.problem or "")
    with pytest.raises(ZoneError, match="zone move"):
        await local_zone.create_snapshots([disk], "x")
    await local_zone.move_resource(await local_zone.plan_move(disk, image))
    made = await back_up(local_zone, disk, "after")
    assert (await available(local_zone))[made].is_full
    assert (await local_zone.check()).is_clean
    assert not (await rebuilt(local_zone)).has_changed


async def test_the_copy_knows_what_headers_cannot(local_zone: LocalZone, tmp_path: Path) -> None:
    """Renames, tags, the disk's path: as of the last time that the worker was idle."""
    from snapshot_mcp.providers.local.folder import FolderCatalogue
    from snapshot_mcp.providers.local.spare import keep_copy

    image, disk, contents = await chain(local_zone, tmp_path)
    first = next(iter(contents))
    await local_zone.update_snapshot(first, SnapshotUpdate(snapshot_name="gold", tags=("keep",)))
    with FolderCatalogue(local_zone.folder) as catalogue:
        assert keep_copy(catalogue)
    await lose(local_zone, with_copy=True)
    report = await local_zone.rebuild()
    assert (report.by_copy_count, report.taken_in) == (len(contents), ())
    found = (await available(local_zone))[first]
    assert (found.snapshot_name, found.tags) == ("gold", ("keep",))
    (volume,) = (await local_zone.list_volumes(ResourceFilter(ids=(disk,), verbose=1))).items
    assert Path(volume.path or "") == image
    made = await back_up(local_zone, disk, "after")  # a roll-back after the copy is not known, so nor is the head
    assert (await available(local_zone))[made].is_full


async def test_an_older_catalogue_put_back_is_completed(local_zone: LocalZone, tmp_path: Path) -> None:
    image, disk, contents = await chain(local_zone, tmp_path)
    await local_zone.aclose()
    await kill_worker(local_zone.folder)
    with closing(sqlite3.connect(local_zone.folder / CATALOGUE)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    old = shutil.copy(local_zone.folder / CATALOGUE, tmp_path / "old.sqlite")
    change(image, 4 * KIB, seed=9)
    late = await back_up(local_zone, disk, "late")
    content = image.read_bytes()
    await lose(local_zone)
    shutil.copy(old, local_zone.folder / CATALOGUE)
    report = await local_zone.check()
    assert any(late in one.subject and "zone rebuild" in one.text for one in report.findings)
    assert (await rebuilt(local_zone)).taken_in == (late,)
    assert await restored(local_zone, late) == content
    assert set(await available(local_zone)) == {*contents, late}
    made = await back_up(local_zone, disk, "next")
    assert (await available(local_zone))[made].is_full


async def test_it_is_refused_while_the_zone_is_open(local_zone: LocalZone, tmp_path: Path) -> None:
    await chain(local_zone, tmp_path)
    other = LocalZone(local_zone.folder)
    with pytest.raises(ResourceBusy, match="open in another process"):
        await other.rebuild()
    await other.aclose()


@pytest.mark.parametrize("part", ["snapshot", "catalogue"])
async def test_what_a_newer_version_wrote_is_not_damage(local_zone: LocalZone, tmp_path: Path, part: str) -> None:
    """A version byte that is not known made a sound snapshot "damaged", blocked roll-backs and forced a full one."""
    _, disk, contents = await chain(local_zone, tmp_path)
    last = list(contents)[-1]
    if part == "catalogue":
        await local_zone.aclose()
        await kill_worker(local_zone.folder)
        with closing(sqlite3.connect(local_zone.folder / CATALOGUE)) as db:
            db.execute("PRAGMA user_version = 999")
        for attempt in (local_zone.list_snapshots(SnapshotFilter()), local_zone.rebuild(), local_zone.check()):
            with pytest.raises(Unsupported, match="newer version"):
                await attempt
        return
    path = file_of(local_zone, last)
    sound = path.read_bytes()
    path.write_bytes(sound[:7] + b"\x02" + sound[8:])
    report = await local_zone.check()
    assert [one.is_damage for one in report.findings] == [False]
    assert "newer version" in report.findings[0].text
    verified = await finish(local_zone, await local_zone.verify_snapshots([last]))
    assert verified.error
    assert verified.error.code == "unsupported"
    applied = await finish(local_zone, await local_zone.apply_snapshots([last]))
    assert applied.error
    assert "newer version" in applied.error.message
    assert (await available(local_zone))[last].is_damaged == 0
    assert (await local_zone.look_over()).newer == ((last, 2),)
    path.write_bytes(sound)
    await succeed(local_zone, await local_zone.verify_snapshots([last]))
    assert disk


async def random_zone(zone: LocalZone, folder: Path, chance: random.Random) -> dict[str, bytes]:
    """Backups, deletions, several chains, renames and tags; return the content of what is available."""
    disks = []
    for number in range(chance.randrange(1, 3)):
        image = make_image(folder / f"disk-{number}.img", 64 * KIB, seed=chance.randrange(99))
        disks.append((image, (await zone.add_resource(image, f"Ä {number}")).id))
    contents: dict[str, bytes] = {}
    for number in range(chance.randrange(3, 9)):
        image, disk = chance.choice(disks)
        change(image, KIB, seed=chance.randrange(99), count=1)
        contents[await back_up(zone, disk, f"n{number}", is_full=chance.random() < 0.3)] = image.read_bytes()
        if chance.random() < 0.3:
            one = chance.choice(list(contents))
            await zone.update_snapshot(one, SnapshotUpdate(snapshot_name="re\x1bnamed", tags=("a", "b")))
        if chance.random() < 0.2 and len(contents) > 2:
            await succeed(zone, await zone.delete_snapshot(chance.choice(list(contents))))
            if chance.random() < 0.5:
                await zone.purge()
            there = await available(zone)
            contents = {one: content for one, content in contents.items() if one in there}
    return contents


@pytest.mark.long
@pytest.mark.parametrize("seed", range(20))
async def test_two_hundred_random_zones_are_rebuilt_to_the_byte(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    """Ten a seed; some files are damaged before the catalogue is lost: what is damaged is never called sound."""
    for number in range(10):
        chance = random.Random(seed * 100 + number)
        folder = tmp_path_factory.mktemp("zone")
        zone = LocalZone(folder / "zone")
        contents = await random_zone(zone, folder, chance)
        damaged = set()
        if contents and chance.random() < 0.5:
            one = chance.choice(list(contents))
            path = file_of(zone, one)
            content = bytearray(path.read_bytes())
            content[chance.randrange(8, len(content))] ^= 1 << chance.randrange(8)
            path.write_bytes(content)
            damaged.add(one)
        await lose(zone, with_copy=chance.random() < 0.5)
        await zone.rebuild()
        await zone.check()
        there = await available(zone)
        for one, content in contents.items():
            is_hurt = one in damaged or any(above in damaged for above in ancestors(there, one))
            if one in there and not is_hurt:
                assert await restored(zone, one) == content, (seed, number, one)
            elif not is_hurt:
                raise AssertionError((seed, number, one))
            elif one in there and one in damaged:
                assert there[one].is_damaged, (seed, number, one)
        await zone.aclose()
        await kill_worker(zone.folder)
        shutil.rmtree(folder)


def ancestors(there: dict[str, Snapshot], snapshot_id: str) -> list[str]:
    found = []
    at = there.get(snapshot_id)
    while at is not None and at.parent is not None:
        found.append(at.parent)
        at = there.get(at.parent)
    return found


KILLED = """
import os, sys
from pathlib import Path
from snapshot_mcp.providers.local import rebuild
step, names = int(sys.argv[2]), ["create_private", "_take_in", "_give_exports_their_files", "_put_in_place", "fsync_folder"]
original = getattr(rebuild, names[step])
def die(*arguments, **options):
    if step == 4:
        original(*arguments, **options)
    os._exit(9)
setattr(rebuild, names[step], die)
rebuild.rebuild(Path(sys.argv[1]))
"""


@pytest.mark.parametrize("step", [3, *(pytest.param(one, marks=pytest.mark.long) for one in (0, 1, 2, 4))])
async def test_a_rebuild_that_was_killed_is_run_again(local_zone: LocalZone, tmp_path: Path, step: int) -> None:
    _, _, contents = await chain(local_zone, tmp_path)
    await lose(local_zone)
    done = subprocess.run([sys.executable, "-c", KILLED, str(local_zone.folder), str(step)], check=False)
    assert done.returncode == 9
    await local_zone.rebuild()
    for one, content in contents.items():
        assert await restored(local_zone, one) == content
    assert (await local_zone.check()).findings[0].subject.startswith("volume")


def test_hostile_headers_name_no_path(tmp_path: Path) -> None:
    """An id is checked before it is part of a path."""
    from snapshot_mcp.providers.local.rebuild import rebuild

    folder = tmp_path / "zone"
    for name in ("snapshots", "volumes", "images"):
        (folder / name).mkdir(parents=True)
    (folder / "snapshots" / file_name("ss-evil")).write_bytes(b"\x00" * 5000)
    (folder / "snapshots" / "ss-..-.snap").write_bytes(b"SNAPMCP\x01" + b"\xff" * 500)
    report = rebuild(folder)
    assert report.taken_in == ()
    assert len(report.findings) == 2


@pytest.mark.parametrize("has_catalogue", [True, False])
async def test_a_zone_of_the_first_promised_format_opens_for_ever(tmp_path: Path, has_catalogue: bool) -> None:
    """Kept as it was written; the folders that Git does not keep are made again."""
    kept = Path(__file__).parent / "data" / "first-promised-zone"
    folder = tmp_path / "zone"
    shutil.copytree(kept, folder)
    for name in ("volumes", "images"):
        (folder / name).mkdir(exist_ok=True)
    zone = LocalZone(folder)
    if not has_catalogue:
        (folder / CATALOGUE).unlink()
        assert len((await zone.rebuild()).taken_in) == 4
    there = await available(zone)
    names = sorted(one.snapshot_name for one in there.values())
    assert names == (
        ["full", "renamed", "second full"] if has_catalogue else ["deleted", "full", "incremental", "second full"]
    )
    for one, digest in json.loads((folder / "sums.json").read_text()).items():
        assert hashlib.sha256(await restored(zone, one)).hexdigest() == digest
    assert not [one for one in (await zone.check()).findings if one.is_damage]
    await zone.aclose()
    await kill_worker(folder)


async def test_a_pipe_among_the_snapshot_files_holds_up_nobody(local_zone: LocalZone, tmp_path: Path) -> None:
    _, _, contents = await chain(local_zone, tmp_path)
    os.mkfifo(local_zone.folder / "snapshots" / "ss-pipe0000.snap")
    assert (await local_zone.look_over()).stray_ids == ()
    assert not (await rebuilt(local_zone)).has_changed
    assert set(await available(local_zone)) == set(contents)


@pytest.mark.parametrize(
    "time", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00", "1969-01-01T00:00:00Z", "no"]
)
def test_a_time_that_cannot_be_shown_is_none(time: str) -> None:
    """A list that held such a snapshot was a traceback."""
    with pytest.raises(ValueError, match=r"time|isoformat"):
        _seconds(time)
