"""`SnapshotFile` and `Chain`: read snapshot files, verifying every byte against its hash."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from snapshot_mcp.catalogue.store import DamagedSnapshot, NewerSnapshot
from snapshot_mcp.ground.closing import Closing
from snapshot_mcp.providers.local.snapshot_file.format import (
    END_MAGIC,
    FOOTER,
    LENGTH,
    MAGIC,
    MAX_HEADER_BYTES,
    NAME,
    PLACE,
    RECORD,
    VERSION,
    ZERO_PLACE,
    Header,
    Place,
    Trailer,
    decompress,
    file_name,
    hash_of,
)

Part = TypeVar("Part", Header, Trailer)


class SnapshotFile(Closing):
    """One file, open for reading by any number of threads.

    Raises DamagedSnapshot if anything does not verify, NewerSnapshot if this version cannot read the file, OSError if the
    process has too many files open.
    """

    def __init__(self, folder: Path, snapshot_id: str) -> None:
        self.snapshot_id = snapshot_id
        self._fd = -1
        try:
            self._fd = os.open(folder / file_name(snapshot_id), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            raise DamagedSnapshot(snapshot_id, "its file is missing") from None
        except OSError as error:
            if error.errno in {
                errno.EMFILE,
                errno.ENFILE,
                errno.ENOMEM,
                errno.EACCES,
                errno.EPERM,
            }:  # says nothing about the file
                raise
            raise DamagedSnapshot(snapshot_id, f"its file cannot be opened ({error.strerror})") from error
        try:
            self.header = self._read_header()
            self.trailer, self._regions, self.hash = self._read_trailer()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def forget_cached(self) -> None:
        """Have what follows read from the disk, not from the kernel's cache."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    @property
    def size_bytes(self) -> int:
        """Return the size of the file."""
        return os.fstat(self._fd).st_size

    def region_place(self, region: int) -> bytes:
        """Return the packed place of a region's map."""
        return self._regions[region * PLACE.size : (region + 1) * PLACE.size]

    def read(self, place: Place, limit: int) -> bytes:
        """Return the verified bytes, at most `limit`, of a place in this file."""
        if place.stored_length > limit:
            raise self.damaged("a stored length exceeds its chunk")
        stored = self._pread(place.stored_length, place.offset)
        data = decompress(place.codec, stored, limit)
        if data is None:
            raise self.damaged(f"the chunk at byte {place.offset} cannot be decompressed")
        if hash_of(data) != place.hash:
            raise self.damaged(f"the chunk at byte {place.offset} does not match its hash")
        return data

    def record_before(self, place: Place) -> bytes:
        """Return the header of the record that a place points to, for `zone check`."""
        return self._pread(RECORD.size, max(0, place.offset - RECORD.size))

    def read_region(self, place: Place) -> bytes:
        """Return the verified map of a region that is in this file."""
        length = self.header.region_size // self.header.chunk_size * PLACE.size
        return self.read(place, length)

    def damaged(self, what: str) -> DamagedSnapshot:
        """Return the error for damage in this file."""
        return DamagedSnapshot(self.snapshot_id, what)

    def _pread(self, length: int, offset: int) -> bytes:
        try:
            data = os.pread(self._fd, length, offset)
        except OSError as error:
            raise self.damaged(f"byte {offset} cannot be read ({error.strerror})") from error
        if len(data) != length:
            raise self.damaged("its file is truncated")
        return data

    def _read_header(self) -> Header:
        start = self._pread(len(MAGIC) + LENGTH.size, 0)
        if (version := newer_version(start)) is not None:
            raise NewerSnapshot(self.snapshot_id, f"file format {version}; this version reads up to {VERSION}")
        if start[: len(MAGIC)] != MAGIC:
            raise self.damaged("its file does not start with a known snapshot header")
        (length,) = LENGTH.unpack(start[len(MAGIC) :])
        if length > MAX_HEADER_BYTES:
            raise self.damaged("its header is too long")
        body = self._pread(length + 32, len(start))
        header = self._parse(Header, body[:length], body[length:])
        if header.snapshot_id != self.snapshot_id or header.chain[-1:] != (self.snapshot_id,):
            raise self.damaged(f"its file belongs to {header.snapshot_id!r}")
        if header.hash != "blake3" or header.compression != "zstd":
            raise self.damaged("its hash or compression is not supported")
        if not header.is_possible:
            raise self.damaged("its header has impossible sizes")
        return header

    def _read_trailer(self) -> tuple[Trailer, bytes, bytes]:
        size = self.size_bytes
        if size < FOOTER.size:
            raise self.damaged("its file is truncated")
        offset, length, digest, magic = FOOTER.unpack(self._pread(FOOTER.size, size - FOOTER.size))
        if magic != END_MAGIC or offset + length + FOOTER.size != size:
            raise self.damaged("its file is truncated")
        data = self._pread(length, offset)
        if hash_of(data) != digest:
            raise self.damaged("its map does not match its hash")
        (body_length,) = LENGTH.unpack(data[: LENGTH.size].ljust(LENGTH.size, b"\0"))
        body_end = LENGTH.size + body_length
        if body_end >= len(data):
            raise self.damaged("its map is truncated")
        trailer = self._parse(Trailer, data[LENGTH.size : body_end], None)
        table_size = self.header.region_count * PLACE.size
        regions = decompress(data[body_end], data[body_end + 1 :], table_size)
        if regions is None or len(regions) != table_size:
            raise self.damaged("its map does not match the size of the volume")
        return trailer, regions, digest

    def _parse(self, model: type[Part], body: bytes, digest: bytes | None) -> Part:
        if digest is not None and hash_of(body) != digest:
            raise self.damaged("its header does not match its hash")
        try:
            return model.model_validate_json(body)
        except ValidationError:
            raise self.damaged("its header cannot be read") from None


