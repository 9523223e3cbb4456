"""`zone move`: a disk's chain goes on with its file at another path, and with another disk's file only by a person's word."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from snapshot_mcp import app
from snapshot_mcp.contract.errors import BadRequest, NotFound, NotUsable, ResourceBusy, TermsChanged, ZoneError
from snapshot_mcp.contract.models import ResourceFilter, SnapshotFilter
from snapshot_mcp.contract.states import ResourceType
from snapshot_mcp.providers.local import LocalZone
from snapshot_mcp.providers.local.folder import FolderCatalogue
from snapshot_mcp.providers.local.identity import identity_at
from snapshot_mcp.providers.local.snapshot_file.format import compress
from tests.conftest import end_worker
from tests.disks import MIB, back_up, change, get, make_image, succeed
from tests.guard.test_person import in_terminal
from tests.guard.test_record import command, records
from tests.guard.test_terminal import PIN
from tests.local.test_in_use import holder
from tests.server.lab import Lab
from tests.whole_way.workers import Nursery

pytestmark = pytest.mark.anyio

CHUNK = 64 << 10


@pytest.fixture
def lab(tmp_path: Path, nursery: Nursery) -> Iterator[Lab]:
    yield Lab(tmp_path, nursery=nursery)
    end_worker(tmp_path / "home" / "zones" / "local")
    shutil.rmtree(tmp_path / "home", ignore_errors=True)


async def a_disk(zone: LocalZone, folder: Path, name: str = "db", size_bytes: int = 2 * MIB, seed: int = 1) -> Path:
    """A registered disk with one restore point."""
    image = make_image(folder / f"{name}.img", size_bytes, seed)
    volume = await zone.add_resource(image, name)
    await back_up(zone, volume.id, "first")
    return image


async def id_of(zone: LocalZone, name: str = "db") -> str:
    return next(one.id for one in (await zone.list_volumes(ResourceFilter())).items if one.name == name)


async def path_of(zone: LocalZone, name: str = "db") -> str | None:
    return next(one.path for one in (await zone.list_volumes(ResourceFilter())).items if one.name == name)


async def move(zone: LocalZone, path: Path, name: str = "db") -> None:
    """Move a disk whose file is beyond doubt."""
    plan = await zone.plan_move(await id_of(zone, name), path)
    assert plan.doubts == ()
    await zone.move_resource(plan)


async def assert_the_next_backup_is_right(zone: LocalZone, image: Path) -> None:
    """Incremental and right to the byte; and a roll-back to each restore point goes to the new path alone."""
    disk, held = await id_of(zone), image.read_bytes()
    latest = await back_up(zone, disk, "after")
    assert (await get(zone, latest)).parent_id != "self"
    for point in (await zone.list_snapshots(SnapshotFilter(resource_id=disk))).items:
        job = await succeed(zone, await zone.create_volume(point.snapshot_id, "copy"))
        expected = Path(job.details["path"]).read_bytes()
        assert point.snapshot_id != latest or expected == held
        await succeed(zone, await zone.apply_snapshots([point.snapshot_id]))
        assert image.read_bytes() == expected


async def test_a_moved_file_keeps_its_chain(local_zone: LocalZone, tmp_path: Path) -> None:
    """To another folder, and back; what was written meanwhile is in the next backup."""
    image = await a_disk(local_zone, tmp_path)
    (tmp_path / "new").mkdir()
    moved = image.rename(tmp_path / "new" / "db.raw")
    plan = await local_zone.plan_move(await id_of(local_zone), moved)
    assert str(plan.likeness).endswith("(100 %)")
    assert (await local_zone.move_resource(plan)).path == str(moved)
    change(moved, 3 * CHUNK)
    image.write_bytes(b"something else of the owner's")
    await assert_the_next_backup_is_right(local_zone, moved)
    assert image.read_bytes() == b"something else of the owner's"
    moved.replace(image)
    await move(local_zone, image)
    assert await path_of(local_zone) == str(image)
    assert (await get(local_zone, await back_up(local_zone, await id_of(local_zone)))).parent_id != "self"


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs a second filesystem")
async def test_a_file_that_was_copied_to_another_filesystem_keeps_its_chain(
    local_zone: LocalZone, tmp_path: Path
) -> None:
    """The old file may still be there: it is named, and left alone. Grown is as good as of the same size."""
    image = await a_disk(local_zone, tmp_path)
    before = image.read_bytes()
    copy = Path("/dev/shm") / f"{tmp_path.name}-{os.getpid()}.img"
    shutil.copyfile(image, copy)
    try:
        os.truncate(copy, 3 * MIB)
        change(copy, CHUNK)
        plan = await local_zone.plan_move(await id_of(local_zone), copy)
        assert (plan.doubts, [note.split(":")[0].split(" '")[0] for note in plan.notes]) == (
            (),
            ["It has grown from 2.0 MiB to 3.0 MiB.", "The file at the old path"],
        )
        await local_zone.move_resource(plan)
        await assert_the_next_backup_is_right(local_zone, copy)
        assert image.read_bytes() == before
    finally:
        copy.unlink()


async def test_another_file_is_backed_up_right_too_once_a_person_took_it(local_zone: LocalZone, tmp_path: Path) -> None:
    image = await a_disk(local_zone, tmp_path)
    other = make_image(tmp_path / "other.img", 3 * MIB // 2, seed=7)
    plan = await local_zone.plan_move(await id_of(local_zone), other)
    assert len(plan.doubts) == 2
    await local_zone.move_resource(plan)
    before = image.read_bytes()
    await assert_the_next_backup_is_right(local_zone, other)
    assert image.read_bytes() == before


@pytest.mark.parametrize(("equal", "is_alike"), [(16, True), (8, True), (7, False), (0, False)])
async def test_half_of_the_chunks_decide(equal: int, is_alike: bool, local_zone: LocalZone, tmp_path: Path) -> None:
    """Of those that hold data: that the rest is empty in both says nothing."""
    image = tmp_path / "db.img"
    image.write_bytes(os.urandom(16 * CHUNK))
    os.truncate(image, 256 * CHUNK)
    volume = await local_zone.add_resource(image, "db")
    await back_up(local_zone, volume.id)
    other = tmp_path / "other.img"
    other.write_bytes(image.read_bytes()[: equal * CHUNK])
    os.truncate(other, 256 * CHUNK)
    plan = await local_zone.plan_move(volume.id, other)
    assert str(plan.likeness) == f"{equal} of 16 chunks ({100 * equal // 16} %)"
    assert (not plan.doubts) == is_alike


async def test_of_an_empty_disk_the_empty_chunks_count(local_zone: LocalZone, tmp_path: Path) -> None:
    for name, written in (("db", 0), ("blank", 0), ("full", 4 * MIB)):
        (tmp_path / f"{name}.img").write_bytes(os.urandom(written))
        os.truncate(tmp_path / f"{name}.img", 4 * MIB)
    volume = await local_zone.add_resource(tmp_path / "db.img", "db")
    await back_up(local_zone, volume.id)
    assert not (await local_zone.plan_move(volume.id, tmp_path / "blank.img")).doubts
    assert str((await local_zone.plan_move(volume.id, tmp_path / "full.img")).likeness) == "0 of 64 chunks (0 %)"


async def test_what_cannot_be_compared_is_in_doubt(local_zone: LocalZone, tmp_path: Path) -> None:
    """A disk without a restore point, and one whose restore point is damaged; a deleted one still says what the disk is."""
    bare = await local_zone.add_resource(make_image(tmp_path / "bare.img", MIB), "bare")
    (tmp_path / "bare.img").rename(tmp_path / "bare-2.img")
    (doubt,) = (await local_zone.plan_move(bare.id, tmp_path / "bare-2.img")).doubts
    assert "has no restore point" in doubt
    image = await a_disk(local_zone, tmp_path)
    disk = await id_of(local_zone)
    (point,) = (await local_zone.list_snapshots(SnapshotFilter(resource_id=disk))).items
    await succeed(local_zone, await local_zone.delete_snapshot(point.snapshot_id))
    plan = await local_zone.plan_move(disk, image.rename(tmp_path / "moved.img"))
    assert (plan.doubts, plan.snapshot_id) == ((), point.snapshot_id)
    stored = local_zone.folder / "snapshots" / f"{point.snapshot_id}.snap"
    stored.chmod(0o600)
    stored.write_bytes(stored.read_bytes()[:-1])
    (doubt,) = (await local_zone.plan_move(disk, tmp_path / "moved.img")).doubts
    assert "could not be compared" in doubt


def a_link(folder: Path) -> Path:
    (folder / "link.img").symlink_to(folder / "moved.img")
    return folder / "link.img"


def an_image_that_wraps_it(folder: Path) -> Path:
    (folder / "disk.zst").write_bytes(compress((folder / "moved.img").read_bytes() * 2)[1])
    return folder / "disk.zst"


def a_pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


def an_empty_file(folder: Path) -> Path:
    (folder / "empty.img").touch()
    return folder / "empty.img"


def a_hard_link(folder: Path) -> Path:
    (folder / "hard.img").hardlink_to(folder / "web.img")
    return folder / "hard.img"


REFUSED: dict[str, tuple[Callable[[Path], Path], type[ZoneError], str]] = {
    "nothing": (lambda folder: folder / "nowhere.img", BadRequest, "does not exist"),
    "a directory": (lambda folder: folder, BadRequest, "is a directory"),
    "a pipe": (a_pipe, BadRequest, "is a named pipe"),
    "a link": (a_link, BadRequest, "is a symbolic link to '.*moved.img'"),
    "an empty file": (an_empty_file, BadRequest, "is empty"),
    "another disk": (lambda folder: folder / "web.img", BadRequest, "already registered as volume “web”"),
    "another disk's other name": (a_hard_link, BadRequest, "already registered as volume “web”"),
    "the catalogue": (lambda folder: zone_of(folder) / "catalogue.sqlite", BadRequest, "belongs to the zone itself"),
    "a snapshot": (lambda folder: next((zone_of(folder) / "snapshots").glob("*.snap")), BadRequest, "zone itself"),
    "an exported volume": (lambda folder: next((zone_of(folder) / "volumes").iterdir()), BadRequest, "own folder"),
    "a packed copy": (an_image_that_wraps_it, BadRequest, "is a zstd file, not a raw disk image"),
}


def zone_of(folder: Path) -> Path:
    return folder / "home" / "zones" / "local"


async def test_what_a_disk_cannot_be_moved_to(local_zone: LocalZone, tmp_path: Path) -> None:
    """Each is refused before anything is read, and nothing has changed."""
    image = await a_disk(local_zone, tmp_path)
    await a_disk(local_zone, tmp_path, "web", MIB, seed=3)
    (point,) = (await local_zone.list_snapshots(SnapshotFilter(resource_id=await id_of(local_zone)))).items
    exported = await succeed(local_zone, await local_zone.create_volume(point.snapshot_id, "copy"))
    await local_zone.remove_resource(exported.resource_ids[0])
    image.rename(tmp_path / "moved.img")
    for make, error, says in REFUSED.values():
        with pytest.raises(error, match=says):
            await local_zone.plan_move(await id_of(local_zone), make(tmp_path))
    with pytest.raises(NotFound):
        await local_zone.plan_move("vol-nowhere", tmp_path / "moved.img")
    assert await path_of(local_zone) == str(image)
    await move(local_zone, tmp_path / "moved.img")
    with pytest.raises(BadRequest, match="already"):
        await local_zone.plan_move(await id_of(local_zone), tmp_path / "moved.img")


async def test_a_disk_is_not_moved_while_a_job_has_it(
    unused_zone: LocalZone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("snapshot_mcp.providers.local.zone.ensure_worker", lambda folder, program: None)
    image = make_image(tmp_path / "db.img", MIB)
    volume = await unused_zone.add_resource(image, "db")
    shutil.copyfile(image, tmp_path / "copy.img")
    plan = await unused_zone.plan_move(volume.id, tmp_path / "copy.img")
    job = await unused_zone.create_snapshots([volume.id], "")
    for refused in (unused_zone.plan_move(volume.id, tmp_path / "copy.img"), unused_zone.move_resource(plan)):
        with pytest.raises(ResourceBusy, match=job.job_id):
            await refused


async def test_a_disk_is_not_moved_to_a_copy_while_a_program_writes_to_the_file_itself(
    local_zone: LocalZone, tmp_path: Path
) -> None:
    """The machine would go on with the one, and the backups with the other."""
    image = await a_disk(local_zone, tmp_path)
    shutil.copyfile(image, tmp_path / "copy.img")
    with (
        holder(f"f = os.open({str(image)!r}, os.O_RDWR)"),
        pytest.raises(ResourceBusy, match="has it open for writing"),
    ):
        await local_zone.plan_move(await id_of(local_zone), tmp_path / "copy.img")
    with holder(f"f = os.open({str(tmp_path / 'copy.img')!r}, os.O_RDWR)"):
        plan = await local_zone.plan_move(await id_of(local_zone), tmp_path / "copy.img")
        assert "has it open for writing" in plan.notes[-1]
        await local_zone.move_resource(plan)


async def test_what_changed_since_the_comparison_is_not_moved(local_zone: LocalZone, tmp_path: Path) -> None:
    """What a person agreed to is what happens: the file, its size, the disk's path and its newest restore point."""
    image = await a_disk(local_zone, tmp_path)
    disk = await id_of(local_zone)
    copy, other = tmp_path / "copy.img", tmp_path / "other.img"
    for path in (copy, other):
        shutil.copyfile(image, path)
    plan = await local_zone.plan_move(disk, copy)
    await back_up(local_zone, disk)
    with pytest.raises(TermsChanged):
        await local_zone.move_resource(plan)
    plan = await local_zone.plan_move(disk, copy)
    os.truncate(copy, MIB)
    with pytest.raises(TermsChanged):
        await local_zone.move_resource(plan)
    plan = await local_zone.plan_move(disk, other)
    copy.replace(other)
    with pytest.raises(TermsChanged):
        await local_zone.move_resource(plan)
    other.rename(copy)
    other.symlink_to(copy)
    with pytest.raises(BadRequest, match="is now a symbolic link"):
        await local_zone.move_resource(plan)
    assert await path_of(local_zone) == str(image)


