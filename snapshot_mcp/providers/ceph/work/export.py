"""Export a snapshot's whole content to a new image."""

import errno
import time
from contextlib import closing
from typing import Any

from snapshot_mcp.catalogue.outcome import succeed
from snapshot_mcp.catalogue.progress import JobProgress
from snapshot_mcp.catalogue.store import Row
from snapshot_mcp.contract.errors import NotUsable, ZoneError
from snapshot_mcp.contract.states import JobAction, ResourceType
from snapshot_mcp.contract.text import clean_text
from snapshot_mcp.providers.ceph.catalogue import PoolCatalogue
from snapshot_mcp.providers.ceph.clib import CephError
from snapshot_mcp.providers.ceph.image import RbdImage
from snapshot_mcp.providers.ceph.names import ID, id_text, names_for, partial_name
from snapshot_mcp.providers.ceph.pool import Pool
from snapshot_mcp.providers.ceph.store import DEAD_CLIENT_SECONDS, LOOK_SECONDS, finished_name
from snapshot_mcp.providers.ceph.work.blocks import content_of, copy_all


def carry_out(catalogue: PoolCatalogue, job: Row, request: dict[str, Any], progress: JobProgress) -> None:
    """Copy a snapshot to a new image, which gets its name when it is whole."""
    is_image = job["action"] == JobAction.CAPTURE_INSTANCE
    store, new_id = catalogue.store, request["new_id"]
    pool = store.image_pool if is_image else store.pool
    snapshot = catalogue.snapshot(request["snapshot_id"])
    assert snapshot is not None, "a claim"
    try:
        name = finished_name(pool, new_id, request["name"])
        if not name:
            with content_of(catalogue, snapshot) as source:
                progress.start("writing", source.size)
                with closing(_fresh_image(pool, new_id, source, progress)) as target:
                    target.set_metadata(ID, id_text(new_id, target.id))
                    copy_all(source, target, progress.advance)
            name = _finish_name(pool, new_id, request["name"])
            progress.finish()
        _record_export(catalogue, job, request, pool, name)
    except (ZoneError, CephError):
        catalogue.refuse_fenced()  # what is there may be another worker's by now
        store.remove_export(new_id, request["name"])  # before the job ends, and outside of its transaction
        raise


def _record_export(catalogue: PoolCatalogue, job: Row, request: dict[str, Any], pool: Pool, name: str) -> None:
    new_id, snapshot_id = request["new_id"], request["snapshot_id"]
    with pool.open_by_name(name) as made:
        image_id, size = made.id, made.size
    with catalogue.transaction():
        catalogue.db.execute("DELETE FROM resources WHERE resource_id = ?", (new_id,))  # it may have been found already
        if job["action"] == JobAction.CAPTURE_INSTANCE:
            catalogue.add_image(new_id, request["name"], image_id, snapshot_id)
        else:
            catalogue.add_resource(new_id, ResourceType.VOLUME, request["name"], image_id)
            catalogue.db.execute("UPDATE resources SET former_path = ? WHERE resource_id = ?", (name, new_id))
        catalogue.record_export(new_id, image_id, 0, snapshot_id)
        succeed(catalogue, job, {"path": f"{pool.name}/{name}", "size_bytes": size})


def _fresh_image(pool: Pool, new_id: str, like: RbdImage, progress: JobProgress) -> RbdImage:
    """Return a new image; what a worker that died has left of it is removed first, once Ceph has let go of that worker."""
    deadline = time.monotonic() + DEAD_CLIENT_SECONDS
    while True:
        try:
            pool.create_image(partial_name(new_id), like.size, like=like)
            return pool.open_by_name(partial_name(new_id))
        except CephError as error:
            if error.errno != errno.EEXIST:
                raise
        try:
            pool.remove_image(partial_name(new_id))
        except CephError as error:
            if error.errno == errno.EBUSY and time.monotonic() < deadline:
                progress.start("waiting until Ceph lets go of a client that died, up to 30 s", 0)
                time.sleep(LOOK_SECONDS)
            elif error.errno != errno.ENOENT:
                raise


def _finish_name(pool: Pool, new_id: str, text: str) -> str:
    """Give a finished export its name, with its id behind it where an image has that name already."""
    for name in names_for(text, new_id):
        try:
            pool.rename_image(partial_name(new_id), name)
        except CephError as error:
            if error.errno != errno.EEXIST:
                raise
        else:
            return name
    raise NotUsable(
        f"There are images of all names that the export could have: {clean_text(text)!r}.", hint="Use another."
    )
