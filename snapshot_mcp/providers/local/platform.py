"""Wrap what depends on the operating system: holes, clones, leases and locks (`holders` says who holds a file).

Linux is tested. For other systems each function has a portable fallback, chosen by the `HAS_…` constants.
"""

import ctypes
import errno
import fcntl
import os
import resource
import signal
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from snapshot_mcp.ground.closing import Closing
from snapshot_mcp.providers.local.holders import describe_holders, has_loop_device

IS_LINUX = os.uname().sysname == "Linux"
HAS_SEEK_DATA = hasattr(os, "SEEK_DATA")
HAS_PUNCH_HOLE = IS_LINUX
HAS_CLONE = IS_LINUX
HAS_LEASE = IS_LINUX

_LEASE_BREAK_TIME = Path("/proc/sys/fs/lease-break-time")
_FICLONE: Final = 0x40049409
_GET_FLAGS, _SET_FLAGS, _NO_COPY_ON_WRITE = 0x80086601, 0x40086602, 0x00800000
_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_SHARING_FILESYSTEMS: Final = {0x9123683E, 0x58465342}
_NOT_SUPPORTED: Final = {errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EXDEV, errno.ENOSYS, errno.ETXTBSY}

if IS_LINUX:
    _libc = ctypes.CDLL(None, use_errno=True)
    _libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def lift_file_limit() -> None:
    """Raise this process's limit of open files to the hard limit, often ten times the default or more."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # macOS reports a limit that it does not accept
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def fdatasync(fd: int) -> None:
    """Flush a file's bytes to the disk."""
    getattr(os, "fdatasync", os.fsync)(fd)


def keep_in_place(folder: Path) -> None:
    """Turn off copy-on-write (btrfs) for files that will be created in the folder.

    On a full filesystem a process that writes to a copy-on-write file through a mapping is killed by SIGBUS.
    """
    if not IS_LINUX:
        return
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _set_in_place(fd, _NO_COPY_ON_WRITE)
    finally:
        os.close(fd)


def _set_in_place(fd: int, wanted: int) -> None:
    """Set or clear the flag that turns off copy-on-write; most filesystems have no such flag and need none."""
    with suppress(OSError):
        flags = _flags_of(fd)
        if flags & _NO_COPY_ON_WRITE != wanted:
            fcntl.ioctl(fd, _SET_FLAGS, struct.pack("l", flags ^ _NO_COPY_ON_WRITE))


def _flags_of(fd: int) -> int:
    flags: int = struct.unpack("l", fcntl.ioctl(fd, _GET_FLAGS, bytes(struct.calcsize("l"))))[0]
    return flags