async def test_two_disks_that_changed_places_are_moved_over_a_third_path(local_zone: LocalZone, tmp_path: Path) -> None:
    """Neither can be moved to the other's path while that is registered, so neither goes on with the other's chain."""
    one, two = await a_disk(local_zone, tmp_path, "db"), await a_disk(local_zone, tmp_path, "web", seed=5)
    aside = tmp_path / "aside.img"
    one.rename(aside), two.rename(one), aside.rename(two)
    with pytest.raises(BadRequest, match="already registered as volume “web”"):
        await local_zone.plan_move(await id_of(local_zone, "db"), two)
    two.rename(aside)
    await move(local_zone, aside, "db")
    await move(local_zone, one, "web")
    aside.rename(two)
    await move(local_zone, two, "db")
    assert (await path_of(local_zone, "db"), await path_of(local_zone, "web")) == (str(two), str(one))


async def test_an_exported_volume_can_leave_the_zones_folder_and_return(local_zone: LocalZone, tmp_path: Path) -> None:
    await a_disk(local_zone, tmp_path)
    (point,) = (await local_zone.list_snapshots(SnapshotFilter())).items
    job = await succeed(local_zone, await local_zone.create_volume(point.snapshot_id, "copy"))
    path, disk = Path(job.details["path"]), job.resource_ids[0]
    await back_up(local_zone, disk)
    path.rename(tmp_path / "out.img")
    await move(local_zone, tmp_path / "out.img", "copy")
    (tmp_path / "out.img").rename(path)
    await move(local_zone, path, "copy")
    assert await path_of(local_zone, "copy") == str(path)


