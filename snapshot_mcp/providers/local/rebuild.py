"""Rebuild a zone's catalogue from the headers of its snapshot files and from the copy beside it (FORMAT.md, "A lost catalogue").

A usable catalogue is completed in one transaction. A lost or damaged one is replaced: the new one is written under a temporary
name, the old one moved aside, and the new one renamed. So a rebuild that is killed has done nothing, or can be run again.
"""

import fcntl
import json
import os
import shutil
import sqlite3
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Final

from snapshot_mcp.catalogue import salvage, schema
from snapshot_mcp.catalogue.database import Catalogue, path_bytes
from snapshot_mcp.catalogue.report import Finding
from snapshot_mcp.catalogue.salvage import FoundSnapshot
from snapshot_mcp.catalogue.store import DamagedSnapshot, NewerSnapshot
from snapshot_mcp.contract.errors import ResourceBusy, Unavailable
from snapshot_mcp.contract.states import ResourceType
from snapshot_mcp.ground.clock import Clock
from snapshot_mcp.ground.files import create_private, fsync_folder
from snapshot_mcp.providers.local.folder import FILE_NAME, FOLDERS, lock_zone
from snapshot_mcp.providers.local.found import EXPORT_NAME, FoundFile, read_found
from snapshot_mcp.providers.local.holders import describe_holders
from snapshot_mcp.providers.local.image.look import layout_of_export
from snapshot_mcp.providers.local.in_use import LOCK_NAME
from snapshot_mcp.providers.local.spare import CatalogueCopy, read_copy
from snapshot_mcp.providers.local.store import FileStore
from snapshot_mcp.providers.local.strays import find_strays, has_content, snapshot_ids_in

NEW_NAME: Final = f".{FILE_NAME}.rebuilt.partial"
_BESIDE: Final = ("-wal", "-shm", "-journal")


class CatalogueState(Enum):
    """What is at the catalogue's path."""

    USABLE = "usable"
    LOST = "missing or empty"
    DAMAGED = "damaged"


@dataclass(frozen=True, slots=True)
class DiskWithoutFile:
    """A disk that has no path until a person gives it one; `former_path` is what the files or the copy said, "" if nothing."""

    resource_id: str
    name: str
    former_path: str


@dataclass(frozen=True, slots=True)
class RebuildReport:
    """What a rebuild took in, and what it could not know.

    `copy_at`: the time of the copy that was used, in seconds since 1970; `by_copy_count`: how many snapshots it knew that are
    there. `undeleted`: in the copy they were deleted.
    `gone`: the copy had them, and they have no file any more. `moved_aside`: where a damaged catalogue is now.
    """

    state: CatalogueState = CatalogueState.USABLE
    taken_in: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    disks: tuple[DiskWithoutFile, ...] = ()
    exports: tuple[str, ...] = ()
    copy_at: float | None = None
    by_copy_count: int = 0
    undeleted: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    ended_jobs: tuple[str, ...] = ()
    moved_aside: str = ""

    @property
    def has_changed(self) -> bool:
        """Return whether the catalogue was changed."""
        return bool(self.taken_in or self.state != CatalogueState.USABLE)


