"""`zone remove`: by name, images too; `--delete-file` deletes what the zone itself made, by a person's word, and nothing else."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from snapshot_mcp import app
from snapshot_mcp.contract.errors import BadRequest, NotFound, NotUsable, ResourceBusy, TermsChanged
from snapshot_mcp.contract.models import ResourceFilter
from snapshot_mcp.contract.states import ResourceType
from snapshot_mcp.providers.local import LocalZone, own_file
from snapshot_mcp.providers.local.own_file import DoomedFile
from tests.conftest import end_worker
from tests.disks import MIB, back_up, make_image, succeed
from tests.guard.test_person import in_terminal
from tests.guard.test_record import command, records
from tests.guard.test_terminal import PIN
from tests.local.test_in_use import holder
from tests.marks import long
from tests.server.lab import Lab
from tests.whole_way.workers import Nursery

pytestmark = pytest.mark.anyio

YES = ("Type delete to agree", "delete")


class Made(NamedTuple):
    """What an export made, and the snapshot that it was made from."""

    id: str
    path: Path
    snapshot_id: str


@pytest.fixture
def lab(tmp_path: Path, nursery: Nursery) -> Iterator[Lab]:
    yield Lab(tmp_path, nursery=nursery)
    end_worker(tmp_path / "home" / "zones" / "local")
    shutil.rmtree(tmp_path / "home", ignore_errors=True)


async def export(zone: LocalZone, folder: Path, kind: ResourceType = ResourceType.VOLUME, name: str = "copy") -> Made:
    """Back up a new disk and export it, to a volume or to an image."""
    image = make_image(folder / f"source of {name}.img", MIB)
    disk = await zone.add_resource(image, f"source of {name}", kind)
    snapshot_id = await back_up(zone, disk.id)
    to = zone.create_volume if kind == ResourceType.VOLUME else zone.capture_instance
    job = await succeed(zone, await to(snapshot_id, name))
    return Made(job.resource_ids[0], Path(job.details["path"]), snapshot_id)


async def listed(zone: LocalZone) -> set[str]:
    volumes, instances = await zone.list_volumes(ResourceFilter()), await zone.list_instances(ResourceFilter())
    images = await zone.list_images(ResourceFilter())
    return {one.id for one in (*volumes.items, *instances.items, *images.items)}


@pytest.mark.parametrize("kind", [ResourceType.VOLUME, ResourceType.INSTANCE])
async def test_what_an_export_made_is_deleted_and_off_the_list(
    kind: ResourceType, local_zone: LocalZone, tmp_path: Path
) -> None:
    made = await export(local_zone, tmp_path, kind)
    file = await local_zone.look_at_own_file(made.id)
    assert (file.made_from, file.is_restorable, file.size_bytes) == (made.snapshot_id, True, MIB)
    await local_zone.delete_own_file(file)
    assert not made.path.exists()
    assert made.id not in await listed(local_zone)
    assert (tmp_path / "source of copy.img").exists()
    with pytest.raises(NotFound):
        await local_zone.look_at_own_file(made.id)


async def test_a_volume_that_was_registered_again_is_still_what_the_zone_made(
    local_zone: LocalZone, tmp_path: Path
) -> None:
    made = await export(local_zone, tmp_path)
    await local_zone.remove_resource(made.id)
    again = await local_zone.add_resource(made.path)
    file = await local_zone.look_at_own_file(again.id)
    assert (file.made_from, file.is_restorable) == (made.snapshot_id, True)
    await local_zone.delete_own_file(file)
    assert not made.path.exists()


async def test_what_nothing_can_make_again_is_told_apart(local_zone: LocalZone, tmp_path: Path) -> None:
    """It was written to, or its snapshot is gone."""
    made = await export(local_zone, tmp_path)
    with made.path.open("r+b") as file:
        file.write(b"new")
    assert not (await local_zone.look_at_own_file(made.id)).is_restorable
    other = await export(local_zone, tmp_path, name="other")
    await succeed(local_zone, await local_zone.delete_snapshot(other.snapshot_id))
    assert not (await local_zone.look_at_own_file(other.id)).is_restorable


# what is never deleted


def swap_for_a_link(path: Path) -> None:
    path.rename(path.with_suffix(".aside"))
    path.symlink_to(path.with_suffix(".aside"))


def swap_for_a_link_to_a_users_file(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.parents[4] / "source of copy.img")


def swap_for_a_users_file(path: Path) -> None:
    """Without opening the one that is there, which may be held."""
    path.with_suffix(".new").write_bytes(bytes(MIB))
    path.with_suffix(".new").replace(path)


def swap_the_folder(path: Path) -> None:
    path.parent.rename(path.parents[4] / "elsewhere")
    path.parent.symlink_to(path.parents[4] / "elsewhere")


SWAPS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a link": (swap_for_a_link, "is now a symbolic link"),
    "a link to a user's file": (swap_for_a_link_to_a_users_file, "is now a symbolic link"),
    "a user's file": (swap_for_a_users_file, "Nothing shows that an export"),
    "the folder": (swap_the_folder, "The zone's folder .* is now a symbolic link"),
    "nothing": (Path.unlink, "cannot be deleted: No such file"),
}


@pytest.mark.parametrize("kind", [ResourceType.VOLUME, ResourceType.INSTANCE])
@pytest.mark.parametrize("swap", SWAPS)
async def test_what_took_the_files_place_is_never_deleted(
    swap: str, kind: ResourceType, local_zone: LocalZone, tmp_path: Path
) -> None:
    """Neither when it is looked at, nor between the yes and the act."""
    make, says = SWAPS[swap]
    made = await export(local_zone, tmp_path, kind)
    agreed = await local_zone.look_at_own_file(made.id)
    make(made.path)
    for refused in (local_zone.look_at_own_file(made.id), local_zone.delete_own_file(agreed)):
        with pytest.raises((BadRequest, NotUsable), match=says):
            await refused
    assert swap == "nothing" or made.path.exists()
    assert (tmp_path / "source of copy.img").exists()
    assert made.id in await listed(local_zone)
    if swap == "the folder":
        made.path.parent.unlink()


async def test_the_file_of_another_volume_in_its_place_is_kept(local_zone: LocalZone, tmp_path: Path) -> None:
    """The other has restore points of its own, and its file was moved here."""
    made, other = await export(local_zone, tmp_path), await export(local_zone, tmp_path, name="other")
    await back_up(local_zone, other.id)
    other.path.rename(made.path)
    with pytest.raises(NotUsable, match=f"is that of {other.id}"):
        await local_zone.look_at_own_file(made.id)
    assert made.path.exists()


async def test_a_file_that_is_swapped_at_the_last_moment_is_not_unlinked(local_zone: LocalZone, tmp_path: Path) -> None:
    """The name is compared with the file that is held."""
    made = await export(local_zone, tmp_path)
    with DoomedFile(str(made.path), "it") as doomed:
        swap_for_a_users_file(made.path)
        with pytest.raises(TermsChanged):
            doomed.unlink()
    with DoomedFile(str(made.path), "it") as doomed:
        swap_the_folder(made.path)
        with pytest.raises(OSError, match="Not a directory"):
            doomed.unlink()
    assert made.path.exists()
    made.path.parent.unlink()


async def test_a_users_own_file_is_never_deleted(local_zone: LocalZone, tmp_path: Path) -> None:
    """Wherever it is: also one that was put into the zone's folder, and a volume that was moved out of it."""
    made = await export(local_zone, tmp_path)
    users = await local_zone.add_resource(make_image(tmp_path / "users.img", MIB))
    inside = await local_zone.add_resource(make_image(local_zone.folder / "volumes" / "users.raw", MIB))
    made.path.rename(tmp_path / "out.img")
    await local_zone.move_resource(await local_zone.plan_move(made.id, tmp_path / "out.img"))
    for disk, says in ((users.id, "is not in the zone"), (inside.id, "Nothing shows"), (made.id, "is not in the zone")):
        with pytest.raises(BadRequest, match=says):
            await local_zone.look_at_own_file(disk)
    assert {path.name for path in tmp_path.glob("*.img")} >= {"users.img", "out.img"}


