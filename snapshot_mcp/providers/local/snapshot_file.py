"""The on-disk format of a snapshot: one immutable file that holds what its parent lacks, and the map of the volume.

    file    = header  { record | region }  trailer  footer
    header  = "SNAPMCP" version:u8  length:u32  JSON  blake3(JSON)
    record  = blake3(chunk)  stored_length:u32  codec:u8  0:u24   then the stored bytes of one chunk
    region  = the map of REGION_SIZE bytes of the volume: one place a chunk, in order
    place   = depth:u16  codec:u8  0:u8  stored_length:u32  offset:u64  blake3                      (48 bytes)
    trailer = length:u32  JSON  then one place a region
    footer  = offset:u64  length:u32  blake3(trailer)  "SNAPEND" version:u8                          (52 bytes)

Integers are little-endian. A place says where bytes lie: in the file that stands at `depth` in the chain (0 is the full
snapshot), or nowhere (`ZERO`: all zero). Depths mean the same in every file of a chain, since a chain is a path from its
root; so a child copies its parent's places, and an unchanged region is one place that points into an ancestor. The
hash is of the bytes before compression. The header holds what adopts a file that has no row in the catalogue: ids,
the chain (root first, itself last), sizes, time. `parent_hash` is the hash in the parent's footer, so that no other
file can stand in for the parent.

A file is written under a temporary name, synced, renamed, and its folder synced (`SnapshotWriter.commit`). It never
changes afterwards. Every byte that is read back is verified against its hash first; what does not fit is `DamagedFile`.
"""

import os
import struct
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple, Self, TypeVar

from blake3 import blake3
from pydantic import BaseModel, ConfigDict, ValidationError

from snapshot_mcp.contract.errors import Damaged
from snapshot_mcp.providers.local.platform import fdatasync, fsync_folder

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

SYNC_EVERY_BYTES: Final = 48 << 20
"""So often the written part is synced in the background, which leaves little for the last sync."""

FLUSH_BYTES, FLUSH_PIECES = 1 << 20, 512
"""Pieces are gathered up to here and written with one call, without copying them together (IOV_MAX is 1024)."""

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
MAX_DEPTH: Final = ZERO - 1


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


Part = TypeVar("Part", Header, Trailer)


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


def hash_of(data: bytes | bytearray) -> bytes:
    return blake3(data).digest()


