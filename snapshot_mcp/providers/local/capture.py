"""Copy a disk's content into a snapshot's file: read it, hash it, compress what the parent lacks.

Threads read and compress windows of the disk (both release the GIL); one thread writes their results in order. Holes are
never read. Memory is bounded by the windows in flight and one region's map.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, NamedTuple, TypeVar

from snapshot_mcp.providers.local.snapshot_file.format import PLACE, ZERO_PLACE, Header, compress, hash_of
from snapshot_mcp.providers.local.snapshot_file.reader import Chain
from snapshot_mcp.providers.local.snapshot_file.writer import SnapshotWriter
from snapshot_mcp.providers.local.source import Source, Span

WINDOW_SIZE = 2 << 20
"""Bytes per task of a thread: enough to make handing over cheap, few enough to keep memory low."""

THREADS = min(8, os.cpu_count() or 1)

SAMPLE_COUNT: Final = 64
SAMPLE_BYTES: Final = 64 << 10
"""The samples, spread over the disk, take about 20 ms and are accurate within a few percent for typical disks."""

Advance = Callable[[int], None]
"""Called with the bytes of the volume that were done since the last call; raises to stop."""

Task = TypeVar("Task")
Result = TypeVar("Result")


class DiskWindow(NamedTuple):
    """A run of chunks of one region; `known` is the parent's map of them, empty without a parent.

    `settled` is their map where nothing needs to be read: a hole, or what has not changed. `changed` has a flag a chunk, and is
    empty if all may have changed. `is_parents`: the whole region is the parent's, and has no map here.
    """

    region: int
    start: int
    end: int
    known: bytes = b""
    settled: bytes | None = None
    changed: bytes = b""
    is_parents: bool = False


class NewChunk(NamedTuple):
    """A chunk that the parent lacks: its number within the window, and what to store."""

    number: int
    hash: bytes
    codec: int
    stored: bytes


def in_order(work: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[tuple[Task, Result]]:
    """Run `work` over `tasks` on threads, a bounded number ahead, and yield each task with its result in order."""
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


def capture(
    source: Source,
    header: Header,
    parent: Chain | None,
    writer: SnapshotWriter,
    advance: Advance,
    changed: Iterable[Span] | None = None,
) -> None:
    """Write the content of `source` (`header.virtual_size_bytes` long) as records and maps; the caller commits.

    `changed`: everything that may differ from the parent, in any order; what is not in it is not read. None: all may differ.
    Raises OSError (the disk cannot be read, or no space), DamagedSnapshot (the parent's map), and what `advance` raises.
    """
    flags = None if changed is None or parent is None else _flags(header, parent.header, changed)
    places = bytearray()

    def read(window: DiskWindow) -> tuple[bytearray, list[NewChunk]]:
        return _read_window(source, header.chunk_size, window)

    for window, (found, new) in in_order(read, _windows(source, header, parent, flags)):
        for chunk in new:
            at = chunk.number * PLACE.size
            found[at : at + PLACE.size] = writer.add_chunk(chunk.hash, chunk.codec, chunk.stored)
        places += found
        if window.end == header.bounds_of(window.region)[1]:
            if parent and (window.is_parents or places == parent.places(window.region)):
                writer.add_parents_region(parent.region_place(window.region))
            else:
                writer.add_region(places)
            places = bytearray()
        advance(window.end - window.start)


def _flags(header: Header, parent: Header, changed: Iterable[Span]) -> bytearray:
    """Return a flag for each chunk: whether it may differ from the parent's. Chunks at or beyond the end of either always may."""
    size, parents_size, chunk = header.virtual_size_bytes, parent.virtual_size_bytes, header.chunk_size
    flags = bytearray(-(-size // chunk))
    beyond = [(min(size, parents_size), size)] if size != parents_size else []
    for start, end in (*changed, *beyond):
        first, last = start // chunk, -(-min(max(end, start + 1), size) // chunk)
        flags[first:last] = b"\1" * (last - first)
    return flags


def _windows(source: Source, header: Header, parent: Chain | None, flags: bytearray | None) -> Iterator[DiskWindow]:
    size = max(WINDOW_SIZE, header.chunk_size)
    for region in range(header.region_count):
        start, end = header.bounds_of(region)
        first, last = start // header.chunk_size, -(-end // header.chunk_size)
        is_unchanged = flags is not None and flags.find(1, first, last) < 0
        if is_unchanged and parent and header.chunks_in(region) == parent.header.chunks_in(region):
            yield DiskWindow(region, start, end, is_parents=True)
            continue
        known = parent.places(region) if parent else b""
        if next(source.data_extents(start, end), None) is None:
            yield DiskWindow(region, start, end, settled=ZERO_PLACE * (last - first))
            continue
        for at, until, part in header.split(region, size):
            first, last = at // header.chunk_size, -(-until // header.chunk_size)
            changed = b"" if flags is None else bytes(flags[first:last])
            settled = known[part][: len(changed) * PLACE.size] if changed and 1 not in changed else None
            yield DiskWindow(region, at, until, known[part], settled, changed)


def _read_window(source: Source, chunk_size: int, window: DiskWindow) -> tuple[bytearray, list[NewChunk]]:
    """Return the window's map, in which the new chunks' places are still zero, and the new chunks."""
    new: list[NewChunk] = []
    if window.settled is not None or window.is_parents:
        return bytearray(window.settled or b""), new
    places = bytearray(ZERO_PLACE * -(-(window.end - window.start) // chunk_size))
    for index, is_changed in enumerate(window.changed):
        if not is_changed:
            at = index * PLACE.size
            places[at : at + PLACE.size] = window.known[at : at + PLACE.size]
    zeros = bytes(chunk_size)
    for index in chunks_with_data(source, window.start, window.end, chunk_size):
        if window.changed and not window.changed[index]:
            continue
        offset = window.start + index * chunk_size
        data = source.read(min(chunk_size, window.end - offset), offset)
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


def chunks_with_data(source: Source, start: int, end: int, chunk_size: int) -> Iterator[int]:
    """Yield the indexes of the chunks in [start, end) that are not entirely within a hole, in order."""
    following = 0
    for data, hole in source.data_extents(start, end):
        first = max(following, (data - start) // chunk_size)
        following = -(-(hole - start) // chunk_size)
        yield from range(first, following)


def sampled_ratio(source: Source) -> float:
    """Return the share of the disk's data that is stored after compression, by samples of it."""
    size = source.size_bytes
    read = stored = 0
    for number in range(SAMPLE_COUNT):
        at = size * number // SAMPLE_COUNT
        start = max(at, next(source.data_extents(at, size), (size, size))[0])
        data = source.read(min(SAMPLE_BYTES, size - start), start)
        read += len(data)
        stored += len(compress(data)[1]) if data.strip(b"\0") else 0
    return stored / read if read else 0.0
