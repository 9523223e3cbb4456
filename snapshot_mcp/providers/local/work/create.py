"""Create: one file a resource, all as of one moment; the catalogue says `available` only when all are durable."""

import logging
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

from snapshot_mcp.contract.errors import NotUsable, ZoneError
from snapshot_mcp.contract.models import format_time
from snapshot_mcp.contract.states import SnapshotStatus, TransitionStatus
from snapshot_mcp.ground.files import fsync_folder
from snapshot_mcp.providers.local.capture import capture
from snapshot_mcp.providers.local.catalogue import Catalogue, Row, moment, now
from snapshot_mcp.providers.local.disk import CaptureSource
from snapshot_mcp.providers.local.lookup import label_of
from snapshot_mcp.providers.local.room import Floor
from snapshot_mcp.providers.local.snapshot_file.format import DamagedFile, Header, Trailer, chunk_size_for, file_name
from snapshot_mcp.providers.local.snapshot_file.reader import Chain, SnapshotFile
from snapshot_mcp.providers.local.snapshot_file.writer import SnapshotWriter
from snapshot_mcp.providers.local.work.outcome import succeed
from snapshot_mcp.providers.local.work.progress import Progress

log = logging.getLogger(__name__)


def carry_out(catalogue: Catalogue, job: Row, request: dict[str, Any], progress: Progress) -> None:
    ids: list[str] = request["snapshot_ids"]
    rows = [catalogue.snapshot(one) for one in ids]
    snapshots = [row for row in rows if row is not None]
    if job["run_count"] > 1:
        if not all(_is_complete(catalogue, one) for one in ids):
            raise NotUsable(
                "The worker that took this backup ended before it was complete, and the moment that it captured is gone.",
                hint="Create the snapshot again. Every earlier snapshot is as it was.",
            )
        fsync_folder(catalogue.folder / "snapshots")
        _finish_create(catalogue, job, ids, format_time(moment(snapshots[0]["snapshot_at"])))
        return
    progress.floor = Floor(catalogue.folder, request)
    progress.floor.check()
    with ExitStack() as stack:
        sources = []
        for snapshot in snapshots:
            resource = _resource_of(catalogue, snapshot)
            source = CaptureSource(resource["path"], label_of(resource), allow_fuzzy=request["allow_fuzzy"])
            sources.append(stack.enter_context(source))
        taken_at = now()
        progress.start("reading", sum(source.size_bytes for source in sources))
        for snapshot, source in zip(snapshots, sources, strict=True):
            capture_one(catalogue, snapshot, source, taken_at, progress)
            source.close()
        progress.finish()
        _finish_create(catalogue, job, ids, format_time(moment(taken_at)))


def _resource_of(catalogue: Catalogue, snapshot: Row) -> Row:
    resource = catalogue.resource(snapshot["resource_id"])
    assert resource is not None, "a foreign key"
    return resource


class Source(Protocol):
    """A disk that is read as of one moment; `check` raises when what was read may be a mixture."""

    fd: int
    size_bytes: int
    consistency: str

    def check(self) -> None: ...


def capture_one(catalogue: Catalogue, snapshot: Row, source: Source, taken_at: int, progress: Progress) -> None:
    """Write one snapshot's file; a parent that turns out damaged makes it a full one."""
    folder = catalogue.folder / "snapshots"
    snapshot_id = snapshot["snapshot_id"]
    done = 0

    def advance(amount: int) -> None:
        nonlocal done
        source.check()
        done += amount
        progress.advance(amount)

    def write(parent: Chain | None) -> None:
        header = Header(
            snapshot_id=snapshot_id,
            resource_id=snapshot["resource_id"],
            resource_type=_resource_of(catalogue, snapshot)["resource_type"],
            chain=(*(parent.header.chain if parent else ()), snapshot_id),
            parent_hash=parent.tip.hash.hex() if parent else "",
            snapshot_time=format_time(moment(taken_at)),
            virtual_size_bytes=source.size_bytes,
            chunk_size=parent.header.chunk_size if parent else chunk_size_for(source.size_bytes),
        )
        with SnapshotWriter(folder, header) as writer:
            capture(source.fd, header, parent, writer, advance)
            source.check()
            writer.commit(source.consistency)

    if snapshot["parent_id"] is None:
        write(None)
        return
    try:
        with Chain(folder, snapshot["parent_id"]) as parent:
            write(parent)
    except DamagedFile as error:
        make_full(catalogue, snapshot_id, error)
        progress.advance(-done)
        write(None)


