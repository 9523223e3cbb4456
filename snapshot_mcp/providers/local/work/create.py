"""Create: one file a resource, all as of one moment; the catalogue says `available` only when all are durable."""

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import datetime
from typing import Any

from snapshot_mcp.contract.errors import NotUsable, ZoneError
from snapshot_mcp.contract.models import format_time
from snapshot_mcp.contract.states import SnapshotStatus, TransitionStatus
from snapshot_mcp.providers.local.capture import capture
from snapshot_mcp.providers.local.catalogue import Catalogue, Row, moment, now
from snapshot_mcp.providers.local.disk import CaptureSource
from snapshot_mcp.providers.local.lookup import label_of
from snapshot_mcp.providers.local.platform import fsync_folder
from snapshot_mcp.providers.local.room import Floor
from snapshot_mcp.providers.local.snapshot_file.format import DamagedFile, Header, chunk_size_for, file_name
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
            _capture_one(catalogue, snapshot, source, taken_at, progress)
            source.close()
        progress.finish()
        _finish_create(catalogue, job, ids, format_time(moment(taken_at)))


def _resource_of(catalogue: Catalogue, snapshot: Row) -> Row:
    resource = catalogue.resource(snapshot["resource_id"])
    assert resource is not None, "a foreign key"
    return resource


def _capture_one(catalogue: Catalogue, snapshot: Row, source: CaptureSource, taken_at: int, progress: Progress) -> None:
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
        log.warning("snapshot %s becomes a full one: %s", snapshot_id, error)
        with catalogue.transaction() as db:
            catalogue.mark_damaged(error.snapshot_id, is_damaged=True)
            db.execute(
                "UPDATE snapshots SET is_full = 1, root_id = snapshot_id, parent_id = NULL, depth = 0 WHERE snapshot_id = ?",
                (snapshot_id,),
            )
        progress.advance(-done)
        write(None)


def _is_complete(catalogue: Catalogue, snapshot_id: str) -> bool:
    try:
        with Chain(catalogue.folder / "snapshots", snapshot_id):
            return True
    except DamagedFile:
        return False


def _finish_create(catalogue: Catalogue, job: Row, snapshot_ids: Sequence[str], snapshot_time: str) -> None:
    """The files are durable: only now the catalogue says `available`, and the heads move."""
    folder = catalogue.folder / "snapshots"
    facts = {}
    for snapshot_id in snapshot_ids:
        with SnapshotFile(folder, snapshot_id) as file:
            facts[snapshot_id] = (file.header, file.trailer, file.size_bytes)
    with catalogue.transaction() as db:
        for snapshot_id, (header, trailer, size_bytes) in facts.items():
            taken_at = int(datetime.fromisoformat(header.snapshot_time).timestamp())
            db.execute(
                """UPDATE snapshots SET status = ?, transition = ?, status_at = ?, snapshot_at = ?, is_taken = 1,
                size_bytes = ?, virtual_bytes = ?, consistency = ? WHERE snapshot_id = ?""",
                (
                    SnapshotStatus.AVAILABLE,
                    TransitionStatus.NONE,
                    now(),
                    taken_at,
                    size_bytes,
                    header.virtual_size_bytes,
                    trailer.consistency,
                    snapshot_id,
                ),
            )
            db.execute("UPDATE resources SET head_id = ? WHERE resource_id = ?", (snapshot_id, header.resource_id))
        succeed(catalogue, job, {"snapshot_time": snapshot_time})


def clean_up(catalogue: Catalogue, request: dict[str, Any], error: ZoneError) -> None:
    """A failed create's snapshots cease (contract.md, "Failed create")."""
    for snapshot_id in request["snapshot_ids"]:
        (catalogue.folder / "snapshots" / file_name(snapshot_id)).unlink(missing_ok=True)
        catalogue.db.execute(
            "UPDATE snapshots SET status = ?, transition = ?, status_at = ? WHERE snapshot_id = ?",
            (SnapshotStatus.CEASED, TransitionStatus.NONE, now(), snapshot_id),
        )
