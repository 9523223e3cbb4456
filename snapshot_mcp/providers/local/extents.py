"""Tell what differs between a file and a clone of it by where the filesystem stores both (FIEMAP).

What both share was never written since: btrfs and XFS never write to a shared extent, and free none that a file has. So an extent
of both files at the same physical address has the same content. Nothing here reads content.
"""

import fcntl
import os
import struct
from collections.abc import Iterator
from typing import Final

from snapshot_mcp.providers.local.source import Span

_FIEMAP: Final = 0xC020660B
_SYNC: Final = 1
_HEAD, _EXTENT = struct.Struct("=QQLLLL"), struct.Struct("=QQQ16xL12x")
_BATCH: Final = 1024
"""Extents per call: 56 KiB."""

_LAST, _MERGED, _SHARED = 0x1, 0x1000, 0x2000
_HARMLESS: Final = _LAST | _MERGED | _SHARED
"""With any other flag (UNKNOWN, DELALLOC, ENCODED, NOT_ALIGNED, INLINE, UNWRITTEN, …) an extent counts as changed."""

_HOLE: Final = "hole"
_UNSURE: Final = None
_Part = tuple[int, int, int | str | None]
"""A part of a file: start, end, and its kind: a hole, unsure, or else the distance to its physical address."""


def changed_spans(clone: int, fd: int) -> Iterator[Span]:
    """Yield what may differ between an open file and an older clone of it that is open too, in order; both are not written to.

    Parts beyond the clone's end have changed. Raises OSError where the filesystem cannot tell.
    """
    size = os.fstat(fd).st_size
    before, now = _parts(clone), _parts(fd)
    at = since = 0  # [since, at) has changed
    left: _Part = (0, 0, _UNSURE)
    right: _Part = (0, 0, _UNSURE)
    while at < size:
        while left[1] <= at:
            left = next(before, (at, size, _UNSURE))
        while right[1] <= at:
            right = next(now, (at, size, _UNSURE))
        end = min(left[1], right[1], size)
        if left[2] == right[2] != _UNSURE:
            if since < at:
                yield since, at
            since = end
        at = end
    if since < at:
        yield since, at


def _parts(fd: int) -> Iterator[_Part]:
    """Yield the parts of a file in order and without gaps, each with its kind."""
    at, size = 0, os.fstat(fd).st_size
    for start, physical, length, flags in _extents(fd, size):
        if start > at:
            yield at, start, _HOLE
        is_plain = flags & _SHARED and not flags & ~_HARMLESS
        end = min(start + length, size)
        yield start, end, physical - start if is_plain else _UNSURE
        at = end
    if at < size:
        yield at, size, _HOLE


def _extents(fd: int, size: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield start, physical address, length and flags of the extents before `size`."""
    at = 0
    while at < size:
        buffer = bytearray(_HEAD.size + _BATCH * _EXTENT.size)
        _HEAD.pack_into(buffer, 0, at, size - at, _SYNC, 0, _BATCH, 0)
        fcntl.ioctl(fd, _FIEMAP, buffer)
        count = _HEAD.unpack_from(buffer)[3]
        if not count:
            return
        for start, physical, length, flags in _EXTENT.iter_unpack(
            memoryview(buffer)[_HEAD.size :][: count * _EXTENT.size]
        ):
            if start + length <= at:
                raise OSError(f"the filesystem lists the extents at {start} twice")
            yield start, physical, length, flags
            if flags & _LAST:
                return
            at = start + length