def rebuild(folder: Path, clock: Clock | None = None) -> RebuildReport:
    """Take in again every snapshot file that no row names. Raises ResourceBusy while the zone is open elsewhere, Unsupported."""
    if not (folder / FOLDERS[0]).is_dir():
        return RebuildReport()
    with _alone(folder):
        copy, state = read_copy(folder), _look_at(folder / FILE_NAME)
        if state == CatalogueState.USABLE:
            return _complete(folder, clock, copy)
        if not copy and not snapshot_ids_in(folder) and not _exported_files(folder):
            return RebuildReport() if state == CatalogueState.LOST else _replace(folder, clock, copy, state)
        return _replace(folder, clock, copy, state)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep workers, servers and commands from opening the zone. Raises ResourceBusy, naming who has it open."""
    with ExitStack() as stack:
        worker = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        stack.callback(os.close, worker)
        try:
            fcntl.flock(worker, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lock = lock_zone(folder, is_alone=True)
        except (BlockingIOError, Unavailable) as error:
            is_worker = isinstance(error, BlockingIOError)
            raise _open_elsewhere(folder / (LOCK_NAME if is_worker else FOLDERS[0])) from None
        if lock is not None:
            stack.callback(os.close, lock)
        yield


def _open_elsewhere(path: Path) -> ResourceBusy:
    return ResourceBusy(
        f"The zone is open in another process, so it cannot be rebuilt now ({describe_holders(path)}).",
        hint="End the servers and hosts that use this zone; its worker ends soon after its last job. Nothing was changed.",
    )


def _look_at(path: Path) -> CatalogueState:
    """Return what is at the catalogue's path. Raises Unsupported for a newer format, ResourceBusy if a program has it open."""
    if not has_content(path):
        return CatalogueState.LOST
    try:
        with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as db:
            db.execute("PRAGMA locking_mode = EXCLUSIVE")
            db.execute(
                "BEGIN IMMEDIATE"
            )  # fails while an older version of the program has it open, which takes no other lock
            is_whole = db.execute("PRAGMA quick_check(1)").fetchone()[0] == "ok"
            db.execute("ROLLBACK")
        if not is_whole:
            return CatalogueState.DAMAGED
        with closing(schema.open_catalogue(path)) as db:
            has_rows = any(db.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone() for table in ("resources", "jobs"))
        return CatalogueState.USABLE if has_rows else CatalogueState.LOST
    except sqlite3.DatabaseError as error:
        match getattr(error, "sqlite_errorcode", 0) & 0xFF:
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                raise _open_elsewhere(path) from None
            case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
                return CatalogueState.DAMAGED
        raise


def _complete(folder: Path, clock: Clock | None, copy: CatalogueCopy | None) -> RebuildReport:
    """Add to a usable catalogue what it lacks: an older one was put back, or its write-ahead log has lost its end."""
    with Catalogue(schema.open_catalogue(folder / FILE_NAME), FileStore(folder), clock) as catalogue:
        if not find_strays(catalogue, folder):
            return RebuildReport()
        with catalogue.transaction():
            ended = salvage.end_jobs(catalogue)
            report = _take_in(catalogue, folder, copy)
        return replace(report, ended_jobs=tuple(ended))


def _replace(folder: Path, clock: Clock | None, copy: CatalogueCopy | None, state: CatalogueState) -> RebuildReport:
    """Make a new catalogue, based on the copy if there is one, and put it in the place of the old one."""
    new = folder / NEW_NAME
    for suffix in ("", *_BESIDE):
        new.with_name(f"{NEW_NAME}{suffix}").unlink(missing_ok=True)
    create_private(new)
    if copy:
        shutil.copyfile(copy.path, new)
    undeleted: list[str] = []
    gone: list[str] = []
    with Catalogue(schema.open_catalogue(new), FileStore(folder), clock) as catalogue:
        with catalogue.transaction() as db:
            if copy:
                undeleted, gone = _bring_up_to_date(catalogue, folder, copy)
            by_copy_count = salvage.count_kept(catalogue)
            report = _take_in(catalogue, folder, copy)
            exports = _take_in_exports(catalogue, folder)
            _give_exports_their_files(catalogue, folder)
            db.execute("DROP TABLE IF EXISTS copy_of")
            db.execute("DELETE FROM place")
        catalogue.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        report = replace(report, state=state, undeleted=tuple(undeleted), gone=tuple(gone), exports=exports)
        report = replace(report, copy_at=copy.made_at if copy else None, by_copy_count=by_copy_count)
        report = replace(report, disks=_disks_without_file(catalogue))
    aside = _put_in_place(folder, new)
    return replace(report, moved_aside=str(aside or ""))


