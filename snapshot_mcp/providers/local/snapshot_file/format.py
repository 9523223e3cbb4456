"""Constants and models of the snapshot file format, and its hash and compression."""

import struct
import sys
import threading
from collections.abc import Iterator
from typing import Final, NamedTuple

from blake3 import blake3
from pydantic import BaseModel, ConfigDict

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

VERSION: Final = 1
"""The version that is written, and the newest that is read; each version from 1 on is read for ever (FORMAT.md, "Versions")."""

NAME: Final = b"SNAPMCP"
"""The first bytes of every version; the next byte is the version."""

MAGIC: Final = NAME + bytes([VERSION])
END_MAGIC: Final = b"SNAPEND" + bytes([VERSION])
SUFFIX: Final = ".snap"

REGION_SIZE: Final = 64 << 20
"""Bytes of the volume per map, so that memory stays bounded for any disk size."""

ZSTD_LEVEL: Final = 1
RAW, ZSTD = 0, 1
ZERO: Final = 0xFFFF
"""The depth of a place that is all zeros."""

PLACE: Final = struct.Struct("<HBxIQ32s")
RECORD: Final = struct.Struct("<32sIB3x")
FOOTER: Final = struct.Struct("<QI32s8s")
LENGTH: Final = struct.Struct("<I")
ZERO_PLACE: Final = PLACE.pack(ZERO, RAW, 0, 0, bytes(32))

MAX_HEADER_BYTES: Final = 1 << 20
MAX_TAGS: Final = 256
"""Tags that a header repeats; longer texts are cut as well, so that any header is shorter than the limit."""

MAX_CHUNK_BYTES: Final = 16 << 20
MAX_REGION_BYTES: Final = 1 << 30
LEAST_REGION_BYTES: Final = 1 << 20
MAX_VIRTUAL_BYTES: Final = 1 << 50
"""Sizes in a header that this program could have written; a larger one would only exhaust the memory of its reader."""


class Place(NamedTuple):
    """Location of the bytes of a chunk or of a region's map."""

    depth: int
    codec: int
    stored_length: int
    offset: int
    hash: bytes

    @property
    def is_zero(self) -> bool:
        """Return whether it is all zeros and stored nowhere."""
        return self.depth == ZERO


class Header(BaseModel):
    """Facts that are known before the disk is read.

    Those from `snapshot_name` on serve a rebuild alone (FORMAT.md, "A lost catalogue"): older files lack them, a rename
    does not change them, and `resource_path` is shown and never opened.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    snapshot_id: str
    resource_id: str
    resource_type: str
    chain: tuple[str, ...]
    parent_hash: str = ""
    snapshot_time: str
    virtual_size_bytes: int
    chunk_size: int
    region_size: int = REGION_SIZE
    hash: str = "blake3"
    compression: str = "zstd"
    snapshot_name: str = ""
    description: str = ""
    tags: tuple[str, ...] = ()
    created_at: str = ""
    resource_name: str = ""
    resource_path: str = ""
    taken_with: tuple[str, ...] = ()

    @property
    def is_possible(self) -> bool:
        """Return whether this program could have written these sizes."""
        sizes = 0 < self.chunk_size <= MAX_CHUNK_BYTES and LEAST_REGION_BYTES <= self.region_size <= MAX_REGION_BYTES
        return sizes and self.region_size % self.chunk_size == 0 and 0 <= self.virtual_size_bytes <= MAX_VIRTUAL_BYTES

    @property
    def depth(self) -> int:
        """Return the number of ancestors."""
        return len(self.chain) - 1

    @property
    def region_count(self) -> int:
        """Return the number of regions; the last one may be short."""
        return -(-self.virtual_size_bytes // self.region_size)

    def chunks_in(self, region: int) -> int:
        """Return the number of chunks in a region; the last one may be short."""
        start, end = self.bounds_of(region)
        return -(-(end - start) // self.chunk_size)

    def bounds_of(self, region: int) -> tuple[int, int]:
        """Return where a region starts and ends in the volume."""
        start = region * self.region_size
        return start, min(start + self.region_size, self.virtual_size_bytes)

    def split(self, region: int, size: int) -> Iterator[tuple[int, int, slice]]:
        """Split a region into windows of `size` bytes: start, end, and the slice of the region's packed map."""
        start, end = self.bounds_of(region)
        for at in range(start, end, size):
            first, last = (at - start) // self.chunk_size, (at + size - start) // self.chunk_size
            yield at, min(at + size, end), slice(first * PLACE.size, last * PLACE.size)


class Trailer(BaseModel):
    """Facts that are known after the disk was read."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    consistency: str
    record_count: int
    record_bytes: int


def chunk_size_for(virtual_size_bytes: int) -> int:
    """Return the chunk size for a disk: a trade-off between map size and scattered writes (FORMAT.md, "Chunk size")."""
    if virtual_size_bytes > 1 << 40:
        return 1 << 20
    return 256 << 10 if virtual_size_bytes > 64 << 30 else 64 << 10


def file_name(snapshot_id: str) -> str:
    """Return the name of a snapshot's file; only ids name files, never names from outside."""
    return snapshot_id + SUFFIX


_local = threading.local()


def compress(data: bytes) -> tuple[int, bytes]:
    """Return codec and stored bytes, compressed if that is smaller. Releases the GIL."""
    compressor = getattr(_local, "compressor", None)
    if compressor is None:
        compressor = _local.compressor = zstd.ZstdCompressor(level=ZSTD_LEVEL)
    packed = compressor.compress(data, compressor.FLUSH_FRAME)
    return (ZSTD, packed) if len(packed) < len(data) else (RAW, data)


def decompress(codec: int, stored: bytes, limit: int) -> bytes | None:
    """Return the original bytes; None if they cannot be decompressed into at most `limit` bytes."""
    if codec == RAW:
        return stored
    if codec != ZSTD:
        return None
    try:
        return zstd.ZstdDecompressor().decompress(stored, limit)
    except zstd.ZstdError:
        return None


def hash_of(data: bytes | bytearray) -> bytes:
    """Return the BLAKE3 hash."""
    return blake3(data).digest()