async def test_a_volume_with_restore_points_of_its_own_is_kept(local_zone: LocalZone, tmp_path: Path) -> None:
    """Deleted ones count until they can no longer be recovered; and one that was taken after the yes."""
    made = await export(local_zone, tmp_path)
    agreed = await local_zone.look_at_own_file(made.id)
    own = await back_up(local_zone, made.id)
    refused: list[Callable[[], object]] = [lambda: local_zone.look_at_own_file(made.id)]
    refused.append(lambda: local_zone.delete_own_file(agreed))
    for one in refused:
        with pytest.raises(NotUsable, match="has restore points of its own"):
            await one()  # type: ignore[misc]
    await succeed(local_zone, await local_zone.delete_snapshot(own))
    with pytest.raises(NotUsable, match="has restore points of its own"):
        await local_zone.look_at_own_file(made.id)
    await local_zone.purge()
    await local_zone.delete_own_file(await local_zone.look_at_own_file(made.id))
    assert not made.path.exists()


OPENED = {
    "read": "f = os.open({path!r}, os.O_RDONLY)",
    "written": "f = os.open({path!r}, os.O_RDWR)",
    "mapped": "import mmap; f = os.open({path!r}, os.O_RDWR); m = mmap.mmap(f, 0); os.close(f)",
    "leased": "f = os.open({path!r}, os.O_RDONLY); fcntl.fcntl(f, fcntl.F_SETLEASE, fcntl.F_RDLCK)",
}


