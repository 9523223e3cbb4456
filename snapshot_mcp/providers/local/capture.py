"""A disk's content into a snapshot's file: read, hash, compress what the parent lacks.

Threads read and compress windows of the disk (both release the GIL), one thread writes their results in order. Holes are
never read. Memory is bounded by the windows in flight and one region's map.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

from snapshot_mcp.providers.local.platform import data_extents
from snapshot_mcp.providers.local.snapshot_file.format import PLACE, ZERO_PLACE, Header, compress, hash_of
from snapshot_mcp.providers.local.snapshot_file.reader import Chain
from snapshot_mcp.providers.local.snapshot_file.writer import SnapshotWriter

WINDOW_SIZE = 2 << 20
"""What one thread takes at a time: large enough to make handing over cheap, small enough to keep memory low."""

THREADS = min(8, os.cpu_count() or 1)

Advance = Callable[[int], None]
"""Told how many bytes of the volume are done since the last call; raises to stop."""

Task = TypeVar("Task")
Result = TypeVar("Result")


class DiskWindow(NamedTuple):
    """A run of chunks of one region; `known` is the parent's map of them (empty without one)."""

    region: int
    start: int
    end: int
    known: bytes
    is_hole: bool = False


class NewChunk(NamedTuple):
    """A chunk that the parent lacks: which one of the window it is, and what to store."""

    number: int
    hash: bytes
    codec: int
    stored: bytes


def in_order(work: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[tuple[Task, Result]]:
    """Run `work` over `tasks` on threads, a bounded number ahead, and yield each with its result in order."""
    waiting: deque[tuple[Task, Future[Result]]] = deque()
    with ThreadPoolExecutor(THREADS, thread_name_prefix="disk") as pool:
        try:
            for task in tasks:
                waiting.append((task, pool.submit(work, task)))
                if len(waiting) > 4 * THREADS:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            for _, future in waiting:
                future.cancel()


def capture(fd: int, header: Header, parent: Chain | None, writer: SnapshotWriter, advance: Advance) -> None:
    """Write the content of `fd` (`header.virtual_size_bytes` long) as records and maps; the caller commits.

    Raises OSError (the disk cannot be read, or there is no room), DamagedSnapshot (the parent's map), and what `advance`
    raises.
    """
    places = bytearray()

    def read(window: DiskWindow) -> tuple[bytearray, list[NewChunk]]:
        return _read_window(fd, header.chunk_size, window)

    for window, (settled, new) in in_order(read, _windows(fd, header, parent)):
        for chunk in new:
            at = chunk.number * PLACE.size
            settled[at : at + PLACE.size] = writer.add_chunk(chunk.hash, chunk.codec, chunk.stored)
        places += settled
        if window.end == min((window.region + 1) * header.region_size, header.virtual_size_bytes):
            if parent and places == parent.places(window.region):
                writer.add_parents_region(parent.region_place(window.region))
            else:
                writer.add_region(places)
            places = bytearray()
        advance(window.end - window.start)


def _windows(fd: int, header: Header, parent: Chain | None) -> Iterator[DiskWindow]:
    for region in range(header.region_count):
        start = region * header.region_size
        end = min(start + header.region_size, header.virtual_size_bytes)
        known = parent.places(region) if parent else b""
        if next(data_extents(fd, start, end), None) is None:
            yield DiskWindow(region, start, end, b"", is_hole=True)
            continue
        size = max(WINDOW_SIZE, header.chunk_size)
        for at in range(start, end, size):
            first = (at - start) // header.chunk_size * PLACE.size
            last = (at + size - start) // header.chunk_size * PLACE.size
            yield DiskWindow(region, at, min(at + size, end), known[first:last])


def _read_window(fd: int, chunk_size: int, window: DiskWindow) -> tuple[bytearray, list[NewChunk]]:
    """Return the window's map with the new chunks' places still zero, and the new chunks."""
    count = -(-(window.end - window.start) // chunk_size)
    places = bytearray(ZERO_PLACE * count)
    new: list[NewChunk] = []
    if window.is_hole:
        return places, new
    zeros = bytes(chunk_size)
    for index in chunks_with_data(fd, window.start, window.end, chunk_size):
        offset = window.start + index * chunk_size
        data = read_exactly(fd, min(chunk_size, window.end - offset), offset)
        if data == (zeros if len(data) == chunk_size else bytes(len(data))):
            continue
        digest = hash_of(data)
        at = index * PLACE.size
        known = window.known[at : at + PLACE.size]
        if known[-32:] == digest:
            places[at : at + PLACE.size] = known
        else:
            new.append(NewChunk(index, digest, *compress(data)))
    return places, new


def chunks_with_data(fd: int, start: int, end: int, chunk_size: int) -> Iterator[int]:
    """The indexes of the chunks in [start, end) that do not lie in a hole altogether, in order."""
    following = 0
    for data, hole in data_extents(fd, start, end):
        first = max(following, (data - start) // chunk_size)
        following = -(-(hole - start) // chunk_size)
        yield from range(first, following)


def read_exactly(fd: int, length: int, offset: int) -> bytes:
    """Read `length` bytes; what lies beyond the end of the file reads as zeros (its size is checked by others)."""
    data = os.pread(fd, length, offset)
    while len(data) < length:
        more = os.pread(fd, length - len(data), offset + len(data))
        if not more:
            return data.ljust(length, b"\0")
        data += more
    return data
