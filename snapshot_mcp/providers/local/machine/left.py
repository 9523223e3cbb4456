"""Remember which machines have something of ours in their QEMU, and take it out at the next start.

Each has a file in the zone's folder. It says only where to look: what is there is known by its fixed names (`filters`).
"""

import json
import logging
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Final

from blake3 import blake3

from snapshot_mcp.ground.files import fsync_folder, replace_private
from snapshot_mcp.providers.local.formats import Machine
from snapshot_mcp.providers.local.machine.filters import undo
from snapshot_mcp.providers.local.machine.monitor import Monitor, MonitorAbsent, MonitorError

SUFFIX: Final = ".machine"
PROBE_SECONDS: Final = 5.0
PROBE_BYTES: Final = 4096

Connect = Callable[[Machine], Monitor]

log = logging.getLogger(__name__)


def note(folder: Path, machine: Machine) -> None:
    """Record durably that something of ours may be in the machine's QEMU from now on."""
    path = _path(folder, machine)
    if not path.exists():
        replace_private(path, json.dumps(asdict(machine)).encode())
        fsync_folder(folder)


def forget(folder: Path, machine: Machine) -> None:
    """Record that nothing of ours is there any more."""
    _path(folder, machine).unlink(missing_ok=True)


def sweep(folder: Path, connect: Connect) -> None:
    """Take out of each machine what a worker that died left there; one that cannot be reached now is tried again later."""
    for path in folder.glob(f".*{SUFFIX}"):
        try:
            machine = Machine(**json.loads(path.read_bytes()))
        except (OSError, ValueError, TypeError):
            log.warning("%s cannot be read", path)
            continue
        take_out(folder, machine, connect)


def take_out(folder: Path, machine: Machine, connect: Connect) -> bool:
    """Take everything of ours out of one machine's QEMU; return whether that was done. Never raises: the guest goes on anyway."""
    if not responds(folder):
        log.warning("the disk of %s does not answer, so QEMU is left alone: it would wait for it", folder)
        return False
    try:
        monitor = connect(machine)
        try:
            undo(monitor)
        finally:
            monitor.close()
    except MonitorAbsent:
        pass  # it ended, and all that was in it
    except MonitorError as error:
        log.warning("what a backup left in a machine is still there, and is tried again later: %s", error)
        return False
    forget(folder, machine)
    return True


def responds(folder: Path) -> bool:
    """Return whether the disk of the scratch files takes a write: QEMU waits for theirs before it lets go of them."""
    done = threading.Event()

    def write() -> None:
        with suppress(OSError):  # a full disk answers too
            fd = scratch_file(folder, PROBE_BYTES)
            try:
                os.pwrite(fd, bytes(PROBE_BYTES), 0)
            finally:
                os.close(fd)
        done.set()

    threading.Thread(target=write, daemon=True).start()
    return done.wait(PROBE_SECONDS)


def scratch_file(folder: Path, size_bytes: int) -> int:
    """Return a file of this size without a name: only we, and QEMU by its descriptor, read the guest's old data in it."""
    try:
        fd = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:  # not every filesystem has such files
        path = folder / f".{os.getpid()}-{threading.get_ident()}.scratch.partial"
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        path.unlink()
    os.ftruncate(fd, size_bytes)
    return fd


def _path(folder: Path, machine: Machine) -> Path:
    name = blake3(json.dumps(asdict(machine)).encode()).hexdigest()[:16]
    return folder / f".{name}{SUFFIX}"
