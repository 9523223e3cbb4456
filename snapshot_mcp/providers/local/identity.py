"""Identify a disk's file, so that no other file is overwritten in its place.

A path may lead to another file a moment later, and ext4 reuses inode numbers at once. So a file is identified by its
filesystem's UUID (device numbers change over a reboot), its inode, its birth time, and its number of hard links, since a new
link would expose another name's content. Nothing here opens the file, since that would break a lease.
"""

import ctypes
import fcntl
import os
import stat
import struct
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Self

from snapshot_mcp.providers.local.platform import IS_LINUX

HAS_BIRTH_TIME = IS_LINUX

MAX_TEXT_CHARACTERS: Final = 200

_GET_FILESYSTEM_UUID: Final = 0x80111500
_AT_FDCWD, _AT_SYMLINK_NOFOLLOW, _AT_EMPTY_PATH = -100, 0x100, 0x1000
_BASIC_AND_BIRTH, _BIRTH = 0xFFF, 0x800
_LINKS_AT, _MODE_AT, _INODE_AT, _BIRTH_AT, _DEVICE_AT = 16, 28, 32, 80, 136
"""Offsets in the kernel's `struct statx`, which is the same on every architecture."""

if IS_LINUX:
    _libc = ctypes.CDLL(None, use_errno=True)


DEVICE: Final = "device-by-"
"""Begins the filesystem of an identity that is a block device's (`device`)."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A file's filesystem, inode, birth time in nanoseconds (0 if the filesystem has none), and number of hard links."""

    filesystem: str
    inode: int
    born_ns: int
    links: int

    def __str__(self) -> str:
        return f"{self.filesystem}.{self.inode:x}.{self.born_ns:x}.{self.links:x}"

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Parse what `str` wrote; None for anything else, such as another zone's identity."""
        if len(text) > MAX_TEXT_CHARACTERS:
            return None
        try:
            filesystem, *numbers = text.split(".")
            inode, born_ns, links = (int(number, 16) for number in numbers)
        except ValueError:
            return None
        return cls(filesystem, inode, born_ns, links)

    def is_same_file(self, other: "Identity") -> bool:
        """Return whether both are one file, regardless of its hard links."""
        return (self.filesystem, self.inode, self.born_ns) == (other.filesystem, other.inode, other.born_ns)

    def is_born_as(self, other: "Identity") -> bool:
        """Return whether inode and birth time are known and equal: one file, even if its filesystem's id has changed."""
        return self.born_ns != 0 and (self.inode, self.born_ns) == (other.inode, other.born_ns)

    @property
    def description(self) -> str:
        """The file described for a person."""
        try:
            born = datetime.fromtimestamp(self.born_ns // 1_000_000_000, UTC)
        except (OverflowError, ValueError, OSError):  # not written by us
            return "an unknown file"
        if self.filesystem.startswith(DEVICE):
            return f"block device {self.filesystem.removeprefix(DEVICE)}".strip()
        if not self.born_ns:
            return f"inode {self.inode}"
        names = "" if self.links == 1 else f", {self.links} hard links"
        return f"inode {self.inode}, created {born:%Y-%m-%d %H:%M:%S} UTC{names}"


def described(identity: str) -> str:
    """Describe what `str(Identity)` wrote."""
    known = Identity.parse(identity)
    return known.description if known else "an unknown file"


def identity_at(path: Path) -> Identity | None:
    """Return the identity of the regular file at the path; None if there is none, or a symbolic link."""
    try:
        return _identity(path, -1)
    except OSError:
        return None


def identity_of(fd: int, path: Path) -> Identity:
    """Return the identity of an open file; `path` is where it was opened. Raises OSError."""
    found = _identity(path, fd)
    if found is None:
        raise OSError(f"{path} is not a regular file")
    return found


def _identity(path: Path, fd: int) -> Identity | None:
    inode, born_ns, links, mode, device = _statx(path, fd) if IS_LINUX else _stat(path, fd)
    if not stat.S_ISREG(mode):
        return None
    return Identity(_filesystem(path, device), inode, born_ns if HAS_BIRTH_TIME else 0, links)


def _statx(path: Path, fd: int) -> tuple[int, int, int, int, int]:
    buffer = ctypes.create_string_buffer(256)
    name, folder, flags = (b"", fd, _AT_EMPTY_PATH) if fd >= 0 else (os.fsencode(path), _AT_FDCWD, _AT_SYMLINK_NOFOLLOW)
    if _libc.statx(folder, name, flags, _BASIC_AND_BIRTH, buffer):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    raw = buffer.raw
    (mask,) = struct.unpack_from("I", raw)
    seconds, nanoseconds = struct.unpack_from("qI", raw, _BIRTH_AT)
    born_ns = seconds * 1_000_000_000 + nanoseconds if mask & _BIRTH else 0
    (links,), (mode,) = struct.unpack_from("I", raw, _LINKS_AT), struct.unpack_from("H", raw, _MODE_AT)
    (inode,), (major, minor) = struct.unpack_from("Q", raw, _INODE_AT), struct.unpack_from("II", raw, _DEVICE_AT)
    return inode, born_ns, links, mode, os.makedev(major, minor)


def _stat(path: Path, fd: int) -> tuple[int, int, int, int, int]:
    found = os.fstat(fd) if fd >= 0 else path.lstat()
    born_ns = int(getattr(found, "st_birthtime", 0) * 1_000_000_000)
    return found.st_ino, born_ns, found.st_nlink, found.st_mode, found.st_dev


def _filesystem(path: Path, device: int) -> str:
    """Return the filesystem's UUID if it has one, else another id, which may change over a reboot."""
    with suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if os.fstat(folder).st_dev == device:
                return _uuid(folder) or f"{os.fstatvfs(folder).f_fsid:x}"
        finally:
            os.close(folder)
    return f"device-{device:x}"


def _uuid(folder: int) -> str:
    if not IS_LINUX:
        return ""
    try:
        length, uuid = struct.unpack("B16s", fcntl.ioctl(folder, _GET_FILESYSTEM_UUID, bytes(17)))
    except OSError:
        return ""
    return uuid[:length].hex() if any(uuid) else ""
