"""A small HTTP proxy between client and face that does to requests what networks do: the tests' network edge.

`decide` sees each request and says what happens to it. It is exact about the one thing that matters for a change: whether
the request was delivered.
"""

import random
import re
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum

import anyio
from anyio.abc import SocketAttribute, SocketStream


class Fault(StrEnum):
    NONE = "none"
    SLOW = "slow"
    """Delivered and answered, with latency."""
    LATE = "late"
    """Delivered only when the client has long given up."""
    RESET_BEFORE = "reset before"
    RESET_AFTER = "reset after"
    CLOSE_AFTER = "close after"
    THROTTLED = "throttled"
    ERROR_BEFORE = "500 before"
    ERROR_AFTER = "500 after"
    GATEWAY_BEFORE = "502 before"
    GATEWAY_AFTER = "502 after"
    HALF_BODY = "half a body"
    CUT_JSON = "cut JSON"
    EMPTY = "empty body"
    STALLED = "stalled"
    """Delivered, the answer never comes; a stream stops after its first bytes."""
    EXPIRED = "expired token"
    """Delivered with a token that is no longer valid."""


IS_DELIVERED = {
    fault: fault not in {Fault.RESET_BEFORE, Fault.THROTTLED, Fault.ERROR_BEFORE, Fault.GATEWAY_BEFORE}
    for fault in Fault
}


@dataclass(frozen=True)
class Seen:
    """A request as it came to the proxy."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    raw_head: bytes

    @property
    def is_change(self) -> bool:
        return self.method != "GET" and not self.target.endswith("/oauth2/token")

    @property
    def is_token(self) -> bool:
        return self.target.endswith("/oauth2/token")

    @property
    def is_stream(self) -> bool:
        return self.target.endswith("/notifier/stream")


@dataclass(frozen=True)
class Canned:
    """An answer of the proxy's own."""

    status: int
    body: bytes = b""
    headers: tuple[str, ...] = ("Content-Type: application/json",)

    def __bytes__(self) -> bytes:
        head = [f"HTTP/1.1 {self.status} Canned", *self.headers, f"Content-Length: {len(self.body)}", "", ""]
        return "\r\n".join(head).encode() + self.body


Decision = Fault | Canned


