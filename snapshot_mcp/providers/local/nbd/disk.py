"""`NbdDisk`: a disk behind an NBD server, as a `Source` to read and, if the export is writable, to write.

Several threads use several connections. The server is not trusted (`connection`). Nothing is connected here: the caller gives
sockets that are.
"""

import errno
import os
import queue
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from snapshot_mcp.ground.closing import Closing
from snapshot_mcp.providers.local.nbd.connection import (
    ALLOCATION,
    BLOCK_STATUS,
    CAN_FLUSH,
    CAN_ZERO,
    DATA,
    DIRTY,
    ERRORS,
    EXTENT,
    EXTENTS,
    FLUSH,
    HOLE,
    MAX_REPLY_BYTES,
    MAX_REQUEST_BYTES,
    MAX_STATUS_BYTES,
    READ,
    READ_ONLY,
    TIMEOUT_SECONDS,
    U32,
    U64,
    WRITE,
    WRITE_ZEROES,
    ZERO,
    Connection,
    broken,
)
from snapshot_mcp.providers.local.source import Span

_ERRORS_OF_SERVER: Final = {*ERRORS.values(), errno.EIO}
"""After an error that the server reports the connection goes on."""


class NbdDisk(Closing):
    """The export of a server, over sockets that are connected to it; all of them are closed on a failure and by `close`.

    Raises OSError: the server's own errors (ENOSPC, EIO, …), EPROTO for a reply that is not allowed, TimeoutError.
    """

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        export: str = "",
        timeout_seconds: float = TIMEOUT_SECONDS,
        context: str = ALLOCATION,
    ) -> None:
        self._all: list[Connection] = []
        self._free: queue.LifoQueue[Connection] = queue.LifoQueue()
        self._is_broken = False
        try:
            for one in sockets:
                self._all.append(Connection(one, export, timeout_seconds, context))
                self._free.put(self._all[-1])
            if len({one.export for one in self._all}) != 1:
                broken("its connections differ")
        except BaseException:
            for one in sockets:
                one.close()
            raise
        self._export = self._all[0].export
        self._timeout = timeout_seconds

    @property
    def size_bytes(self) -> int:
        """The size of the export."""
        return self._export.size_bytes

    @property
    def is_read_only(self) -> bool:
        """Whether nothing can be written."""
        return bool(self._export.flags & READ_ONLY)

    def read(self, length: int, offset: int) -> bytes:
        """Read, in whole blocks of the server; beyond the end there are zeros."""
        block, size = self._export.block_bytes, self.size_bytes
        start = offset - offset % block
        end = min(-(-(offset + length) // block) * block, size)
        data = bytearray(max(0, end - start))
        view = memoryview(data)
        for at in range(0, len(data), MAX_REQUEST_BYTES):
            with self._connection() as connection:
                _read(connection, view[at : at + MAX_REQUEST_BYTES], start + at)
        return bytes(view[offset - start : offset - start + length]).ljust(length, b"\0")

    def data_extents(self, start: int, end: int) -> Iterator[Span]:
        """Yield what the server does not call zeros; everything, if it does not say."""
        return self._extents(start, end, lambda flags: not flags & ZERO)

    def dirty_extents(self, start: int, end: int) -> Iterator[Span]:
        """Yield what the bitmap calls changed that is this client's context; everything, if the server has none."""
        return self._extents(start, end, lambda flags: bool(flags & DIRTY))

    def _extents(self, start: int, end: int, is_wanted: Callable[[int], bool]) -> Iterator[Span]:
        end = min(end, self.size_bytes)
        if self._export.context_id is None:
            if start < end:
                yield start, end
            return
        block = self._export.block_bytes
        since = None  # where the part began that has not ended yet
        at = start - start % block
        while at < end:
            length = min(MAX_STATUS_BYTES, -(-(end - at) // block) * block, self.size_bytes - at)
            with self._connection() as connection:
                extents = _extents(connection, at, length, self._export.context_id)
            for size, flags in extents:
                if since is not None and not is_wanted(flags):
                    yield since, min(at, end)
                    since = None
                elif since is None and is_wanted(flags) and at < end:
                    since = max(at, start)
                at += size
        if since is not None:
            yield since, end

    def write(self, data: bytes, offset: int) -> None:
        """Write all of `data`."""
        for at in range(0, len(data), MAX_REQUEST_BYTES):
            piece = data[at : at + MAX_REQUEST_BYTES]
            self._call(WRITE, offset + at, len(piece), piece)

    def write_zeros(self, offset: int, length: int) -> None:
        """Write zeros, as a hole if the server has them."""
        while length:
            size = min(length, MAX_REQUEST_BYTES)
            if self._export.flags & CAN_ZERO:
                self._call(WRITE_ZEROES, offset, size)
            else:
                self._call(WRITE, offset, size, bytes(size))
            offset, length = offset + size, length - size

    def flush(self) -> None:
        """Have the server make durable what was written, over any connection."""
        if self._export.flags & CAN_FLUSH:
            self._call(FLUSH, 0, 0)

    def close(self) -> None:
        """Close the connections."""
        self._is_broken = True
        for one in self._all:
            one.close()

    def _call(self, command: int, offset: int, length: int, data: bytes = b"") -> None:
        if command != FLUSH and offset + length > self.size_bytes:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        with self._connection() as connection:
            connection.request(command, offset, length, data)
            for kind, _ in connection.chunks():
                broken(f"a reply of type {kind} to a change")

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        """Lend a free connection; one that failed in any way is not used again, and neither are the others."""
        while True:
            if self._is_broken:
                raise OSError(errno.EPIPE, "the connection to the NBD server is closed")
            try:
                connection = self._free.get(timeout=0.5)
                break
            except queue.Empty:
                continue
        try:
            yield connection
        except OSError as error:
            self._is_broken = self._is_broken or error.errno not in _ERRORS_OF_SERVER
            raise
        finally:
            self._free.put(connection)


def _read(connection: Connection, view: memoryview, offset: int) -> None:
    """Read into `view`, which has zeros, what is at `offset`. Every byte must come exactly once."""
    connection.request(READ, offset, len(view))
    got: list[Span] = []
    for kind, length in connection.chunks():
        if kind not in (DATA, HOLE) or length < 8 or (kind == HOLE and length != 12):
            broken("a chunk that is no answer to a read")
        start = U64.unpack(connection.take(8))[0] - offset
        size = length - 8 if kind == DATA else U32.unpack(connection.take(4))[0]
        if start < 0 or not size or start + size > len(view) or len(got) > len(view) // 512:
            broken("data outside of what was asked")
        if kind == DATA:
            connection.take_into(view[start : start + size])
        got.append((start, start + size))
    at = 0
    for start, end in sorted(got):
        if start != at:
            broken("data is missing, or came twice")
        at = end
    if at != len(view):
        broken("data is missing")


def _extents(connection: Connection, offset: int, length: int, context_id: int) -> list[tuple[int, int]]:
    """Return length and flags of the extents from `offset` on, of which there is at least one."""
    connection.request(BLOCK_STATUS, offset, length)
    body = b""
    for kind, size in connection.chunks():
        if kind != EXTENTS or body or not 12 <= size <= MAX_REPLY_BYTES or (size - 4) % EXTENT.size:
            broken("a chunk that is no answer to a question for extents")
        body = connection.take(size)
    if not body or U32.unpack_from(body)[0] != context_id:
        broken("no extents, or those of something else")
    extents = list(EXTENT.iter_unpack(body[4:]))
    if any(not size for size, _ in extents) or sum(size for size, _ in extents[:-1]) >= length:
        broken("extents that are empty, or beyond what was asked")
    return extents
