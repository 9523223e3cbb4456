"""A folder on another disk or a mounted share as a store. Nothing is written through a symbolic link."""

import errno
import os
import stat
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from snapshot_mcp.contract.errors import NotFound, StorageFull, Unavailable, ZoneError
from snapshot_mcp.contract.text import MESSAGE_CHARACTERS, clean_text, encodable
from snapshot_mcp.copies.stores import BLOCK, HeldObject, Pace
from snapshot_mcp.ground.files import fsync_folder
from snapshot_mcp.ground.permissions import reason_of

MARK: Final = "snapshot-mcp-copies"
"""The file that says that the folder is ours: without it a share that is not mounted would be taken for the share."""

_MARK_TEXT: Final = b"Copies of restore points, made by snapshot-mcp (format 1). Every object is named in a manifest.\n"
_PARTIAL: Final = ".partial"

MAX_DEPTH: Final = 4
"""Names that were made by us have three slashes at most."""


class FolderStore:
    """Objects as files of mode 0600, each written under a temporary name, synced and renamed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def prepare(self, *, is_known: bool) -> None:
        """Make sure that the folder is there, and ours or empty. Raises Unavailable."""
        mark = self.folder / MARK
        try:
            if not self.folder.is_dir():
                raise self._unavailable("is not there", "Mount it, or make it; nothing was copied.")
            if mark.is_file():
                return
            if is_known:
                hint = "Mount it. If it was emptied on purpose, put an empty folder there under another name."
                raise self._unavailable(f"is not the one that was copied to: its file {MARK!r} is missing", hint)
            with os.scandir(self.folder) as entries:
                if any(entry.name != "lost+found" for entry in entries):
                    raise self._unavailable("holds other files", "Give a new, empty folder; nothing was copied.")
            mark.write_bytes(_MARK_TEXT)
            fsync_folder(self.folder)
        except OSError as error:
            raise self._failed(error) from None

    def put(self, name: str, content: bytes, pace: Pace | None = None) -> None:
        """Write a file. Raises StorageFull, Unavailable."""
        path = self._path(name)
        partial = path.with_name(f".{path.name}{_PARTIAL}")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with suppress(FileNotFoundError):
                partial.unlink()
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(partial, flags, 0o600)
            try:
                _write_all(descriptor, content, pace)
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)  # what is read back comes from the disk
            finally:
                os.close(descriptor)
            partial.replace(path)
        except OSError as error:
            with suppress(OSError):
                partial.unlink()
            raise self._failed(error) from None

    def create(self, name: str, content: bytes) -> bool:
        """Write a small file unless there is one."""
        path = self._path(name)
        if os.path.lexists(path):
            return False
        temporary = f"{name}.new"
        self.put(temporary, content)
        try:
            os.link(self._path(temporary), path, follow_symlinks=False)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in {errno.EPERM, errno.ENOTSUP, errno.EMLINK}:
                raise self._failed(error) from None
            self._path(temporary).rename(path)  # a filesystem without hard links, such as exFAT
        finally:
            with suppress(OSError):
                self._path(temporary).unlink()
        self.settle(name)
        return True

    def get(self, name: str) -> Iterator[bytes]:
        """Yield a file's bytes. Raises NotFound, Unavailable."""
        try:
            descriptor = os.open(self._path(name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO}:
                raise NotFound(f"The copy has no {clean_text(name)!r}.") from None
            raise self._failed(error) from None
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise NotFound(f"{clean_text(name)!r} in the copy is no file.")
            while chunk := os.read(descriptor, BLOCK):
                yield chunk
        except OSError as error:
            raise self._failed(error) from None
        finally:
            os.close(descriptor)

    def list(self, prefix: str) -> Iterator[HeldObject]:
        """Yield the files below a folder; links and what is unfinished are none."""
        try:
            yield from self._walk(self.folder / prefix, prefix, MAX_DEPTH)
        except OSError as error:
            raise self._failed(error) from None

    def remove(self, names: Collection[str]) -> None:
        """Remove files, and the folders that become empty."""
        try:
            for name in names:
                path = self._path(name)
                with suppress(FileNotFoundError):
                    path.unlink()
                with suppress(OSError):
                    path.parent.rmdir()
        except OSError as error:
            raise self._failed(error) from None

    def settle(self, prefix: str) -> None:
        """Sync the names of the folders from the object's up to the store's."""
        path = self._path(prefix)
        try:
            for folder in (path, *path.parents):
                if folder.is_dir():
                    fsync_folder(folder)
                if folder == self.folder:
                    break
        except OSError as error:
            raise self._failed(error) from None

    def _walk(self, folder: Path, prefix: str, depth: int) -> Iterator[HeldObject]:
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except (FileNotFoundError, NotADirectoryError):
            return
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if depth:
                    yield from self._walk(Path(entry.path), f"{prefix}{entry.name}/", depth - 1)
            elif entry.is_file(follow_symlinks=False) and not entry.name.startswith("."):
                found = entry.stat(follow_symlinks=False)
                yield HeldObject(f"{prefix}{encodable(entry.name)}", found.st_size, found.st_mtime)

    def _path(self, name: str) -> Path:
        path = self.folder / name
        below = path.parent
        while below != self.folder:
            if below.is_symlink():
                raise self._unavailable(f"has a symbolic link at {clean_text(str(below))!r}", "None is followed.")
            below = below.parent
        return path

    def _unavailable(self, why: str, hint: str) -> Unavailable:
        shown = clean_text(encodable(str(self.folder)), MESSAGE_CHARACTERS)
        return Unavailable(f"The folder {shown!r} {why}.", hint=hint)

    def _failed(self, error: OSError) -> ZoneError:
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            shown = clean_text(encodable(str(self.folder)), MESSAGE_CHARACTERS)
            return StorageFull(f"The folder {shown!r} is full.", hint="Free some space there; the copy then goes on.")
        return self._unavailable(f"cannot be used: {reason_of(error, self.folder)}", "The copy goes on once it can.")


def _write_all(descriptor: int, content: bytes, pace: Pace | None) -> None:
    view = memoryview(content)
    while view:
        if pace:
            pace(min(BLOCK, len(view)))
        view = view[os.write(descriptor, view[:BLOCK]) :]