@dataclass
class FaultyProxy:
    """Where it listens, what it saw, and what it does."""

    upstream_port: int
    url: str = ""
    decide: Callable[[Seen], Decision] = lambda seen: Fault.NONE
    seen: list[tuple[Seen, Decision]] = field(default_factory=list)
    late_seconds: float = 1.5
    slow_seconds: float = 0.05
    is_down: bool = False
    streams: int = 0
    undecided: int = 0
    """Requests that are not dealt with yet, late ones too."""
    settled: anyio.Event = field(default_factory=anyio.Event)

    def changes(self) -> list[tuple[Seen, Decision]]:
        return [(seen, decision) for seen, decision in self.seen if seen.is_change]

    async def handle(self, client: SocketStream) -> None:
        try:
            async with client:
                if self.is_down:
                    _reset_on_close(client)
                    return
                while (seen := await _read_request(client)) is not None:
                    decision = Fault.NONE if self.is_down else self.decide(seen)
                    self.seen.append((seen, decision))
                    self.undecided += 1
                    try:
                        if not await self._answer(client, seen, decision):
                            return
                    finally:
                        self.undecided -= 1
                        self.settled.set()
                        self.settled = anyio.Event()
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream):
            pass

    async def settle(self) -> None:
        """Wait until everything that will ever be delivered is."""
        while self.undecided:
            await self.settled.wait()

    async def _answer(self, client: SocketStream, seen: Seen, decision: Decision) -> bool:
        """Do it; says whether the connection goes on."""
        if isinstance(decision, Canned):
            await client.send(bytes(decision))
            return True
        if decision == Fault.THROTTLED:
            body = b'{"code": "too_many_requests", "message": "slow down"}'
            await client.send(bytes(Canned(429, body, ("Content-Type: application/json", "Retry-After: 0"))))
            return True
        if decision in {Fault.ERROR_BEFORE, Fault.GATEWAY_BEFORE}:
            await client.send(_broken(decision))
            return True
        if decision == Fault.RESET_BEFORE:
            _reset_on_close(client)
            return False
        if decision == Fault.SLOW:
            await anyio.sleep(self.slow_seconds)
        if decision == Fault.LATE:
            await anyio.sleep(self.late_seconds)
        if seen.is_stream:
            return await self._pipe(client, seen, decision)
        answer = await self._deliver(seen, decision)
        match decision:
            case Fault.ERROR_AFTER | Fault.GATEWAY_AFTER:
                await client.send(_broken(decision))
                return True
            case Fault.RESET_AFTER:
                _reset_on_close(client)
                return False
            case Fault.CLOSE_AFTER | Fault.LATE:
                return False
            case Fault.STALLED:
                await _until_closed(client)
                return False
            case Fault.HALF_BODY:
                await client.send(answer[: len(answer) - (len(answer) - answer.index(b"\r\n\r\n") - 4) // 2 - 1])
                return False
            case Fault.CUT_JSON:
                await client.send(bytes(Canned(200, answer.partition(b"\r\n\r\n")[2][:-5])))
                return True
            case Fault.EMPTY:
                await client.send(bytes(Canned(200)))
                return True
            case _:
                await client.send(answer)
                return False

    async def _deliver(self, seen: Seen, decision: Decision) -> bytes:
        async with await anyio.connect_tcp("127.0.0.1", self.upstream_port) as upstream:
            await upstream.send(_rewritten(seen, decision) + seen.body)
            return b"".join([chunk async for chunk in upstream])

    async def _pipe(self, client: SocketStream, seen: Seen, decision: Decision) -> bool:
        self.streams += 1
        async with await anyio.connect_tcp("127.0.0.1", self.upstream_port) as upstream:
            await upstream.send(_rewritten(seen, decision))
            async for chunk in upstream:
                await client.send(chunk)
                if decision == Fault.STALLED:
                    await _until_closed(client)
                    return False
                if decision in {Fault.RESET_AFTER, Fault.HALF_BODY}:
                    _reset_on_close(client)
                    return False
        return False


def _rewritten(seen: Seen, decision: Decision) -> bytes:
    head = re.sub(rb"(?im)^connection:.*\r\n", b"", seen.raw_head).replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
    if decision == Fault.EXPIRED:
        head = re.sub(rb"(?im)^(authorization: Bearer ).*(\r\n)", rb"\1expired\2", head)
    return head


def _broken(fault: Fault) -> bytes:
    if fault in {Fault.GATEWAY_BEFORE, Fault.GATEWAY_AFTER}:
        page = b"<html><head><title>502</title></head><body><h1>Bad Gateway</h1></body></html>"
        return bytes(Canned(502, page, ("Content-Type: text/html",)))
    return bytes(Canned(500, b'{"code": "internal_error", "message": "something broke"}'))


def _reset_on_close(client: SocketStream) -> None:
    client.extra(SocketAttribute.raw_socket).setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def _until_closed(client: SocketStream) -> None:
    with anyio.move_on_after(30):
        try:
            await client.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return


async def _read_request(client: SocketStream) -> Seen | None:
    data = b""
    while b"\r\n\r\n" not in data:
        try:
            data += await client.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return None
    head, _, body = data.partition(b"\r\n\r\n")
    first, *fields = head.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
    while len(body) < int(headers.get("content-length", 0)):
        body += await client.receive()
    return Seen(method, target, headers, body, head + b"\r\n\r\n")


@asynccontextmanager
async def faulty_proxy(
    upstream_url: str, decide: Callable[[Seen], Decision] = lambda seen: Fault.NONE
) -> AsyncIterator[FaultyProxy]:
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
    port = listener.extra(SocketAttribute.local_port)
    proxy = FaultyProxy(int(upstream_url.rsplit(":", 1)[1]), f"http://127.0.0.1:{port}", decide)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, proxy.handle)
        yield proxy
        tasks.cancel_scope.cancel()


def at_random(chance: random.Random, rate: float, faults: list[Fault]) -> Callable[[Seen], Decision]:
    """Each request fails at `rate`, in one of these ways; streams and tokens too."""
    return lambda seen: chance.choice(faults) if chance.random() < rate else Fault.NONE
