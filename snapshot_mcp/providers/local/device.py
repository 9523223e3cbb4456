"""Block devices as disks: what they are, who uses them, and how they are held for a capture or a roll-back.

A device has no lease. `O_EXCL` keeps mounts, RAID, LVM and swap away, but nobody who opens it plainly, such as QEMU: so its users
are looked up, and from then on it is watched, and the kernel's count of writes is compared. A device keeps its size.
"""

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from blake3 import blake3

from snapshot_mcp.contract.errors import BadRequest, NotUsable, ResourceBusy
from snapshot_mcp.contract.text import MESSAGE_CHARACTERS, clean_text, format_bytes
from snapshot_mcp.ground.closing import Closing
from snapshot_mcp.providers.local.disk import CaptureSource, TargetDisk, step_after
from snapshot_mcp.providers.local.holders import describe, find_holders
from snapshot_mcp.providers.local.identity import DEVICE, Identity
from snapshot_mcp.providers.local.place import shown, why_missing
from snapshot_mcp.providers.local.platform import DiskInUse, write_at
from snapshot_mcp.providers.local.source import RawFile, Span
from snapshot_mcp.providers.local.watch import OpenWatch

_ZERO_OUT: Final = 0x127F
_PARTS_OF_IDENTITY: Final = ("wwid", "device/wwid", "device/serial", "dm/uuid", "md/uuid", "uuid", "partition")
_STABLE: Final = ("by-id", "by-path")


