"""A deletion here reaches a copy in its own time, and only if it was agreed to and recorded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from snapshot_mcp.contract.models import SnapshotFilter
from tests.copies.lab import DAY, CopyLab, objects
from tests.disks import MIB, change

pytestmark = pytest.mark.anyio

Make = Callable[..., CopyLab]


async def three_points(lab: CopyLab, path: Path) -> list[str]:
    disk = await lab.add_disk(path, "db")
    ids = []
    for name in ("one", "two", "three"):
        ids.append(await lab.back_up(disk, name))
        change(path, MIB, seed=len(ids))
    await lab.copy()
    return ids


def held(lab: CopyLab) -> set[str]:
    """The restore points that the newest manifest names."""
    return set(lab.library().found())


async def test_what_was_deleted_with_every_yes_stays_there_for_its_days_and_then_goes(
    make_lab: Make, place: dict[str, Any], tmp_path: Path
) -> None:
    lab = make_lab(place)
    ids = await three_points(lab, tmp_path / "db.img")
    content = await lab.content(ids[2], tmp_path / "a")
    await lab.delete(ids[0])
    assert not [one for one in (await lab.points()).values() if one.status == "available"]
    done = await lab.copy()
    assert done.details["removed"] == []
    assert {one.entry.until is not None for (one, *_) in lab.library().found().values()} == {True}
    back = await lab.restore_all(tmp_path / "new", "--deleted")
    assert back["restored"] == 3
    words = ("restore-from", lab.settings.to, ids[2], "--to-file", str(tmp_path / "out"), "--key-file", lab.key_file())
    await lab.shell(tmp_path / "third").json(*words)
    assert (tmp_path / "out").read_bytes() == content

    lab.ahead = 29 * DAY
    assert (await lab.copy()).details["removed"] == []
    lab.ahead = 31 * DAY
    assert (await lab.copy()).details["removed"] == [], "a clock that is wrong here alone ends nothing"
    assert held(lab) == set(ids)


async def test_once_both_clocks_say_so_it_goes_children_first(
    lab: CopyLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = await three_points(lab, tmp_path / "db.img")
    await lab.delete(ids[1])
    await lab.copy()
    lab.ahead = 31 * DAY
    _move_the_stores_clock(monkeypatch, 31 * DAY)
    assert sorted((await lab.copy()).details["removed"]) == sorted(ids[1:])
    assert held(lab) == {ids[0]}
    assert {name.split("/")[2] for name in objects(Path(lab.settings.to)) if "/parts/" in name} == {ids[0]}
    assert (await lab.restore_all(tmp_path / "new"))["restored"] == 1


async def test_what_was_recovered_here_stays_there(
    lab: CopyLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = await three_points(lab, tmp_path / "db.img")
    await lab.delete(ids[1], is_purged=False)
    await lab.copy()
    job = await lab.zone.recover_snapshots([ids[1]])
    await lab.work(copies=False)
    await lab.ended(job)
    lab.ahead = 40 * DAY
    _move_the_stores_clock(monkeypatch, 40 * DAY)
    assert (await lab.copy()).details["removed"] == []
    assert {one.entry.until for (one, *_) in lab.library().found().values()} == {None}


async def test_fewer_days_act_on_later_deletions_only(
    lab: CopyLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = await three_points(lab, tmp_path / "db.img")
    await lab.delete(ids[2])
    lab.change_settings(keep_deleted_days=1)
    await lab.copy()
    await lab.delete(ids[1])
    await lab.copy()
    lab.ahead = 3 * DAY
    _move_the_stores_clock(monkeypatch, 3 * DAY)
    assert (await lab.copy()).details["removed"] == [], "the child's days are the old ones, and it builds on the other"
    assert held(lab) == set(ids)
    lab.ahead = 31 * DAY
    _move_the_stores_clock(monkeypatch, 31 * DAY)
    assert sorted((await lab.copy()).details["removed"]) == sorted(ids[1:])


async def test_what_is_missing_here_without_a_recorded_deletion_is_never_removed_there(
    lab: CopyLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = await three_points(lab, tmp_path / "db.img")
    for one in ids:
        (lab.zone.folder / "snapshots" / f"{one}.snap").unlink()
    lab.ahead = 400 * DAY
    _move_the_stores_clock(monkeypatch, 400 * DAY)
    await lab.copy()
    assert held(lab) == set(ids)
    await lab.lose_the_zone()
    disk = (await lab.zone.add_resource(tmp_path / "db.img", "db")).id
    fresh = await lab.back_up(disk, "of the new zone")
    await lab.copy()
    assert held(lab) == {*ids, fresh}
    assert (await lab.restore_all(tmp_path / "new"))["restored"] == 4


async def test_lists_say_which_copy_has_a_restore_point_and_until_when(lab: CopyLab, tmp_path: Path) -> None:
    ids = await three_points(lab, tmp_path / "db.img")
    points = await lab.points()
    assert {one.copies[0].copy_name for one in points.values()} == {"nas"}
    assert {one.copies[0].keep_days for one in points.values()} == {30}
    await lab.delete(ids[2], is_purged=False)
    await lab.copy()
    gone = (await lab.zone.list_snapshots(SnapshotFilter(snapshots=(ids[2],), verbose=1))).items[0]
    assert gone.deleted_at
    assert gone.copies[0].until
    assert (gone.copies[0].until - gone.deleted_at).days == 30


def _move_the_stores_clock(monkeypatch: pytest.MonkeyPatch, seconds: int) -> None:
    from dataclasses import replace

    from snapshot_mcp.copies.stores.folder import FolderStore

    real = _move_the_stores_clock.__dict__.setdefault("real", FolderStore.list)

    def moved(self: FolderStore, prefix: str) -> Any:
        for one in real(self, prefix):
            yield replace(one, changed_at=one.changed_at + seconds)

    monkeypatch.setattr(FolderStore, "list", moved)
