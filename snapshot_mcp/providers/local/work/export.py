"""Export a snapshot's whole content to a new file, which is registered as a volume or kept as an image."""

import errno
import os
from typing import Any

from snapshot_mcp.catalogue.outcome import succeed
from snapshot_mcp.catalogue.progress import JobProgress
from snapshot_mcp.catalogue.room import Floor
from snapshot_mcp.catalogue.store import Row
from snapshot_mcp.contract.errors import StorageFull
from snapshot_mcp.contract.states import JobAction, ResourceType
from snapshot_mcp.contract.text import encodable, format_bytes
from snapshot_mcp.ground.files import fsync_folder
from snapshot_mcp.providers.local import restore
from snapshot_mcp.providers.local.folder import FolderCatalogue
from snapshot_mcp.providers.local.identity import identity_at
from snapshot_mcp.providers.local.image.daemon import ImageServer, create_image
from snapshot_mcp.providers.local.image.layers import QCOW2, RAW, Layout
from snapshot_mcp.providers.local.image.look import layout_of_export
from snapshot_mcp.providers.local.snapshot_file.reader import Chain


def carry_out(catalogue: FolderCatalogue, job: Row, request: dict[str, Any], progress: JobProgress) -> None:
    """Write the file from the start and register it."""
    is_image = job["action"] == JobAction.CAPTURE_INSTANCE
    folder = catalogue.folder / ("images" if is_image else "volumes")
    form = request.get("format") or RAW
    partial, path = folder / f".{request['new_id']}.partial", folder / f"{request['new_id']}.{form}"
    partial.unlink(missing_ok=True)
    path.unlink(missing_ok=True)
    try:
        with Chain(catalogue.store.snapshots, request["snapshot_id"]) as chain:
            size = chain.header.virtual_size_bytes
            progress.floor = Floor(catalogue.store, request)
            progress.floor.check(restore.room_needed(chain))
            progress.start("writing", size)
            fd = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                if form == QCOW2:
                    _export_image(fd, chain, path.name, progress)
                else:
                    restore.export(fd, chain, progress.advance)
            finally:
                os.close(fd)
        partial.rename(path)
        fsync_folder(folder)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise StorageFull(
                f"Not enough space for {path.name} ({format_bytes(size)}) in the zone's folder.",
                hint="Free some space and export again. The snapshot is not affected.",
            ) from None
        raise
    finally:
        partial.unlink(missing_ok=True)
    progress.finish()
    with catalogue.transaction():
        if is_image:
            catalogue.add_image(request["new_id"], request["name"], str(path), request["snapshot_id"])
        else:
            layout = str(layout_of_export(path))
            catalogue.add_resource(request["new_id"], ResourceType.VOLUME, request["name"], str(path), layout)
        made = str(identity_at(path) or ""), path.stat().st_mtime_ns
        catalogue.record_export(request["new_id"], *made, request["snapshot_id"])
        succeed(catalogue, job, {"path": encodable(str(path)), "size_bytes": size})


def _export_image(fd: int, chain: Chain, name: str, progress: JobProgress) -> None:
    """Write the content into a new qcow2 image, through QEMU."""
    restore.refuse_too_little_room(fd, chain)
    layout = Layout(QCOW2, chain.header.virtual_size_bytes)
    create_image(layout, fd, name)
    with ImageServer(layout, fd, (), name, is_writable=True) as server:
        restore.fill(server.disk, chain, progress.advance)
    os.fsync(fd)
