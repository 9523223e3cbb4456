"""Export: a snapshot's whole content as a new file, registered as a volume or kept as an image."""

import errno
import os
from typing import Any

from snapshot_mcp.contract.errors import StorageFull, ZoneError
from snapshot_mcp.contract.states import JobAction
from snapshot_mcp.contract.text import format_bytes
from snapshot_mcp.ground.files import fsync_folder
from snapshot_mcp.providers.local import restore
from snapshot_mcp.providers.local.admission import insert_resource
from snapshot_mcp.providers.local.catalogue import Catalogue, Row, now
from snapshot_mcp.providers.local.room import Floor
from snapshot_mcp.providers.local.snapshot_file.reader import Chain
from snapshot_mcp.providers.local.work.outcome import succeed
from snapshot_mcp.providers.local.work.progress import Progress


def carry_out(catalogue: Catalogue, job: Row, request: dict[str, Any], progress: Progress) -> None:
    is_image = job["action"] == JobAction.CAPTURE_INSTANCE
    folder = catalogue.folder / ("images" if is_image else "volumes")
    partial, path = folder / f".{request['new_id']}.partial", folder / f"{request['new_id']}.raw"
    partial.unlink(missing_ok=True)
    path.unlink(missing_ok=True)
    try:
        with Chain(catalogue.folder / "snapshots", request["snapshot_id"]) as chain:
            size = chain.header.virtual_size_bytes
            progress.floor = Floor(catalogue.folder, request)
            progress.floor.check(restore.room_needed(chain))
            progress.start("writing", size)
            fd = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                restore.export(fd, chain, progress.advance)
            finally:
                os.close(fd)
        partial.rename(path)
        fsync_folder(folder)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise StorageFull(
                f"There is no room for {format_bytes(size)} of {path.name} in the zone's folder.",
                hint="Free some space and export again; the snapshot is as it was.",
            ) from None
        raise
    finally:
        partial.unlink(missing_ok=True)
    progress.finish()
    with catalogue.transaction() as db:
        if is_image:
            db.execute(
                "INSERT INTO images (image_id, name, path, snapshot_id, created_at) VALUES (?, ?, ?, ?, ?)",
                (request["new_id"], request["name"], str(path), request["snapshot_id"], now()),
            )
        else:
            insert_resource(db, request["new_id"], "volume", request["name"], path)
        succeed(catalogue, job, {"path": str(path), "size_bytes": size})


def clean_up(catalogue: Catalogue, request: dict[str, Any], error: ZoneError) -> None:
    """A file that was complete, and that no row names, goes: the job made nothing."""
    for folder in ("images", "volumes"):
        (catalogue.folder / folder / f"{request['new_id']}.raw").unlink(missing_ok=True)
