"""Create snapshots: of several disks as near to each other as can be, available only when all are there."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, Final

from snapshot_mcp.catalogue.database import moment
from snapshot_mcp.catalogue.lookup import owner_of
from snapshot_mcp.catalogue.outcome import succeed
from snapshot_mcp.catalogue.progress import JobProgress
from snapshot_mcp.catalogue.snapshots import Taken, make_available
from snapshot_mcp.catalogue.store import Row
from snapshot_mcp.contract.errors import NotUsable
from snapshot_mcp.contract.models import format_time
from snapshot_mcp.contract.text import EACH_FOR_ITSELF
from snapshot_mcp.providers.ceph import clib
from snapshot_mcp.providers.ceph.catalogue import PoolCatalogue
from snapshot_mcp.providers.ceph.clib import CephError
from snapshot_mcp.providers.ceph.errors import GONE
from snapshot_mcp.providers.ceph.image import RbdImage
from snapshot_mcp.providers.ceph.names import label_key, snapshot_name

MAX_COUNTED_OBJECTS: Final = 20_000
"""Objects of an image without the feature fast-diff that are looked at for a restore point's size."""


def carry_out(catalogue: PoolCatalogue, job: Row, request: dict[str, Any], progress: JobProgress) -> None:
    """Take the snapshots, all at once, or publish those that a worker that died has taken."""
    rows = [row for one in request["snapshot_ids"] if (row := catalogue.snapshot(one))]
    with ExitStack() as stack:
        images = [_opened(catalogue, stack, row) for row in rows]
        there = [
            snapshot_name(row["snapshot_id"]) in image.snapshots() for row, image in zip(rows, images, strict=True)
        ]
        if any(there) and not all(there):
            raise NotUsable(
                "The backup was interrupted while its snapshots were taken, so they are not of one moment.",
                hint="Create it again. Earlier snapshots are not affected.",
            )
        taken_at = rows[0]["snapshot_at"] if all(there) else catalogue.instant()
        take_together(images, [row["snapshot_id"] for row in rows])
        consistency = "instant" if len(rows) == 1 else f"instant, {EACH_FOR_ITSELF}"
        taken = {
            row["snapshot_id"]: facts_of(catalogue, row, image, taken_at, consistency)
            for row, image in zip(rows, images, strict=True)
        }
    with catalogue.transaction():
        for one, what in taken.items():
            make_available(catalogue, one, what)
        succeed(catalogue, job, {"snapshot_time": format_time(moment(taken_at))})


def _opened(catalogue: PoolCatalogue, stack: ExitStack, snapshot: Row) -> RbdImage:
    return stack.enter_context(catalogue.store.open(owner_of(catalogue, snapshot), is_read_only=False))


def take_together(images: Sequence[RbdImage], snapshot_ids: Sequence[str]) -> None:
    """Take a snapshot of each image, as near to each other as can be, and protect them."""
    names = list(map(snapshot_name, snapshot_ids))
    if len(images) == 1:
        images[0].take(names[0])
        return
    with ThreadPoolExecutor(len(images)) as pool:
        list(pool.map(RbdImage.take, images, names))


def facts_of(catalogue: PoolCatalogue, snapshot: Row, image: RbdImage, taken_at: float, consistency: str) -> Taken:
    """Return what is recorded of a snapshot that was taken."""
    name = snapshot_name(snapshot["snapshot_id"])
    size = image.snapshots()[name]
    image.set_metadata(label_key(snapshot["snapshot_id"]), snapshot["name"][:1000])
    return Taken(taken_at, _estimate(catalogue, snapshot, image, size), size, consistency)


def _estimate(catalogue: PoolCatalogue, snapshot: Row, image: RbdImage, size: int) -> int:
    """Return about what a restore point stores: all that was written since its parent, as far as Ceph knows that cheaply."""
    is_cheap = image.features & clib.FEATURE_FAST_DIFF or size >> image.order <= MAX_COUNTED_OBJECTS
    since = snapshot_name(snapshot["parent_id"]) if snapshot["parent_id"] else ""
    if not is_cheap:
        return size
    try:
        with catalogue.store.pool.open_image(image.id, snapshot=snapshot_name(snapshot["snapshot_id"])) as taken:
            return min(size, taken.changed_bytes(since))
    except CephError as error:
        if error.errno in GONE:
            raise
        return size
