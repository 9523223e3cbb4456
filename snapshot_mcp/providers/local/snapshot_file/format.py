"""The numbers, places and models of the format, and the two functions that touch bytes: hash and compress."""

import struct
import sys
import threading
from typing import Final, NamedTuple

from blake3 import blake3
from pydantic import BaseModel, ConfigDict

from snapshot_mcp.contract.errors import Damaged

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

VERSION: Final = 1
MAGIC: Final = b"SNAPMCP" + bytes([VERSION])
END_MAGIC: Final = b"SNAPEND" + bytes([VERSION])
SUFFIX: Final = ".snap"

REGION_SIZE: Final = 64 << 20
"""Maps are read and written in regions of this much volume, so that memory stays bounded whatever the disk's size."""

ZSTD_LEVEL: Final = 1
RAW, ZSTD = 0, 1
ZERO: Final = 0xFFFF
"""The depth of a place that holds nothing but zeros."""

PLACE: Final = struct.Struct("<HBxIQ32s")
RECORD: Final = struct.Struct("<32sIB3x")
FOOTER: Final = struct.Struct("<QI32s8s")
LENGTH: Final = struct.Struct("<I")
ZERO_PLACE: Final = PLACE.pack(ZERO, RAW, 0, 0, bytes(32))

MAX_HEADER_BYTES: Final = 1 << 20


class DamagedFile(Damaged):
    """A snapshot's file is missing, cut, altered or unreadable; `snapshot_id` is whose."""

    def __init__(self, snapshot_id: str, what: str) -> None:
        super().__init__(
            f"Snapshot {snapshot_id} is damaged: {what}.",
            hint="Restore points that build on it are affected. Take a new full snapshot, and run `snapshot-mcp zone check`"
            " to see which ones still verify.",
        )
        self.snapshot_id = snapshot_id


class Place(NamedTuple):
    """Where the bytes of a chunk, or of a region's map, lie."""

    depth: int
    codec: int
    stored_length: int
    offset: int
    hash: bytes

    @property
    def is_zero(self) -> bool:
        return self.depth == ZERO


class Header(BaseModel):
    """What is known before the first byte is read."""

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

    @property
    def depth(self) -> int:
        return len(self.chain) - 1

    @property
    def region_count(self) -> int:
        return -(-self.virtual_size_bytes // self.region_size)

    def chunks_in(self, region: int) -> int:
        """How many chunks the region's map lists; the last one may be short."""
        length = min(self.region_size, self.virtual_size_bytes - region * self.region_size)
        return -(-length // self.chunk_size)


class Trailer(BaseModel):
    """What is known at the end."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    consistency: str
    record_count: int
    record_bytes: int


def chunk_size_for(virtual_size_bytes: int) -> int:
    """The map's size against scattered writes (engine_notes.md, "Layouts tried")."""
    if virtual_size_bytes > 1 << 40:
        return 1 << 20
    return 256 << 10 if virtual_size_bytes > 64 << 30 else 64 << 10


def file_name(snapshot_id: str) -> str:
    """Files are named by id, never by a name from outside."""
    return snapshot_id + SUFFIX


_local = threading.local()


def compress(data: bytes) -> tuple[int, bytes]:
    """Return codec and stored bytes: compressed where that is smaller. Releases the GIL."""
    compressor = getattr(_local, "compressor", None)
    if compressor is None:
        compressor = _local.compressor = zstd.ZstdCompressor(level=ZSTD_LEVEL)
    packed = compressor.compress(data, compressor.FLUSH_FRAME)
    return (ZSTD, packed) if len(packed) < len(data) else (RAW, data)


def decompress(codec: int, stored: bytes, limit: int) -> bytes | None:
    """Return the chunk, `limit` long at the most; None where that is not what is stored."""
    if codec == RAW:
        return stored
    if codec != ZSTD:
        return None
    try:
        return zstd.ZstdDecompressor().decompress(stored, limit)
    except zstd.ZstdError:
        return None


def hash_of(data: bytes | bytearray) -> bytes:
    return blake3(data).digest()
