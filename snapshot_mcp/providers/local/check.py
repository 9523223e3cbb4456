"""Verify every byte of snapshots: of the whole zone, with its catalogue (`zone check`), or of some (`work.verify`).

Each chunk is read once, in the file that stores it; a map that points into an ancestor is compared with the record there.
Damage is recorded, so that the next create of that chain is full, and cleared once the snapshot verifies again.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from snapshot_mcp.catalogue.lookup import label_of
from snapshot_mcp.catalogue.report import Advance, CheckReport, Finding
from snapshot_mcp.catalogue.store import DamagedSnapshot, NewerSnapshot, Row
from snapshot_mcp.contract.states import SnapshotStatus
from snapshot_mcp.contract.text import MESSAGE_CHARACTERS, clean_text
from snapshot_mcp.ground.permissions import reason_of
from snapshot_mcp.providers.local.capture import in_order
from snapshot_mcp.providers.local.folder import FolderCatalogue
from snapshot_mcp.providers.local.place import other_kind_at, shown
from snapshot_mcp.providers.local.snapshot_file.format import PLACE, RECORD, Place, file_name
from snapshot_mcp.providers.local.snapshot_file.reader import Chain, unpack_places
from snapshot_mcp.providers.local.strays import find_strays


def check(catalogue: FolderCatalogue, advance: Advance) -> CheckReport:
    """Verify the whole zone. Jobs may run; snapshots that they create or purge in the meantime are skipped."""
    rows = catalogue.rows(
        "SELECT * FROM snapshots WHERE status IN (?, ?, ?) ORDER BY root_id, depth, snapshot_id",
        SnapshotStatus.AVAILABLE,
        SnapshotStatus.SUSPENDED,
        SnapshotStatus.DELETED,
    )
    total = sum(row["size_bytes"] for row in rows)
    done = 0
    findings = list(_check_catalogue(catalogue))
    verification = Verification(catalogue)
    for row in rows:
        try:
            findings += verification.verify(row)
        except PermissionError as error:
            findings.append(
                Finding(row["snapshot_id"], f"its file cannot be read: {reason_of(error)}", is_damage=False)
            )
        done += row["size_bytes"]
        advance(done, total)
    findings += _check_strays(catalogue)
    return CheckReport(len(rows), total, tuple(findings))


class Verification:
    """Reads snapshots back, parents before children, and records of each what was found.

    `sound` are those that, with all that they build on, were read back whole; `newer` have a format that cannot be read here.
    Unless `from_disk` it may find in the kernel's cache what another reader of the file has just read.
    """

    def __init__(self, catalogue: FolderCatalogue, *, from_disk: bool = True) -> None:
        self.catalogue, self.from_disk = catalogue, from_disk
        self.damaged: set[str] = set()
        self.sound: set[str] = set()
        self.newer: set[str] = set()

    def verify(self, row: Row, advance: Callable[[int], None] = lambda amount: None) -> list[Finding]:
        """Read a snapshot, again if that fails, and return what is new; `advance` is called with the bytes done."""
        folder = self.catalogue.store.snapshots
        found = _check_snapshot(folder, row, advance, from_disk=self.from_disk) and _check_snapshot(
            folder, row, _ignore
        )
        if found and all(one.subject in self.damaged | self.newer for one in found):
            return []  # an ancestor, already reported, prevents reading this one: its own mark stays as it is
        if found:
            present = self.catalogue.snapshot(row["snapshot_id"])
            if present is None or present["status"] == SnapshotStatus.CEASED:
                return []
        if found and not any(one.is_damage for one in found):
            self.newer.update(one.subject for one in found)
            return found
        self._record(row, found)
        return found

    def _record(self, row: Row, found: list[Finding]) -> None:
        snapshot_id = row["snapshot_id"]
        self.damaged.update(one.subject for one in found)
        if snapshot_id not in self.damaged and (row["parent_id"] is None or row["parent_id"] in self.sound):
            self.sound.add(snapshot_id)
        with self.catalogue.transaction():
            for one in {snapshot_id, *(one.subject for one in found)}:
                self.catalogue.mark_damaged(one, is_damaged=one in self.damaged)
            if snapshot_id in self.sound:
                self.catalogue.mark_verified([snapshot_id])


def _ignore(amount: int) -> None:
    """Count nothing."""


def _check_snapshot(folder: Path, row: Row, advance: Callable[[int], None], *, from_disk: bool = True) -> list[Finding]:
    """Check a snapshot's bytes, chain and row; a finding may concern an ancestor. The bytes are read from the disk anew."""
    snapshot_id = row["snapshot_id"]
    try:
        with Chain(folder, snapshot_id) as chain:
            header = chain.header
            parent_id = header.chain[-2] if header.depth else None
            expected = (row["resource_id"], row["parent_id"], row["root_id"])
            if (header.resource_id, parent_id, header.chain[0]) != expected:
                return [Finding(snapshot_id, "its file and the catalogue disagree about its chain", is_damage=True)]
            if chain.tip.size_bytes != row["size_bytes"]:
                return [Finding(snapshot_id, "its file has the wrong size", is_damage=True)]
            if from_disk:
                chain.tip.forget_cached()
            share = row["size_bytes"] // max(1, header.region_count)
            for _ in in_order(lambda region: _check_region(chain, region), range(header.region_count)):
                advance(share)
    except DamagedSnapshot as error:
        return [Finding(error.snapshot_id, error.message, is_damage=True)]
    except NewerSnapshot as error:
        return [Finding(error.snapshot_id, error.message, is_damage=False)]
    return []


