"""A store that lies, loses and swaps: it is found and named, and nothing of it is restored as good."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from snapshot_mcp.copies.keys import make_keys, read_keys
from snapshot_mcp.copies.manifest import read_manifest, write_manifest
from tests.copies.lab import CopyLab, objects
from tests.disks import MIB, change
from tests.marks import few

pytestmark = pytest.mark.anyio


def piece_of(folder: Path, part: str) -> Path:
    return next(folder.glob(f"w-*/parts/{part}/000000*"))


def cut(folder: Path, ids: list[str]) -> None:
    path = piece_of(folder, ids[1])
    path.write_bytes(path.read_bytes()[:-1])


def flip(folder: Path, ids: list[str]) -> None:
    path = piece_of(folder, ids[1])
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def swap(folder: Path, ids: list[str]) -> None:
    one, other = piece_of(folder, ids[1]), piece_of(folder, ids[2])
    other_content = other.read_bytes()
    other.write_bytes(one.read_bytes())
    one.write_bytes(other_content)


def lose(folder: Path, ids: list[str]) -> None:
    piece_of(folder, ids[1]).unlink()


def lose_the_index(folder: Path, ids: list[str]) -> None:
    (piece_of(folder, ids[1]).parent / "index").unlink()


def take_anothers_index(folder: Path, ids: list[str]) -> None:
    shutil.copyfile(piece_of(folder, ids[2]).parent / "index", piece_of(folder, ids[1]).parent / "index")


def make_it_huge(folder: Path, ids: list[str]) -> None:
    with piece_of(folder, ids[1]).open("r+b") as file:
        file.truncate(1 << 40)


def make_it_a_link(folder: Path, ids: list[str]) -> None:
    path = piece_of(folder, ids[1])
    path.unlink()
    path.symlink_to("/etc/passwd")


HARM = [cut, flip, swap, lose, lose_the_index, take_anothers_index, make_it_huge, make_it_a_link]


async def chain_of_three(lab: CopyLab, path: Path) -> list[str]:
    disk = await lab.add_disk(path, "db")
    ids = []
    for name in ("one", "two", "three"):
        ids.append(await lab.back_up(disk, name))
        change(path, MIB, seed=len(ids))
    await lab.copy()
    return ids


@pytest.mark.parametrize("harm", few(HARM, 4), ids=lambda one: one.__name__)
async def test_what_was_harmed_is_named_and_what_builds_on_it_and_the_rest_comes_back(
    lab: CopyLab, tmp_path: Path, harm: Callable[[Path, list[str]], None]
) -> None:
    ids = await chain_of_three(lab, tmp_path / "db.img")
    harm(Path(lab.settings.to), ids)
    back = await lab.restore_all(tmp_path / "new", status=1)
    assert set(back["missing"]) == set(ids[1:]), back
    assert back["restored"] == 1
    words = ("restore-from", lab.settings.to, ids[2], "--to-file", str(tmp_path / "out"), "--key-file", lab.key_file())
    said = await lab.shell(tmp_path / "third")(*words, status=1)
    assert "cannot be restored" in said
    assert not (tmp_path / "out").exists()
    # here it is found as well, and sent again
    found = await lab.zone.with_parts(lambda parts, ledger: _check(lab, ledger))
    assert ids[1] in found
    await lab.copy()
    assert (await lab.restore_all(tmp_path / "newer"))["restored"] == 3


def _check(lab: CopyLab, ledger: Any) -> dict[str, str]:
    from snapshot_mcp.copies.check import check_sent

    return check_sent("nas", lab.settings, lab.store, read_keys(lab.home), ledger, lambda amount: None).findings


async def test_a_key_that_is_not_the_one_restores_nothing_and_is_not_repeated(lab: CopyLab, tmp_path: Path) -> None:
    await chain_of_three(lab, tmp_path / "db.img")
    wrong = make_keys()[0].text
    (tmp_path / "wrong").write_text(wrong)
    shell = lab.shell(tmp_path / "new")
    said = await shell("restore-from", lab.settings.to, "--key-file", str(tmp_path / "wrong"), status=1)
    assert "signed by another key" in said
    assert wrong not in said
    (tmp_path / "wrong").write_text(wrong[:-1])
    said = await shell("restore-from", lab.settings.to, "--key-file", str(tmp_path / "wrong"), status=1)
    assert "not a recovery key" in said
    said = await shell("restore-from", lab.settings.to, status=1)
    assert "Give the recovery key" in said


async def test_a_manifest_that_the_store_wrote_itself_counts_for_nothing(lab: CopyLab, tmp_path: Path) -> None:
    """It has a forged id that leads out of the folder, and is signed by a key of the store's own."""
    ids = await chain_of_three(lab, tmp_path / "db.img")
    folder = Path(lab.settings.to)
    name = next(one for one in objects(folder) if "/manifests/" in one)
    manifest = read_manifest(name, (folder / name).read_bytes(), lab.key)
    forged = manifest.model_copy(
        update={
            "number": manifest.number + 1,
            "is_sealed": False,
            "entries": tuple(
                one.model_copy(update={"part_id": "../../../../../tmp/x"}) for one in manifest.entries[:1]
            ),
        }
    )
    path = folder / name.replace("000000001", "000000002")
    path.write_bytes(write_manifest(forged, make_keys()[1]))
    back = await lab.restore_all(tmp_path / "new", status=1)  # a newer one may have named more
    assert back["restored"] == 3
    library = lab.library()
    assert "manifest 2" in library.shelves[0].findings[0]
    assert set(library.found()) == set(ids)