def data_extents(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the parts of [start, end) that may hold anything but zeros, as (start, end), in order."""
    if not HAS_SEEK_DATA:
        yield start, end
        return
    while start < end:
        try:
            data = os.lseek(fd, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            if error.errno not in _NOT_SUPPORTED:
                raise
            yield start, end
            return
        if data >= end:
            return
        hole = min(os.lseek(fd, data, os.SEEK_HOLE), end)
        yield data, hole
        start = hole


def _fallocate(fd: int, mode: int, offset: int, length: int) -> bool:
    """Return whether the filesystem supports the mode. Raises OSError, above all ENOSPC."""
    while _libc.fallocate(fd, mode, offset, length):
        code = ctypes.get_errno()
        if code in _NOT_SUPPORTED:
            return False
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))
    return True


def write_zeros(fd: int, offset: int, length: int) -> None:
    """Make [offset, offset + length) read as zeros, as a hole if the filesystem has them."""
    if HAS_PUNCH_HOLE and _fallocate(fd, _KEEP_SIZE | _PUNCH_HOLE, offset, length):
        return
    write_at(fd, bytes(length), offset)


def reserve(fd: int, offset: int, length: int) -> None:
    """Reserve space, if the filesystem can, without changing a byte or the size. Raises OSError with ENOSPC."""
    if HAS_PUNCH_HOLE:
        _fallocate(fd, _KEEP_SIZE, offset, length)


def write_at(fd: int, data: bytes, offset: int) -> None:
    """Write all of `data`."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def clone_beside(fd: int, path: Path) -> int | None:
    """Return a descriptor of an instant, unnamed copy in the folder of `path`; None if the filesystem has no clones.

    btrfs and XFS have them. The copy disappears when the descriptor is closed, even by a crash.
    """
    if not (HAS_CLONE and hasattr(os, "O_TMPFILE")):
        return None
    try:
        copy = os.open(path.parent, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:
        return None
    try:
        if clone_into(copy, fd):
            return copy
    except BaseException:
        os.close(copy)
        raise
    os.close(copy)
    return None


def clone_into(copy: int, fd: int) -> bool:
    """Make an empty file a clone of an open one; return whether the filesystem can. Raises OSError, above all ENOSPC.

    btrfs clones only between files that are alike in copy-on-write (`chattr +C`), which is set while a file is empty.
    """
    if not HAS_CLONE:
        return False
    try:
        _set_in_place(copy, _flags_of(fd) & _NO_COPY_ON_WRITE)
    except OSError:
        """No such flags."""
    try:
        fcntl.ioctl(copy, _FICLONE, fd)
    except OSError as error:
        if error.errno in _NOT_SUPPORTED:
            return False
        raise
    return True


def shares_extents(fd: int) -> bool:
    """Return whether the file is on a filesystem whose FIEMAP says what clones share: btrfs and XFS."""
    if not IS_LINUX:
        return False
    buffer = ctypes.create_string_buffer(256)
    return _libc.fstatfs(fd, buffer) == 0 and struct.unpack_from("l", buffer)[0] in _SHARING_FILESYSTEMS


class DiskInUse(Exception):
    """Somebody holds the file; the message says who, as far as the system shows it."""


class ReadLease(Closing):
    """A lease under which nobody writes to the file, which proves that a copy is one state (FORMAT.md, "A disk in use").

    A new writer's open() waits until the lease is released or `lease-break-time` (45 s) has passed, so a copy that ends
    within `PATIENCE_SECONDS` of such an attempt is still one state. `kind` is "unchanged" with a lease and "fuzzy" without:
    then size, mtime and ctime are compared before and after, which proves nothing.

    Raises DiskInUse if somebody has the file open for writing, PermissionError if the file belongs to another user.
    """

    PATIENCE_SECONDS: Final = 10.0
    """How long a new writer is kept waiting, well below the kernel's 45 s."""

    def __init__(self, fd: int, path: Path, *, allow_in_use: bool = False) -> None:
        self.fd, self.path = fd, path
        self.kind = "fuzzy"
        self._last_whole = time.monotonic()
        self._before = self._identity()
        self._allow_in_use = allow_in_use
        if not HAS_LEASE:
            return
        try:
            _set_lease(fd, fcntl.F_RDLCK)
            self.kind = "unchanged"
        except OSError as error:
            if error.errno == errno.EAGAIN and not allow_in_use:
                raise DiskInUse(describe_holders(path, writers_only=True)) from None
            if error.errno == errno.EACCES and not allow_in_use:
                raise

    def check(self) -> None:
        """Raise DiskInUse if what was read so far may be inconsistent. Call it often and after the last read."""
        now, identity = time.monotonic(), self._identity()
        if identity[0] != self._before[0]:
            raise DiskInUse(f"its size changed from {self._before[0]} to {identity[0]} bytes while it was being read")
        if self.kind == "unchanged":
            if fcntl.fcntl(self.fd, fcntl.F_GETLEASE) == fcntl.F_RDLCK:
                self._last_whole = now
            elif now - self._last_whole > _patience(self.PATIENCE_SECONDS):
                raise DiskInUse("a program started writing to it while it was being read")
        elif identity != self._before and not self._allow_in_use:
            raise DiskInUse("it was written to while it was being read")

    def close(self) -> None:
        """Release the lease."""
        if self.kind == "unchanged":
            _give_back_lease(self.fd)

    def _identity(self) -> tuple[int, int, int]:
        stat = os.fstat(self.fd)
        return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


class WriteHold(Closing):
    """A hold on a file while it is overwritten; `is_alone` if nobody else can open it during that time.

    A write lease (Linux) keeps others out. Where a reader prevents the lease, or the system has none, only locks hold off
    other programs, and what was written must be compared afterwards. Raises DiskInUse, naming the holder, if the file is
    locked or a loop device, whose cache would become stale, is attached to it; see also `refuse_writers`.
    """

    TRIES: Final = 5
    """Attempts to get the lease, since a passing reader (an indexer, a checksum) is soon gone."""

    PATIENCE_SECONDS: Final = 30.0
    """How long a new writer is kept waiting; the kernel lets it in after 45 s."""

    def __init__(self, fd: int, path: Path, tries: int = TRIES) -> None:
        self.fd, self.path, self._tries = fd, path, tries
        self.is_alone = False
        self._last_whole = time.monotonic()
        if has_loop_device(path):
            raise DiskInUse(describe_holders(path))
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.close()
            if error.errno not in {errno.EAGAIN, errno.EACCES}:
                raise
            raise DiskInUse(describe_holders(path)) from None
        self.is_alone = HAS_LEASE and self._lease()

    @staticmethod
    def refuse_writers(reader: int, path: Path) -> None:
        """Raise DiskInUse or PermissionError as `ReadLease` does; call it before opening the file for writing."""
        if not HAS_LEASE:
            return
        try:
            _set_lease(reader, fcntl.F_RDLCK)
            fcntl.fcntl(reader, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        except OSError as error:
            if error.errno == errno.EAGAIN:
                raise DiskInUse(describe_holders(path)) from None
            if error.errno == errno.EACCES:
                raise

    def check(self) -> None:
        """Raise DiskInUse if somebody may have written to the file although `is_alone`. Call it often.

        A reader's open() downgrades the lease to a read lease, which still keeps writers out.
        """
        now = time.monotonic()
        if not self.is_alone or fcntl.fcntl(self.fd, fcntl.F_GETLEASE) != fcntl.F_UNLCK:
            self._last_whole = now
        elif now - self._last_whole > _patience(self.PATIENCE_SECONDS):
            raise DiskInUse("a program started writing to it")

    def _lease(self) -> bool:
        for attempt in range(self._tries):
            try:
                _set_lease(self.fd, fcntl.F_WRLCK)
            except OSError as error:
                if error.errno != errno.EAGAIN:
                    return False
                if attempt + 1 < self._tries:
                    time.sleep(0.1)
            else:
                return True
        return False

    def close(self) -> None:
        """Release the lease and the locks."""
        fcntl.lockf(self.fd, fcntl.LOCK_UN)
        fcntl.flock(self.fd, fcntl.LOCK_UN)
        if self.is_alone:
            _give_back_lease(self.fd)
            self.is_alone = False


def _patience(seconds: float) -> float:
    """Return how long a new writer may wait, well below the system's `fs.lease-break-time`."""
    try:
        return min(seconds, int(_LEASE_BREAK_TIME.read_text("ascii")) * 2 / 3)
    except (OSError, ValueError):
        return seconds


def _give_back_lease(fd: int) -> None:
    """Release a lease, unless the system has revoked it because somebody waited too long."""
    with suppress(OSError):
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)


def _set_lease(fd: int, kind: int) -> None:
    """Take a lease whose break sends a signal that is ignored by default; the usual one ends the process."""
    fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, kind)
