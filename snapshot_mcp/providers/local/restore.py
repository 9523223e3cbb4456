"""Write a snapshot's content back onto a disk or into a new file; every byte is verified before it is written.

`compare` finds what differs and verifies all of it, `reserve_room` makes sure that it fits, and only then `write_back`
changes the disk. A failure of the first two leaves every byte of the disk as it was (FORMAT.md, "A roll-back").
"""

import errno
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from snapshot_mcp.providers.local.capture import WINDOW_SIZE, Advance, chunks_with_data, in_order
from snapshot_mcp.providers.local.snapshot_file.format import PLACE, ZERO_PLACE, Place, hash_of
from snapshot_mcp.providers.local.snapshot_file.reader import Chain, unpack_places
from snapshot_mcp.providers.local.source import Sink, Source, Span, Target
from snapshot_mcp.providers.local.syncing import SyncedFile

SECTOR_SIZE: Final = 512
"""The smallest unit that a disk writes atomically."""


class StoredWindow(NamedTuple):
    """A run of chunks of one region and the snapshot's map of them."""

    start: int
    end: int
    places: bytes

    @property
    def is_empty(self) -> bool:
        """Return whether the snapshot has only zeros there."""
        return self.places == ZERO_PLACE * (len(self.places) // PLACE.size)


class VerifiedChunks:
    """Chunks that were verified and are kept until they are written, so that they are decompressed once: as many as fit.

    They are known by their hashes. One is shared by all disks of a roll-back, and by its threads.
    """

    LIMIT_BYTES: Final = 16 << 20

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._chunks: dict[bytes, bytes] = {}
        self._left_bytes = self.LIMIT_BYTES

    def keep(self, place: Place, data: bytes) -> None:
        """Keep the verified bytes of a place, if they fit."""
        with self._lock:
            if len(data) <= self._left_bytes and place.hash not in self._chunks:
                self._chunks[place.hash] = data
                self._left_bytes -= len(data)

    def get(self, place: Place) -> bytes | None:
        """Return the verified bytes of a place, None if they must be read again."""
        return self._chunks.get(place.hash)


class Differences:
    """The chunks in which the disk differs from the snapshot: a flag per chunk, and their total bytes.

    `hashes` are of the disk's present content of these chunks, 32 bytes each, in their order. `verified` has some of the
    snapshot's own.
    """

    def __init__(self, chunk_size: int, virtual_size_bytes: int, verified: VerifiedChunks) -> None:
        self.verified = verified
        self.chunk_size = chunk_size
        self.virtual_size_bytes = virtual_size_bytes
        self.flags = bytearray(-(-virtual_size_bytes // chunk_size))
        self.hashes = bytearray()
        self.byte_count = 0

    def add(self, offset: int, length: int, digest: bytes) -> None:
        """Add a chunk; call it in the order of the chunks."""
        self.flags[offset // self.chunk_size] = 1
        self.hashes += digest
        self.byte_count += length

    def __contains__(self, offset: int) -> bool:
        return bool(self.flags[offset // self.chunk_size])

    def windows(self, chain: Chain) -> Iterator[StoredWindow]:
        """Yield the windows in which something differs."""
        for window in windows(chain):
            first, last = window.start // self.chunk_size, -(-window.end // self.chunk_size)
            if self.flags.find(1, first, last) >= 0:
                yield window


def windows(chain: Chain) -> Iterator[StoredWindow]:
    """Yield the whole volume, region by region; a region of zeros is one window, so that empty space costs little."""
    header = chain.header
    for region in range(header.region_count):
        places = chain.places(region)
        is_empty = chain.region_place(region) == ZERO_PLACE
        size = header.region_size if is_empty else max(WINDOW_SIZE, header.chunk_size)
        for start, end, part in header.split(region, size):
            yield StoredWindow(start, end, places[part])


def chunks(chain: Chain, window: StoredWindow) -> Iterator[tuple[int, int, Place]]:
    """Yield offset, length and place of each chunk of the window."""
    size = chain.header.chunk_size
    for index, place in enumerate(unpack_places(window.places)):
        offset = window.start + index * size
        yield offset, min(size, window.end - offset), place


def read_verified(chain: Chain, place: Place, length: int) -> bytes:
    """Return the chunk's verified bytes. Raises DamagedSnapshot, also if they are not `length` long."""
    data = chain.read(place)
    if len(data) != length:
        raise chain.file_at(place).damaged("a chunk has the wrong length")
    return data


def compare(source: Source, chain: Chain, advance: Advance, verified: VerifiedChunks) -> Differences:
    """Find what a roll-back must write and verify every stored chunk of it, of which some are kept; change nothing.

    Raises DamagedSnapshot, OSError, and what `advance` raises.
    """
    differences = Differences(chain.header.chunk_size, chain.header.virtual_size_bytes, verified)

    def look(window: StoredWindow) -> list[tuple[int, int, bytes]]:
        with_data = set(chunks_with_data(source, window.start, window.end, chain.header.chunk_size))
        differing: list[tuple[int, int, bytes]] = []
        if window.is_empty and not with_data:
            return differing
        for index, (offset, length, place) in enumerate(chunks(chain, window)):
            data = source.read(length, offset) if index in with_data else b""
            if place.is_zero:
                if data.strip(b"\0"):
                    differing.append((offset, length, hash_of(data)))
            elif (digest := hash_of(data or bytes(length))) != place.hash:
                verified.keep(place, read_verified(chain, place, length))
                differing.append((offset, length, digest))
        return differing

    for window, differing in in_order(look, windows(chain)):
        for one in differing:
            differences.add(*one)
        advance(window.end - window.start)
    return differences


def reserve_room(target: Target, chain: Chain, differences: Differences) -> None:
    """Reserve the space for what will be written, or release it again on a failure; no byte changes. Raises OSError (ENOSPC)."""

    def spans() -> Iterator[Span]:
        for window in differences.windows(chain):
            for offset, length, place in chunks(chain, window):
                if not place.is_zero and offset in differences:
                    yield offset, offset + length

    target.reserve(spans())


def content_at(chain: Chain, offset: int, length: int) -> bytes:
    """Return the volume's verified bytes at any offset, zeros beyond its end. Raises DamagedSnapshot."""
    header, out = chain.header, bytearray()
    end = min(offset + length, header.virtual_size_bytes)
    while offset + len(out) < end:
        at = offset + len(out)
        region, start = divmod(at, header.region_size)
        index, skipped = divmod(start, header.chunk_size)
        first = at - skipped
        size = min(header.chunk_size, header.virtual_size_bytes - first)
        place = Place._make(PLACE.unpack_from(chain.places(region), index * PLACE.size))
        data = bytes(size) if place.is_zero else read_verified(chain, place, size)
        out += data[skipped : skipped + end - at]
    return bytes(out.ljust(length, b"\0"))


def verify_before(chain: Chain, before: Chain, differences: Differences, advance: Advance) -> None:
    """Read in `before` (the way back) what a roll-back to `chain` will overwrite or cut off. Raises DamagedSnapshot."""

    def read(window: StoredWindow) -> int:
        differing = [one for one in chunks(chain, window) if one[0] in differences]
        return sum(len(content_at(before, offset, length)) for offset, length, _ in differing)

    def read_beyond(window: StoredWindow) -> int:
        for offset, length, place in chunks(before, window):
            if not place.is_zero and offset + length > chain.header.virtual_size_bytes:
                read_verified(before, place, length)
        return 0

    for _, done in in_order(read, differences.windows(chain)):
        advance(done)
    beyond = (one for one in windows(before) if one.end > chain.header.virtual_size_bytes and not one.is_empty)
    for _, done in in_order(read_beyond, beyond):
        advance(done)


def find_foreign(source: Source, chain: Chain, before: Chain, differences: Differences) -> int | None:
    """Return the offset of content that was neither there before nor is written by the roll-back, None for none.

    An interruption can leave a mixed chunk, so chunks are compared by sectors. Beyond the snapshot's end the former content
    must be unchanged, or the roll-back would cut off something unknown.
    """
    size, end = source.size_bytes, chain.header.virtual_size_bytes
    if size not in (end, before.header.virtual_size_bytes):
        return min(size, end)

    def look(window: StoredWindow) -> int | None:
        for offset, length, place in chunks(chain, window):
            if offset in differences:
                after = bytes(length) if place.is_zero else read_verified(chain, place, length)
                if not _is_mixture(source.read(length, offset), after, content_at(before, offset, length)):
                    return offset
        return None

    def look_beyond(offset: int) -> int | None:
        length = min(WINDOW_SIZE, size - offset)
        return None if source.read(length, offset) == content_at(before, offset, length) else offset

    inside = (at for _, at in in_order(look, differences.windows(chain)) if at is not None)
    beyond = (at for _, at in in_order(look_beyond, range(end, size, WINDOW_SIZE)) if at is not None)
    return next(itertools.chain(inside, beyond), None)


def _is_mixture(data: bytes, one: bytes, other: bytes) -> bool:
    if data in (one, other):
        return True
    sectors = (slice(at, at + SECTOR_SIZE) for at in range(0, len(data), SECTOR_SIZE))
    return all(data[sector] in (one[sector], other[sector]) for sector in sectors)


def write_back(
    target: Target, chain: Chain, differences: Differences, advance: Advance, check: Callable[[], None]
) -> None:
    """Overwrite the disk durably with the snapshot's content. Advances by the bytes written.

    `check` is called right before each write and raises if the disk is no longer held, since a process can be stopped for
    longer than the system keeps others waiting. Raises DamagedSnapshot, OSError, and what `advance` and `check` raise; the
    disk is then half overwritten.
    """

    def write(window: StoredWindow) -> int:
        done = 0
        for offset, length, place in chunks(chain, window):
            if offset not in differences:
                continue
            data = b"" if place.is_zero else differences.verified.get(place) or read_verified(chain, place, length)
            check()
            if place.is_zero:
                target.write_zeros(offset, length)
            else:
                target.write(data, offset)
            done += length
        return done

    check()
    if target.size_bytes != chain.header.virtual_size_bytes:
        target.resize(chain.header.virtual_size_bytes)
    for _, done in in_order(write, differences.windows(chain)):
        advance(done)
    target.flush()


def room_needed(chain: Chain) -> int:
    """Return how many bytes of the volume are not zero, which is what a new file of it occupies."""
    header = chain.header
    count, places = 0, b""
    for region in range(header.region_count):
        places = b"" if chain.region_place(region) == ZERO_PLACE else chain.places(region)
        count += len(places) // PLACE.size - places.count(ZERO_PLACE)
    is_last_stored = places != b"" and not places.endswith(ZERO_PLACE)
    beyond_the_end = -header.virtual_size_bytes % header.chunk_size if is_last_stored else 0
    return count * header.chunk_size - beyond_the_end


def export(fd: int, chain: Chain, advance: Advance) -> None:
    """Write the snapshot's whole content into a new, empty file: sparse, verified, durable.

    Raises DamagedSnapshot, OSError (with ENOSPC before anything is written, if possible), and what `advance` raises.
    """
    refuse_too_little_room(fd, chain)
    with SyncedFile(fd) as target:
        target.resize(chain.header.virtual_size_bytes)
        fill(target, chain, advance)


def refuse_too_little_room(fd: int, chain: Chain) -> None:
    """Raise OSError with ENOSPC if the content does not fit on the filesystem of an open file."""
    free = os.fstatvfs(fd)
    if room_needed(chain) > free.f_bavail * free.f_frsize:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fill(target: Sink, chain: Chain, advance: Advance) -> None:
    """Write everything that is not zero into an empty disk of the snapshot's size, durably."""

    def write(window: StoredWindow) -> None:
        if window.is_empty:
            return
        for offset, length, place in chunks(chain, window):
            if not place.is_zero:
                target.write(read_verified(chain, place, length), offset)

    for window, _ in in_order(write, windows(chain)):
        advance(window.end - window.start)
    target.flush()