@pytest.mark.parametrize("use", OPENED)
async def test_a_file_that_is_open_elsewhere_is_kept(use: str, local_zone: LocalZone, tmp_path: Path) -> None:
    made = await export(local_zone, tmp_path)
    agreed = await local_zone.look_at_own_file(made.id)
    with holder(OPENED[use].format(path=str(made.path))) as process:
        for refused in (local_zone.look_at_own_file(made.id), local_zone.delete_own_file(agreed)):
            with pytest.raises(ResourceBusy, match="is in use and cannot be deleted"):
                await refused
        assert process.poll() is None
    await local_zone.delete_own_file(agreed)


CHANGES: dict[str, Callable[[Path], object]] = {
    "written": lambda path: path.write_bytes(b"x" * MIB),
    "grown": lambda path: os.truncate(path, 2 * MIB),
    "linked": lambda path: path.with_suffix(".other").hardlink_to(path),
}


@pytest.mark.parametrize("kind", CHANGES)
async def test_what_changed_since_the_yes_is_kept(kind: str, local_zone: LocalZone, tmp_path: Path) -> None:
    """ "…still true at the moment the first byte changes": also that it can be exported again."""
    made = await export(local_zone, tmp_path)
    agreed = await local_zone.look_at_own_file(made.id)
    CHANGES[kind](made.path)
    with pytest.raises(TermsChanged):
        await local_zone.delete_own_file(agreed)
    await local_zone.delete_own_file(await local_zone.look_at_own_file(made.id))
    other = await export(local_zone, tmp_path, name="other")
    agreed = await local_zone.look_at_own_file(other.id)
    await succeed(local_zone, await local_zone.delete_snapshot(other.snapshot_id))
    with pytest.raises(TermsChanged):
        await local_zone.delete_own_file(agreed)


