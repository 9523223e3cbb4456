"""`Source` and `Target`: where a disk's content is read from, and written to. `RawFile` is a raw image.

Offsets and lengths are in bytes. Any number of threads may use one source at the same time. All methods raise OSError.
"""

import os
from collections.abc import Iterable, Iterator
from typing import Protocol

from snapshot_mcp.providers.local.platform import data_extents, reserve, write_at, write_zeros

Span = tuple[int, int]
"""A part of a disk: where it starts and where it ends."""


class Source(Protocol):
    """The content of a disk."""

    @property
    def size_bytes(self) -> int:
        """The size of the disk as it is now."""

    def read(self, length: int, offset: int) -> bytes:
        """Return exactly `length` bytes; beyond the end of the disk they are zeros (callers check the size)."""

    def data_extents(self, start: int, end: int) -> Iterator[Span]:
        """Yield the parts of [start, end) that may hold anything but zeros, in order."""


class Sink(Protocol):
    """What the content of a disk is written into."""

    def write(self, data: bytes, offset: int) -> None:
        """Write all of `data`."""

    def flush(self) -> None:
        """Make everything that was written durable."""


class Target(Source, Sink, Protocol):
    """The content of a disk that is overwritten."""

    def write_zeros(self, offset: int, length: int) -> None:
        """Make a part read as zeros, without storing them where that is possible."""

    def resize(self, size_bytes: int) -> None:
        """Change the size of the disk: cut it off, or add zeros."""

    def reserve(self, spans: Iterable[Span]) -> None:
        """Make sure that these parts can be written, in order, without changing a byte. Raises OSError with ENOSPC."""


class RawFile:
    """A raw image by its open descriptor, which stays its opener's."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @property
    def size_bytes(self) -> int:
        """The size of the file."""
        return os.fstat(self.fd).st_size

    @property
    def stored_bytes(self) -> int:
        """What the filesystem has allocated."""
        found = os.fstat(self.fd)
        return min(found.st_blocks * 512, found.st_size)

    def read(self, length: int, offset: int) -> bytes:
        """Read from the file."""
        data = os.pread(self.fd, length, offset)
        while len(data) < length:
            more = os.pread(self.fd, length - len(data), offset + len(data))
            if not more:
                return data.ljust(length, b"\0")
            data += more
        return data

    def data_extents(self, start: int, end: int) -> Iterator[Span]:
        """Yield what is not a hole."""
        return data_extents(self.fd, start, end)

    def write(self, data: bytes, offset: int) -> None:
        """Write to the file."""
        write_at(self.fd, data, offset)

    def write_zeros(self, offset: int, length: int) -> None:
        """Punch a hole, or write zeros."""
        write_zeros(self.fd, offset, length)

    def resize(self, size_bytes: int) -> None:
        """Truncate or extend the file."""
        os.ftruncate(self.fd, size_bytes)

    def reserve(self, spans: Iterable[Span]) -> None:
        """Fill holes, and what lies beyond the end, with zeros; release them again on a failure."""
        reserved: list[Span] = []
        size = self.size_bytes
        try:
            for start, end in spans:
                beyond = [(max(start, size), end)] if end > size else []
                for hole in (*self._holes(start, min(end, size)), *beyond):
                    reserved.append(hole)
                    reserve(self.fd, hole[0], hole[1] - hole[0])
        except OSError:
            for start, end in reserved:
                if start < size:
                    write_zeros(self.fd, start, end - start)
            os.ftruncate(self.fd, size)
            raise

    def flush(self) -> None:
        """Sync the file."""
        os.fsync(self.fd)

    def _holes(self, start: int, end: int) -> Iterator[Span]:
        for data, hole in data_extents(self.fd, start, end):
            if data > start:
                yield start, data
            start = hole
        if start < end:
            yield start, end
