"""A zone's folder: the catalogue's file and the folders of what the zone keeps (FORMAT.md, "The folder").

SQLite runs in WAL mode with `synchronous=FULL`, so a committed row survives a power cut. All processes share the file.
"""

import fcntl
import os
from pathlib import Path
from typing import Final

from snapshot_mcp.catalogue import schema
from snapshot_mcp.catalogue.database import Catalogue
from snapshot_mcp.contract.errors import NotUsable, Unavailable
from snapshot_mcp.ground import reserve
from snapshot_mcp.ground.clock import Clock
from snapshot_mcp.ground.files import make_private_folder
from snapshot_mcp.ground.sqlite import copy_to
from snapshot_mcp.providers.local.platform import keep_in_place
from snapshot_mcp.providers.local.store import FileStore
from snapshot_mcp.providers.local.strays import has_content, refuse_lost, refuse_stranger, refuse_without_files
from snapshot_mcp.providers.local.whereabouts import is_a_copy, settle

FILE_NAME: Final = "catalogue.sqlite"
FOLDERS: Final = ("snapshots", "volumes", "images")


def file_at(folder: Path) -> tuple[int, int] | None:
    """Return which file is the folder's catalogue, None if there is none."""
    try:
        found = (folder / FILE_NAME).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


class FolderCatalogue(Catalogue):
    """The catalogue of the zone in `folder`; without `create`, FileNotFoundError is raised if the folder is missing.

    It is never created beside the files of a lost one (NotUsable). While it is open, the zone is not rebuilt (`rebuild`).
    """

    store: FileStore

    def __init__(
        self, folder: Path, *, create: bool = True, clock: Clock | None = None, copy: Path | None = None
    ) -> None:
        """Open it; with `copy`, a file of that name that does not exist yet, work on a copy and leave the folder as it is."""
        self.folder = folder
        if copy is not None:
            self._look_at_copy(copy, clock)
            return
        reserve.relieve(folder)
        refuse_lost(folder / FILE_NAME)
        if create:
            for path in (folder, *(folder / name for name in FOLDERS)):
                make_private_folder(path)
            keep_in_place(folder)  # SQLite's files; the folders above keep the filesystem's checksums
        self._lock = lock_zone(folder)
        try:
            super().__init__(schema.open_catalogue(folder / FILE_NAME), FileStore(folder), clock)
            refuse_stranger(self, folder)
            self.file = file_at(folder)
            self.original: Path | None = settle(self, FILE_NAME)
            """The folder of which this one is a copy that nobody has adopted, None normally."""
            self._say_what_is_wrong()
        except BaseException:
            if hasattr(self, "db"):
                super().close()
            _unlock(self._lock)
            raise
        if create:
            reserve.make(folder)

    def _look_at_copy(self, copy: Path, clock: Clock | None) -> None:
        refuse_lost(self.folder / FILE_NAME)
        copy_to(self.folder / FILE_NAME, copy)
        super().__init__(schema.open_catalogue(copy), FileStore(self.folder), clock)
        refuse_stranger(self, self.folder)
        self.file, self._lock = file_at(self.folder), None
        self.original = settle(self, FILE_NAME)
        self._say_what_is_wrong()

    def _say_what_is_wrong(self) -> None:
        try:
            if self.original:
                raise is_a_copy(self.folder, self.original)
            refuse_without_files(self, self.folder)
        except NotUsable as error:
            self.problem = str(error)

    def close(self) -> None:
        """Close the connection, and let the zone be rebuilt."""
        super().close()
        _unlock(self._lock)
        self._lock = None

    @property
    def is_in_place(self) -> bool:
        """Whether the file that is open is still the one at its path."""
        return file_at(self.folder) == self.file

    @staticmethod
    def exists(folder: Path) -> bool:
        """Return whether there is a catalogue, without creating one. Raises NotUsable if it was lost."""
        refuse_lost(folder / FILE_NAME)
        return has_content(folder / FILE_NAME)


def lock_zone(folder: Path, *, is_alone: bool = False) -> int | None:
    """Return a descriptor that holds the zone open, shared with others or alone; None where the system cannot lock a folder.

    Raises Unavailable while another process holds it otherwise.
    """
    try:
        fd = os.open(folder / FOLDERS[0], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, (fcntl.LOCK_EX if is_alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise Unavailable("The zone is being rebuilt.", hint="Try again when `zone rebuild` has finished.") from None
    except OSError:  # such as a filesystem without locks
        os.close(fd)
        return None
    return fd


def _unlock(fd: int | None) -> None:
    if fd is not None:
        os.close(fd)
