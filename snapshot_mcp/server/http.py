"""Streamable HTTP on the loopback interface.

Without credentials nothing but this machine may reach the server, so another host is refused, and so is a page of another
site. Host, Origin and the length of a body are checked here for every path, as at the program's other doors.
"""

import logging
import sys
from socket import socket
from typing import TYPE_CHECKING, Any

from snapshot_mcp.contract.errors import BadRequest
from snapshot_mcp.ground import web

if TYPE_CHECKING:
    from mcp.server.mcpserver import MCPServer

    from snapshot_mcp.server.callers import Callers

PATH = "/mcp"
SDK_WRITES = "mcp.shared.jsonrpc_dispatcher"
"""Its one warning is that a host which has left could not be told something."""
BODY_BYTES = 4 * 1024 * 1024
"""Of a request; as much as the SDK accepts."""


def parse_address(text: str) -> tuple[str, int]:
    """Return host and port of `HOST:PORT`. Raises BadRequest for what is malformed or not the loopback interface."""
    try:
        host, port = web.parse_address(text)
    except ValueError as error:
        raise BadRequest(str(error), hint="For example 127.0.0.1:8000; port 0 takes a free one.") from None
    if not web.is_loopback(host):
        raise BadRequest(
            f"{host!r} is not this machine's loopback interface.",
            hint="The server has no TLS, so it listens on 127.0.0.1 or [::1] only; reach it through a tunnel.",
        )
    return host, port


def listen(host: str, port: int) -> socket:
    """Return a listening socket. Raises BadRequest."""
    try:
        return web.listen(host, port)
    except OSError as error:
        raise BadRequest(f"Cannot listen on {host}:{port}: {error.strerror}.", hint="Choose another port.") from None


async def serve_http(server: "MCPServer[Any]", listener: socket, callers: "Callers") -> None:
    """Serve until a signal ends it; says on stderr where."""
    from snapshot_mcp.ground.http_server import HttpServer

    logging.getLogger(SDK_WRITES).setLevel(logging.ERROR)
    app: Any = server.streamable_http_app(streamable_http_path=PATH, transport_security=_no_checks_of_its_own())
    if not callers.has_had_tokens:
        app = _close_with_the_first_token(app, callers)
    print(f"snapshot-mcp: {web.url_of(listener)}{PATH}", file=sys.stderr, flush=True)
    await HttpServer(_admit(app), handles_signals=True, log_level="warning").serve_on(listener)


def _no_checks_of_its_own() -> Any:
    """The SDK's own check covers its one path only, and differs from the other doors'."""
    from mcp.server.transport_security import TransportSecuritySettings

    return TransportSecuritySettings(enable_dns_rebinding_protection=False)


def _admit(app: Any) -> Any:
    """Let in what was meant for this server, once its body is there: a host that leaves while it sends is nobody's error."""
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import JSONResponse

    gatekeeper = web.Gatekeeper()

    async def admitted(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            gatekeeper.check(request.method, request.headers)
            body = await web.read_body(request, BODY_BYTES)
        except ClientDisconnect:
            return
        except web.Refused as refused:
            answer = {"code": "forbidden" if refused.status == 403 else "bad_request", "message": refused.message}
            await JSONResponse(answer, refused.status, headers=HEADERS)(scope, receive, send)
            return
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Any:
            return messages.pop() if messages else await receive()

        await app(scope, replay, send)

    return admitted


HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


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
