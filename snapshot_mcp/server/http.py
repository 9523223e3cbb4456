"""Streamable HTTP on the loopback interface.

Only this machine may reach the server, so requests for another host and from pages of other sites are rejected. Host, Origin
and body length are checked for every path, as in the program's other HTTP servers.
"""

import logging
import sys
from socket import socket
from typing import TYPE_CHECKING, Any

import anyio

from snapshot_mcp.contract.errors import BadRequest
from snapshot_mcp.ground import web

if TYPE_CHECKING:
    from mcp.server.mcpserver import MCPServer

    from snapshot_mcp.server.callers import Callers

PATH = "/mcp"
BODY_BYTES = 4 * 1024 * 1024
"""Longest request body; the SDK's own limit."""


def parse_address(text: str) -> tuple[str, int]:
    """Parse `HOST:PORT`. Raises BadRequest if it is malformed or not on the loopback interface."""
    try:
        host, port = web.parse_address(text)
    except ValueError as error:
        raise BadRequest(str(error), hint="Example: 127.0.0.1:8000; port 0 picks a free one.") from None
    if not web.is_loopback(host):
        raise BadRequest(
            f"{host!r} is not on this machine's loopback interface.",
            hint="The server has no TLS, so it listens on 127.0.0.1 or [::1] only; use a tunnel to reach it from elsewhere.",
        )
    return host, port


def listen(host: str, port: int) -> socket:
    """Return a listening socket. Raises BadRequest."""
    try:
        return web.listen(host, port)
    except OSError as error:
        raise BadRequest(f"Cannot listen on {host}:{port}: {error.strerror}.", hint="Choose another port.") from None


async def serve_http(server: "MCPServer[Any]", listener: socket, callers: "Callers") -> tuple[int, ...]:
    """Serve until a signal arrives, and return it; print the URL on stderr."""
    from mcp.server.transport_security import TransportSecuritySettings

    from snapshot_mcp.ground.http_server import HttpServer

    logging.getLogger("mcp.shared.jsonrpc_dispatcher").setLevel(logging.ERROR)  # it only warns of disconnected hosts
    no_checks = TransportSecuritySettings(enable_dns_rebinding_protection=False)  # _admit checks every path
    app: Any = server.streamable_http_app(streamable_http_path=PATH, transport_security=no_checks)
    app = _say_which_header(app) if callers.has_had_tokens else _close_with_the_first_token(app, callers)
    server_on_http = HttpServer(_admit(app), handles_signals=True, log_level="warning")

    async def announce() -> None:
        await server_on_http.is_ready.wait()
        print(f"snapshot-mcp: {web.url_of(listener)}{PATH}", file=sys.stderr, flush=True)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(announce)
        signals = await server_on_http.serve_on(listener)
        tasks.cancel_scope.cancel()
    return signals


def _admit(app: Any) -> Any:
    """Pass on acceptable requests once their body is complete; a client that disconnects while sending is not an error."""
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


def _say_which_header(app: Any) -> Any:
    """Answer 401 in words: which header is missing, or what is wrong with it. There is no OAuth to be discovered."""

    async def explained(scope: Any, receive: Any, send: Any) -> None:
        is_refused = False

        async def look(message: Any) -> None:
            nonlocal is_refused
            is_refused = is_refused or (message["type"] == "http.response.start" and message["status"] == 401)
            if not is_refused:
                await send(message)

        await app(scope, receive, look)
        if is_refused:
            await _unauthorized(scope)(scope, receive, send)

    return explained


def _unauthorized(scope: Any) -> Any:
    from starlette.datastructures import Headers
    from starlette.responses import JSONResponse

    header = Headers(scope=scope).get("authorization", "")
    has_token = header.lower().startswith("bearer ")
    if has_token:
        message = "The token in the header Authorization is not one of this server's, or no longer."
    elif header:
        message = "The header Authorization must read: Bearer TOKEN."
    else:
        message = "The header Authorization is missing: send Authorization: Bearer TOKEN."
    said = f"{message} The operator of this server gives out tokens in its settings."
    challenge = 'Bearer realm="snapshot-mcp"' + (', error="invalid_token"' if has_token else "")
    answer = {"code": "unauthorized", "message": said}
    return JSONResponse(answer, 401, headers=HEADERS | {"WWW-Authenticate": challenge})


def _close_with_the_first_token(app: Any, callers: "Callers") -> Any:
    """Reject every request once the operator has given out a token: this server was started without authentication."""
    from starlette.responses import JSONResponse

    refusal = JSONResponse(
        {
            "code": "unauthorized",
            "message": "The operator's settings now have tokens, but this server was started without them. Restart it.",
        },
        401,
        headers={"WWW-Authenticate": "Bearer"},
    )

    async def guarded(scope: Any, receive: Any, send: Any) -> None:
        is_closed = scope["type"] == "http" and callers.has_had_tokens
        await (refusal if is_closed else app)(scope, receive, send)

    return guarded