def make_full(catalogue: Catalogue, snapshot_id: str, error: DamagedFile) -> None:
    """Let a snapshot that is to be taken build on nothing, since what it would build on is damaged."""
    log.warning("snapshot %s becomes a full one: %s", snapshot_id, error)
    with catalogue.transaction() as db:
        catalogue.mark_damaged(error.snapshot_id, is_damaged=True)
        db.execute(
            "UPDATE snapshots SET is_full = 1, root_id = snapshot_id, parent_id = NULL, depth = 0 WHERE snapshot_id = ?",
            (snapshot_id,),
        )


def _is_complete(catalogue: Catalogue, snapshot_id: str) -> bool:
    try:
        with Chain(catalogue.folder / "snapshots", snapshot_id):
            return True
    except DamagedFile:
        return False


def _finish_create(catalogue: Catalogue, job: Row, snapshot_ids: Sequence[str], snapshot_time: str) -> None:
    """The files are durable: only now the catalogue says `available`, and the heads move."""
    taken = [Taken.read(catalogue.folder / "snapshots", one) for one in snapshot_ids]
    with catalogue.transaction() as db:
        for one in taken:
            one.make_available(db)
        succeed(catalogue, job, {"snapshot_time": snapshot_time})


class Taken(NamedTuple):
    """What a snapshot's durable file says of itself."""

    header: Header
    trailer: Trailer
    size_bytes: int

    @classmethod
    def read(cls, folder: Path, snapshot_id: str) -> Self:
        """Raises DamagedFile."""
        with SnapshotFile(folder, snapshot_id) as file:
            return cls(file.header, file.trailer, file.size_bytes)

    def make_available(self, db: sqlite3.Connection) -> None:
        """Say that it is there and that its disk's content grows from it, within a transaction of the caller's."""
        taken_at = int(datetime.fromisoformat(self.header.snapshot_time).timestamp())
        db.execute(
            """UPDATE snapshots SET status = ?, transition = ?, status_at = ?, snapshot_at = ?, is_taken = 1,
            size_bytes = ?, virtual_bytes = ?, consistency = ? WHERE snapshot_id = ?""",
            (
                SnapshotStatus.AVAILABLE,
                TransitionStatus.NONE,
                now(),
                taken_at,
                self.size_bytes,
                self.header.virtual_size_bytes,
                self.trailer.consistency,
                self.header.snapshot_id,
            ),
        )
        db.execute(
            "UPDATE resources SET head_id = ? WHERE resource_id = ?", (self.header.snapshot_id, self.header.resource_id)
        )


def clean_up(catalogue: Catalogue, request: dict[str, Any], error: ZoneError) -> None:
    """A failed create's snapshots cease (contract.md, "Failed create")."""
    discard(catalogue, request["snapshot_ids"])


def discard(catalogue: Catalogue, snapshot_ids: Iterable[str]) -> None:
    """Let snapshots that were to be taken cease, and leave no file; within a transaction of the caller's."""
    for snapshot_id in snapshot_ids:
        (catalogue.folder / "snapshots" / file_name(snapshot_id)).unlink(missing_ok=True)
        catalogue.db.execute(
            "UPDATE snapshots SET status = ?, transition = ?, status_at = ? WHERE snapshot_id = ?",
            (SnapshotStatus.CEASED, TransitionStatus.NONE, now(), snapshot_id),
        )
