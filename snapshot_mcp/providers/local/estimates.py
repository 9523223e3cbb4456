"""What a snapshot or an export will take, before it is made.

An export takes exactly the bytes that are not zero. A full snapshot takes at most what the disk has allocated; only where
that would not fit, a sample of the disk is compressed.
"""

import os
from pathlib import Path
from typing import Final

from snapshot_mcp.providers.local import restore
from snapshot_mcp.providers.local.platform import data_extents
from snapshot_mcp.providers.local.snapshot_file.format import compress
from snapshot_mcp.providers.local.snapshot_file.reader import Chain

SAMPLE_COUNT: Final = 64
SAMPLE_BYTES: Final = 64 << 10
"""64 samples of a chunk's size, spread over the disk: some 20 ms, and within a few percent for what disks hold."""


def of_export(folder: Path, snapshot_id: str) -> int:
    """Raises DamagedSnapshot."""
    with Chain(folder, snapshot_id) as chain:
        return restore.room_needed(chain)


def of_full(fd: int, left_bytes: int) -> int:
    """A full snapshot of an open disk, where `left_bytes` are free."""
    stat = os.fstat(fd)
    allocated = min(stat.st_blocks * 512, stat.st_size)
    return allocated if allocated <= left_bytes else int(allocated * _sampled_ratio(fd))


def _sampled_ratio(fd: int) -> float:
    """How much of the disk's data is stored after compression, by a sample."""
    size = os.fstat(fd).st_size
    read = stored = 0
    for number in range(SAMPLE_COUNT):
        data = _data_at(fd, size * number // SAMPLE_COUNT, size)
        read += len(data)
        stored += len(compress(data)[1]) if data.strip(b"\0") else 0
    return stored / read if read else 0.0


def _data_at(fd: int, offset: int, size: int) -> bytes:
    """A sample of the data that begins at the offset, or after it where there is a hole."""
    start, _ = next(data_extents(fd, offset, size), (size, size))
    return os.pread(fd, SAMPLE_BYTES, max(start, offset))