def is_device(path: Path) -> bool:
    """Return whether a path leads to a block device, without opening it."""
    try:
        return stat.S_ISBLK(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def stable_path(path: Path) -> Path:
    """Return the name to register a device by. Raises BadRequest for one that may be another device's after the next start."""
    path = Path(os.path.abspath(path))  # noqa: PTH100 (the link is the name)
    if path != path.resolve() or path.parts[:3] == ("/", "dev", "mapper"):
        return path
    for kind in _STABLE:
        for link in sorted(Path("/dev/disk", kind).glob("*")):
            if link.resolve() == path:
                raise BadRequest(
                    f"The name {shown(path)} may lead to another device after the next start.",
                    hint=f"Give its stable name: {link}",
                )
    return path


def size_at(path: Path) -> int:
    """Return the size of the device at a path, 0 if that is not known; opens nothing."""
    try:
        return int((_facts(path.stat().st_rdev) / "size").read_text("ascii")) * 512
    except (OSError, ValueError):
        return 0


def device_at(path: Path) -> Identity | None:
    """Return the identity of the device at a path: by its serial number or UUID, or by its file if it is a loop device."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return _identity(found.st_rdev) if stat.S_ISBLK(found.st_mode) else None


def _identity(number: int) -> Identity:
    facts = _facts(number)
    parts = [f"{name}={text}" for name in _PARTS_OF_IDENTITY if (text := _text(facts / name))]
    backing = _text(facts / "loop" / "backing_file")
    if backing:
        try:
            file = Path(backing).stat()
            parts.append(f"file={file.st_dev}:{file.st_ino}")
        except OSError:
            parts.append(f"file={backing}")
    if (facts / "partition").exists():
        parts.append(f"of={_identity(_number(facts.resolve().parent)).filesystem}")
    named = blake3("\n".join(parts).encode(errors="surrogateescape")).hexdigest()[:16] if parts else ""
    return Identity(f"{DEVICE}{named}", 0 if parts else number, 0, 1)


def _facts(number: int) -> Path:
    return Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")


def _number(facts: Path) -> int:
    major, _, minor = _text(facts / "dev").partition(":")
    return os.makedev(int(major or 0), int(minor or 0))


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", errors="surrogateescape").strip()
    except OSError:
        return ""


class DeviceContent(RawFile):
    """The content of an open device as a `Target`."""

    @property
    def size_bytes(self) -> int:
        """The size of the device, where its end is."""
        return os.lseek(self.fd, 0, os.SEEK_END)

    def write_zeros(self, offset: int, length: int) -> None:
        """Have the device zero a part, or write zeros."""
        try:
            fcntl.ioctl(self.fd, _ZERO_OUT, struct.pack("QQ", offset, length))
        except OSError as error:
            if error.errno not in {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTTY}:
                raise
            write_at(self.fd, bytes(length), offset)

    def resize(self, size_bytes: int) -> None:
        """Fail: a device keeps its size."""
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    def reserve(self, spans: Iterable[Span]) -> None:
        """Do nothing: a device has its space."""


class _Held(Closing):
    """An open device that nobody else writes to, and the watch over it. Raises DiskInUse."""

    def __init__(self, fd: int, path: Path) -> None:
        self._fd, self._number = fd, os.fstat(fd).st_rdev
        self.is_alone = True
        self._watch = OpenWatch(fd, path)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.lockf(fd, (fcntl.LOCK_EX if _is_writable(fd) else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise DiskInUse(describe(find_holders([path])[path]) or "another program has locked it") from None
        self._watch.settle(())
        self._written = self._count_written()

    def check(self, *, is_ours: bool = False) -> None:
        """Raise DiskInUse if another program opened the device for writing, or wrote to it while only `is_ours` may."""
        self._watch.check()
        if not _facts(self._number).exists() or os.lseek(self._fd, 0, os.SEEK_END) == 0:
            raise DiskInUse("it was detached")
        if not is_ours and self._count_written() != self._written:
            raise DiskInUse("it was written to")

    def close(self) -> None:
        """Stop watching and release the locks."""
        self._watch.close()
        fcntl.lockf(self._fd, fcntl.LOCK_UN)
        fcntl.flock(self._fd, fcntl.LOCK_UN)

    def _count_written(self) -> tuple[str, ...]:
        """Return the sectors that were written and discarded since the system started."""
        fields = _text(_facts(self._number) / "stat").split()
        return (*fields[6:7], *fields[13:14])


def _is_writable(fd: int) -> bool:
    return fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR


def _open(path: Path, label: str, flags: int, consequence: str, identity: str) -> int:
    """Open a device for ourselves alone, if it is the one of this identity. Raises ResourceBusy, NotUsable."""
    there = ""
    if not is_device(path):
        there = "is not a block device" if path.exists() else "does not exist"
    elif not size_at(path):
        there = "has nothing behind it"
    elif identity and str(device_at(path)) != identity:
        there = "leads to another device"
    if there:
        hint = "Connect the device under this name again, or register the other one as a disk of its own."
        raise NotUsable(f"The path of {label}, {shown(path)}, {there} now.", hint=hint)
    try:
        return os.open(path, flags | os.O_EXCL | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise _in_use(label, consequence, describe(find_holders([path])[path]) or "the system uses it") from None
        raise NotUsable(
            f"The device of {label}, {shown(path)}, cannot be opened: {why_missing(path, error)}.",
            hint=step_after(error, path),
        ) from None


def _in_use(label: str, consequence: str, users: object) -> ResourceBusy:
    return ResourceBusy(
        f"{label} is in use{consequence}: {clean_text(users, MESSAGE_CHARACTERS)}.",
        hint="Stop the program that uses it (shut the machine down, unmount it) and try again.",
    )


class DeviceSource(CaptureSource):
    """A device that is read while nobody writes to it (`held`). Raises ResourceBusy, NotUsable."""

    def __init__(self, path: str, label: str, identity: str = "") -> None:
        self._lease = None
        self._held: _Held | None = None
        self.path, self.label, self.consistency = Path(path), label, "held"
        consequence = "; a copy taken now could be inconsistent"
        self.fd = _open(self.path, label, os.O_RDONLY, consequence, identity)
        try:
            self._held = _Held(self.fd, self.path)
        except DiskInUse as error:
            self.close()
            raise _in_use(label, consequence, error) from None
        self.size_bytes = self.content.size_bytes

    @property
    def content(self) -> DeviceContent:
        """What is on the device."""
        return DeviceContent(self.fd)

    @property
    def stored_bytes(self) -> int:
        """All of it: a device does not say what it stores."""
        return self.size_bytes

    def _look(self) -> None:
        if self._held:
            self._held.check()

    def close(self) -> None:
        """Release and close it."""
        if self._held is not None:
            self._held.close()
            self._held = None
        super().close()


class DeviceTarget(TargetDisk):
    """A device that is held to be overwritten. Raises ResourceBusy, NotUsable."""

    def __init__(self, path: str, label: str, identity: str = "") -> None:
        self._hold = None
        self.path, self.label = Path(path), label
        self.fd = _open(self.path, label, os.O_RDWR, self.consequence, identity)
        try:
            self._hold = _Ours(self.fd, self.path)
        except DiskInUse as error:
            self.close()
            raise _in_use(label, self.consequence, error) from None
        self.identity = _identity(os.fstat(self.fd).st_rdev)
        self.size_bytes = self.content.size_bytes

    @property
    def content(self) -> DeviceContent:
        """What is on the device."""
        return DeviceContent(self.fd)

    @property
    def is_at_its_path(self) -> bool:
        """Return whether its path still leads to it."""
        return device_at(self.path) == self.identity

    def refuse_size(self, size_bytes: int) -> None:
        """Raise NotUsable for a restore point of another size."""
        if size_bytes != self.size_bytes:
            raise other_size(self.label, size_bytes, self.size_bytes)


class _Ours(_Held):
    """A device that we write to: the count of writes says nothing about others."""

    def check(self, *, is_ours: bool = True) -> None:
        """Raise DiskInUse if another program opened it for writing."""
        super().check(is_ours=is_ours)


def frozen(device: DeviceTarget) -> str:
    """Return the identity by which a device is known after the next start too, "" if only its number is known."""
    return "" if device.identity.inode else str(device.identity)


def other_size(label: str, wanted_bytes: int, size_bytes: int) -> NotUsable:
    """Return the error for a roll-back to a restore point of another size."""
    return NotUsable(
        f"{label} is a block device of {format_bytes(size_bytes)} ({size_bytes} bytes), and the restore point has"
        f" {wanted_bytes} bytes: a device cannot change its size.",
        hint="Export the restore point to a new volume instead. Nothing was changed.",
    )
