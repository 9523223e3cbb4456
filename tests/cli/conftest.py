"""Homes with disks whose names and paths no terminal likes."""

import os
from pathlib import Path

import anyio
import pytest

from snapshot_mcp.providers.local import LocalZone
from tests.disks import MIB

ODD_NAMES = ("Ä", "line\nbreak", "\x1b[2Jwiped", "\u202egnirts", "x" * 255)
ODD_FILES = (b"\xff\xfe.img", "日本.img".encode(), b"two\nlines \x1b[31m.img", b"l" * 240 + b".img")


def make_disk(path: Path) -> Path:
    with path.open("wb") as file:
        file.truncate(MIB)
    return path


async def register(home: Path, folder: Path) -> list[str]:
    """Register a disk for each odd name and each odd file; return the ids."""
    zone = LocalZone(home / "zones" / "local", home=home)
    named = [await zone.add_resource(make_disk(folder / f"disk-{at}.img"), one) for at, one in enumerate(ODD_NAMES)]
    odd = [await zone.add_resource(make_disk(folder / os.fsdecode(one))) for one in ODD_FILES]
    await zone.aclose()
    return [one.id for one in (*named, *odd)]


@pytest.fixture(scope="session")
def odd_home(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A home that no test changes, and the ids of its disks."""
    folder = tmp_path_factory.mktemp("odd")
    return folder / "home", anyio.run(register, folder / "home", folder)
