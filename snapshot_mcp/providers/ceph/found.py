"""A pool's images as disks: they are found, not registered. Blocking; raises CephError.

A disk's id says what it is (`vol-…`, `ins-…`) until something is recorded of it, and is then kept, whatever is written to its
image: one image must not be two disks.
"""

import errno
import time
from collections.abc import Set
from typing import TYPE_CHECKING, Final, NamedTuple

from snapshot_mcp.catalogue.store import Row
from snapshot_mcp.contract.states import ResourceType
from snapshot_mcp.ground.sqlite import transaction
from snapshot_mcp.providers.ceph.clib import CephError, readable
from snapshot_mcp.providers.ceph.names import ID, KIND, id_in, is_ours

if TYPE_CHECKING:
    from snapshot_mcp.providers.ceph.catalogue import PoolCatalogue

MARK_SECONDS: Final = 1.0
"""How old what is written to an image may be; it may be marked as a machine's disk at any time."""

READ_AGAIN: Final = 200
"""Images that are read again in one look, those first whose last time is longest ago."""


PREFIXES: Final = {ResourceType.VOLUME: "vol", ResourceType.INSTANCE: "ins"}


class Mark(NamedTuple):
    """What is written to an image, and when it was read."""

    kind: ResourceType
    new_id: str
    read_at: float


class Finder:
    """Takes the pool's images into a catalogue's copy."""

    def __init__(self, catalogue: "PoolCatalogue") -> None:
        self._catalogue = catalogue
        self._marks: dict[str, Mark] = {}

    def look(self, found: set[str]) -> None:
        """Note the images that are there, that were renamed and that are gone; `found` gets the ids of those that are new."""
        catalogue = self._catalogue
        present = catalogue.pool.list_images()
        exported = {row["path"] for row in catalogue.rows("SELECT path FROM images")}
        images = {id_: readable(name) for id_, name in present.items() if not is_ours(name) and id_ not in exported}
        self._read_marks(images.keys())
        with transaction(catalogue.db):
            known: dict[str, Row] = {}
            rows = catalogue.rows("SELECT * FROM resources")
            for row in sorted(rows, key=lambda one: one["resource_id"] in found):  # what is recorded comes first
                mark = self._marks.get(row["path"])
                is_other = row["path"] in known or (mark and row["resource_type"] != mark.kind)
                if is_other and row["resource_id"] in found and not self._has_points(row):
                    catalogue.db.execute("DELETE FROM resources WHERE resource_id = ?", (row["resource_id"],))
                    found.discard(row["resource_id"])
                else:
                    known[row["path"]] = row
            for image_id, mark in self._marks.items():
                if not mark.new_id.startswith("img-"):  # an export to an image that is recorded in a moment
                    self._note(known.get(image_id), image_id, images[image_id], mark, found)
            for image_id, row in known.items():
                if image_id not in present and row["removed_at"] is None:
                    values = int(time.time()), row["resource_id"]
                    catalogue.db.execute("UPDATE resources SET removed_at = ? WHERE resource_id = ?", values)

    def _read_marks(self, present: Set[str]) -> None:
        now = time.monotonic()
        self._marks = {one: mark for one, mark in self._marks.items() if one in present}
        old = sorted((mark.read_at, one) for one, mark in self._marks.items() if now - mark.read_at > MARK_SECONDS)
        for image_id in [*(present - self._marks.keys()), *(one for _, one in old[:READ_AGAIN])]:
            self._catalogue.store.refuse_late()
            try:
                written = self._catalogue.pool.read_metadata(image_id, KIND, ID)
            except CephError as error:
                if error.errno != errno.ENOENT:
                    raise
                self._marks.pop(image_id, None)
                continue
            kind = ResourceType.INSTANCE if written[KIND] == ResourceType.INSTANCE else ResourceType.VOLUME
            self._marks[image_id] = Mark(kind, id_in(written[ID], image_id), now)

    def _note(self, known: Row | None, image_id: str, name: str, mark: Mark, found: set[str]) -> None:
        catalogue, kind = self._catalogue, mark.kind
        if known is None:
            now = int(time.time())
            is_free = mark.new_id and catalogue.resource(mark.new_id) is None
            resource_id = mark.new_id if is_free else f"{PREFIXES[kind]}-{image_id}"
            catalogue.db.execute(
                """INSERT INTO resources (resource_id, resource_type, name, path, former_path, created_at, status_at)
                VALUES (?, ?, ?, ?, ?, ?, ?)""",
                (resource_id, kind, name, image_id, name, now, now),
            )
            found.add(resource_id)
        elif (known["former_path"], known["resource_type"], known["removed_at"]) != (name, kind, None):
            called = known["name"] if known["former_path"] == name else name
            catalogue.db.execute(
                "UPDATE resources SET name = ?, former_path = ?, resource_type = ?, removed_at = NULL WHERE resource_id = ?",
                (called, name, kind, known["resource_id"]),
            )
            if known["removed_at"] is not None:  # out of the trash: what is recorded of it next says so
                found.add(known["resource_id"])

    def _has_points(self, row: Row) -> bool:
        query = "SELECT 1 FROM snapshots WHERE resource_id = ?"
        return self._catalogue.row(query, row["resource_id"]) is not None