def _bring_up_to_date(catalogue: Catalogue, folder: Path, copy: CatalogueCopy) -> tuple[list[str], list[str]]:
    """Correct what the copy cannot know; return what it had as deleted and is available again, and what has no file any more."""
    salvage.end_jobs(catalogue)
    gone = salvage.drop_missing(catalogue, set(snapshot_ids_in(folder)))
    acts = [row[0] for row in catalogue.rows("SELECT deletion_id FROM deletions WHERE state = 'deleted'")]
    undeleted = salvage.undelete(catalogue, acts)
    catalogue.db.execute("UPDATE resources SET head_id = NULL")  # a roll-back since then is not known
    if not copy.is_of_here:
        catalogue.db.execute("UPDATE resources SET former_path = path, path = '' WHERE path != ''")
    return undeleted, gone


def _take_in(catalogue: Catalogue, folder: Path, copy: CatalogueCopy | None) -> RebuildReport:
    """Take in the files without a row, within the caller's transaction."""
    reading = _Reading(catalogue, folder)
    strays = find_strays(catalogue, folder, with_pending=True)
    found = [one for one in map(reading.examine, strays) if one is not None]
    known = _known_to(copy, found)
    salvage.take_in(catalogue, [_as_known(one, known) for one in found])
    lost = [_lost(*pair) for pair in salvage.find_lost_parents(catalogue)]
    torn = [finding for one in found for finding in _torn(catalogue, one)]
    return RebuildReport(
        taken_in=tuple(one.snapshot_id for one in found),
        findings=(*reading.findings, *lost, *torn),
        disks=_disks_without_file(catalogue),
    )


class _Reading:
    """Reads the files without a row, each with what it builds on."""

    def __init__(self, catalogue: Catalogue, folder: Path) -> None:
        self.catalogue, self.snapshots = catalogue, folder / FOLDERS[0]
        self.findings: list[Finding] = []
        self._files: dict[str, FoundFile | DamagedSnapshot | NewerSnapshot] = {}

    def examine(self, snapshot_id: str) -> FoundSnapshot | None:
        """Return what the file says, None (with a finding) if it cannot be taken in."""
        file = self._read(snapshot_id)
        if not isinstance(file, FoundFile):
            return self._leave(
                snapshot_id, f"{file.message} It was not taken in", is_damage=isinstance(file, DamagedSnapshot)
            )
        one = file.snapshot
        row = self.catalogue.resource(one.resource_id)
        if row is not None and row["resource_type"] != one.resource_type:
            return self._leave(
                snapshot_id, f"it is of a {one.resource_type}, and {one.resource_id} is another. It was not taken in"
            )
        for ancestor_id in one.chain[:-1]:
            if isinstance(self._read(ancestor_id), NewerSnapshot):
                text = f"it builds on {ancestor_id}, which was written by a newer version. It was not taken in"
                return self._leave(snapshot_id, text)
        return self._compared(file)

    def _compared(self, file: FoundFile) -> FoundSnapshot:
        """Compare a file with its parent's; one that was built on another file can never be restored."""
        one, parent = file.snapshot, self._read(file.snapshot.parent_id) if file.snapshot.parent_id else None
        if isinstance(parent, FoundFile) and not file.fits(parent):
            text = f"the file of {one.parent_id} is not the one that it was built on, so it cannot be restored"
            self.findings.append(Finding(one.snapshot_id, text, is_damage=True))
            return replace(one, is_damaged=True)
        return one

    def _leave(self, snapshot_id: str, text: str, *, is_damage: bool = False) -> FoundSnapshot | None:
        self.findings.append(Finding(snapshot_id, text, is_damage))
        return None

    def _read(self, snapshot_id: str) -> FoundFile | DamagedSnapshot | NewerSnapshot:
        if snapshot_id not in self._files:
            try:
                self._files[snapshot_id] = read_found(self.snapshots, snapshot_id)
            except (DamagedSnapshot, NewerSnapshot) as error:
                self._files[snapshot_id] = error
        return self._files[snapshot_id]


def _known_to(copy: CatalogueCopy | None, found: list[FoundSnapshot]) -> dict[str, sqlite3.Row]:
    """Return the copy's rows of these snapshots."""
    if copy is None or not found:
        return {}
    with closing(copy.open()) as db:
        query = "SELECT * FROM snapshots WHERE snapshot_id = ?"
        rows = (db.execute(query, (one.snapshot_id,)).fetchone() for one in found)
        return {row["snapshot_id"]: row for row in rows if row is not None}


