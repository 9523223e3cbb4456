"""Find who holds a file (loop devices, processes, locks, leases) in the kernel's tables alone.

Nothing here opens the file, since that would break a lease of a job of ours (`in_use` asks what the tables do not show). One
walk over /proc serves any number of files. Other users' processes appear only as far as this user may see them; our own
process is never listed.
"""

import os
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISBLK
from typing import Final, NamedTuple

MAX_NAMED: Final = 5
"""Most holders of one file that a message names; the rest are counted."""

UNKNOWN_HOLDER: Final = "another program has it open (this user may not see which one)"

DAEMON_NAME: Final = "(qemu-storage-da)"
"""How the kernel names QEMU's daemon that reads and writes images for us: by fifteen characters."""

_ESCAPE = re.compile(r"\\([0-7]{3})")


DEVICE: Final = -1
"""The inode of a block device, which is one device by any name."""


class FileId(NamedTuple):
    """A file as stat() identifies it; a block device by its number."""

    device: int
    inode: int


@dataclass(frozen=True, slots=True)
class Holder:
    """One use of a file, as the rest of a sentence; `can_write` if it may change the file.

    `process` is who has it open, its id and name, "" for a use of another kind.
    """

    text: str
    can_write: bool = False
    is_lease: bool = False
    process: str = ""


def find_holders(paths: Sequence[Path]) -> dict[Path, list[Holder]]:
    """Return who holds each file according to the tables; a file that does not exist has no holders."""
    files = {path: file for path in paths if (file := _file_id(path)) is not None}
    found: dict[FileId, list[Holder]] = {file: [] for file in files.values()}
    for file, holder in (*_loop_devices(set(found)), *_mounted(set(found)), *_open_files(set(found)), *_locks(files)):
        if holder not in found[file]:
            found[file].append(holder)
    return {path: found[files[path]] if path in files else [] for path in paths}


def describe(holders: Sequence[Holder]) -> str:
    """Return the holders as one text: "process 123 (qemu-system-x86) has it open for writing"; "" for none."""
    named = [holder.text for holder in holders[:MAX_NAMED]]
    more = len(holders) - len(named)
    return "; ".join([*named, *([f"{more} more"] if more else [])])


def describe_holders(path: Path, *, writers_only: bool = False) -> str:
    """Return who has the file open, for a message about a file that is known to be in use."""
    found = [one for one in find_holders([path])[path] if one.can_write or not writers_only]
    return describe(found or find_mappings(path)) or UNKNOWN_HOLDER


def find_writers(path: Path, ignoring: Collection[int] = ()) -> list[Holder]:
    """Return the loop devices and the processes, but for some, that have the file open for writing; locks are not looked at."""
    file = _file_id(path)
    wanted = {file} if file else set()
    found = (*_loop_devices(wanted), *_open_files(wanted, {str(pid) for pid in ignoring}))
    return [holder for _, holder in found if holder.can_write]


def has_loop_device(path: Path) -> bool:
    """Return whether a loop device is attached to the file."""
    file = _file_id(path)
    return file is not None and any(_loop_devices({file}))


def has_foreign_lease(path: Path) -> bool:
    """Return whether another process has a lease on the file, which opening the file would break."""
    file = _file_id(path)
    return file is not None and any(holder.is_lease for _, holder in _locks({path: file}))


def is_locked(path: Path) -> bool:
    """Return whether a process has locked the file by flock(), without locking it."""
    file = _file_id(path)
    keys = {_lock_key(path, file)} if file else set()
    return any(line[1] == "FLOCK" and line[5] in keys for line in _lock_lines())


def find_mappings(path: Path) -> list[Holder]:
    """Return the processes that have mapped the file for writing, even if they have closed it since.

    Slower than the other tables: use it only if something holds the file and they do not show what.
    """
    file = _file_id(path)
    key = _lock_key(path, file) if file else ""
    return [Holder(f"process {_name(pid)} has it mapped for writing", True) for pid in _processes() if _maps(pid, key)]


def _file_id(path: Path) -> FileId | None:
    try:
        stat = path.stat()
    except (OSError, ValueError):
        return None
    return FileId(stat.st_rdev, DEVICE) if S_ISBLK(stat.st_mode) else FileId(stat.st_dev, stat.st_ino)


def _loop_devices(wanted: set[FileId]) -> Iterator[tuple[FileId, Holder]]:
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        file = _file_id(Path("\n".join(_lines(backing))))  # a file name may contain line breaks
        if file in wanted and file is not None:
            device = f"/dev/{backing.parts[3]}"
            where = next((line.split()[1] for line in _lines("/proc/mounts") if line.split()[0] == device), "")
            yield (
                file,
                Holder(f"loop device {device} is attached to it" + (f", mounted at {where}" if where else ""), True),
            )