async def test_a_store_that_was_rolled_back_is_found_by_the_machine_that_wrote(lab: CopyLab, tmp_path: Path) -> None:
    disk = await lab.add_disk(tmp_path / "db.img", "db")
    first = await lab.back_up(disk, "one")
    await lab.copy()
    folder, before = Path(lab.settings.to), tmp_path / "before"
    shutil.copytree(folder, before)
    change(tmp_path / "db.img", MIB)
    second = await lab.back_up(disk, "two")
    await lab.copy()
    shutil.rmtree(folder)
    shutil.copytree(before, folder)
    assert set(lab.library().found()) == {first}, "a stranger to the store cannot know"
    done = await lab.copy()
    assert "manifest 2 is not there any more" in done.details["findings"][0]
    assert "rolled back" in (await lab.zone.notice())
    assert set(lab.library().found()) == {first, second}
    assert lab.library().shelves[0].manifest.number == 3
    assert lab.library().shelves[0].findings == (
        f"manifests of {lab.library().shelves[0].manifest.writer} that are missing: 2",
    )


async def test_a_share_that_is_not_mounted_is_not_taken_for_the_share(lab: CopyLab, tmp_path: Path) -> None:
    await chain_of_three(lab, tmp_path / "db.img")
    folder = Path(lab.settings.to)
    folder.rename(tmp_path / "unmounted")
    folder.mkdir()
    done = await lab.copy(ends_well=False)
    assert "is not the one that was copied to" in done.reason
    assert list(folder.iterdir()) == []
    assert "is not the one that was copied to" in await lab.zone.notice()
    folder.rmdir()
    (tmp_path / "unmounted").rename(folder)
    await lab.copy()
    assert await lab.zone.notice() == ""


async def test_a_folder_with_other_files_is_left_alone(lab: CopyLab, tmp_path: Path) -> None:
    (Path(lab.settings.to) / "holiday.jpg").write_bytes(b"x")
    disk = await lab.add_disk(tmp_path / "db.img", "db")
    await lab.back_up(disk, "one")
    assert "holds other files" in (await lab.copy(ends_well=False)).reason
    assert objects(Path(lab.settings.to)).keys() == {"holiday.jpg"}
