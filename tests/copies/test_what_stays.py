"""What was sent once stays there and stays named, whatever becomes of it, of the settings, the keys and the store here."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from snapshot_mcp.copies.keys import KEYS_FILE, keep_keys, make_keys
from snapshot_mcp.copies.stores.folder import FolderStore
from tests.copies.lab import DAY, CopyLab, inodes, objects
from tests.copies.test_deletion import held, three_points
from tests.copies.test_hostile_store import piece_of
from tests.disks import MIB, change

pytestmark = pytest.mark.anyio

Make = Callable[..., CopyLab]


def flip_here(lab: CopyLab, snapshot_id: str) -> None:
    """Damage a restore point here."""
    path = lab.zone.folder / "snapshots" / f"{snapshot_id}.snap"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


async def test_a_copy_that_is_the_only_good_one_is_not_removed_because_the_original_is_damaged(
    lab: CopyLab, tmp_path: Path
) -> None:
    ids = await three_points(lab, tmp_path / "db.img")
    folder = Path(lab.settings.to)
    (piece_of(folder, ids[0]).parent / "index").rename(tmp_path / "index")
    flip_here(lab, ids[0])
    before = {name for name in objects(folder) if "/parts/" in name}
    done = await lab.copy()
    assert "is not copied" in " ".join(done.details["findings"])
    assert {name for name in objects(folder) if "/parts/" in name} == before
    (tmp_path / "index").rename(piece_of(folder, ids[0]).parent / "index")
    await lab.copy()
    assert held(lab) == set(ids), "once it is listed again it counts again, though nothing whole is here"
    assert (await lab.restore_all(tmp_path / "new"))["restored"] == 3


async def test_what_a_rebuild_no_longer_has_stays_named_and_keeps_its_parents(
    lab: CopyLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = await three_points(lab, tmp_path / "db.img")
    with lab.zone._open() as catalogue, catalogue.transaction() as db:  # as `salvage.drop_missing` leaves it
        db.execute("UPDATE snapshots SET status = 'ceased', deletion_id = NULL WHERE snapshot_id = ?", (ids[2],))
    await lab.copy()
    assert held(lab) == set(ids)
    await lab.delete(ids[1])
    await lab.copy()
    from tests.copies.test_deletion import _move_the_stores_clock

    lab.ahead = 40 * DAY
    _move_the_stores_clock(monkeypatch, 40 * DAY)
    await lab.copy()
    assert held(lab) == set(ids), "what builds on it stays, so it stays"


@pytest.mark.parametrize("how", ["disks", "renamed"])
async def test_settings_that_name_fewer_disks_drop_nothing_that_is_there(
    lab: CopyLab, tmp_path: Path, how: str
) -> None:
    ids = await three_points(lab, tmp_path / "db.img")
    if how == "disks":
        other = await lab.add_disk(tmp_path / "web.img", "web", seed=5)
        lab.change_settings(disks=("web",))
    else:
        other = await lab.add_disk(tmp_path / "web.img", "web", seed=5)
        lab.change_settings(disks=("db", "web"))
        with lab.zone._open() as catalogue, catalogue.transaction() as db:
            db.execute("UPDATE resources SET name = 'database' WHERE name = 'db'")
    more = await lab.back_up(other, "of web")
    done = await lab.copy()
    assert held(lab) == {*ids, more}
    assert ("The zone has no disk db" in " ".join(done.details["findings"])) == (how == "renamed")


async def test_new_keys_at_the_same_place_begin_anew_and_the_old_ones_are_named(lab: CopyLab, tmp_path: Path) -> None:
    ids = await three_points(lab, tmp_path / "db.img")
    (lab.home / KEYS_FILE).rename(tmp_path / "old-keys.json")
    old, (lab.key, machine) = lab.key, make_keys()
    keep_keys(lab.home, machine)
    assert sorted((await lab.copy()).details["sent"]) == sorted(ids)
    assert held(lab) == set(ids)
    assert set(lab.library(old).found()) == set(ids)
    (status,) = await lab.zone.list_copies()
    assert status.former.startswith("w-")
    (lab.home / KEYS_FILE).unlink()
    (tmp_path / "old-keys.json").rename(lab.home / KEYS_FILE)
    lab.key = old
    assert (await lab.copy()).details["sent"] == [], "what was sent with the old ones is known again"


async def test_encryption_that_is_switched_on_leaves_nothing_unnamed(
    make_lab: Make, nas: dict[str, Any], tmp_path: Path
) -> None:
    lab = make_lab(nas, is_sealed=False)
    ids = await three_points(lab, tmp_path / "db.img")
    lab.change_settings(encryption="age")
    done = await lab.copy()
    assert sorted(done.details["sent"]) == sorted(ids)
    assert "lost" not in " ".join(done.details["findings"])
    (status,) = await lab.zone.list_copies()
    assert status.former.endswith("(not encrypted)")
    assert held(lab) == set(ids)


async def test_keys_that_were_made_later_sign_what_is_there(
    make_lab: Make, nas: dict[str, Any], tmp_path: Path
) -> None:
    lab = make_lab(nas, is_sealed=False)
    (lab.home / KEYS_FILE).rename(tmp_path / "keys.json")
    ids = await three_points(lab, tmp_path / "db.img")
    (tmp_path / "keys.json").rename(lab.home / KEYS_FILE)
    assert (await lab.copy()).details["sent"] == []
    assert held(lab) == set(ids)


async def test_days_that_were_promised_hold_though_the_next_run_fails(lab: CopyLab, tmp_path: Path) -> None:
    ids = await three_points(lab, tmp_path / "db.img")
    folder = Path(lab.settings.to)
    folder.rename(tmp_path / "unmounted")
    await lab.delete(ids[2])
    lab.change_settings(keep_deleted_days=1)
    await lab.copy(ends_well=False)
    (tmp_path / "unmounted").rename(folder)
    await lab.copy()
    entry = lab.library().found()[ids[2]][0].entry
    assert entry.until
    assert entry.until - entry.sent_at > 29 * DAY


async def test_days_begin_with_the_last_deletion(lab: CopyLab, tmp_path: Path) -> None:
    ids = await three_points(lab, tmp_path / "db.img")
    await lab.delete(ids[2], is_purged=False)
    await lab.copy()
    with lab.zone._open() as catalogue, catalogue.transaction() as db:
        db.execute("UPDATE deletions SET deleted_at = deleted_at + ?", (5 * DAY,))  # as if it had been deleted again
    first = lab.library().found()[ids[2]][0].entry.until
    await lab.copy()
    second = lab.library().found()[ids[2]][0].entry.until
    assert first
    assert second
    assert second - first >= 4 * DAY


async def test_a_place_that_is_misspelt_costs_nothing(lab: CopyLab, tmp_path: Path) -> None:
    await three_points(lab, tmp_path / "db.img")
    right = lab.settings.to
    lab.change_settings(to=f"{right}x")
    assert "is not there" in (await lab.copy(ends_well=False)).reason
    assert {one.copies[0].copy_name for one in (await lab.points()).values()} == {"nas"}
    lab.change_settings(to=right)
    assert (await lab.copy()).details["sent"] == []


async def test_a_listing_that_was_short_once_costs_nothing(
    lab: CopyLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = await three_points(lab, tmp_path / "db.img")
    (lab.zone.folder / "snapshots" / f"{ids[2]}.snap").unlink()
    before = inodes(Path(lab.settings.to))
    with monkeypatch.context() as patch:
        patch.setattr(FolderStore, "list", lambda self, prefix: iter(()))
        done = await lab.copy()
    assert done.details["sent"], "what is here was looked for again"
    after = inodes(Path(lab.settings.to))
    assert {name: after[name] for name in before if "/parts/" in name} == {
        name: inode for name, inode in before.items() if "/parts/" in name
    }, "nothing that was there was written again"
    await lab.copy()
    assert held(lab) == set(ids)


async def test_a_manifest_that_was_harmed_is_found_and_written_again(lab: CopyLab, tmp_path: Path) -> None:
    ids = await three_points(lab, tmp_path / "db.img")
    (path,) = Path(lab.settings.to).glob("w-*/manifests/*")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    from tests.copies.test_hostile_store import _check

    found = await lab.zone.with_parts(lambda parts, ledger: _check(lab, ledger))
    assert "manifest 1" in found[""]
    await lab.copy()
    assert held(lab) == set(ids)


async def test_objects_that_are_not_ours_lead_nobody_astray(lab: CopyLab, tmp_path: Path) -> None:
    ids = await three_points(lab, tmp_path / "db.img")
    (path,) = Path(lab.settings.to).glob("w-*/manifests/*")
    for number in range(30):
        path.with_name(f"9{number:08d}").write_bytes(b"" if number % 2 else path.read_bytes()[:200])
    deep = path.parents[1].joinpath(*["d"] * 300)
    deep.mkdir(parents=True)
    done = await lab.copy()
    assert done.details["sent"] == []
    assert "30 objects" in done.details["findings"][0]
    assert held(lab) == set(ids)
    assert lab.library().is_behind


async def test_what_cannot_be_restored_there_does_not_count_as_copied(lab: CopyLab, tmp_path: Path) -> None:
    ids = await three_points(lab, tmp_path / "db.img")
    shutil.rmtree(piece_of(Path(lab.settings.to), ids[0]).parent)
    (lab.zone.folder / "snapshots" / f"{ids[0]}.snap").unlink()
    for _ in range(2):
        await lab.copy()
    (status,) = await lab.zone.list_copies()
    assert status.copied_count == 0
    assert not any(one.copies for one in (await lab.points()).values())


async def test_what_is_due_goes_though_there_is_no_room_for_more(
    lab: CopyLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = await three_points(lab, tmp_path / "db.img")
    await lab.delete(ids[1])
    await lab.copy()
    change(tmp_path / "db.img", MIB, seed=9)
    await lab.back_up((await lab.points())[ids[0]].resource.resource_id, "four")
    lab.change_settings(ceiling=1)
    from tests.copies.test_deletion import _move_the_stores_clock

    lab.ahead = 31 * DAY
    _move_the_stores_clock(monkeypatch, 31 * DAY)
    assert "ceiling" in (await lab.copy(ends_well=False)).reason
    assert held(lab) == {ids[0]}


async def test_a_copy_whose_name_is_a_word_of_the_request_is_entered(lab: CopyLab, tmp_path: Path) -> None:
    from snapshot_mcp.catalogue.copied import enter_copy

    await lab.add_disk(tmp_path / "db.img", "db")
    with lab.zone._open() as catalogue:
        jobs = {name: enter_copy(catalogue, name)["job_id"] for name in ("nas", "copy", "nas")}
        assert len(set(jobs.values())) == 2
        assert json.loads(catalogue.job(jobs["copy"])["request"]) == {"copy": "copy"}


async def test_a_damaged_copy_is_replaced_by_another_writers(
    make_lab: Make, nas: dict[str, Any], tmp_path: Path
) -> None:
    """The zone's catalogue was put back: two writers have the same restore points."""
    lab = make_lab(nas)
    ids = await three_points(lab, tmp_path / "db.img")
    with lab.zone._open() as catalogue, catalogue.transaction() as db:
        db.execute("UPDATE copies SET number = 0, intended = 0")
    await lab.copy()
    shelves = lab.library().shelves
    assert len(shelves) == 2
    newest = Path(lab.settings.to) / lab.library().found()[ids[0]][0].writer / "parts" / ids[0] / "000000.age"
    newest.write_bytes(newest.read_bytes()[:-1])
    assert (await lab.restore_all(tmp_path / "new"))["restored"] == 3
