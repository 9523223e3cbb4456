"""Keep a clone of each disk's last capture, so that the next one reads only what was written since (btrfs and XFS).

A clone is believed only as the clone of one snapshot: beside it is a record with the hash of that snapshot's file, and with
which file the clone is and when it was last changed, by its inode and times. It is never written to. It costs the space of what
the disk overwrites, so it goes with its snapshot, when its disk has another head, and when space runs low (FORMAT.md, "Kept
clones").
"""

import errno
import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from io import BufferedReader
from pathlib import Path
from typing import Final

from snapshot_mcp.catalogue.database import Catalogue
from snapshot_mcp.ground.files import make_private_folder, replace_private
from snapshot_mcp.providers.local.extents import changed_spans
from snapshot_mcp.providers.local.identity import identity_of
from snapshot_mcp.providers.local.platform import clone_beside, clone_into, shares_extents
from snapshot_mcp.providers.local.source import Span

log = logging.getLogger(__name__)

FOLDER_NAME: Final = "clones"
_RECORD, _CLONE = ".json", ".clone"

FREE_SHARE: Final = 4
"""A clone stays while a quarter of what it stores could be written anew: a disk that runs out of space harms its machine."""


@dataclass(frozen=True, slots=True)
class _Record:
    """What is known of a clone; `proof` is empty until it is complete. `path` is "" for one in the zone's folder."""

    snapshot_id: str
    path: str
    file_hash: str = ""
    proof: str = ""


class Clones:
    """The clones of the zone in `folder`. Without room, or on a filesystem without clones, there are none."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / FOLDER_NAME

    def keep(self, fd: int, disk_path: Path, snapshot_id: str, file_hash: bytes) -> None:
        """Keep a clone of the open file whose content a complete snapshot has: in the zone's folder, or else beside the disk."""
        if not shares_extents(fd):
            return
        for path in (None, disk_path.with_name(f".snapshot-mcp.{snapshot_id}{_CLONE}")):
            record = _Record(snapshot_id, str(path or ""))
            try:
                make_private_folder(self.folder)
                self._write(record)  # first, so that no clone is ever without one
                if proof := self._clone(fd, self._path(record)):
                    self._write(replace(record, file_hash=file_hash.hex(), proof=proof))
                    return
            except OSError:
                """The next capture reads everything."""
            self._remove(record)

    def changes(self, fd: int, snapshot_id: str, file_hash: bytes) -> Iterator[Span]:
        """Yield what of the open file may differ from the snapshot: all of it, unless a proven clone tells."""
        try:
            with self._proven(snapshot_id, file_hash) as clone:
                if _share_filesystem(fd, clone.fileno(), Path(clone.name)):
                    yield from changed_spans(clone.fileno(), fd)
                    return
        except OSError as error:
            log.info("all of the disk is read: %s", error)
        yield 0, os.fstat(fd).st_size

    def _proven(self, snapshot_id: str, file_hash: bytes) -> BufferedReader:
        """Open the snapshot's clone. Raises OSError if there is none that is proven to be its."""
        record = self._read(self.folder / f"{snapshot_id}{_RECORD}")
        if record is None or record.file_hash != file_hash.hex():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), snapshot_id)
        path = self._path(record)
        clone = open(path, "rb", opener=_open_clone)  # noqa: SIM115 (the caller closes it)
        if _proof_of(clone.fileno(), path) == record.proof and shares_extents(clone.fileno()):
            return clone
        clone.close()
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))

    def tidy(self, catalogue: Catalogue) -> None:
        """Remove those from which no next capture can start, and those whose filesystem has too little room."""
        for record in self._records():
            is_wanted = catalogue.row(
                """SELECT 1 FROM snapshots WHERE snapshot_id = ? AND (status = 'pending' OR status = 'available'
                AND EXISTS (SELECT 1 FROM resources WHERE head_id = snapshots.snapshot_id))""",
                record.snapshot_id,
            )
            if not is_wanted or not _has_room(self._path(record)):
                self._remove(record)

    def remove(self, snapshot_ids: Sequence[str]) -> None:
        """Remove those of these snapshots."""
        for snapshot_id in snapshot_ids:
            if record := self._read(self.folder / f"{snapshot_id}{_RECORD}"):
                self._remove(record)

    def remove_all(self) -> bool:
        """Remove all of them, to make room; return whether there were any."""
        records = list(self._records())
        for record in records:
            self._remove(record)
        return bool(records)

    def _clone(self, fd: int, path: Path) -> str:
        """Make a durable clone and return its proof, "" where that is not possible or there is too little room."""
        copy = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            if not clone_into(copy, fd) or not _has_room(path):
                return ""
            os.fsync(copy)
            return _proof_of(copy, path)
        finally:
            os.close(copy)

    def _path(self, record: _Record) -> Path:
        return Path(record.path) if record.path else self.folder / f"{record.snapshot_id}{_CLONE}"

    def _records(self) -> Iterator[_Record]:
        with suppress(FileNotFoundError):
            for path in list(self.folder.glob(f"ss-*{_RECORD}")):
                if record := self._read(path):
                    yield record

    def _read(self, path: Path) -> _Record | None:
        try:
            return _Record(**json.loads(path.read_bytes()))
        except (OSError, ValueError, TypeError):
            return None

    def _write(self, record: _Record) -> None:
        replace_private(self.folder / f"{record.snapshot_id}{_RECORD}", json.dumps(asdict(record)).encode())

    def _remove(self, record: _Record) -> None:
        with suppress(OSError):
            self._path(record).unlink(missing_ok=True)
            (self.folder / f"{record.snapshot_id}{_RECORD}").unlink(missing_ok=True)


def _open_clone(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _proof_of(fd: int, path: Path) -> str:
    """Return which file it is and when it was last changed in any way: any write to it changes that."""
    found = os.fstat(fd)
    return f"{identity_of(fd, path)} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"


def _has_room(path: Path) -> bool:
    """Return whether a clone's filesystem has enough free space for what its disk may write; true if it is not mounted."""
    try:
        stored = path.stat().st_blocks * 512
        free = os.statvfs(path)
    except OSError:
        return True
    return free.f_bavail * free.f_frsize >= stored // FREE_SHARE


def _share_filesystem(fd: int, clone: int, path: Path) -> bool:
    """Return whether physical addresses of both mean the same: a trial shows it for two subvolumes of btrfs."""
    if os.fstat(fd).st_dev == os.fstat(clone).st_dev:
        return True
    trial = clone_beside(fd, path)
    if trial is None:
        return False
    os.close(trial)
    return True
