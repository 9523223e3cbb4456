"""Fixtures of the embedded zone's tests."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.disks import MIB


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 24 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small filesystem needs root")
    mount_point = tmp_path / "small"
    mount_point.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={24 * MIB}", "tmpfs", str(mount_point)], check=True)
    yield mount_point
    subprocess.run(["umount", "--lazy", str(mount_point)], check=True)


@pytest.fixture(params=["xfs", "btrfs"])
def reflink_folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A filesystem with instant clones, on a loop device."""
    if os.geteuid() != 0 or shutil.which(f"mkfs.{request.param}") is None:
        pytest.skip(f"mounting a {request.param} filesystem needs root and mkfs.{request.param}")
    backing, mount_point = tmp_path / "backing", tmp_path / "mounted"
    with backing.open("wb") as file:
        file.truncate(512 * MIB)
    mount_point.mkdir()
    subprocess.run([f"mkfs.{request.param}", "-q", str(backing)], check=True)
    subprocess.run(["mount", "-o", "loop", str(backing), str(mount_point)], check=True)
    yield mount_point
    subprocess.run(["umount", str(mount_point)], check=True)
