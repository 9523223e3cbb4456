"""`Connection`: one connection to an NBD server, for one request at a time.

The protocol: https://github.com/NetworkBlockDevice/nbd (doc/proto). Used of it: fixed newstyle negotiation, structured replies,
one metadata context: `base:allocation`, or a dirty bitmap of QEMU. What the server sends is bounded in size, number and time,
every reply has to be the one to its request, and anything else is an OSError (EPROTO).
"""

import errno
import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Final, NamedTuple, NoReturn

from snapshot_mcp.contract.text import MESSAGE_CHARACTERS, clean_text

TIMEOUT_SECONDS: Final = 60.0
"""How long one request may take: a slow disk behind the server is waited for, a server that stalls is not."""

MAX_REQUEST_BYTES: Final = 1 << 25
"""The largest request that every server takes (32 MiB); ours are at most a window."""

MAX_STATUS_BYTES: Final = 1 << 30
"""The largest part of a disk whose extents are asked for at once."""

MAX_REPLY_BYTES: Final = 1 << 20
"""The longest reply that is not data: extents, names, messages. QEMU sends at most 128 Ki extents of 8 bytes."""

MAX_OPTION_REPLIES: Final = 64
"""Replies to one option; a real server sends three or four."""

MAX_DISK_BYTES: Final = 1 << 50

_NBD, _OPTION, _OPTION_REPLY = b"NBDMAGIC", b"IHAVEOPT", 0x3E889045565A9
_REQUEST, _SIMPLE, _STRUCTURED = 0x25609513, 0x67446698, 0x668E33EF
_FIXED, _NO_ZEROES = 1, 2
_GO, _STRUCTURED_REPLY, _SET_META_CONTEXT = 7, 8, 10
_ACK, _INFO, _META_CONTEXT = 1, 3, 4
_INFO_EXPORT, _INFO_BLOCK_SIZE = 0, 3
READ, WRITE, DISCONNECT, FLUSH, WRITE_ZEROES, BLOCK_STATUS = 0, 1, 2, 3, 6, 7
READ_ONLY, CAN_FLUSH, CAN_ZERO = 2, 4, 0x40
_DONE, _NONE, DATA, HOLE, EXTENTS, _ERROR = 1, 0, 1, 2, 5, 0x8000
ZERO: Final = 2
"""The flag of an extent that reads as zeros."""

DIRTY: Final = 1
"""The flag of an extent that a bitmap of QEMU calls changed."""

ALLOCATION: Final = "base:allocation"
_OPTION_HEAD, _REPLY_HEAD = struct.Struct(">QII"), struct.Struct(">QIII")
_REQUEST_HEAD, _SIMPLE_HEAD, _CHUNK_HEAD = struct.Struct(">IHHQQI"), struct.Struct(">IQ"), struct.Struct(">HHQI")
_U16, U32, U64, EXTENT = struct.Struct(">H"), struct.Struct(">I"), struct.Struct(">Q"), struct.Struct(">II")

ERRORS: Final = {1: errno.EPERM, 12: errno.ENOMEM, 22: errno.EINVAL, 28: errno.ENOSPC, 75: errno.EOVERFLOW}
"""The protocol's error numbers; any other is EIO."""


class Export(NamedTuple):
    """What the server offers: size, transmission flags, the smallest request, and the id of the context that was asked for."""

    size_bytes: int
    flags: int
    block_bytes: int
    context_id: int | None


def broken(what: str) -> NoReturn:
    raise OSError(errno.EPROTO, f"the NBD server broke the protocol: {clean_text(what, MESSAGE_CHARACTERS)}")


