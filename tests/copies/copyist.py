"""The zone's worker as the product starts it, with its settings file, forked from a process that has imported all of it.

A test can afford many of them, and kills each by its id. Pieces can be made small, so that small parts have many.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.disks import worker_pid
from tests.patience import PATIENCE_SECONDS
from tests.whole_way.workers import until

_NURSERY = """
import json, os, signal, sys
from pathlib import Path
from snapshot_mcp import app, working
from snapshot_mcp.copies import copier, sending
from snapshot_mcp.copies.stores import folder, s3
from snapshot_mcp.providers.local import worker
import pyrage
from cryptography.hazmat.primitives.asymmetric import ed25519

signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for line in sys.stdin:
    order = json.loads(line)
    if os.fork():
        continue
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.environ.update(order["environ"])
    place = order["folder"]
    lock = worker._take_lock(Path(place))
    if lock is None:
        print(0, flush=True)
        os._exit(0)
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\\n".encode(), 0)
    print(os.getpid(), flush=True)
    log = os.open(place + "/worker.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0), os.dup2(null, 1), os.dup2(log, 2)
    if order["piece"]:
        sending.PIECE = order["piece"]
    working.work(place, str(lock))
    os._exit(0)
"""


class Copyist:
    """Starts workers; `close` ends the process that they come from."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _NURSERY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.stdin and self._process.stdin.close()
        self._process.stdout and self._process.stdout.close()
        self._process.wait(PATIENCE_SECONDS)

    def start(self, home: Path, piece: int = 0) -> int:
        """Start the worker of a home's zone `local`, with `home/config.toml`; return its process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        environ = {"SNAPSHOT_MCP_HOME": str(home), "SNAPSHOT_MCP_CONFIG": str(home / "config.toml")}
        order = {"folder": str(home / "zones" / "local"), "environ": environ, "piece": piece}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        pid = int(self._process.stdout.readline())
        assert pid, "a worker is running already"
        return pid


def kill(home: Path, pid: int) -> None:
    """SIGKILL a worker that this test has started, and wait until the kernel has its lock back."""
    os.kill(pid, signal.SIGKILL)
    until(lambda: worker_pid(home / "zones" / "local") != pid)


def write_settings(home: Path, to: dict[str, Any], *, is_sealed: bool) -> None:
    """Write the settings file of a home with the copy `nas`."""
    rows = {**to, "encryption": "age" if is_sealed else "none"}
    path = home / "config.toml"
    path.write_text("[copies.nas]\n" + "".join(f'{key} = "{value}"\n' for key, value in rows.items()))
    path.chmod(0o600)
