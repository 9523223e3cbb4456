"""Create snapshots: one file per resource, all as of one moment, and available only when all are durable."""

import json
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from snapshot_mcp.catalogue.database import moment
from snapshot_mcp.catalogue.lookup import owner_of
from snapshot_mcp.catalogue.outcome import succeed
from snapshot_mcp.catalogue.progress import JobProgress
from snapshot_mcp.catalogue.room import Floor
from snapshot_mcp.catalogue.snapshots import Taken, make_available, make_full
from snapshot_mcp.catalogue.store import DamagedSnapshot, Row
from snapshot_mcp.contract.errors import NotUsable
from snapshot_mcp.contract.models import MAX_DESCRIPTION_CHARACTERS, MAX_NAME_CHARACTERS, format_time
from snapshot_mcp.contract.text import encodable
from snapshot_mcp.ground.files import fsync_folder
from snapshot_mcp.providers.local.capture import capture
from snapshot_mcp.providers.local.folder import FolderCatalogue
from snapshot_mcp.providers.local.opening import open_sources
from snapshot_mcp.providers.local.snapshot_file.format import MAX_TAGS, Header, chunk_size_for
from snapshot_mcp.providers.local.snapshot_file.reader import Chain, SnapshotFile
from snapshot_mcp.providers.local.snapshot_file.writer import SnapshotWriter
from snapshot_mcp.providers.local.source import Source, Span


def carry_out(catalogue: FolderCatalogue, job: Row, request: dict[str, Any], progress: JobProgress) -> None:
    """Take the snapshots, or publish those that an interrupted worker completed."""
    ids: list[str] = request["snapshot_ids"]
    rows = [catalogue.snapshot(one) for one in ids]
    snapshots = [row for row in rows if row is not None]
    if job["run_count"] > 1:
        if not all(_is_complete(catalogue, one) for one in ids):
            raise NotUsable(
                "The backup was interrupted before it finished and cannot be resumed.",
                hint="Create the snapshot again. Earlier snapshots are not affected.",
            )
        fsync_folder(catalogue.store.snapshots)
        _finish_create(catalogue, job, ids, format_time(moment(snapshots[0]["snapshot_at"])))
        return
    progress.floor = Floor(catalogue.store, request)
    progress.floor.check()
    with ExitStack() as stack:
        pairs = [(snapshot, owner_of(catalogue, snapshot)) for snapshot in snapshots]
        sources = open_sources(
            catalogue.folder, pairs, stack, allow_fuzzy=request["allow_fuzzy"], clones=catalogue.store.clones
        )
        taken_at = catalogue.instant()
        progress.start("reading", sum(source.size_bytes for source in sources))
        for snapshot, source in zip(snapshots, sources, strict=True):
            capture_one(catalogue, snapshot, source, taken_at, progress, ids)
            source.close()
        progress.finish()
        _finish_create(catalogue, job, ids, format_time(moment(taken_at)))
    catalogue.store.clones.tidy(catalogue)


class Captured(Protocol):
    """A disk that is read as of one moment."""

    size_bytes: int
    consistency: str

    @property
    def content(self) -> Source:
        """What is read."""

    def changed_since(self, parent: SnapshotFile) -> Iterable[Span] | None:
        """Return what may differ from a snapshot that is one state of the disk; None for all of it."""

    def remember(self, snapshot_id: str, file_hash: bytes) -> None:
        """Keep what tells the next capture what will have changed since this snapshot, which is complete."""

    def check(self) -> None:
        """Raise if what was read may be inconsistent."""


def capture_one(
    catalogue: FolderCatalogue,
    snapshot: Row,
    source: Captured,
    taken_at: float,
    progress: JobProgress,
    taken_with: Sequence[str] = (),
) -> None:
    """Write one snapshot's file; it becomes full if its parent turns out to be damaged. `taken_with`: all ids of its moment."""
    folder = catalogue.store.snapshots
    snapshot_id = snapshot["snapshot_id"]
    facts = _facts_for_a_rebuild(catalogue, snapshot, taken_with)
    done = 0

    def advance(amount: int) -> None:
        nonlocal done
        source.check()
        done += amount
        progress.advance(amount)

    def write(parent: Chain | None) -> None:
        header = Header(
            **facts,
            snapshot_id=snapshot_id,
            resource_id=snapshot["resource_id"],
            chain=(*(parent.header.chain if parent else ()), snapshot_id),
            parent_hash=parent.tip.hash.hex() if parent else "",
            snapshot_time=datetime.fromtimestamp(taken_at, UTC).isoformat(),
            virtual_size_bytes=source.size_bytes,
            chunk_size=parent.header.chunk_size if parent else chunk_size_for(source.size_bytes),
        )
        changed = source.changed_since(parent.tip) if parent and is_one_state(parent.tip) else None
        with SnapshotWriter(folder, header) as writer:
            capture(source.content, header, parent, writer, advance, changed)
            source.check()
            source.remember(snapshot_id, writer.commit(source.consistency))

    if snapshot["parent_id"] is None:
        write(None)
        return
    try:
        with Chain(folder, snapshot["parent_id"]) as parent:
            write(parent)
    except DamagedSnapshot as error:
        make_full(catalogue, snapshot_id, error)
        progress.advance(-done)
        write(None)


def is_one_state(file: SnapshotFile) -> bool:
    """Return whether a snapshot is exactly what its disk was at one instant; what did not change since a mixture may be wrong."""
    return file.trailer.consistency.partition(",")[0] in {"instant", "frozen"}


def _facts_for_a_rebuild(catalogue: FolderCatalogue, snapshot: Row, taken_with: Sequence[str]) -> dict[str, Any]:
    """Return what the file repeats of the catalogue, in case that is lost (FORMAT.md, "A lost catalogue")."""
    resource = owner_of(catalogue, snapshot)
    tags = json.loads(snapshot["tags"])[:MAX_TAGS]
    return {
        "resource_type": resource["resource_type"],
        "resource_name": resource["name"],
        "resource_path": encodable(resource["path"]),
        "snapshot_name": snapshot["name"],
        "description": snapshot["description"][:MAX_DESCRIPTION_CHARACTERS],
        "tags": tuple(one[:MAX_NAME_CHARACTERS] for one in tags),
        "created_at": format_time(moment(snapshot["created_at"])),
        "taken_with": tuple(one for one in taken_with if one != snapshot["snapshot_id"]),
    }


def _is_complete(catalogue: FolderCatalogue, snapshot_id: str) -> bool:
    try:
        with Chain(catalogue.store.snapshots, snapshot_id):
            return True
    except DamagedSnapshot:
        return False


def _finish_create(catalogue: FolderCatalogue, job: Row, snapshot_ids: Sequence[str], snapshot_time: str) -> None:
    """Mark the snapshots as available, now that their files are durable, and end the job."""
    taken = {one: read_taken(catalogue.store.snapshots, one) for one in snapshot_ids}
    with catalogue.transaction():
        for one, what in taken.items():
            make_available(catalogue, one, what)
        succeed(catalogue, job, {"snapshot_time": snapshot_time})


def read_taken(folder: Path, snapshot_id: str) -> Taken:
    """Read the facts of a snapshot from its durable file. Raises DamagedSnapshot."""
    with SnapshotFile(folder, snapshot_id) as file:
        taken_at = datetime.fromisoformat(file.header.snapshot_time).timestamp()
        return Taken(taken_at, file.size_bytes, file.header.virtual_size_bytes, file.trailer.consistency)