def _mounted(wanted: set[FileId]) -> Iterator[tuple[FileId, Holder]]:
    """Yield where block devices are mounted."""
    for point, (major, minor) in _mounts() if any(file.inode == DEVICE for file in wanted) else ():
        file = FileId(os.makedev(major, minor), DEVICE)
        if file in wanted:
            yield file, Holder(f"it is mounted at {point}", True)


def _open_files(wanted: set[FileId], ignoring: Collection[str] = ()) -> Iterator[tuple[FileId, Holder]]:
    for pid in _processes() if wanted else ():
        if pid in ignoring:
            continue
        modes: dict[FileId, bool] = {}
        for number, file in _descriptors(pid):
            if file in wanted:
                modes[file] = modes.get(file, False) or _is_for_writing(pid, number)
        for file, can_write in modes.items():
            use = f"has it open for {'writing' if can_write else 'reading'}"
            yield file, Holder(f"process {_name(pid)} {use}", can_write, process=_name(pid))


def _processes() -> Iterator[str]:
    own = str(os.getpid())
    return (name for name in _names("/proc") if name.isdecimal() and name != own)


def _descriptors(pid: str) -> Iterator[tuple[str, FileId]]:
    """Yield a process's descriptors and their files; none for another user's process or one that has ended."""
    for number in _names(f"/proc/{pid}/fd"):
        if file := _file_id(Path(f"/proc/{pid}/fd/{number}")):
            yield number, file


def _names(folder: str) -> list[str]:
    try:
        return [entry.name for entry in os.scandir(folder)]
    except OSError:
        return []


def _is_for_writing(pid: str, number: str) -> bool:
    flags = next((line.split()[1] for line in _lines(f"/proc/{pid}/fdinfo/{number}") if line.startswith("flags:")), "0")
    return int(flags, 8) & os.O_ACCMODE != os.O_RDONLY


def _locks(files: dict[Path, FileId]) -> Iterator[tuple[FileId, Holder]]:
    wanted = {_lock_key(path, file): file for path, file in files.items()}
    own = str(os.getpid())
    for _, kind, _, mode, pid, key in _lock_lines():
        if key not in wanted or pid == own:
            continue
        what = "holds a lease on it" if kind == "LEASE" else "has locked it"
        who = "a program" if pid == "-1" else f"process {_name(pid)}"
        yield wanted[key], Holder(f"{who} {what}", mode == "WRITE", kind == "LEASE")


def _lock_lines() -> Iterator[list[str]]:
    """Yield the first six fields of each held lock: number, kind, strictness, mode, process, file."""
    for line in _lines("/proc/locks"):
        fields = line.split()
        if len(fields) >= 6 and fields[1] != "->":  # a process that waits for the lock
            yield fields[:6]


def _lock_key(path: Path, file: FileId) -> str:
    """Return the file as /proc/locks and /proc/PID/maps name it: by its mount's device, as stat() differs for a subvolume."""
    real = f"{os.path.realpath(path)}/"
    major, minor = os.major(file.device), os.minor(file.device)
    longest = -1
    for point, (its_major, its_minor) in _mounts():
        if len(point) >= longest and real.startswith(f"{point.rstrip('/')}/"):
            major, minor, longest = its_major, its_minor, len(point)
    return f"{major:02x}:{minor:02x}:{file.inode}"


def _mounts() -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield each mount point and its device; a later one hides an earlier one at the same path."""
    for line in _lines("/proc/self/mountinfo"):
        _, _, device, _, point, *_ = line.split()
        major, _, minor = device.partition(":")
        yield _ESCAPE.sub(lambda match: chr(int(match[1], 8)), point), (int(major), int(minor))


def _maps(pid: str, key: str) -> bool:
    """Return whether the process has a shared, writable mapping of the file."""
    for line in _lines(f"/proc/{pid}/maps"):
        fields = line.split(maxsplit=5)
        if len(fields) >= 5 and f"{fields[3]}:{fields[4]}" == key and fields[1][1] == "w" and fields[1][3] == "s":
            return True
    return False


def _name(pid: str) -> str:
    name = next(iter(_lines(f"/proc/{pid}/comm")), "")
    return f"{pid} ({name})" if name else pid


def _lines(path: str | Path) -> list[str]:
    """Return the lines of one of the kernel's files, which may contain names that are not UTF-8."""
    try:
        return os.fsdecode(Path(path).read_bytes()).split("\n")[:-1]
    except OSError:
        return []