def _check_region(chain: Chain, region: int) -> None:
    """Raise DamagedSnapshot for wrong bytes in this file; an ancestor's bytes are read when that one is checked."""
    packed = chain.region_place(region)
    place = Place._make(PLACE.unpack(packed))
    if place.is_zero:
        return
    if place.depth != chain.header.depth:
        if chain.file_at(place).region_place(region) != packed:
            raise chain.tip.damaged("its map points to a region that its ancestor does not have")
        return
    for one in unpack_places(chain.tip.read_region(place)):
        if one.is_zero:
            continue
        if chain.file_at(one).record_before(one) != RECORD.pack(one.hash, one.stored_length, one.codec):
            whose = "it" if one.depth == chain.header.depth else "its ancestor"
            raise chain.tip.damaged(f"its map points to a chunk that {whose} does not have")
        if one.depth == chain.header.depth:
            chain.read(one)


def _check_catalogue(catalogue: FolderCatalogue) -> Iterator[Finding]:
    for (message,) in catalogue.db.execute("PRAGMA integrity_check").fetchall():
        if message != "ok":
            yield Finding("catalogue", clean_text(message, MESSAGE_CHARACTERS), is_damage=True)
    for resource in catalogue.rows("SELECT * FROM resources WHERE removed_at IS NULL"):
        if not resource["path"]:
            yield Finding(label_of(resource), catalogue.store.look_at(resource).problem, is_damage=False)
        elif problem := _problem_of(catalogue, resource):
            yield Finding(label_of(resource), problem, is_damage=False)
        if resource["applying_id"]:
            state = "it waits for a person" if resource["is_stopped"] else "it is in progress"
            text = f"a roll-back to {resource['applying_id']} is unfinished: {resource['problem'] or state}"
            yield Finding(label_of(resource), text, is_damage=False)
    for image in catalogue.rows("SELECT * FROM images"):
        if problem := _problem_of_file(Path(image["path"])):
            yield Finding(image["image_id"], problem, is_damage=False)


def _problem_of(catalogue: FolderCatalogue, resource: Row) -> str:
    """Return what is wrong with the place of a disk, "" for nothing."""
    if resource["layout"]:
        return catalogue.store.look_at(resource).problem
    return _problem_of_file(Path(resource["path"]))


def _problem_of_file(path: Path) -> str:
    """Return what is wrong with the place of a disk or an image, "" for nothing."""
    try:
        if kind := other_kind_at(path):
            return f"its path {shown(path)} is now {kind}, not its file"
        return "" if path.exists() else f"its file {shown(path)} is missing"
    except PermissionError as error:
        return f"its file {shown(path)} cannot be read: {reason_of(error)}"


def _check_strays(catalogue: FolderCatalogue) -> Iterator[Finding]:
    """Report files without a row, and never touch them: a file may outlive its catalogue."""
    for one in find_strays(catalogue, catalogue.folder):
        text = "a snapshot file that is not in the catalogue; it was left untouched. `zone rebuild` takes it in"
        yield Finding(clean_text(file_name(one)), text, is_damage=False)
