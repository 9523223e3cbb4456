"""Room where the zone keeps its snapshots: what a backup or an export will take, and what has to stay free (`keep_free`).

The store estimates what a full snapshot or an export takes. An incremental is taken to be as large as the one before it,
since only reading the disk would tell. The estimates of unfinished jobs count as taken, less what those have done. A job
that runs stops before less than `keep_free` is left (`Floor`), whatever its estimate was.
"""

import json
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from snapshot_mcp.catalogue.database import IS_UNFINISHED, Catalogue
from snapshot_mcp.catalogue.store import Store
from snapshot_mcp.contract.errors import StorageFull
from snapshot_mcp.contract.keep_free import KeepFree
from snapshot_mcp.contract.text import format_bytes

HINT: Final = (
    "Free some space there (the command `zone purge` frees what was deleted) and try again, or lower `keep_free` of the"
    " zone in the settings."
)


class RoomRequest(NamedTuple):
    """The part of a job's request that is about room: its estimate, and how much has to stay free."""

    room_bytes: int
    kept_bytes: int


class Room:
    """What is left for new jobs; with no `kept_bytes` nothing is counted. Used in the transaction that enters a job."""

    def __init__(self, catalogue: Catalogue, keep_free: KeepFree) -> None:
        total_bytes, self.free_bytes = catalogue.store.capacity()
        self.catalogue = catalogue
        self.kept_bytes = keep_free.bytes_of(total_bytes)
        self.promised_bytes = sum(_remaining(catalogue)) if self.kept_bytes else 0
        self.needed_bytes = 0

    @property
    def left_bytes(self) -> int:
        """What else can be taken; below zero where it is too much already."""
        return self.free_bytes - self.promised_bytes - self.kept_bytes - self.needed_bytes

    def add(self, needed_bytes: int) -> None:
        """Count what else is needed."""
        self.needed_bytes += needed_bytes

    def add_incremental(self, resource_id: str) -> None:
        """Count an incremental snapshot as large as the last one of the disk; nothing for the first."""
        last = self.catalogue.row(
            """SELECT size_bytes FROM snapshots WHERE resource_id = ? AND status = 'available' AND is_full = 0
            ORDER BY snapshot_at DESC LIMIT 1""",
            resource_id,
        )
        self.needed_bytes += last["size_bytes"] if last else 0

    def take(self, what: str) -> RoomRequest:
        """Return what the job's request has to say about room. Raises StorageFull where too little would stay free."""
        if self.kept_bytes and self.left_bytes < 0:
            promised = (
                f", of which jobs under way take {format_bytes(self.promised_bytes)}" if self.promised_bytes else ""
            )
            raise StorageFull(
                f"There is no room for {what}: it takes about {format_bytes(self.needed_bytes)}, the zone's filesystem has"
                f" {format_bytes(self.free_bytes)} free{promised}, and {format_bytes(self.kept_bytes)} have to stay free.",
                hint=HINT,
            )
        return RoomRequest(self.needed_bytes, self.kept_bytes)


class Floor:
    """The free space that a running job leaves; `check` is cheap and to be called as it goes on."""

    def __init__(self, store: Store, request: dict[str, Any]) -> None:
        self.store = store
        self.kept_bytes = int(request.get("kept_bytes", 0))

    def check(self, needed_bytes: int = 0) -> None:
        """Raise StorageFull where less would stay free after another `needed_bytes`."""
        if not self.kept_bytes:
            return
        free = self.store.capacity().free_bytes
        if free - needed_bytes < self.kept_bytes:
            what = f" for another {format_bytes(needed_bytes)}" if needed_bytes else ""
            raise StorageFull(
                f"There is no room{what}: the zone's filesystem has {format_bytes(free)} free, and"
                f" {format_bytes(self.kept_bytes)} have to stay free. The job was stopped and what it had written was removed.",
                hint=HINT,
            )


def _remaining(catalogue: Catalogue) -> Iterator[int]:
    """What each unfinished job will still take, by its estimate and its progress."""
    for job in catalogue.rows(f"SELECT request, progress FROM jobs WHERE {IS_UNFINISHED}"):
        progress = json.loads(job["progress"] or "{}")
        done, total = progress.get("done", 0), progress.get("total", 0)
        share = 1 - min(1.0, done / total) if total else 1.0
        yield int(json.loads(job["request"]).get("room_bytes", 0) * share)
