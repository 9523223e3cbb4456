"""The zone's worker as a process that a test can afford many of, and can let die at any step of its work.

It is the real one (`worker.main` under its lock, detached, in a session of its own), forked from a process that has
imported it already. A fate makes it end or stop itself at the nth step of a job; a step is a commit, a write to a disk, an
fsync or a rename. Whoever asks the zone while none lives gets the one that the product starts.
"""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from tests.disks import worker_pid
from tests.patience import PATIENCE_SECONDS

STEPS = ("any", "write")

_NURSERY = """
import json, os, signal, sys, threading, time
from contextlib import contextmanager
from pathlib import Path
from snapshot_mcp.catalogue.database import Catalogue
from snapshot_mcp.providers.local import restore, source, worker

def doom(step, kind, how, gate):
    left, is_counting, locked = step, False, threading.RLock()
    def count(one):
        nonlocal left
        if is_counting and kind in ("any", one) and not locked._is_owned():
            with locked:  # no thread of ours may keep the catalogue from others when all stop
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), how)
                    time.sleep(1)  # the signal reaches the threads one by one
    def counted(function, one):
        def run(*args, **options):
            result = function(*args, **options)
            count(one)
            return result
        return run
    commit = Catalogue.transaction
    @contextmanager
    def transaction(self):
        with locked, commit(self) as db:
            yield db
        count("commit")
    carry_out, export = worker.carry_out, restore.export
    def begin(*args):
        nonlocal is_counting
        is_counting = True
        carry_out(*args)
    def wait(*args):
        while gate and not os.path.exists(gate):
            time.sleep(0.01)
        export(*args)
    Catalogue.transaction = transaction
    worker.carry_out, restore.export = begin, wait
    source.write_at, source.write_zeros = counted(source.write_at, "write"), counted(source.write_zeros, "write")
    for name in ("fsync", "fdatasync", "rename"):
        setattr(os, name, counted(getattr(os, name), name))

signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for line in sys.stdin:
    order = json.loads(line)
    if os.fork():
        continue
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    folder = order["folder"]
    lock = worker._take_lock(Path(folder))
    if lock is None:
        print(0, flush=True)
        os._exit(0)
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\\n".encode(), 0)
    print(os.getpid(), flush=True)
    log = os.open(folder + "/worker.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0), os.dup2(null, 1), os.dup2(log, 2)
    if order["step"] or order["gate"]:
        doom(order["step"], order["kind"], order["how"], order["gate"])
    worker.main(folder, str(lock))
    os._exit(0)
"""


class Nursery:
    """Starts workers; `close` ends the process that they come from, and each of them that still lives."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _NURSERY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._folders: set[Path] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def start(
        self,
        folder: Path,
        *,
        step: int = 0,
        kind: Literal["any", "write"] = "any",
        how: signal.Signals = signal.SIGKILL,
        gate: Path | None = None,
    ) -> bool:
        """Start the folder's worker; False where one lives. With a `step` it sends itself `how` there; exports wait for
        the file `gate`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._folders.add(folder)
        order = {"folder": str(folder), "step": step, "kind": kind, "how": how, "gate": str(gate or "")}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return bool(int(self._process.stdout.readline()))

    def close(self) -> None:
        for folder in self._folders:
            if folder.exists():
                kill(folder)
        self._process.stdin and self._process.stdin.close()
        self._process.stdout and self._process.stdout.close()
        self._process.wait(PATIENCE_SECONDS)


def kill(folder: Path) -> None:
    """SIGKILL the folder's worker, which this test or its zone has started, and wait until the kernel has its lock back."""
    pid = worker_pid(folder)
    if pid is None:
        return
    os.kill(pid, signal.SIGKILL)
    until(lambda: worker_pid(folder) != pid)


def freeze(folder: Path) -> None:
    """Stop the folder's worker, not in the middle of a transaction: the catalogue must be there for others."""
    pid = worker_pid(folder)
    if pid is None:
        return
    while True:
        os.kill(pid, signal.SIGSTOP)
        until(lambda: is_frozen(folder))
        if not _is_locked(folder):
            return
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.01)


def _is_locked(folder: Path) -> bool:
    with closing(sqlite3.connect(folder / "catalogue.sqlite", timeout=0, isolation_level=None)) as db:
        try:
            db.execute("BEGIN IMMEDIATE")
            db.execute("ROLLBACK")
        except sqlite3.OperationalError:
            return True
    return False


def thaw(folder: Path) -> None:
    if pid := worker_pid(folder):
        os.kill(pid, signal.SIGCONT)


def is_frozen(folder: Path) -> bool:
    """Whether the folder's worker was stopped, by itself or by the test."""
    pid = worker_pid(folder)
    if pid is None:
        return False
    try:
        threads = [one.read_text() for one in Path(f"/proc/{pid}/task").glob("*/stat")]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return bool(threads) and all(one.rpartition(")")[2].split()[0] == "T" for one in threads)


def until(condition: Callable[[], object]) -> None:
    """Wait for what another process is about to do."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.005)
