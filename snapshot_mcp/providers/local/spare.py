"""The copy of the catalogue beside it, which an idle worker keeps fresh and a rebuild reads.

Headers of files cannot know what was renamed, tagged or registered later, which snapshot is the head, what was verified, and
what was exported; the copy knows it as of its time. Its table `copy_of` says in which folder it was made.
"""

import json
import os
import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from snapshot_mcp.catalogue import schema
from snapshot_mcp.contract.errors import Unsupported
from snapshot_mcp.ground.files import create_private, fsync_folder
from snapshot_mcp.ground.sqlite import version_of
from snapshot_mcp.providers.local.folder import FILE_NAME, FolderCatalogue
from snapshot_mcp.providers.local.strays import COPY_NAME, find_strays

MIN_AGE_SECONDS: Final = 60.0
BYTES_PER_SECOND: Final = 64 << 10
"""A copy is replaced once it is older than a minute and a second for each 64 KiB: two hours for a million snapshots."""


def keep_copy(catalogue: FolderCatalogue) -> bool:
    """Replace the copy if the catalogue has changed and the copy is old enough; return whether it was replaced.

    Not while files without a row are there: the old copy may know them. Raises sqlite3.Error, OSError; the old copy then stays.
    """
    folder = catalogue.folder
    if not _is_due(folder) or schema.is_newer(catalogue.db) or find_strays(catalogue, folder):
        return False
    size = (folder / FILE_NAME).stat().st_size
    if catalogue.store.capacity().free_bytes < 2 * size:
        return False
    partial, started = folder / f".{COPY_NAME}.partial", time.time()
    partial.unlink(missing_ok=True)
    create_private(partial)  # SQLite accepts an empty file, and would create a readable one
    try:
        _write_copy(folder, partial)
        os.utime(partial, (started, started))  # what is committed while it is written is newer than the copy
        partial.replace(folder / COPY_NAME)
    finally:
        partial.unlink(missing_ok=True)
    fsync_folder(folder)
    return True


def _is_due(folder: Path) -> bool:
    """Return whether the copy is older than the catalogue and than its least age; a copy from the future is."""
    try:
        made_at = (folder / COPY_NAME).stat().st_mtime
    except FileNotFoundError:
        return True
    files = [folder / f"{FILE_NAME}{suffix}" for suffix in ("", "-wal")]
    found = [path.stat() for path in files if path.exists()]
    age = time.time() - made_at
    if age < 0:
        return True
    has_changed = any(stat.st_mtime > made_at for stat in found)
    return has_changed and age > MIN_AGE_SECONDS + sum(stat.st_size for stat in found) / BYTES_PER_SECOND


def _write_copy(folder: Path, partial: Path) -> None:
    with closing(sqlite3.connect(folder / FILE_NAME, timeout=schema.BUSY_SECONDS, isolation_level=None)) as db:
        db.execute("VACUUM INTO ?", (str(partial),))
    with closing(sqlite3.connect(partial)) as db:
        db.execute("PRAGMA journal_mode = DELETE")
        db.execute("CREATE TABLE copy_of (place TEXT NOT NULL)")
        db.execute("INSERT INTO copy_of VALUES (?)", (place_of(folder),))
        db.commit()
    descriptor = os.open(partial, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def place_of(folder: Path) -> str:
    """Return what tells this folder from a copy of it, and from itself after it was moved."""
    real = folder.resolve()
    return json.dumps([os.fsencode(real).hex(), real.stat().st_ino])


@dataclass(frozen=True, slots=True)
class CatalogueCopy:
    """A copy that can be read; `is_of_here`: it was made in this very folder, so its disks are where it says."""

    path: Path
    made_at: float
    is_of_here: bool

    def open(self) -> sqlite3.Connection:
        """Open it for reading."""
        db = sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro", uri=True)
        db.row_factory = sqlite3.Row
        return db


def read_copy(folder: Path) -> CatalogueCopy | None:
    """Return the copy if it is whole, None if there is none or it is damaged. Raises Unsupported if it is of a newer format."""
    copy = CatalogueCopy(folder / COPY_NAME, 0.0, is_of_here=False)
    try:
        made_at = copy.path.stat().st_mtime
        with closing(copy.open()) as db:
            version = version_of(db)
            if version > len(schema.MIGRATIONS):
                raise Unsupported(
                    f"The copy of the zone's catalogue was written by a newer version of snapshot-mcp (format {version}).",
                    hint="Update this installation. Nothing was changed.",
                )
            is_whole = version > 0 and db.execute("PRAGMA quick_check(1)").fetchone()[0] == "ok"
            place = db.execute("SELECT place FROM copy_of").fetchone()
    except (FileNotFoundError, sqlite3.Error):
        return None
    is_of_here = place is not None and place[0] == place_of(folder)
    return CatalogueCopy(copy.path, made_at, is_of_here) if is_whole else None
