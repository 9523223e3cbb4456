"""`RestorePointContent`: a restore point as a disk that is read here and there, every chunk verified, nothing copied.

Its files stay open: a deletion, even a purge, leaves what is served as it is until it is closed.
"""

import errno
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from snapshot_mcp.catalogue.store import DamagedSnapshot
from snapshot_mcp.providers.local.restore import read_verified
from snapshot_mcp.providers.local.snapshot_file.format import PLACE, ZERO_PLACE, Place
from snapshot_mcp.providers.local.snapshot_file.reader import Chain

CACHED_BYTES: Final = 32 << 20
"""Verified chunks that are kept: clients read in small pieces."""


class RestorePointContent:
    """An open chain as `nbd.server.Content`, for any number of threads; `damage` is what could not be read."""

    def __init__(self, folder: Path, snapshot_id: str) -> None:
        self._chain = Chain(folder, snapshot_id)
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, bytes] = OrderedDict()
        self.damage: DamagedSnapshot | None = None

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Close the files at the end."""
        try:
            yield
        finally:
            self._chain.close()

    @property
    def size_bytes(self) -> int:
        """The size of the disk."""
        return self._chain.header.virtual_size_bytes

    def read(self, length: int, offset: int) -> bytes:
        """Return verified bytes. Raises OSError (EIO) for damage, which `damage` has."""
        size = self._chain.header.chunk_size
        found = bytearray()
        for index in range(offset // size, -(-(offset + length) // size)):
            start = index * size
            chunk = self._chunk(index)
            found += chunk[max(0, offset - start) : offset + length - start]
        return bytes(found)

    def extents(self, offset: int, length: int) -> Iterator[tuple[int, bool]]:
        """Yield lengths, and whether they are zeros."""
        header = self._chain.header
        at, end = offset, offset + length
        run, was_zero = 0, False
        while at < end:
            region = at // header.region_size
            region_end = min(header.bounds_of(region)[1], end)
            if self._chain.region_place(region) == ZERO_PLACE:
                here, is_zero = region_end - at, True
            else:
                chunk_end = min((at // header.chunk_size + 1) * header.chunk_size, region_end)
                here, is_zero = chunk_end - at, self._place(at // header.chunk_size).is_zero
            if run and is_zero != was_zero:
                yield run, was_zero
                run = 0
            run, was_zero = run + here, is_zero
            at += here
        if run:
            yield run, was_zero

    def _place(self, index: int) -> Place:
        header = self._chain.header
        per_region = header.region_size // header.chunk_size
        with self._lock, self._damage_told():
            places = self._chain.places(index // per_region)
        at = index % per_region * PLACE.size
        return Place._make(PLACE.unpack(places[at : at + PLACE.size]))

    def _chunk(self, index: int) -> bytes:
        header = self._chain.header
        length = min(header.chunk_size, self.size_bytes - index * header.chunk_size)
        with self._lock:
            if index in self._kept:
                self._kept.move_to_end(index)
                return self._kept[index]
        place = self._place(index)
        if place.is_zero:
            return bytes(length)
        with self._damage_told():
            data = read_verified(self._chain, place, length)
        with self._lock:
            self._kept[index] = data
            while len(self._kept) * header.chunk_size > CACHED_BYTES and len(self._kept) > 1:
                self._kept.popitem(last=False)
        return data

    @contextmanager
    def _damage_told(self) -> Iterator[None]:
        """Turn damage into the error of a disk, and keep it for whoever opened the restore point."""
        try:
            yield
        except DamagedSnapshot as error:
            self.damage = error
            raise OSError(errno.EIO, os.strerror(errno.EIO)) from error
