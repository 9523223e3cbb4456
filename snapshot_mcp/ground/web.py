"""HTTP doors: where one listens, who may knock, and how much it reads. The same answer at every door of the program.

    421   the Host header is missing or malformed, or names somebody else (DNS rebinding)
    403   the Origin header is not this very host's, nor one that the operator allowed: a page of another site
    413   the body is longer than the door reads

Each door words the refusal in its own format. The module loads nothing but the standard library: settings use it.
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
"""How much of an unwanted body is read, so that its sender is still there to read the answer."""

SHOWN_CHARACTERS = 100
"""Of a header in a message."""

_HOST = re.compile(r"(?:\[(?P<v6>[0-9a-f:.]+)\]|(?P<name>[^\s\[\]:@/?#\\%]+))(?::(?P<port>[0-9]{1,5}))?", re.IGNORECASE)


class Refused(Exception):
    """A request that its door does not let in, with the HTTP status to answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(frozen=True, slots=True)
class Gatekeeper:
    """Decides by Host and Origin whether a request was meant for this server and comes from no other site.

    A Host may be `localhost`, a loopback address, or one of `hosts`, with any port: a tunnel has its own. `any_address` is for
    a server that listens beyond this machine: an address cannot be rebound. An Origin may be the Host's own, or one of
    `origins`; both sets are in lower case.
    """

    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()
    any_address: bool = False

    def check(self, method: str, headers: Mapping[str, str], *, needs_origin: bool = False) -> None:
        """Raise Refused. With `needs_origin` a change without an Origin is refused too: a browser always sends one."""
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
    """Return host and port of `HOST:PORT`, without the brackets of an IPv6 address. Raises ValueError."""
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ValueError(f"{text!r} is not HOST:PORT.")
    return host, int(port)


def listen(host: str, port: int) -> socket.socket:
    """Return a listening TCP socket; port 0 takes a free one. Raises OSError.

    The event loop sets TCP_NODELAY on what it accepts only where the listener names its protocol; without the option each
    answer waits some 40 ms for the client's acknowledgement.
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
    """Return the base URL that the socket listens on."""
    host, port = listener.getsockname()[:2]
    return f"http{'s' if is_encrypted else ''}://{f'[{host}]' if ':' in host else host}:{port}"


async def read_body(request: "Request", limit: int) -> bytes:
    """Return the whole body. Raises Refused past `limit` bytes, once the sender can read that; starlette's ClientDisconnect."""
    declared = request.headers.get("content-length", "0")
    body = bytearray()
    if len(declared) < 20 and declared.isdigit() and int(declared) <= limit:
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                break
        else:
            return bytes(body)
    await drain(request.receive)
    raise Refused(413, f"The body has more than {limit} bytes.")


async def drain(receive: "Receive") -> None:
    """Read on to the end of the body, within bounds: a sender that is cut off is reset, and never reads the answer."""
    import anyio

    taken = 0
    with anyio.move_on_after(DRAIN_SECONDS):
        while taken < DRAIN_BYTES:
            message = await receive()
            taken += len(message.get("body", b""))
            if message["type"] != "http.request" or not message.get("more_body", False):
                return