def _as_known(one: FoundSnapshot, known: dict[str, sqlite3.Row]) -> FoundSnapshot:
    """Return the snapshot with what the copy knows better than its header: its present name, tags and marks."""
    row = known.get(one.snapshot_id)
    if row is None:
        return one
    return replace(
        one,
        name=row["name"],
        description=row["description"],
        tags=tuple(json.loads(row["tags"])),
        created_at=row["created_at"],
        verified_at=row["verified_at"],
        is_damaged=one.is_damaged or bool(row["is_damaged"]),
    )


def _lost(snapshot_id: str, missing_id: str) -> Finding:
    text = f"it builds on {missing_id}, which has no file that can be read, so it cannot be restored"
    return Finding(snapshot_id, text, is_damage=True)


def _torn(catalogue: Catalogue, one: FoundSnapshot) -> Iterator[Finding]:
    """Say which snapshots that were taken at the same moment, of other disks, are not there."""
    gone = [
        other for other in one.taken_with if (row := catalogue.snapshot(other)) is None or row["status"] == "ceased"
    ]
    if gone:
        yield Finding(
            one.snapshot_id, f"it was taken together with {', '.join(gone)}, which has no file", is_damage=False
        )


def _disks_without_file(catalogue: Catalogue) -> tuple[DiskWithoutFile, ...]:
    rows = catalogue.rows("SELECT * FROM resources WHERE path = '' AND removed_at IS NULL ORDER BY resource_id")
    return tuple(DiskWithoutFile(row["resource_id"], row["name"], row["former_path"]) for row in rows)


def _exported_files(folder: Path) -> dict[str, Path]:
    """Return the regular files of exported volumes and images, by id."""
    paths = [path for name in ("volumes", "images") for path in sorted((folder / name).glob("*.*"))]
    named = ((EXPORT_NAME.fullmatch(path.name), path) for path in paths if stat.S_ISREG(path.lstat().st_mode))
    return {match[1]: path for match, path in named if match}


def _take_in_exports(catalogue: Catalogue, folder: Path) -> tuple[str, ...]:
    """Register the exported files that no row names, by their ids; return those."""
    taken: list[str] = []
    for one, path in _exported_files(folder).items():
        if path.parent.name == "images":
            if catalogue.row("SELECT 1 FROM images WHERE image_id = ?", one) is None and one.startswith("img-"):
                catalogue.add_image(one, one, str(path), "")
                taken.append(one)
        elif catalogue.resource(one) is None and one.startswith("vol-"):
            catalogue.add_resource(one, ResourceType.VOLUME, one, str(path), str(layout_of_export(path)))
            taken.append(one)
    return tuple(taken)


def _give_exports_their_files(catalogue: Catalogue, folder: Path) -> None:
    """Point the rows of exported files into this folder: the files are the zone's own, named by their ids."""
    for one, path in _exported_files(folder).items():
        is_here = "AND (path = '' OR path LIKE ?)"
        values = (path_bytes(str(path)), one, f"%/{path.parent.name}/{path.name}")
        catalogue.db.execute(f"UPDATE resources SET path = CAST(? AS TEXT) WHERE resource_id = ? {is_here}", values)
        catalogue.db.execute(f"UPDATE images SET path = CAST(? AS TEXT) WHERE image_id = ? {is_here}", values)


def _put_in_place(folder: Path, new: Path) -> Path | None:
    """Move the old catalogue aside, with its log, and rename the new one; return where the old one is, None if it was empty."""
    descriptor = os.open(new, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    old, aside = folder / FILE_NAME, folder / f"catalogue.{int(time.time())}.aside.sqlite"
    is_kept = has_content(old)
    if is_kept:
        old.rename(aside)
    for suffix in _BESIDE:  # a log beside another catalogue would be applied to it
        beside = folder / f"{FILE_NAME}{suffix}"
        if beside.exists():
            beside.rename(folder / f"{aside.name}{suffix}")
    new.rename(old)
    fsync_folder(folder)
    return aside if is_kept else None
