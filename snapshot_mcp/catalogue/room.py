"""Space on the zone's filesystem: what a backup or an export will need, and what must stay free (`keep_free`).

The store estimates full snapshots and exports. An incremental is assumed to be as large as the one before it, since only
reading the disk would tell. What unfinished jobs still need counts as used. A running job stops before less than `keep_free`
is left (`Floor`), whatever its estimate was.
"""

import json
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from snapshot_mcp.catalogue.database import IS_UNFINISHED, Catalogue
from snapshot_mcp.catalogue.store import Store
from snapshot_mcp.contract.errors import StorageFull
from snapshot_mcp.contract.keep_free import KeepFree
from snapshot_mcp.contract.text import format_bytes, quoted

HINT: Final = (
    "Free some space there (the command `zone purge` frees what was deleted) and try again, or lower `keep_free` of the"
    " zone in the settings."
)


class RoomRequest(NamedTuple):
    """The part of a job's request about space: its estimate, and how much must stay free."""

    room_bytes: int
    kept_bytes: int


class Room:
    """Space that is left for a new job, in the transaction that enqueues it; nothing is counted if `kept_bytes` is 0."""

    def __init__(self, catalogue: Catalogue, keep_free: KeepFree) -> None:
        total_bytes, self.free_bytes = catalogue.store.capacity()
        self.catalogue = catalogue
        self.kept_bytes = keep_free.bytes_of(total_bytes)
        self.reserved_bytes = sum(_remaining(catalogue)) if self.kept_bytes else 0
        self.needed_bytes = 0

    @property
    def left_bytes(self) -> int:
        """Bytes that are still available; negative if the job needs too much."""
        return self.free_bytes - self.reserved_bytes - self.kept_bytes - self.needed_bytes

    def add(self, needed_bytes: int) -> None:
        """Count bytes that the job needs."""
        self.needed_bytes += needed_bytes

    def add_incremental(self, resource_id: str) -> None:
        """Count an incremental snapshot of the same size as the disk's last one, nothing if it is the first."""
        last = self.catalogue.row(
            """SELECT size_bytes FROM snapshots WHERE resource_id = ? AND status = 'available' AND is_full = 0
            ORDER BY snapshot_at DESC LIMIT 1""",
            resource_id,
        )
        self.needed_bytes += last["size_bytes"] if last else 0

    def take(self, what: str) -> RoomRequest:
        """Return the part of the job's request about space. Raises StorageFull if too little would stay free."""
        if self.kept_bytes and self.left_bytes < 0 and self.catalogue.store.make_room():
            self.free_bytes = self.catalogue.store.capacity().free_bytes
        if self.kept_bytes and self.left_bytes < 0:
            reserved = f" ({format_bytes(self.reserved_bytes)} of it for running jobs)" if self.reserved_bytes else ""
            raise StorageFull(
                f"Not enough space for {what}: about {format_bytes(self.needed_bytes)} needed; the zone's filesystem has"
                f" {format_bytes(self.free_bytes)} free{reserved}, and {format_bytes(self.kept_bytes)} must stay free.",
                hint=HINT,
            )
        return RoomRequest(self.needed_bytes, self.kept_bytes)


class Floor:
    """The free space that a running job must leave; `check` is cheap and is called throughout the job."""

    def __init__(self, store: Store, request: dict[str, Any]) -> None:
        self.store = store
        self.kept_bytes = int(request.get("kept_bytes", 0))

    def check(self, needed_bytes: int = 0) -> None:
        """Raise StorageFull if less would stay free after writing another `needed_bytes`."""
        if not self.kept_bytes:
            return
        free = self.store.capacity().free_bytes
        if free - needed_bytes < self.kept_bytes and self.store.make_room():
            free = self.store.capacity().free_bytes
        if free - needed_bytes < self.kept_bytes:
            what = f" for another {format_bytes(needed_bytes)}" if needed_bytes else ""
            raise StorageFull(
                f"Not enough space{what}: the zone's filesystem has {format_bytes(free)} free, and"
                f" {format_bytes(self.kept_bytes)} must stay free. The job was stopped and what it had written was removed.",
                hint=HINT,
            )


def _remaining(catalogue: Catalogue) -> Iterator[int]:
    """Yield what each unfinished job still needs, by its estimate and its progress."""
    for job in catalogue.rows(f"SELECT request, progress FROM jobs WHERE {IS_UNFINISHED}"):
        progress = json.loads(job["progress"] or "{}")
        done, total = progress.get("done", 0), progress.get("total", 0)
        share = 1 - min(1.0, done / total) if total else 1.0
        yield int(json.loads(job["request"]).get("room_bytes", 0) * share)


def largest_holders(catalogue: Catalogue) -> str:
    """Return what holds most of the zone's space, and how to free it; "" for an empty zone."""
    deleted = catalogue.count("SELECT coalesce(sum(size_bytes), 0) FROM snapshots WHERE status = 'deleted'")
    chain = catalogue.row(
        """SELECT root_id, name, sum(s.size_bytes) AS size FROM (SELECT root_id, resource_id, size_bytes FROM snapshots
        WHERE status = 'available') s JOIN resources USING (resource_id) GROUP BY root_id ORDER BY size DESC LIMIT 1"""
    )
    parts = [f"Deleted snapshots hold {format_bytes(deleted)}: `zone purge` frees that."] if deleted else []
    if chain:
        size, name = format_bytes(chain["size"]), quoted(chain["name"])
        parts.append(f"The largest chain is {chain['root_id']} of {name} with {size}: delete what is not needed of it.")
    return " ".join(parts)