def unpack_places(places: bytes) -> Iterator[Place]:
    """Yield the places of a packed map."""
    return map(Place._make, PLACE.iter_unpack(places))


def newer_version(start: bytes) -> int | None:
    """Return the version of a file that only a newer program reads, by its first eight bytes; None for any other file."""
    is_snapshot = start[: len(NAME)] == NAME and len(start) > len(NAME)
    return start[len(NAME)] if is_snapshot and start[len(NAME)] > VERSION else None


class Chain(Closing):
    """A snapshot and its ancestors, open for reading: together they have every chunk of one point in time.

    Raises DamagedSnapshot if a file is missing or is not the one that its child was built on.
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
                    raise DamagedSnapshot(ancestor_id, f"its file is not the one that {child.snapshot_id} was built on")
        except BaseException:
            self.close()
            raise
        self.files.reverse()

    def close(self) -> None:
        """Close all files."""
        for file in self.files:
            file.close()

    @property
    def header(self) -> Header:
        """Return the header of the snapshot itself."""
        return self.tip.header

    def region_place(self, region: int) -> bytes:
        """Return the packed place of a region's map; ZERO_PLACE beyond the volume's end."""
        return self.tip.region_place(region) if region < self.header.region_count else ZERO_PLACE

    def places(self, region: int) -> bytes:
        """Return the verified map of a region, one packed place per chunk; empty beyond the volume's end."""
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
                raise DamagedSnapshot(self.file_at(place).snapshot_id, "a region's map has the wrong length")
            self._cached = {packed: cached}
        return cached

    def read(self, place: Place) -> bytes:
        """Return the verified bytes of a chunk that is not zero."""
        return self.file_at(place).read(place, self.header.chunk_size)

    def file_at(self, place: Place) -> SnapshotFile:
        """Return the file of the chain that a place points into."""
        if place.depth >= len(self.files):
            raise DamagedSnapshot(self.tip.snapshot_id, "its map points beyond its chain")
        return self.files[place.depth]
