"""MCP on the standard streams of a process: one JSON-RPC message a line.

What was received is answered: a line that is no message with an error, and what is still open when the host closes its end within
`GRACE_SECONDS`. Nothing here blocks the event loop, so one Ctrl-C ends the server. The SDK's own transport drops unreadable
lines, cancels open calls at the end of its input, and reads in a thread that a signal cannot interrupt.
"""

import json
import os
import re
import select
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
from anyio.to_thread import run_sync as in_thread
from mcp.server.mcpserver import MCPServer
from mcp.shared.message import SessionMessage
from mcp.types import (
    CONNECTION_CLOSED,
    INVALID_REQUEST,
    PARSE_ERROR,
    ErrorData,
    JSONRPCError,
    JSONRPCNotification,
    JSONRPCRequest,
    JSONRPCResponse,
    RequestId,
    jsonrpc_message_adapter,
)
from pydantic import ValidationError

GRACE_SECONDS = 5.0
"""How long the next answer may take after the host has closed its end; then all that is open is answered as closed."""

LONGEST_GRACE_SECONDS = 60.0
"""How long all of them may take: many calls on a busy machine."""

MAX_LINE_BYTES = 4 * 1024 * 1024
"""Longest message, as over HTTP."""

READ_BYTES = 64 * 1024
END_BYTES = 4096
"""What is kept of each end of a line that is too long."""

SAFE_WRITE_BYTES = 4096
"""What can be written to a pipe that is ready without blocking (PIPE_BUF)."""

ENDLESS = "subscriptions/listen"
"""A request that is answered when its stream ends, which nothing waits for."""

BOM = b"\xef\xbb\xbf"
_ID = re.compile(rb'"id"\s*:\s*(?:-?\d{1,20}|"[\x20\x21\x23-\x5b\x5d-\x7e]{0,200}")')
_LONE_SURROGATE = re.compile(r"[\ud800-\udfff]")


async def serve_stdio(server: MCPServer[Any], leaving: anyio.Event) -> None:
    """Serve until the host closes stdin or stdout; `leaving` is set when it has closed stdin.

    Raises OSError if answers cannot be written, BrokenPipeError and ConnectionResetError if the host has gone.
    """
    low_level = server._lowlevel_server
    with _streams() as (source, sink):
        wire = _Wire(source, sink, leaving)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wire.receive)
            tasks.start_soon(wire.send)
            await low_level.run(wire.incoming, wire.outgoing, low_level.create_initialization_options())


class _streams:
    """Takes stdin and stdout for the wire; handlers and children find an empty stdin, and stderr as their stdout."""

    def __enter__(self) -> tuple[int, int]:
        self._wire = os.dup(0), os.dup(1)
        with Path(os.devnull).open("r+b") as nothing:
            os.dup2(nothing.fileno(), 0)
            os.dup2(2, 1)
        return self._wire

    def __exit__(self, *error: object) -> None:
        for mine, standard in zip(self._wire, (0, 1), strict=True):
            os.dup2(mine, standard)
            os.close(mine)


class _Wire:
    """Between the two descriptors and the SDK's streams."""

    def __init__(self, source: int, sink: int, leaving: anyio.Event) -> None:
        self._source = source
        self._sink = sink
        self._leaving = leaving
        self._to_server, self.incoming = anyio.create_memory_object_stream[SessionMessage | Exception](0)
        self.outgoing, self._from_server = anyio.create_memory_object_stream[SessionMessage](0)
        self._open: set[RequestId | None] = set()
        self._asked: set[RequestId | None] = set()
        self._answered = anyio.Event()
        self._writing = anyio.Lock()

    async def receive(self) -> None:
        """Pass on each line; then let the server finish what it has received."""
        async with self._to_server:
            async for line in _lines(self._source):
                await self._take(line)
            self._leaving.set()
            with anyio.move_on_after(LONGEST_GRACE_SECONDS):
                for request_id in tuple(self._asked):
                    await self._hear_nothing(request_id)
                is_alive = True
                while self._open and is_alive:
                    self._answered = anyio.Event()
                    with anyio.move_on_after(GRACE_SECONDS) as grace:
                        await self._answered.wait()
                    is_alive = not grace.cancelled_caught

    async def send(self) -> None:
        """Write what the server says."""
        async with self._from_server:
            async for message in self._from_server:
                told = message.message
                await self._write(told.model_dump_json(by_alias=True, exclude_unset=True).encode())
                match told:
                    case JSONRPCResponse() | JSONRPCError():
                        self._open.discard(told.id)
                        self._answered.set()
                    case JSONRPCRequest():
                        self._asked.add(told.id)
                        if self._leaving.is_set():
                            await self._hear_nothing(told.id)

    async def _take(self, line: "bytes | _TooLong") -> None:
        if isinstance(line, _TooLong):
            text = f"The message is longer than {MAX_LINE_BYTES // 1024**2} MiB."
            await self._refuse(line.request_id, INVALID_REQUEST, text)
            return
        try:
            message = jsonrpc_message_adapter.validate_json(line, by_name=False)
        except ValidationError:
            await self._explain(line)
            return
        match message:
            case JSONRPCRequest() if message.method != ENDLESS:
                self._open.add(message.id)
            case JSONRPCNotification() if b'"id"' in line and "id" in json.loads(line):
                await self._refuse(None, INVALID_REQUEST, "The id of a request must be a string or an integer.")
                return
            case JSONRPCNotification(method="notifications/cancelled"):
                self._open.discard((message.params or {}).get("requestId", ""))
                self._answered.set()
            case JSONRPCResponse() | JSONRPCError() if message.id is not None:
                self._asked.discard(message.id)
        await self._to_server.send(SessionMessage(message))

    async def _explain(self, line: bytes) -> None:
        """Answer a line that is no message, with its id if it has one."""
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            await self._refuse(
                _id_in(line.decode(errors="replace")), PARSE_ERROR, f"It is not UTF-8: byte {error.start}."
            )
            return
        try:
            data = json.loads(text)
        except (ValueError, RecursionError):
            await self._refuse(None, PARSE_ERROR, "The line is not JSON. Send one message a line.")
            return
        if isinstance(data, list):
            for one in set(map(_request_id, data)) - {None} or {None}:
                await self._refuse(one, INVALID_REQUEST, "Batches are not supported. Send one message a line.")
            return
        request_id = _request_id(data)
        if request_id in self._asked and "method" not in data:
            await self._hear_nothing(request_id)
        elif _LONE_SURROGATE.search(json.dumps(data, ensure_ascii=False)):
            await self._refuse(request_id, PARSE_ERROR, "The text has half of a surrogate pair, which is no character.")
        else:
            await self._refuse(request_id, INVALID_REQUEST, "It is not a JSON-RPC 2.0 message of MCP.")

    async def _hear_nothing(self, request_id: RequestId | None) -> None:
        """Let a question of the server end without an answer: its host has gone, or has sent no message."""
        self._asked.discard(request_id)
        error = ErrorData(code=CONNECTION_CLOSED, message="The host has sent no readable answer.")
        await self._to_server.send(SessionMessage(JSONRPCError(jsonrpc="2.0", id=request_id, error=error)))

    async def _refuse(self, request_id: RequestId | None, code: int, message: str) -> None:
        error = JSONRPCError(jsonrpc="2.0", id=request_id, error=ErrorData(code=code, message=message))
        await self._write(error.model_dump_json(by_alias=True, exclude_unset=True).encode())

    async def _write(self, message: bytes) -> None:
        async with self._writing:
            await _write(self._sink, message + b"\n")


