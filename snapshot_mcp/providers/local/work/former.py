"""Hashes of a disk's former content, kept while it is overwritten without a safety snapshot.

One file per disk (FORMAT.md, "A roll-back"), durable before the first byte is written and removed when the disk is rolled
back. It restores nothing; it tells a resumed roll-back whether what it would overwrite is what a person agreed to lose.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from snapshot_mcp.ground.files import fsync_folder, replace_private
from snapshot_mcp.providers.local.capture import WINDOW_SIZE
from snapshot_mcp.providers.local.snapshot_file.format import LENGTH, hash_of
from snapshot_mcp.providers.local.source import Source
from snapshot_mcp.providers.local.work.overwriting import Disk

MAGIC: Final = b"former\x00\x01"
HASH_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class FormerContent:
    """A disk's content as it was compared with the snapshot `snapshot_id`, before the first byte was written."""

    snapshot_id: str
    size_bytes: int
    flags: bytes
    hashes: bytes
    tail: bytes

    @classmethod
    def of(cls, disk: Disk) -> Self:
        """Return the present content of a disk."""
        size = disk.target.content.size_bytes
        found = disk.differences
        tail = _hash_beyond(disk.target.content, disk.chain.header.virtual_size_bytes, size)
        return cls(disk.chain.tip.snapshot_id, size, bytes(found.flags), bytes(found.hashes), tail)

    def write(self, path: Path) -> None:
        """Write it to a durable file."""
        header = json.dumps({"snapshot_id": self.snapshot_id, "size_bytes": self.size_bytes, "chunks": len(self.flags)})
        body = b"".join((MAGIC, LENGTH.pack(len(header)), header.encode(), self.flags, self.hashes, self.tail))
        replace_private(path, body + hash_of(body))
        fsync_folder(path.parent)

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Read the file; None if it is missing or damaged."""
        try:
            data = path.read_bytes()
        except OSError:
            return None
        body, digest = data[:-HASH_BYTES], data[-HASH_BYTES:]
        if not body.startswith(MAGIC) or hash_of(body) != digest:
            return None
        start = len(MAGIC) + LENGTH.size
        (length,) = LENGTH.unpack(body[len(MAGIC) : start])
        header, end = json.loads(body[start : start + length]), start + length
        flags, rest = body[end : end + header["chunks"]], body[end + header["chunks"] :]
        return cls(header["snapshot_id"], header["size_bytes"], flags, rest[:-HASH_BYTES], rest[-HASH_BYTES:])

    def accounts_for(self, disk: Disk) -> bool:
        """Return whether each chunk of the disk has its former content or what the roll-back writes.

        A chunk with neither may be half written, which a kill hardly ever leaves, or changed since; no hash can tell which.
        """
        target_size, size = disk.chain.header.virtual_size_bytes, disk.target.content.size_bytes
        if self.snapshot_id != disk.chain.tip.snapshot_id or len(self.flags) != len(disk.differences.flags):
            return False
        if size not in (target_size, self.size_bytes):
            return False
        if size > target_size and _hash_beyond(disk.target.content, target_size, size) != self.tail:
            return False
        former = dict(_by_chunk(self.flags, self.hashes))
        present = _by_chunk(disk.differences.flags, disk.differences.hashes)
        return all(former.get(index) == digest for index, digest in present)


def _by_chunk(flags: bytes | bytearray, hashes: bytes | bytearray) -> Iterator[tuple[int, bytes]]:
    """Yield the index of each differing chunk and the hash of the disk's content there."""
    at = 0
    index = flags.find(1)
    while index >= 0:
        yield index, bytes(hashes[at : at + HASH_BYTES])
        at, index = at + HASH_BYTES, flags.find(1, index + 1)


def _hash_beyond(source: Source, start: int, size: int) -> bytes:
    """Return a hash of [start, size) that is the same whether zeros are stored or holes."""
    digest = hash_of(b"")
    for offset in range(start, size, WINDOW_SIZE):
        end = min(offset + WINDOW_SIZE, size)
        if next(source.data_extents(offset, end), None) is None:
            continue
        data = source.read(end - offset, offset)
        if data.strip(b"\0"):
            digest = hash_of(digest + offset.to_bytes(8, "big") + hash_of(data))
    return digest
