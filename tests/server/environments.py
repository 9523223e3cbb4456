"""Environments with packages that nobody needs to run or test the product otherwise, each made once a machine."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.conftest import NEEDS_SETTINGS

FOLDER = Path.home() / ".cache" / "snapshot-mcp-tests"
NOT_THERE = ("No matching distribution found", "Could not find a version that satisfies")


def python_with(name: str, *installs: Sequence[str]) -> Path:
    """Return the interpreter of the environment with these packages, installed in this order; make it first.

    Skips the test where the registry does not have them.
    """
    folder = FOLDER / name
    interpreter = folder / "bin" / "python"
    complete, wanted = folder / "complete", repr(installs)
    if not complete.exists() or complete.read_text() not in {wanted, ""}:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        for packages in installs:
            _install(interpreter, packages)
        complete.write_text(wanted)
    return interpreter


def _install(interpreter: Path, packages: Sequence[str]) -> None:
    command = [str(interpreter), "-m", "pip", "install", "-q", *packages]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and any(one in done.stderr for one in NOT_THERE):
        pytest.skip(f"{NEEDS_SETTINGS}the registry does not have {', '.join(packages)}")
    assert done.returncode == 0, done.stderr[-3000:]