class SnapshotWriter:
    """Writes one file. Single-threaded but for the sync in the background; `close` without `commit` leaves nothing.

    Raises OSError (ENOSPC above all) from every method.
    """

    def __init__(self, folder: Path, header: Header) -> None:
        self.header = header
        self.path = folder / file_name(header.snapshot_id)
        self._partial = folder / f".{header.snapshot_id}.partial"
        self._fd = os.open(self._partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._offset = 0
        self._synced = 0
        self._regions: list[bytes] = []
        self._record_count = 0
        self._record_bytes = 0
        self._syncer = ThreadPoolExecutor(1, thread_name_prefix="sync")
        self._sync: Future[None] | None = None
        body = header.model_dump_json().encode()
        self._write(MAGIC + LENGTH.pack(len(body)) + body + hash_of(body))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add_chunk(self, digest: bytes, codec: int, stored: bytes) -> bytes:
        """Append a chunk's record and return its place, packed."""
        self._write(RECORD.pack(digest, len(stored), codec))
        place = PLACE.pack(self.header.depth, codec, len(stored), self._offset, digest)
        self._write(stored)
        self._record_count += 1
        self._record_bytes += len(stored)
        return place

    def add_region(self, places: bytes | bytearray) -> None:
        """Append the map of the next region."""
        if places == ZERO_PLACE * (len(places) // PLACE.size):
            self._regions.append(ZERO_PLACE)
            return
        digest = hash_of(places)
        codec, stored = compress(bytes(places))
        self._regions.append(PLACE.pack(self.header.depth, codec, len(stored), self._offset, digest))
        self._write(stored)

    def add_parents_region(self, place: bytes) -> None:
        """The next region is as the parent's: point to where that lies."""
        self._regions.append(place)

    def commit(self, consistency: str) -> int:
        """Finish, sync, rename, sync the folder; returns the file's size. Afterwards the snapshot is durable."""
        body = (
            Trailer(consistency=consistency, record_count=self._record_count, record_bytes=self._record_bytes)
            .model_dump_json()
            .encode()
        )
        trailer = LENGTH.pack(len(body)) + body + b"".join(self._regions)
        start = self._offset
        self._write(trailer)
        self._write(FOOTER.pack(start, len(trailer), hash_of(trailer), END_MAGIC))
        self._flush()
        self._join_sync()
        fdatasync(self._fd)
        self._partial.rename(self.path)
        fsync_folder(self.path.parent)
        return self._offset

    def close(self) -> None:
        """Release everything; an uncommitted file goes."""
        if self._fd >= 0:
            self._syncer.shutdown(wait=True)
            os.close(self._fd)
            self._fd = -1
            self._partial.unlink(missing_ok=True)

    def _write(self, data: bytes) -> None:
        self._pending.append(data)
        self._pending_bytes += len(data)
        self._offset += len(data)
        if self._pending_bytes >= FLUSH_BYTES or len(self._pending) >= FLUSH_PIECES:
            self._flush()

    def _flush(self) -> None:
        written = os.writev(self._fd, self._pending) if self._pending else 0
        if written < self._pending_bytes:
            rest = memoryview(b"".join(self._pending))[written:]
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        self._pending, self._pending_bytes = [], 0
        if self._offset - self._synced >= SYNC_EVERY_BYTES and (self._sync is None or self._sync.done()):
            self._join_sync()
            self._synced = self._offset
            self._sync = self._syncer.submit(fdatasync, self._fd)

    def _join_sync(self) -> None:
        if self._sync is not None:
            self._sync.result()
            self._sync = None


class SnapshotFile:
    """One file, open for reading; safe for many threads. Raises DamagedFile for whatever does not verify."""

    def __init__(self, folder: Path, snapshot_id: str) -> None:
        self.snapshot_id = snapshot_id
        self._fd = -1
        try:
            self._fd = os.open(folder / file_name(snapshot_id), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise DamagedFile(snapshot_id, "its file is missing") from None
        except OSError as error:
            raise DamagedFile(snapshot_id, f"its file cannot be opened ({error.strerror})") from error
        try:
            self.header = self._read_header()
            self.trailer, self._regions, self.hash = self._read_trailer()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    @property
    def size_bytes(self) -> int:
        return os.fstat(self._fd).st_size

    def region_place(self, region: int) -> bytes:
        """The packed place of a region's map."""
        return self._regions[region * PLACE.size : (region + 1) * PLACE.size]

    def read(self, place: Place, limit: int) -> bytes:
        """Return the verified bytes of a place that lies in this file, `limit` long at the most."""
        if place.stored_length > limit:
            raise self.damaged("a stored length is beyond its chunk")
        stored = self._pread(place.stored_length, place.offset)
        data: bytes = stored
        if place.codec == ZSTD:
            try:
                decompressor = zstd.ZstdDecompressor()
                data = decompressor.decompress(stored, limit)
            except zstd.ZstdError:
                raise self.damaged(f"the chunk at byte {place.offset} cannot be decompressed") from None
        elif place.codec != RAW:
            raise self.damaged(f"the chunk at byte {place.offset} has the unknown codec {place.codec}")
        if hash_of(data) != place.hash:
            raise self.damaged(f"the chunk at byte {place.offset} does not match its hash")
        return data

    def record_before(self, place: Place) -> bytes:
        """The header of the record whose bytes a place points to; for `zone check`."""
        return self._pread(RECORD.size, max(0, place.offset - RECORD.size))

    def read_region(self, place: Place) -> bytes:
        """The verified map of a region that lies in this file."""
        length = self.header.region_size // self.header.chunk_size * PLACE.size
        return self.read(place, length)

    def damaged(self, what: str) -> DamagedFile:
        return DamagedFile(self.snapshot_id, what)

    def _pread(self, length: int, offset: int) -> bytes:
        try:
            data = os.pread(self._fd, length, offset)
        except OSError as error:
            raise self.damaged(f"byte {offset} cannot be read ({error.strerror})") from error
        if len(data) != length:
            raise self.damaged("its file is cut short")
        return data

    def _read_header(self) -> Header:
        start = self._pread(len(MAGIC) + LENGTH.size, 0)
        if start[: len(MAGIC)] != MAGIC:
            raise self.damaged("its file does not begin as a snapshot of this version")
        (length,) = LENGTH.unpack(start[len(MAGIC) :])
        if length > MAX_HEADER_BYTES:
            raise self.damaged("its header is no header")
        body = self._pread(length + 32, len(start))
        header = self._parse(Header, body[:length], body[length:])
        if header.snapshot_id != self.snapshot_id or header.chain[-1:] != (self.snapshot_id,):
            raise self.damaged(f"its file is the one of {header.snapshot_id!r}")
        if header.hash != "blake3" or header.compression != "zstd" or header.chunk_size <= 0:
            raise self.damaged(f"it was written with {header.hash} and {header.compression}, which are not known here")
        return header

    def _read_trailer(self) -> tuple[Trailer, bytes, bytes]:
        size = self.size_bytes
        if size < FOOTER.size:
            raise self.damaged("its file is cut short")
        offset, length, digest, magic = FOOTER.unpack(self._pread(FOOTER.size, size - FOOTER.size))
        if magic != END_MAGIC or offset + length + FOOTER.size != size:
            raise self.damaged("its file is cut short")
        data = self._pread(length, offset)
        if hash_of(data) != digest:
            raise self.damaged("its map does not match its hash")
        (body_length,) = LENGTH.unpack(data[: LENGTH.size])
        body_end = LENGTH.size + body_length
        trailer = self._parse(Trailer, data[LENGTH.size : body_end], None)
        regions = data[body_end:]
        if len(regions) != self.header.region_count * PLACE.size:
            raise self.damaged("its map is not as long as the volume")
        return trailer, regions, digest

    def _parse(self, model: type[Part], body: bytes, digest: bytes | None) -> Part:
        if digest is not None and hash_of(body) != digest:
            raise self.damaged("its header does not match its hash")
        try:
            return model.model_validate_json(body)
        except ValidationError:
            raise self.damaged("its header cannot be read") from None


def unpack_places(places: bytes) -> Iterator[Place]:
    return map(Place._make, PLACE.iter_unpack(places))


class Chain:
    """A snapshot and its ancestors, open for reading: the way to every chunk of one point in time.

    Raises DamagedFile when a file is missing or is not the one that its child was built on.
    """

    def __init__(self, folder: Path, snapshot_id: str) -> None:
        self.files: list[SnapshotFile] = []
        self._cached: dict[bytes, bytes] = {}
        try:
            self.tip = SnapshotFile(folder, snapshot_id)
            self.files.append(self.tip)
            for ancestor_id in reversed(self.header.chain[:-1]):
                child = self.files[-1]
                ancestor = SnapshotFile(folder, ancestor_id)
                self.files.append(ancestor)
                if ancestor.hash.hex() != child.header.parent_hash or (
                    ancestor.header.chain != child.header.chain[:-1]
                    or ancestor.header.chunk_size != child.header.chunk_size
                ):
                    raise DamagedFile(ancestor_id, f"its file is not the one that {child.snapshot_id} was built on")
        except BaseException:
            self.close()
            raise
        self.files.reverse()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for file in self.files:
            file.close()

    @property
    def header(self) -> Header:
        return self.tip.header

    def region_place(self, region: int) -> bytes:
        """Where the region's map lies; ZERO_PLACE beyond the volume's end."""
        return self.tip.region_place(region) if region < self.header.region_count else ZERO_PLACE

    def places(self, region: int) -> bytes:
        """The verified map of a region: one packed place a chunk; empty beyond the volume's end."""
        if region >= self.header.region_count:
            return b""
        packed = self.region_place(region)
        place = Place._make(PLACE.unpack(packed))
        if place.is_zero:
            return ZERO_PLACE * self.header.chunks_in(region)
        cached = self._cached.get(packed)
        if cached is None:
            cached = self.file_at(place).read_region(place)
            if len(cached) != self.header.chunks_in(region) * PLACE.size:
                raise DamagedFile(self.file_at(place).snapshot_id, "a region's map is not as long as the region")
            self._cached = {packed: cached}
        return cached

    def read(self, place: Place) -> bytes:
        """The verified bytes of a chunk that is not zero."""
        return self.file_at(place).read(place, self.header.chunk_size)

    def file_at(self, place: Place) -> SnapshotFile:
        if place.depth >= len(self.files):
            raise DamagedFile(self.tip.snapshot_id, "its map points beyond its chain")
        return self.files[place.depth]
