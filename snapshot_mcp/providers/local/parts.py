"""`LocalParts`: a zone's snapshot files as the immutable parts that copies are made of (`contract.parts`)."""

import json
import os
import stat
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final

from snapshot_mcp.catalogue.store import DamagedSnapshot, NewerSnapshot, Row
from snapshot_mcp.contract.errors import Damaged, NotFound, Unsupported
from snapshot_mcp.contract.parts import Part
from snapshot_mcp.contract.states import SnapshotStatus
from snapshot_mcp.ground.files import fsync_folder
from snapshot_mcp.providers.local.check import Verification
from snapshot_mcp.providers.local.folder import FolderCatalogue
from snapshot_mcp.providers.local.snapshot_file.format import file_name

_QUERY: Final = """
    SELECT s.*, r.name AS resource_name, r.resource_type, d.deleted_at, d.state AS deletion_state
    FROM snapshots s JOIN resources r USING (resource_id) LEFT JOIN deletions d ON d.deletion_id = s.deletion_id
    WHERE s.status IN ('available', 'suspended', 'deleted') OR s.status = 'ceased' AND d.state IN ('purged', 'freed')
    ORDER BY s.depth, s.snapshot_id
"""


class LocalParts:
    """The parts of the zone of an open catalogue."""

    def __init__(self, catalogue: FolderCatalogue, zone: str) -> None:
        self._catalogue, self.zone = catalogue, zone

    def list_parts(self) -> list[Part]:
        """Return the snapshots with their files, and those whose recorded deletion took them, parents before children."""
        rows = {row["snapshot_id"]: row for row in self._catalogue.rows(_QUERY)}
        return [_to_part(row, rows) for row in rows.values()]

    def open_part(self, part_id: str) -> int:
        """Open a snapshot's file, to be read from the disk and not from the kernel's cache. Raises NotFound."""
        path = self._catalogue.store.snapshots / file_name(part_id)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            raise NotFound(f"Snapshot {part_id} has no file any more.") from None
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise NotFound(f"The file of snapshot {part_id} is none.")
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        return descriptor

    def disks(self) -> list[str]:
        """Return the ids and names of the registered disks."""
        rows = self._catalogue.rows("SELECT resource_id, name FROM resources WHERE removed_at IS NULL")
        return [one for row in rows for one in (row["resource_id"], row["name"])]

    def verify_part(self, part_id: str, advance: Callable[[int], None]) -> None:
        """Read a snapshot and its chain's places back, and record what was found, over a connection of its own.

        The copy reads the file from the disk at the same time, and reading it there twice would take longer than all the rest.
        """
        with FolderCatalogue(self._catalogue.folder, create=False, clock=self._catalogue.clock) as catalogue:
            row = catalogue.snapshot(part_id)
            if row is None or row["status"] == SnapshotStatus.CEASED:
                raise NotFound(f"Snapshot {part_id} was deleted meanwhile.")
            try:
                found = Verification(catalogue, from_disk=False).verify(row, advance)
            except DamagedSnapshot as error:
                raise Damaged(error.message) from None
            except NewerSnapshot as error:
                raise Unsupported(error.message) from None
        if found:
            text = "; ".join(one.text for one in found)
            raise Damaged(text) if any(one.is_damage for one in found) else Unsupported(text)

    def place_of(self, part_id: str) -> str:
        """Return the path of a snapshot's file."""
        return str(self._catalogue.store.snapshots / file_name(part_id))

    def adopt_parts(self, parts: Collection[Part]) -> list[str]:
        """Give the snapshots that a rebuild took in the names, descriptions and tags that they had last."""
        with self._catalogue.transaction() as db:
            for part in parts:
                db.execute(
                    "UPDATE snapshots SET name = ?, description = ?, tags = ? WHERE snapshot_id = ?",
                    (part.name, part.description, json.dumps(part.tags), part.part_id),
                )
                db.execute(
                    "UPDATE resources SET name = ? WHERE resource_id = ?", (part.resource_name, part.resource_id)
                )
        fsync_folder(Path(self._catalogue.store.snapshots))
        return [part.part_id for part in parts if self._catalogue.snapshot(part.part_id) is None]


def _to_part(row: Row, rows: dict[str, Row]) -> Part:
    parents: list[str] = []
    above = row["parent_id"]
    while above is not None:
        parents.insert(0, above)
        above = rows[above]["parent_id"] if above in rows else None
    is_gone = row["status"] == SnapshotStatus.CEASED
    return Part(
        part_id=row["snapshot_id"],
        size_bytes=row["size_bytes"],
        parents=tuple(parents),
        resource_id=row["resource_id"],
        resource_name=row["resource_name"],
        resource_type=row["resource_type"],
        name=row["name"],
        description=row["description"],
        tags=tuple(json.loads(row["tags"])),
        taken_at=row["snapshot_at"],
        consistency=row["consistency"],
        disk_bytes=row["virtual_bytes"],
        is_whole=not row["is_affected"] and not is_gone,
        deleted_at=row["deleted_at"] if row["status"] in {SnapshotStatus.DELETED, SnapshotStatus.CEASED} else None,
        is_gone=is_gone,
    )