async def test_a_half_overwritten_disk_is_moved_as_that_very_file_only(local_zone: LocalZone, tmp_path: Path) -> None:
    """A copy of it would be called whole."""
    image = await a_disk(local_zone, tmp_path)
    disk = await id_of(local_zone)
    (point,) = (await local_zone.list_snapshots(SnapshotFilter(resource_id=disk))).items
    with FolderCatalogue(local_zone.folder) as catalogue:
        catalogue.db.execute(
            "UPDATE resources SET applying_id = ?, applying_identity = ?, is_stopped = 1, problem = 'interrupted'",
            (point.snapshot_id, str(identity_at(image))),
        )
    shutil.copyfile(image, tmp_path / "copy.img")
    with pytest.raises(NotUsable, match="is unfinished, and the file"):
        await local_zone.plan_move(disk, tmp_path / "copy.img")
    await move(local_zone, image.rename(tmp_path / "moved.img"))
    (found,) = (await local_zone.list_volumes(ResourceFilter())).items
    assert found.status == "pending"
    with pytest.raises(NotUsable, match="unfinished"):
        await local_zone.create_snapshots([disk], "")


# the command


@pytest.mark.long
async def test_the_command_moves_by_name_shows_the_share_and_records_it(lab: Lab) -> None:
    """Without a terminal, since nothing is in doubt."""
    disk = await lab.add_disk("pg-data")
    zone = app.open_local_zone(lab.settings)
    point = await back_up(zone, disk.id)
    await zone.aclose()
    assert disk.path
    moved = Path(disk.path).rename(lab.folder / "moved.img")
    done = await command(lab, "zone", "move", "pg-data", str(moved))
    assert done.returncode == 0, done.stderr
    assert f"Equal to its restore point {point}: 32 of 32 chunks (100 %)" in done.stdout
    assert f"volume “pg-data” ({disk.id}) is at {moved} now. The next backup stores what differs." in done.stdout
    (begun,), (ended,) = records(lab, "zone move"), records(lab, "ended")
    assert begun["arguments"] == {
        "resource_id": disk.id,
        "old_path": disk.path,
        "path": str(moved),
        "compared_with": point,
        "equal": "32 of 32 chunks (100 %)",
    }
    assert (begun["door"], begun["by"], ended["status"]) == ("command line", Path.home().owner(), "successful")
    shown = " ".join((await command(lab, "audit")).stdout.split())
    assert f"zone move {disk.id} from “" in shown
    assert "equal “32 of 32 chunks (100 %)” in local" in shown