def _request_id(data: Any) -> RequestId | None:
    found = data.get("id") if isinstance(data, dict) else None
    if isinstance(found, bool) or (isinstance(found, str) and _LONE_SURROGATE.search(found)):
        return None
    return found if isinstance(found, int | str) else None


def _id_in(text: str) -> RequestId | None:
    with suppress(ValueError, RecursionError):
        return _request_id(json.loads(text))
    return None


@dataclass(frozen=True, slots=True)
class _TooLong:
    """Both ends of a line that is too long; its id stands before or after the arguments."""

    head: bytes
    tail: bytes

    @property
    def request_id(self) -> RequestId | None:
        """Return the id of the message, None if it is not to be seen."""
        found = _ID.search(self.head.partition(b'"params"')[0]) or [None, *_ID.finditer(self.tail)][-1]
        return _id_in("{" + found[0].decode() + "}") if found else None


async def _lines(source: int) -> AsyncIterator[bytes | _TooLong]:
    """Yield each line that is not blank; the last may lack its end."""
    read, is_first = _reader(source), True
    line = _Line()
    while data := await read(READ_BYTES):
        *ended, rest = data.split(b"\n")
        for part in ended:
            line.add(part)
            if whole := line.taken(is_first=is_first):
                yield whole
            is_first = False
        line.add(rest)
    if whole := line.taken(is_first=is_first):
        yield whole


class _Line:
    """A line that is being read; of one that is too long only both ends are kept."""

    def __init__(self) -> None:
        self._content, self._head = bytearray(), b""

    def add(self, part: bytes) -> None:
        """Append what was read."""
        self._content += part
        if len(self._content) > MAX_LINE_BYTES:
            self._head = self._head or bytes(self._content[:END_BYTES])
            del self._content[:-END_BYTES]

    def taken(self, *, is_first: bool) -> bytes | _TooLong | None:
        """Return the line, None for a blank one, and begin the next."""
        content, head = bytes(self._content), self._head
        self._content, self._head = bytearray(), b""
        if head:
            return _TooLong(head, content)
        return (content.removeprefix(BOM) if is_first else content).strip() or None


def _reader(source: int) -> Any:
    """Return what reads some bytes without blocking the event loop; of a file, which is always ready, in a thread."""
    is_file = stat.S_ISREG(os.fstat(source).st_mode)

    async def read(count: int) -> bytes:
        if is_file or sys.platform == "win32":
            return await in_thread(os.read, source, count, abandon_on_cancel=True)
        with suppress(PermissionError):  # epoll does not take a device that is always ready
            await anyio.wait_readable(source)
        try:
            return os.read(source, count)
        except ConnectionResetError:
            return b""

    return read


async def _write(sink: int, data: bytes) -> None:
    """Write all bytes; a host that does not read holds up its own answers and nothing else."""
    if sys.platform == "win32":
        while data:
            data = data[await in_thread(os.write, sink, data) :]
    left = memoryview(data)
    while left:
        if not select.select((), (sink,), (), 0)[1]:
            await anyio.wait_writable(sink)
        left = left[os.write(sink, left[:SAFE_WRITE_BYTES]) :]
