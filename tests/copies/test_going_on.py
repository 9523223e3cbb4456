"""A run goes on where another ended, and never under the name of a writer that is not this zone any more."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from snapshot_mcp.copies import sending
from snapshot_mcp.copies.stores import folder as folders
from snapshot_mcp.copies.stores.folder import FolderStore
from tests.copies.lab import CopyLab
from tests.disks import MIB, change

pytestmark = pytest.mark.anyio


@contextmanager
def full_after(byte_count: int) -> Iterator[None]:
    """The store's disk is full after so many bytes."""
    left, real = byte_count, folders._write_all

    def write_all(descriptor: int, content: bytes, pace: Any) -> None:
        nonlocal left
        granted, left = content[:left], max(0, left - len(content))
        real(descriptor, granted, pace)
        if len(granted) < len(content):
            raise OSError(errno.ENOSPC, "full")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folders, "_write_all", write_all)
        yield


async def test_a_version_with_longer_pieces_goes_on_with_a_part_that_was_half_sent(
    lab: CopyLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = await lab.add_disk(tmp_path / "db.img", "db")
    await lab.back_up(disk, "one")
    with monkeypatch.context() as patch, full_after(MIB):
        patch.setattr(sending, "PIECE", 100_000)
        assert "is full" in (await lab.copy(ends_well=False)).reason
    assert list(Path(lab.settings.to).rglob("000001.age"))
    await lab.copy()
    assert [path.name for path in Path(lab.settings.to).rglob("*.age")] == ["000000.age"]
    assert (await lab.restore_all(tmp_path / "new"))["missing"] == {}


async def test_a_twin_of_this_zone_that_writes_at_the_same_time_loses_nothing_by_it(
    lab: CopyLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine was cloned with its zone; both run, and the twin's manifest comes first."""
    disk = await lab.add_disk(tmp_path / "db.img", "db")
    first = await lab.back_up(disk, "one")
    await lab.copy()
    writer = lab.library().shelves[0].manifest.writer
    change(tmp_path / "db.img", MIB)
    second = await lab.back_up(disk, "two")
    real = FolderStore.create

    def create(store: FolderStore, name: str, content: bytes) -> bool:
        assert real(store, name, b"what the twin wrote")
        return real(store, name, content)

    with monkeypatch.context() as patch:
        patch.setattr(FolderStore, "create", create)
        assert "a twin of this zone" in (await lab.copy(ends_well=False)).reason
    assert sorted((await lab.copy()).details["sent"]) == sorted([first, second])
    assert {shelf.manifest.writer == writer for shelf in lab.library().shelves} == {True, False}


async def test_a_copy_of_a_zone_that_was_adopted_writes_under_a_name_of_its_own(lab: CopyLab, tmp_path: Path) -> None:
    disk = await lab.add_disk(tmp_path / "db.img", "db")
    await lab.back_up(disk, "one")
    await lab.copy()
    shutil.copytree(lab.home, tmp_path / "clone")
    clone = CopyLab(tmp_path / "clone", lab.to, lab.is_sealed, key=lab.key)
    await clone.zone.adopt()
    await clone.copy()
    assert len(lab.library().shelves) == 2
    await clone.zone.aclose()