@pytest.mark.long
async def test_a_file_in_doubt_takes_a_persons_word(lab: Lab) -> None:
    """No flag and no pipe says yes; the word and the PIN do, and the share that was shown is in the record."""
    disk = await lab.add_disk("pg-data")
    zone = app.open_local_zone(lab.settings)
    await back_up(zone, disk.id)
    await zone.aclose()
    other = lab.image("other")
    words = ["zone", "move", disk.id, str(other)]
    done = await command(lab, *words)
    assert (done.returncode, "`zone move` needs a terminal. Only 0 of 32 chunks (0 %) of" in done.stderr) == (1, True)
    for flag in ("--yes", "--force"):
        assert (await command(lab, *words, flag)).returncode == 2
    status, shown = await in_terminal(lab, words, ("Type move to agree", "yes"))
    assert (status, "Not confirmed: nothing was done." in shown) == (1, True)
    assert [one["arguments"]["path"] for one in records(lab, "declined")] == [str(other)]
    own = await command(lab, "zone", "move", disk.id, str(lab.home / "zones" / ".." / "guard.sqlite"))
    assert (own.returncode, "keeps its own files" in own.stderr) == (1, True)
    await app.build_guard(lab.settings).set_pin(PIN)
    status, shown = await in_terminal(lab, words, ("Only 0 of 32 chunks (0 %)", "move"), ("PIN", PIN))
    assert status == 0, shown
    (begun,) = records(lab, "zone move")
    assert (begun["arguments"]["equal"], begun["door"]) == ("0 of 32 chunks (0 %)", "terminal")
    zone = app.open_local_zone(lab.settings)
    assert await path_of(zone, "pg-data") == str(other)
    await zone.aclose()


