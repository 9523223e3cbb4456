"""A small reserve of disk space in a folder: on a full disk it is given up, so that what frees space can still be recorded.

SQLite needs room even for reading, and so do the records of a deletion: without a reserve a full disk locks its owner out.
Blocking; nothing here raises, because a folder without a reserve is no error.
"""

import os
from contextlib import suppress
from pathlib import Path

NAME = ".reserve"

RESERVE_BYTES = 4 << 20
"""For the write-ahead logs of some deletions and their records; a small disk has a smaller one."""

LEAST_BYTES = 512 << 10
"""For one deletion and its record."""

LOW_BYTES = 1 << 20
"""With less free space than this the reserve is given up."""

ROOM_FACTOR = 16
"""The reserve takes a small part of what is free."""


def free_bytes(folder: Path) -> int:
    """Return the free space of the folder's filesystem for this user, in bytes. Raises OSError."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def total_bytes(folder: Path) -> int:
    """Return the size of the folder's filesystem, in bytes. Raises OSError."""
    found = os.statvfs(folder)
    return found.f_blocks * found.f_frsize


def relieve(folder: Path) -> None:
    """Give the folder's reserve up if its disk is full; one that was given up before, that of the home around it."""
    if os.name == "nt":
        return
    with suppress(OSError):
        if free_bytes(folder) < LOW_BYTES:
            around = [folder, *folder.parents[:2]]
            held = next((one / NAME for one in around if (one / NAME).exists() and _is_beside(one, folder)), None)
            if held:
                held.unlink()
                os.sync()  # btrfs gives space back with the next commit only


def _is_beside(one: Path, other: Path) -> bool:
    return one.stat().st_dev == other.stat().st_dev


def make(folder: Path) -> None:
    """Make the folder's reserve, if there is none and enough room for it."""
    path = folder / NAME
    if os.name == "nt" or path.exists():
        return
    with suppress(OSError):
        size = min(RESERVE_BYTES, free_bytes(folder) // ROOM_FACTOR)
        if size < LEAST_BYTES:
            return
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError:
            path.unlink()
        finally:
            os.close(descriptor)
