"""The content of restore points, read and copied in blocks, several at a time."""

import errno
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from snapshot_mcp.catalogue.lookup import owner_of
from snapshot_mcp.catalogue.store import DamagedSnapshot, Row
from snapshot_mcp.providers.ceph.catalogue import PoolCatalogue
from snapshot_mcp.providers.ceph.clib import CephError
from snapshot_mcp.providers.ceph.image import RbdImage
from snapshot_mcp.providers.ceph.names import snapshot_name

BLOCK: Final = 4 << 20
"""Bytes that are copied at once: an object, as RBD makes them."""

COPIERS: Final = 10
"""Blocks that are copied at the same time."""


def content_of(catalogue: PoolCatalogue, snapshot: Row) -> RbdImage:
    """Open a restore point's content. Raises DamagedSnapshot if it is gone."""
    image_id, name = owner_of(catalogue, snapshot)["path"], snapshot_name(snapshot["snapshot_id"])
    try:
        return catalogue.store.pool.open_image(image_id, snapshot=name)
    except CephError as error:
        if error.errno != errno.ENOENT:
            raise
        raise DamagedSnapshot(snapshot["snapshot_id"], "its RBD snapshot is gone") from None


def copy_all(source: RbdImage, target: RbdImage, advance: Callable[[int], None]) -> None:
    """Copy all content; blocks of zeros are left out of the new image."""
    zeros, size = bytes(BLOCK), source.size

    def copy(offset: int) -> int:
        length = min(BLOCK, size - offset)
        data = bytearray(length)
        source.read_into(offset, data)
        if data != (zeros if length == BLOCK else zeros[:length]):
            target.write(offset, data)
        return length

    with ThreadPoolExecutor(COPIERS) as pool:
        try:
            for length in in_turn(pool, copy, range(0, size, BLOCK)):
                advance(length)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    target.flush()


def in_turn(pool: ThreadPoolExecutor, act: Callable[[int], int], items: range) -> Iterator[int]:
    """Yield the results in order, with a bounded number of calls under way."""
    waiting: list[Any] = []
    for item in items:
        waiting.append(pool.submit(act, item))
        if len(waiting) >= 2 * COPIERS:
            yield waiting.pop(0).result()
    for one in waiting:
        yield one.result()
