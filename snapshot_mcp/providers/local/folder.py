"""A zone's folder: the catalogue's file in it, and the folders of what the zone keeps (FORMAT.md, "The folder").

SQLite in WAL mode with `synchronous=FULL`: a committed row survives a power cut. Shared by every process on one home.
"""

import fcntl
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from snapshot_mcp.catalogue.clock import Clock
from snapshot_mcp.catalogue.database import Catalogue
from snapshot_mcp.providers.local.platform import keep_in_place
from snapshot_mcp.providers.local.store import FileStore

FILE_NAME: Final = "catalogue.sqlite"
FOLDERS: Final = ("snapshots", "volumes", "images")
BUSY_SECONDS: Final = 30.0
"""As long a writer waits for another one; transactions here take milliseconds."""


class FolderCatalogue(Catalogue):
    """The catalogue of the zone in `folder`, opened (and, with `create`, made) by the constructor.

    Raises FileNotFoundError without `create` where the folder is gone.
    """

    store: FileStore

    def __init__(self, folder: Path, *, create: bool = True, clock: Clock | None = None) -> None:
        self.folder = folder
        if create:
            for path in (folder, *(folder / name for name in FOLDERS)):
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            keep_in_place(folder)  # SQLite's files; those in the folders above keep the filesystem's checksums
        with _opening(folder):
            _make_private(folder / FILE_NAME)
            db = sqlite3.connect(
                folder / FILE_NAME, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            try:
                db.execute("PRAGMA journal_mode = WAL")
                db.execute("PRAGMA synchronous = FULL")
                super().__init__(db, FileStore(folder), clock)
            except BaseException:
                db.close()
                raise

    @staticmethod
    def exists(folder: Path) -> bool:
        """Whether there is one; looking makes none."""
        return (folder / FILE_NAME).exists()


def _make_private(path: Path) -> None:
    """Make the file for its owner alone; SQLite gives its other files the same mode.

    One that exists is never opened: to close it again would drop the locks of every connection of this process.
    """
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


_opening_here = threading.Lock()


@contextmanager
def _opening(folder: Path) -> Iterator[None]:
    """One process at a time makes or migrates the catalogue."""
    with _opening_here:
        fd = os.open(folder / "catalogue.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)