class Connection:
    """One connection, for one request at a time."""

    def __init__(self, sock: socket.socket, export: str, timeout_seconds: float, context: str = ALLOCATION) -> None:
        self._socket, self._timeout = sock, timeout_seconds
        self._deadline = 0.0
        self._cookie = 0
        sock.settimeout(timeout_seconds)
        self.restart_clock()
        self.export = self._negotiate(export.encode(), context.encode())

    def restart_clock(self) -> None:
        """Give what follows its whole time."""
        self._deadline = time.monotonic() + self._timeout

    def request(self, command: int, offset: int, length: int, data: bytes = b"") -> None:
        """Send a request."""
        self.restart_clock()
        self._cookie += 1
        self._socket.sendall(_REQUEST_HEAD.pack(_REQUEST, 0, command, self._cookie, offset, length) + data)

    def chunks(self) -> Iterator[tuple[int, int]]:
        """Yield type and length of each chunk of the reply; the caller takes its content. At its end raise the server's error."""
        failure: OSError | None = None
        for _ in range(MAX_REPLY_BYTES):
            (magic,) = U32.unpack(self.take(U32.size))
            if magic == _SIMPLE:
                code, cookie = _SIMPLE_HEAD.unpack(self.take(_SIMPLE_HEAD.size))
                self._expect_cookie(cookie)
                flags, kind, length = _DONE, _NONE, 0
                failure = _failure(code) if code else None
            elif magic == _STRUCTURED:
                flags, kind, cookie, length = _CHUNK_HEAD.unpack(self.take(_CHUNK_HEAD.size))
                self._expect_cookie(cookie)
            else:
                broken(f"a reply starts with {magic:#x}")
            if kind & _ERROR:
                failure = failure or self._take_error(length)
            elif kind == _NONE:
                if length or not flags & _DONE:
                    broken("an empty chunk that is not the last, or not empty")
            else:
                yield kind, length
            if flags & _DONE:
                if failure:
                    raise failure
                return
        broken("a reply has too many parts")

    def take(self, length: int) -> bytes:
        """Receive exactly `length` bytes."""
        data = bytearray(length)
        self.take_into(memoryview(data))
        return bytes(data)

    def take_into(self, view: memoryview) -> None:
        """Receive exactly as many bytes as the view has."""
        while view:
            if time.monotonic() > self._deadline:
                raise TimeoutError(errno.ETIMEDOUT, "the NBD server takes too long")
            count = self._socket.recv_into(view)
            if not count:
                broken("it closed the connection")
            view = view[count:]

    def close(self) -> None:
        """Say goodbye and close."""
        with suppress(OSError):
            self._socket.settimeout(1.0)
            self.request(DISCONNECT, 0, 0)
        self._socket.close()

    def _expect_cookie(self, cookie: int) -> None:
        if cookie != self._cookie:
            broken("a reply to something that was not asked")

    def _take_error(self, length: int) -> OSError:
        if not 6 <= length <= MAX_REPLY_BYTES:
            broken("an error of an impossible length")
        body = self.take(length)
        size = _U16.unpack_from(body, 4)[0]
        return _failure(U32.unpack_from(body)[0], body[6 : 6 + size].decode(errors="replace"))

    def _negotiate(self, name: bytes, context: bytes) -> Export:
        if self.take(16) != _NBD + _OPTION:
            broken("it does not speak the protocol")
        if not _U16.unpack(self.take(_U16.size))[0] & _FIXED:
            broken("it is too old (no fixed newstyle negotiation)")
        self._socket.sendall(U32.pack(_FIXED | _NO_ZEROES))
        for _ in self._option(_STRUCTURED_REPLY, b""):
            broken("structured replies are not answered with a yes")
        named = U32.pack(len(name)) + name
        context_id = None
        query = named + U32.pack(1) + U32.pack(len(context)) + context
        for kind, body in self._option(_SET_META_CONTEXT, query):
            if kind == _META_CONTEXT and body[4:] == context:
                (context_id,) = U32.unpack_from(body)
        size, flags, block_bytes = -1, 0, 1
        for kind, body in self._option(_GO, named + _U16.pack(1) + _U16.pack(_INFO_BLOCK_SIZE)):
            if kind != _INFO or len(body) < 2:
                continue
            (info,) = _U16.unpack_from(body)
            if info == _INFO_EXPORT and len(body) == 12:
                size, flags = struct.unpack_from(">QH", body, 2)
            elif info == _INFO_BLOCK_SIZE and len(body) == 14:
                (block_bytes,) = U32.unpack_from(body, 2)
        if not 0 <= size <= MAX_DISK_BYTES or block_bytes not in (1 << bit for bit in range(17)):
            broken(f"a disk of {size} bytes in blocks of {block_bytes}")
        return Export(size, flags, block_bytes, context_id)

    def _option(self, option: int, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Send an option and yield type and body of its replies until the server agrees."""
        self._socket.sendall(_OPTION_HEAD.pack(int.from_bytes(_OPTION), option, len(data)) + data)
        for _ in range(MAX_OPTION_REPLIES):
            magic, about, kind, length = _REPLY_HEAD.unpack(self.take(_REPLY_HEAD.size))
            if magic != _OPTION_REPLY or about != option or length > MAX_REPLY_BYTES:
                broken("an impossible reply during negotiation")
            body = self.take(length)
            if kind == _ACK:
                return
            if kind >> 31:
                broken(f"option {option} was refused: {body.decode(errors='replace') or f'code {kind & 0x7FFFFFFF}'}")
            yield kind, body
        broken("an option has too many replies")


def _failure(code: int, text: str = "") -> OSError:
    number = ERRORS.get(code, errno.EIO)
    return OSError(number, clean_text(text, MESSAGE_CHARACTERS) or os.strerror(number))
