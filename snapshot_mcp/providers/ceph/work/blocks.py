"""The content of restore points, read and copied in blocks, several at a time."""

import errno
from collections.abc import Callable, Iterator, Sequence
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

PIECE: Final = 4 << 10
"""Bytes that are compared at once where blocks differ: the smallest object that RBD makes."""

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


def is_made_of(image: RbdImage, sources: Sequence[RbdImage], advance: Callable[[int], None]) -> bool:
    """Return whether each piece of an image is that of a source at its place. All is read: no difference is asked for."""
    size, sizes = image.size, [one.size for one in sources]
    if size not in sizes:
        return False

    def compare(offset: int) -> int:
        length = min(BLOCK, size - offset)
        data = image.read(offset, length)
        others = [one.read(offset, length) for one, end in zip(sources, sizes, strict=True) if offset < end]
        places = range(0, length, PIECE)
        is_theirs = data in others or all(
            any(data[at : at + PIECE] == other[at : at + PIECE] for other in others) for at in places
        )
        return length if is_theirs else 0

    with ThreadPoolExecutor(COPIERS) as pool:
        for length in in_turn(pool, compare, range(0, size, BLOCK)):
            if not length:
                pool.shutdown(cancel_futures=True)
                return False
            advance(length)
    return True


def in_turn(pool: ThreadPoolExecutor, act: Callable[[int], int], items: range) -> Iterator[int]:
    """Yield the results in order, with a bounded number of calls under way."""
    waiting: list[Any] = []
    for item in items:
        waiting.append(pool.submit(act, item))
        if len(waiting) >= 2 * COPIERS:
            yield waiting.pop(0).result()
    for one in waiting:
        yield one.result()
