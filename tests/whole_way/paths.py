"""What can become of the path of a disk: each way to lead it to something else, and back."""

import fcntl
import os
import random
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

CHUNK = 64 << 10
DISK_BYTES = 4 * CHUNK

TRIES = 100

_GET_FLAGS, _SET_FLAGS, _TOP_OF_A_TREE = 0x80086601, 0x40086602, 0x00020000


def quiet_folder(folder: Path) -> Path:
    """A folder below it in a part of the filesystem (ext4) where no one else is making files, so that a freed inode stays free
    for a moment."""
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    with suppress(OSError):  # another filesystem
        (flags,) = struct.unpack("l", fcntl.ioctl(fd, _GET_FLAGS, bytes(struct.calcsize("l"))))
        fcntl.ioctl(fd, _SET_FLAGS, struct.pack("l", flags | _TOP_OF_A_TREE))
    os.close(fd)
    quiet = folder / "disks"
    quiet.mkdir()
    return quiet


def elsewhere(path: Path) -> Path:
    return path.with_name("elsewhere.img")


def by_another_file(path: Path) -> None:
    """Another file of the same size; the disk's own lies elsewhere now."""
    path.rename(elsewhere(path))
    path.write_bytes(random.randbytes(DISK_BYTES))


def by_the_same_inode(path: Path) -> None:
    """`rm` and a new file, which gets the inode of the old one: most filesystems use it again at once."""
    inode = path.stat().st_ino
    fillers = [path.with_name(f"filler-{number}") for number in range(TRIES)]
    path.unlink()
    for filler in fillers:
        filler.touch()
        if filler.stat().st_ino == inode:
            filler.rename(path)
            break
    for filler in fillers:
        filler.unlink(missing_ok=True)
    assert path.exists(), f"the filesystem of {path} did not use the inode again"
    path.write_bytes(random.randbytes(DISK_BYTES))


def by_a_symlink(path: Path) -> None:
    path.rename(elsewhere(path))
    path.symlink_to(elsewhere(path))


def by_a_hard_link(path: Path) -> None:
    """Another name for the same file, whose content would go along."""
    os.link(path, elsewhere(path))


def by_nothing(path: Path) -> None:
    path.rename(elsewhere(path))


REPLACED: dict[str, Callable[[Path], None]] = {
    "another file": by_another_file,
    "the same inode": by_the_same_inode,
    "a symlink": by_a_symlink,
    "a hard link": by_a_hard_link,
    "nothing": by_nothing,
}


def put_back(path: Path) -> bool:
    """Bring the disk's own file back to its path; False where it lies nowhere else."""
    other = elsewhere(path)
    if not other.exists() or (path.exists() and not path.is_symlink() and path.samefile(other)):
        other.unlink(missing_ok=True)
        return False
    path.unlink(missing_ok=True)
    other.rename(path)
    return True
