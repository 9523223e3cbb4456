"""Rules that every HTTP server of the program shares: listening, accepted Host and Origin headers, bounded bodies.

    421   the Host header is missing, malformed, or names another host (DNS rebinding)
    403   the Origin header is neither this host's nor allowed by the operator: a page of another site
    413   the body is too long

Each server formats the refusal itself. The module loads only the standard library, because the settings use it.
"""

import ipaddress
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import Receive

BACKLOG = 2048

DRAIN_BYTES = 64 << 20
DRAIN_SECONDS = 10.0
"""How much of a rejected body is read, so that its sender can still read the response."""

SHOWN_CHARACTERS = 100
"""Longest part of a header shown in a message."""

_HOST = re.compile(r"(?:\[(?P<v6>[0-9a-f:.]+)\]|(?P<name>[^\s\[\]:@/?#\\%]+))(?::(?P<port>[0-9]{1,5}))?", re.IGNORECASE)


class Refused(Exception):
    """The request is not accepted; `status` is the HTTP status of the response."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(frozen=True, slots=True)
class Gatekeeper:
    """Checks by Host and Origin that a request is meant for this server and does not come from another site.

    A Host may be `localhost`, a loopback address, or one of `hosts`, with any port, because a tunnel has its own.
    `any_address` accepts every IP address, for a server that listens beyond this machine: addresses cannot be rebound. An
    Origin may match the Host or be one of `origins`. Both sets are in lower case.
    """

    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()
    any_address: bool = False

    def check(self, method: str, headers: Mapping[str, str], *, needs_origin: bool = False) -> None:
        """Raise Refused if the request is not acceptable; with `needs_origin` also for a change without an Origin."""
        host = headers.get("host", "").lower()
        if not self._is_ours(host):
            raise Refused(421, f"The Host {host[:SHOWN_CHARACTERS]!r} is not served here.")
        origin = headers.get("origin")
        if origin is not None and origin.lower().rstrip("/") in self.origins:
            return
        is_change = method not in {"GET", "HEAD"}
        if is_change and headers.get("sec-fetch-site") == "cross-site":
            raise Refused(403, "The request comes from another site.")
        if (origin is None and is_change and needs_origin) or (
            origin is not None and origin.lower() not in {f"http://{host}", f"https://{host}"}
        ):
            raise Refused(403, f"The Origin {(origin or '')[:SHOWN_CHARACTERS]!r} is not allowed.")

    def _is_ours(self, host: str) -> bool:
        match = _HOST.fullmatch(host)
        if match is None or int(match["port"] or 0) > 65535:
            return False
        name = match["v6"] or match["name"]
        return name in self.hosts or is_loopback(name) or (self.any_address and _address(name) is not None)


def is_loopback(host: str) -> bool:
    """Return whether the host is `localhost` or a loopback address."""
    address = _address(host)
    return address.is_loopback if address else host == "localhost"


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def parse_address(text: str) -> tuple[str, int]:
    """Parse `HOST:PORT`; an IPv6 address loses its brackets. Raises ValueError."""
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ValueError(f"{text!r} is not HOST:PORT.")
    return host, int(port)


def listen(host: str, port: int) -> socket.socket:
    """Return a listening TCP socket; port 0 picks a free port. Raises OSError.

    The socket names its protocol, because only then the event loop sets TCP_NODELAY on accepted connections; without it each
    response waits some 40 ms for the client's acknowledgement.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def url_of(listener: socket.socket, *, is_encrypted: bool = False) -> str:
    """Return the base URL of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http{'s' if is_encrypted else ''}://{f'[{host}]' if ':' in host else host}:{port}"


async def read_body(request: "Request", limit: int) -> bytes:
    """Return the whole body. Raises Refused if it exceeds `limit` bytes, and starlette's ClientDisconnect."""
    from starlette.requests import ClientDisconnect

    declared = request.headers.get("content-length", "0")
    is_acceptable = len(declared) < 20 and declared.isdigit() and int(declared) <= limit
    body, is_complete = bytearray(), False
    while is_acceptable and not is_complete:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        is_complete = not message.get("more_body", False)
        is_acceptable = len(body) <= limit
    if is_acceptable:
        return bytes(body)
    if not is_complete:  # after the last message none comes before the client leaves
        await drain(request.receive)
    raise Refused(413, f"The body has more than {limit} bytes.")


async def drain(receive: "Receive") -> None:
    """Read the rest of the body, within bounds: a sender whose connection is reset never sees the response."""
    import anyio

    taken = 0
    with anyio.move_on_after(DRAIN_SECONDS):
        while taken < DRAIN_BYTES:
            message = await receive()
            taken += len(message.get("body", b""))
            if message["type"] != "http.request" or not message.get("more_body", False):
                return