async def test_a_kill_between_the_file_and_the_list_leaves_a_row_that_says_so(
    local_zone: LocalZone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FORMAT.md, "Deleting an export": it can be taken off the list as any disk whose file is gone."""
    made = await export(local_zone, tmp_path)
    agreed = await local_zone.look_at_own_file(made.id)

    def killed(*_: object) -> None:
        raise RuntimeError("killed")

    monkeypatch.setattr(own_file, "take_off_list", killed)
    with pytest.raises(RuntimeError, match="killed"):
        await local_zone.delete_own_file(agreed)
    (found,) = [one for one in (await local_zone.list_volumes(ResourceFilter())).items if one.id == made.id]
    assert "its file cannot be read: No such file" in (found.problem or "")
    await local_zone.remove_resource(made.id)
    assert made.id not in await listed(local_zone)


# the command


async def exported(lab: Lab, kind: ResourceType = ResourceType.VOLUME, name: str = "copy") -> Made:
    zone = app.open_local_zone(lab.settings)
    lab.home.mkdir(exist_ok=True)
    disk = await lab.add_disk(f"source of {name}", kind=kind)
    snapshot_id = await back_up(zone, disk.id)
    to = zone.create_volume if kind == ResourceType.VOLUME else zone.capture_instance
    job = await succeed(zone, await to(snapshot_id, name))
    await zone.aclose()
    return Made(job.resource_ids[0], Path(job.details["path"]), snapshot_id)


@pytest.mark.long
async def test_disks_and_images_are_removed_by_name_and_their_files_stay(lab: Lab) -> None:
    """As the tools take a name; one that several have is refused with their ids, one in another case leads to it."""
    volume = await exported(lab)
    image = await exported(lab, ResourceType.INSTANCE, "golden")
    assert (
        f"{image.id}  golden  2.0 MiB  {image.path}  (an exported image)" in (await command(lab, "zone", "list")).stdout
    )
    done = await command(lab, "zone", "remove", "COPY")
    assert (done.returncode, f"Similar names: {volume.id} (“copy”" in done.stderr) == (1, True)
    for name, made in (("golden", image), ("copy", volume)):
        done = await command(lab, "zone", "remove", name)
        assert (done.returncode, made.id in done.stdout, made.path.exists()) == (0, True, True)
    assert [one["arguments"] for one in records(lab, "zone remove")] == [
        {"resource_id": image.id},
        {"resource_id": volume.id},
    ]
    one, two = await lab.add_disk("db", file_name="1"), await exported(lab, ResourceType.INSTANCE, "db")
    done = await command(lab, "zone", "remove", "db")
    assert (done.returncode, one.id in done.stderr, two.id in done.stderr) == (1, True, True)
    done = await command(lab, "zone", "remove", "nothing like it")
    assert (done.returncode, "zone list` shows the ids." in done.stderr) == (1, True)


async def test_a_person_deletes_the_file_with_a_word_and_it_is_recorded(lab: Lab) -> None:
    """No flag and no pipe says yes; another word is a no."""
    made = await exported(lab)
    words = ["zone", "remove", "copy", "--delete-file"]
    done = await command(lab, *words)
    assert (done.returncode, "needs a terminal." in done.stderr, made.path.exists()) == (1, True, True)
    assert (await command(lab, *words, "--yes")).returncode == 2
    status, shown = await in_terminal(lab, words, ("Type delete to agree", "yes"))
    assert (status, "Not confirmed: nothing was done." in shown, made.path.exists()) == (1, True, True)
    await app.build_guard(lab.settings).set_pin(PIN)
    status, shown = await in_terminal(lab, words, (f"exported again from {made.snapshot_id}", "delete"), ("PIN", PIN))
    assert (status, made.path.exists()) == (0, False), shown
    (begun,), (ended,) = records(lab, "zone remove --delete-file"), records(lab, "ended")
    assert {key: begun["arguments"][key] for key in ("resource_id", "path", "size_bytes")} == {
        "resource_id": made.id,
        "path": str(made.path),
        "size_bytes": 2 * MIB,
    }
    assert (begun["door"], ended["status"], begun["by"]) == ("terminal", "successful", Path.home().owner())


@pytest.mark.long
async def test_what_nothing_can_restore_takes_the_typed_id(lab: Lab) -> None:
    made = await exported(lab, ResourceType.INSTANCE, "golden")
    await lab.delete(made.snapshot_id)
    words = ["zone", "remove", "golden", "--delete-file"]
    status, shown = await in_terminal(lab, words, ("Nothing can restore it", "delete"))
    assert (status, made.path.exists()) == (1, True), shown
    status, shown = await in_terminal(lab, words, (f"Type {made.id} to agree", made.id))
    assert (status, made.path.exists()) == (0, False), shown


@pytest.mark.parametrize(
    "rules", ['protect = { names = ["co*"] }', long("read_only = true"), long('consent = "human"')]
)
async def test_what_a_rule_forbids_is_not_deleted_by_any_word(lab: Lab, rules: str) -> None:
    made = await exported(lab)
    (lab.folder / "config.toml").write_text(f"[guard]\n{rules}\n")
    status, shown = await in_terminal(lab, ["zone", "remove", "copy", "--delete-file"])
    says = "needs a PIN in this zone" if "human" in rules else "Refused by the rule"
    assert (status, says in shown, made.path.exists()) == (1, True, True), shown


class Late(str):
    """An answer before which something else is done, once its prompt is there."""

    def __new__(cls, answer: str, before: Callable[[], object]) -> "Late":
        late = super().__new__(cls, answer)
        late.before = before
        return late

    before: Callable[[], object]

    def __format__(self, spec: str) -> str:
        self.before()
        return str(self)


@pytest.mark.long
async def test_a_rule_that_came_after_the_question_counts(lab: Lab) -> None:
    """What policy refuses, no word allows: it is read again before the file goes."""
    made = await exported(lab)
    rule = f'[guard]\nprotect = {{ ids = ["{made.id}"] }}\n'
    answer = Late("delete", lambda: (lab.folder / "config.toml").write_text(rule))
    status, shown = await in_terminal(lab, ["zone", "remove", "copy", "--delete-file"], (YES[0], answer))
    assert (status, "Refused by the rule protect" in shown, made.path.exists()) == (1, True, True), shown
    assert [one["status"] for one in records(lab, "ended")] == ["failed"]


async def test_what_changed_after_the_question_is_kept(lab: Lab) -> None:
    made = await exported(lab)
    answer = Late("delete", lambda: made.path.write_bytes(b"a customer's data"))
    status, shown = await in_terminal(lab, ["zone", "remove", "copy", "--delete-file"], (YES[0], answer))
    assert (status, "changed since it was shown" in shown) == (1, True), shown
    assert made.path.read_bytes() == b"a customer's data"
