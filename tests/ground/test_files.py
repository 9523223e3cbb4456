"""Private files: mode, durability of the whole, and what a failure leaves."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from snapshot_mcp.ground.files import create_private, fsync_folder, make_private_folder, replace_private, written_beside


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_new_file_and_its_folders_are_their_owners_alone(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    make_private_folder(folder)
    make_private_folder(folder)
    create_private(folder / "empty")
    replace_private(folder / "whole", b"content")
    fsync_folder(folder)
    assert mode_of(folder) == 0o700
    assert {path.name: mode_of(path) for path in folder.iterdir()} == {"empty": 0o600, "whole": 0o600}


def test_an_existing_file_keeps_content_and_mode(tmp_path: Path) -> None:
    path = tmp_path / "there"
    path.write_bytes(b"content")
    path.chmod(0o640)
    create_private(path)
    assert (path.read_bytes(), mode_of(path)) == (b"content", 0o640)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "there"
    replace_private(path, b"before")
    with pytest.raises(ZeroDivisionError), written_beside(path, b"after"):
        raise ZeroDivisionError
    assert path.read_bytes() == b"before"
    replace_private(path, b"after")
    assert [(one.name, one.read_bytes()) for one in tmp_path.iterdir()] == [("there", b"after")]


def test_a_process_that_is_killed_in_between_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "there"
    replace_private(path, b"before")
    script = (
        "import os, sys; from pathlib import Path; from snapshot_mcp.ground.files import written_beside\n"
        "with written_beside(Path(sys.argv[1]), b'after'): os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(path)], env=dict(os.environ), timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"before"
    (left,) = tmp_path.glob(".*.partial")
    assert mode_of(left) == 0o600
