"""Streamable HTTP on the loopback interface.

Without credentials nothing but this machine may reach the server, so another host is refused; the SDK checks Host and
Origin against DNS rebinding. uvicorn is run here, because an open stream would else keep it from ending.
"""

import logging
import socket
import sys
from collections import deque
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from snapshot_mcp.contract.errors import BadRequest

if TYPE_CHECKING:
    from mcp.server.mcpserver import MCPServer

    from snapshot_mcp.server.callers import Callers

SHUTDOWN_SECONDS = 3
"""How long open streams may go on after a SIGTERM."""
PATH = "/mcp"
SDK_WRITES = "mcp.shared.jsonrpc_dispatcher"
"""Its one warning is that a host which has left could not be told something."""
BODY_BYTES = 5 * 1024 * 1024
"""More than the SDK accepts of a body; what is longer is left to it to refuse."""


def parse_address(text: str) -> tuple[str, int]:
    """Return host and port of `HOST:PORT`. Raises BadRequest for what is malformed or not the loopback interface."""
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise BadRequest(f"{text!r} is no HOST:PORT.", hint="For example 127.0.0.1:8000; port 0 takes a free one.")
    if not is_loopback(host):
        raise BadRequest(
            f"{host!r} is not this machine's loopback interface.",
            hint="The server has no TLS, so it listens on 127.0.0.1 or [::1] only; reach it through a tunnel.",
        )
    return host, int(port)


async def serve_http(server: "MCPServer[Any]", host: str, port: int, callers: "Callers") -> None:
    """Serve until a signal ends it; says on stderr where."""
    import uvicorn

    logging.getLogger(SDK_WRITES).setLevel(logging.ERROR)
    app = _drop_half_requests(server.streamable_http_app(host=host, streamable_http_path=PATH))
    if not callers.has_had_tokens:
        app = _close_with_the_first_token(app, callers)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        raise BadRequest(f"Cannot listen on {host}:{port}: {error.strerror}.", hint="Choose another port.") from None
    with listener:
        shown = f"[{host}]" if ":" in host else host
        print(f"snapshot-mcp: http://{shown}:{listener.getsockname()[1]}{PATH}", file=sys.stderr, flush=True)
        config = uvicorn.Config(
            app, log_config=None, log_level="warning", timeout_graceful_shutdown=SHUTDOWN_SECONDS, ws="none"
        )
        await uvicorn.Server(config).serve(sockets=[listener])


def _drop_half_requests(app: Any) -> Any:
    """Let no request in before its body is there: one whose host leaves while it sends is nobody's error."""

    async def whole(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        messages: deque[Any] = deque()
        size, is_complete = 0, False
        while not is_complete and size <= BODY_BYTES:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            messages.append(message)
            size += len(message.get("body", b""))
            is_complete = not message.get("more_body", False)

        async def replay() -> Any:
            return messages.popleft() if messages else await receive()

        await app(scope, replay, send)

    return whole


def _close_with_the_first_token(app: Any, callers: "Callers") -> Any:
    """Refuse everybody once the operator has given out a token: this server was started for whoever comes."""
    from starlette.responses import JSONResponse

    refusal = JSONResponse(
        {
            "code": "unauthorized",
            "message": "The operator's settings have tokens now, and this server was started without. Restart it.",
        },
        401,
        headers={"WWW-Authenticate": "Bearer"},
    )

    async def guarded(scope: Any, receive: Any, send: Any) -> None:
        is_closed = scope["type"] == "http" and callers.has_had_tokens
        await (refusal if is_closed else app)(scope, receive, send)

    return guarded


def is_loopback(host: str) -> bool:
    """Whether the host is this machine's own name or address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
