"""Where a zone lies: it notices that its folder was moved, or that it is a copy of another zone.

The catalogue has the folder's path. A folder that was moved is adopted: what the zone itself made is found in it again. A copy
names the same disks outside of it as the original, so nothing may be changed there until a person says `zone adopt`: then these
disks have no file here until `zone move` gives them one. A folder that can be reached by two paths is one zone (FORMAT.md, "The
folder").
"""

import logging
import sqlite3
from contextlib import closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from snapshot_mcp.catalogue.copied import forget_copies
from snapshot_mcp.catalogue.database import IS_UNFINISHED, path_bytes
from snapshot_mcp.catalogue.jobs import end_failed
from snapshot_mcp.contract.errors import Cancelled, NotUsable
from snapshot_mcp.providers.local.place import shown

if TYPE_CHECKING:
    from snapshot_mcp.providers.local.folder import FolderCatalogue

log = logging.getLogger(__name__)

BUSY_SECONDS = 1.0
"""How long to wait for the original's catalogue, which is only read."""


def settle(catalogue: "FolderCatalogue", catalogue_name: str) -> Path | None:
    """Note where the zone lies, and that it was moved; return the original's folder if this is a copy that nobody adopted."""
    folder = catalogue.folder
    with catalogue.reading():
        known = catalogue.row("SELECT * FROM place")
    if known is None:
        _note(catalogue)
    if known is None or known["path"] == str(folder):
        return None
    original = Path(known["path"])
    if _is_same(original, folder):
        return None
    if _has_disks_of(original / catalogue_name, catalogue):
        return original
    with catalogue.transaction():
        _take_along(catalogue, original)
        _note(catalogue)
    log.warning("the zone was moved from %s to %s", shown(original), shown(folder))
    return None


def is_a_copy(folder: Path, original: Path) -> NotUsable:
    """Return the error for a change in a copy, which could overwrite the original's disks."""
    return NotUsable(
        f"The zone in {shown(folder)} is a copy of the one in {shown(original)}, which is still there, and both name the same"
        " disks. Nothing was changed.",
        hint="A person decides in a shell: `zone adopt` makes it a zone of its own, whose disks outside of its folder have no"
        " file until `zone move`. If it shall replace the original, move the original away first.",
    )


def adopt(catalogue: "FolderCatalogue") -> list[str]:
    """Make a copy a zone of its own, and return the ids of the disks that have no file now."""
    known = catalogue.row("SELECT * FROM place")
    if known:
        _refuse_shared(catalogue.folder, Path(known["path"]))
    with catalogue.transaction() as db:
        if known:
            _take_along(catalogue, Path(known["path"]))
        for job in catalogue.rows(f"SELECT * FROM jobs WHERE {IS_UNFINISHED}"):
            end_failed(catalogue, job, Cancelled("The zone was copied while this job waited, and was adopted since."))
        detached = [
            row["resource_id"]
            for row in catalogue.rows("SELECT * FROM resources WHERE removed_at IS NULL")
            if row["path"] and not Path(row["path"]).resolve().is_relative_to(catalogue.folder.resolve())
        ]
        for resource_id in detached:
            db.execute(
                """UPDATE resources SET former_path = path, path = '', applying_id = NULL, is_stopped = 0, problem = ''
                WHERE resource_id = ?""",
                (resource_id,),
            )
        forget_copies(catalogue)  # the original goes on under its writer's name
        _note(catalogue)
    return detached


def _refuse_shared(folder: Path, original: Path) -> None:
    """Raise NotUsable if a copy has something in common with its original: a linked folder, or hard links of its files."""
    shared = [path.name for path in folder.iterdir() if path.is_symlink()]
    shared += [path.name for path in folder.iterdir() if _is_same(original / path.name, path)]
    for name in ("snapshots", "volumes", "images"):
        linked = [path.name for path in (folder / name).iterdir() if path.is_symlink() or path.lstat().st_nlink > 1]
        shared += [f"{name}/{one}" for one in linked]
    if shared:
        named = ", ".join(map(shown, shared[:3]))
        raise NotUsable(
            f"The copy in {shown(folder)} has files or folders in common with another place ({named}): what is changed here"
            " would be changed there.",
            hint="Nothing was changed. Make a copy without links (cp -a --dereference), and adopt that.",
        )


def _take_along(catalogue: "FolderCatalogue", original: Path) -> None:
    """Let paths below the original's folder lead below this one."""
    for table, key in (("resources", "resource_id"), ("images", "image_id")):
        for row in catalogue.rows(f"SELECT * FROM {table}"):
            path = Path(row["path"])
            if path.is_relative_to(original):
                _set_path(catalogue, table, key, row[key], catalogue.folder / path.relative_to(original))


def _set_path(catalogue: "FolderCatalogue", table: str, key: str, value: str, path: Path) -> None:
    catalogue.db.execute(f"UPDATE {table} SET path = CAST(? AS TEXT) WHERE {key} = ?", (path_bytes(str(path)), value))


def _note(catalogue: "FolderCatalogue") -> None:
    db = catalogue.db
    with nullcontext() if db.in_transaction else catalogue.transaction():
        db.execute("DELETE FROM place")
        db.execute("INSERT INTO place (path) VALUES (CAST(? AS TEXT))", (path_bytes(str(catalogue.folder)),))


def _has_disks_of(file: Path, catalogue: "FolderCatalogue") -> bool:
    """Return whether another catalogue registers disks of this one, or may: one that cannot be read is believed to.

    Inode numbers prove nothing here: those of a btrfs snapshot are its original's, and device numbers change.
    """
    try:
        file.stat()
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True, timeout=BUSY_SECONDS)) as db:
            there = {row[0] for row in db.execute("SELECT resource_id FROM resources")}
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError, sqlite3.Error):
        return True
    with catalogue.reading():
        return any(row["resource_id"] in there for row in catalogue.rows("SELECT resource_id FROM resources"))


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False