@pytest.mark.long
async def test_a_strict_zone_needs_the_pin_for_a_file_in_doubt(lab: Lab) -> None:
    disk = await lab.add_disk("pg-data")
    (lab.folder / "config.toml").write_text('[guard]\nconsent = "human"\n')
    status, shown = await in_terminal(lab, ["zone", "move", "pg-data", str(lab.image("other"))])
    assert (status, "needs a PIN in this zone" in shown) == (1, True)
    assert disk.path == str(lab.folder / "pg-data.img")


@pytest.mark.long
async def test_a_file_that_was_moved_and_registered_again_leads_to_the_move(lab: Lab) -> None:
    """Registered anew it would have a chain of its own, and the old one would end without a word."""
    disk = await lab.add_disk("pg-data")
    zone = app.open_local_zone(lab.settings)
    await back_up(zone, disk.id)
    await zone.aclose()
    assert disk.path
    moved = Path(disk.path).rename(lab.folder / "moved.img")
    added = await command(lab, "zone", "add", str(moved))
    new_id = added.stdout.split()[0]
    assert f"pg-data ({disk.id}) has no file at its path." in added.stderr
    for line in (f"zone remove {new_id}\n", f"zone move {disk.id} {moved}\n"):
        assert line in added.stderr
    done = await command(lab, "zone", "move", disk.id, str(moved))
    assert (done.returncode, f"`zone remove {new_id}` unregisters it" in done.stderr) == (1, True)
    assert (await command(lab, "zone", "remove", new_id)).returncode == 0
    assert (await command(lab, "zone", "move", disk.id, str(moved))).returncode == 0
    quiet = await command(lab, "zone", "add", str(lab.image("other")))
    assert (quiet.returncode, quiet.stderr) == (0, "")


async def test_a_name_that_several_disks_have_is_refused_with_their_ids(lab: Lab) -> None:
    one = await lab.add_disk("db", file_name="one")
    two = await lab.add_disk("db", kind=ResourceType.INSTANCE, file_name="two")
    done = await command(lab, "zone", "move", "db", str(lab.image("other")))
    assert (done.returncode, one.id in done.stderr, two.id in done.stderr) == (1, True, True)
