"""`NbdServer`: serve one restore point, read-only, over a UNIX socket, to any client that speaks NBD.

The protocol: https://github.com/NetworkBlockDevice/nbd (doc/proto). Spoken of it: fixed newstyle negotiation, simple and
structured replies, the metadata context `base:allocation`. A client is untrusted: all that it sends is bounded in size,
number and time, and what is not understood ends its connection.
"""

import errno
import os
import selectors
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from enum import IntEnum
from typing import Final, Protocol

from snapshot_mcp.providers.local.nbd.connection import (
    BLOCK_STATUS,
    CAN_FLUSH,
    DISCONNECT,
    FLUSH,
    READ,
    READ_ONLY,
    WRITE,
    WRITE_ZEROES,
)

MAX_CLIENTS: Final = 16
MAX_REQUEST_BYTES: Final = 32 << 20
"""The largest read that every client may ask for."""

MAX_OPTION_BYTES: Final = 4096
MAX_OPTIONS: Final = 64
NEGOTIATION_SECONDS: Final = 10.0
"""How long a client may take until it asks for data; after that it may be idle for as long as it likes."""

MAX_EXTENTS: Final = 1 << 12

_GREETING: Final = struct.pack(">8s8sH", b"NBDMAGIC", b"IHAVEOPT", 1 | 2)
_OPTION: Final = struct.Struct(">8sII")
_REPLY: Final = struct.Struct(">QIII")
_REPLY_MAGIC: Final = 0x3E889045565A9
_REQUEST: Final = struct.Struct(">IHHQQI")
_REQUEST_MAGIC, _SIMPLE_MAGIC, _CHUNK_MAGIC = 0x25609513, 0x67446698, 0x668E33EF
_SIMPLE, _CHUNK = struct.Struct(">IIQ"), struct.Struct(">IHHQI")

_ACK, _SERVER, _INFO_REPLY, _META_REPLY = 1, 2, 3, 4
_UNSUPPORTED, _INVALID, _UNKNOWN = (1 << 31) | 1, (1 << 31) | 3, (1 << 31) | 6
_HAS_FLAGS, _MULTI_CONNECTIONS = 1, 1 << 8
_FLAGS: Final = _HAS_FLAGS | READ_ONLY | CAN_FLUSH | _MULTI_CONNECTIONS
_INFO_EXPORT, _INFO_BLOCK_SIZE = 0, 3
_DONE, _OFFSET_DATA, _BLOCK_STATUS, _ERROR_CHUNK = 1, 1, 5, (1 << 15) | 1
_ALLOCATION: Final = b"base:allocation"
_CONTEXT_ID: Final = 1
_HOLE_AND_ZERO: Final = 1 | 2
_NO_ZEROES: Final = 2
_ONE_EXTENT: Final = 1 << 3
_BLOCK_BYTES: Final = 4096

_EPERM, _EIO, _EINVAL = 1, 5, 22


class _Option(IntEnum):
    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10


class _Command(IntEnum):
    READ = READ
    WRITE = WRITE
    DISCONNECT = DISCONNECT
    FLUSH = FLUSH
    TRIM = 4
    WRITE_ZEROES = WRITE_ZEROES
    BLOCK_STATUS = BLOCK_STATUS


class Content(Protocol):
    """What is served."""

    @property
    def size_bytes(self) -> int:
        """The size of the disk."""

    def read(self, length: int, offset: int) -> bytes:
        """Return exactly `length` bytes. Raises OSError."""

    def extents(self, offset: int, length: int) -> Iterator[tuple[int, bool]]:
        """Yield length and whether it is zeros, one after another, of at most `length` bytes from `offset`."""


class _Refused(Exception):
    """The client did something that ends its connection."""


