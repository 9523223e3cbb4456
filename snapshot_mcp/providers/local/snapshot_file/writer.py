"""`SnapshotWriter`: write a snapshot's file, which becomes durable on `commit` and is removed otherwise."""

import os
from pathlib import Path

from snapshot_mcp.ground.closing import Closing
from snapshot_mcp.ground.files import fsync_folder
from snapshot_mcp.providers.local.snapshot_file.format import (
    END_MAGIC,
    FOOTER,
    LENGTH,
    MAGIC,
    PLACE,
    RECORD,
    ZERO_PLACE,
    Header,
    Trailer,
    compress,
    file_name,
    hash_of,
)
from snapshot_mcp.providers.local.syncing import BackgroundSync

FLUSH_BYTES, FLUSH_PIECES = 1 << 20, 512
"""Limits up to which pieces are gathered and written with one call, without joining them (IOV_MAX is 1024)."""


class SnapshotWriter(Closing):
    """Writes one file, for one thread. Every method raises OSError, above all ENOSPC."""

    def __init__(self, folder: Path, header: Header) -> None:
        self.header = header
        self.path = folder / file_name(header.snapshot_id)
        self._partial = folder / f".{header.snapshot_id}.partial"
        self._fd = os.open(self._partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._offset = 0
        self._regions: list[bytes] = []
        self._record_count = 0
        self._record_bytes = 0
        self._sync = BackgroundSync(self._fd)
        body = header.model_dump_json().encode()
        self._write(MAGIC + LENGTH.pack(len(body)) + body + hash_of(body))

    def add_chunk(self, digest: bytes, codec: int, stored: bytes) -> bytes:
        """Append a chunk's record and return its packed place."""
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
        """Append a region that is the parent's unchanged, by pointing to its map."""
        self._regions.append(place)

    def commit(self, consistency: str) -> bytes:
        """Finish the file, make it durable under its name, and return its hash."""
        facts = Trailer(consistency=consistency, record_count=self._record_count, record_bytes=self._record_bytes)
        body = facts.model_dump_json().encode()
        codec, regions = compress(b"".join(self._regions))
        trailer = LENGTH.pack(len(body)) + body + bytes([codec]) + regions
        start = self._offset
        self._write(trailer)
        digest = hash_of(trailer)
        self._write(FOOTER.pack(start, len(trailer), digest, END_MAGIC))
        self._flush()
        self._sync.finish()
        self._partial.rename(self.path)
        fsync_folder(self.path.parent)
        return digest

    def close(self) -> None:
        """Close the file, and remove it if it was not committed."""
        if self._fd >= 0:
            self._sync.close()
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
        count, self._pending, self._pending_bytes = self._pending_bytes, [], 0
        self._sync.wrote(count)