class NbdServer:
    """Serves `content` to the clients of a listening socket, each in a thread, until `close`.

    `names` are the export names that are answered. `on_idle` is called when the last client has left.
    """

    def __init__(
        self,
        listener: socket.socket,
        content: Content,
        names: frozenset[str],
        on_idle: Callable[[], None] = lambda: None,
    ) -> None:
        self._listener, self._content, self._names, self._on_idle = listener, content, names, on_idle
        self._clients: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._wake, self._waker = socket.socketpair()

    def serve(self) -> None:
        """Accept clients until `close` is called from another thread; once."""
        self._listener.setblocking(False)
        with self._wake, selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._wake, selectors.EVENT_READ)
            while True:
                if any(key.fileobj is self._wake for key, _ in selector.select()):
                    break
                with suppress(BlockingIOError, ConnectionError):
                    self._accept(self._listener.accept()[0])
        with self._lock:
            for client in self._clients:
                with suppress(OSError):
                    client.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End `serve`, and all connections."""
        self._waker.close()

    def _accept(self, client: socket.socket) -> None:
        with self._lock:
            if len(self._clients) >= MAX_CLIENTS:
                client.close()
                return
            self._clients.add(client)
        threading.Thread(target=self._attend, args=(client,), daemon=True).start()

    def _attend(self, client: socket.socket) -> None:
        try:
            with client:
                client.settimeout(NEGOTIATION_SECONDS)
                conversation = _Conversation(client, self._content, self._names)
                if conversation.negotiate():
                    client.settimeout(None)
                    conversation.answer()
        except (OSError, _Refused, struct.error):
            pass
        finally:
            with self._lock:
                self._clients.discard(client)
                is_idle = not self._clients
            if is_idle:
                self._on_idle()


class _Conversation:
    """One client."""

    def __init__(self, client: socket.socket, content: Content, names: frozenset[str]) -> None:
        self._client, self._content, self._names = client, content, names
        self._is_structured = self._has_context = False

    def negotiate(self) -> bool:
        """Answer options until the client wants data; return False if it leaves."""
        self._client.sendall(_GREETING)
        flags = int.from_bytes(self._receive(4))
        for _ in range(MAX_OPTIONS):
            magic, option, length = _OPTION.unpack(self._receive(_OPTION.size))
            if magic != b"IHAVEOPT" or length > MAX_OPTION_BYTES:
                raise _Refused
            data = self._receive(length)
            match option:
                case _Option.EXPORT_NAME:  # which has no way to refuse but to hang up
                    if not self._is_known(data):
                        raise _Refused
                    zeroes = b"" if flags & _NO_ZEROES else bytes(124)
                    self._client.sendall(struct.pack(">QH", self._content.size_bytes, _FLAGS) + zeroes)
                    return True
                case _Option.ABORT:
                    self._reply(option, _ACK)
                    return False
                case _Option.LIST:
                    name = min(self._names).encode()
                    self._reply(option, _SERVER, struct.pack(">I", len(name)) + name)
                    self._reply(option, _ACK)
                case _Option.INFO | _Option.GO:
                    if self._inform(option, data) and option == _Option.GO:
                        return True
                case _Option.STRUCTURED_REPLY:
                    self._is_structured = True
                    self._reply(option, _ACK)
                case _Option.LIST_META_CONTEXT | _Option.SET_META_CONTEXT:
                    self._name_contexts(option, data)
                case _:
                    self._reply(option, _UNSUPPORTED)
        raise _Refused

    def _inform(self, option: int, data: bytes) -> bool:
        if len(data) < 6:
            self._reply(option, _INVALID)
            return False
        (length,) = struct.unpack_from(">I", data)
        if 4 + length + 2 > len(data) or not self._is_known(data[4 : 4 + length]):
            self._reply(option, _UNKNOWN)
            return False
        self._reply(option, _INFO_REPLY, struct.pack(">HQH", _INFO_EXPORT, self._content.size_bytes, _FLAGS))
        sizes = struct.pack(">HIII", _INFO_BLOCK_SIZE, 1, _BLOCK_BYTES, MAX_REQUEST_BYTES)
        self._reply(option, _INFO_REPLY, sizes)
        self._reply(option, _ACK)
        return True

    def _name_contexts(self, option: int, data: bytes) -> None:
        if len(data) < 8 or not self._is_structured:
            self._reply(option, _INVALID)
            return
        (length,) = struct.unpack_from(">I", data)
        if 8 + length > len(data) or not self._is_known(data[4 : 4 + length]):
            self._reply(option, _UNKNOWN)
            return
        (count,) = struct.unpack_from(">I", data, 4 + length)
        wanted, at = set(), 8 + length
        for _ in range(min(count, MAX_OPTIONS)):
            if at + 4 > len(data):
                break
            (size,) = struct.unpack_from(">I", data, at)
            wanted.add(data[at + 4 : at + 4 + size])
            at += 4 + size
        is_wanted = not wanted <= {b""} and bool(wanted & {_ALLOCATION, b"base:"})
        if is_wanted or (option == _Option.LIST_META_CONTEXT and not count):
            self._reply(option, _META_REPLY, struct.pack(">I", _CONTEXT_ID) + _ALLOCATION)
        if option == _Option.SET_META_CONTEXT:
            self._has_context = is_wanted
        self._reply(option, _ACK)

    def _is_known(self, name: bytes) -> bool:
        return name.decode("utf-8", "replace") in self._names

    def _reply(self, option: int, kind: int, data: bytes = b"") -> None:
        self._client.sendall(_REPLY.pack(_REPLY_MAGIC, option, kind, len(data)) + data)

    def answer(self) -> None:
        """Answer requests until the client disconnects."""
        while True:
            magic, flags, command, cookie, offset, length = _REQUEST.unpack(self._receive(_REQUEST.size))
            if magic != _REQUEST_MAGIC:
                raise _Refused
            if command == _Command.DISCONNECT:
                return
            if command == _Command.WRITE and length <= MAX_REQUEST_BYTES:  # a write brings its data along
                self._receive(length)
            self._answer_one(command, flags, cookie, offset, length)

    def _answer_one(self, command: int, flags: int, cookie: int, offset: int, length: int) -> None:
        is_inside = length > 0 and offset + length <= self._content.size_bytes
        match command:
            case _Command.READ:
                if not is_inside or length > MAX_REQUEST_BYTES:
                    self._fail(cookie, _EINVAL)
                    return
                try:
                    data = self._content.read(length, offset)
                except OSError:
                    self._fail(cookie, _EIO)
                    return
                self._send_data(cookie, offset, data)
            case _Command.FLUSH:
                self._succeed(cookie)
            case _Command.BLOCK_STATUS if self._has_context and is_inside:  # BLOCK_STATUS
                self._send_status(cookie, offset, length, is_one=bool(flags & _ONE_EXTENT))
            case _Command.WRITE if length > MAX_REQUEST_BYTES:
                raise _Refused
            case _Command.WRITE | _Command.TRIM | _Command.WRITE_ZEROES:
                self._fail(cookie, _EPERM)
            case _:
                self._fail(cookie, _EINVAL)

    def _send_data(self, cookie: int, offset: int, data: bytes) -> None:
        if self._is_structured:
            head = _CHUNK.pack(_CHUNK_MAGIC, _DONE, _OFFSET_DATA, cookie, len(data) + 8) + struct.pack(">Q", offset)
        else:
            head = _SIMPLE.pack(_SIMPLE_MAGIC, 0, cookie)
        self._client.sendall(head)
        self._client.sendall(data)

    def _send_status(self, cookie: int, offset: int, length: int, *, is_one: bool) -> None:
        try:
            extents = []
            for size, is_zero in self._content.extents(offset, length):
                extents.append(struct.pack(">II", size, _HOLE_AND_ZERO if is_zero else 0))
                if is_one or len(extents) >= MAX_EXTENTS:
                    break
        except OSError:
            self._fail(cookie, _EIO)
            return
        body = struct.pack(">I", _CONTEXT_ID) + b"".join(extents)
        self._client.sendall(_CHUNK.pack(_CHUNK_MAGIC, _DONE, _BLOCK_STATUS, cookie, len(body)) + body)

    def _succeed(self, cookie: int) -> None:
        self._client.sendall(
            _CHUNK.pack(_CHUNK_MAGIC, _DONE, 0, cookie, 0)
            if self._is_structured
            else _SIMPLE.pack(_SIMPLE_MAGIC, 0, cookie)
        )

    def _fail(self, cookie: int, code: int) -> None:
        if self._is_structured:
            body = struct.pack(">IH", code, 0)
            self._client.sendall(_CHUNK.pack(_CHUNK_MAGIC, _DONE, _ERROR_CHUNK, cookie, len(body)) + body)
        else:
            self._client.sendall(_SIMPLE.pack(_SIMPLE_MAGIC, code, cookie))

    def _receive(self, length: int) -> bytes:
        received = bytearray()
        while len(received) < length:
            chunk = self._client.recv(min(length - len(received), 1 << 20))
            if not chunk:
                raise OSError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
            received += chunk
        return bytes(received)
