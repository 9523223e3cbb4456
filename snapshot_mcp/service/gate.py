"""What every request passes before a route sees it: Host, Origin, and the token.

Everything but token, health and OpenAPI answers 401 without a valid token, unknown routes too. A browser page of another
origin is turned away, and so is a Host name that is not ours (DNS rebinding); an address as Host cannot be rebound.
"""

import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

import anyio
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from snapshot_mcp.contract.errors import BadRequest, Forbidden, Unauthorized, ZoneError
from snapshot_mcp.contract.text import clean_text
from snapshot_mcp.service.answers import error_answer, unexpected_answer
from snapshot_mcp.service.keys import Grant, TokenBook

PUBLIC_PATHS = frozenset({"/v2/oauth2/token", "/healthz", "/openapi.json"})

MAX_BODY_BYTES = 1 << 20
"""A hundred ids and names fit a hundred times."""

DRAIN_BYTES = 64 << 20
DRAIN_SECONDS = 10.0
"""As much of a body that nobody wants is read, so that its sender is there to read the answer."""


class Gate:
    """ASGI middleware around the whole face."""

    def __init__(
        self, app: ASGIApp, *, tokens: TokenBook, allowed_hosts: Iterable[str] = (), allowed_origins: Iterable[str] = ()
    ) -> None:
        self._app = app
        self._tokens = tokens
        self._hosts = frozenset({"localhost", *(host.lower() for host in allowed_hosts)})
        self._origins = frozenset(origin.lower().rstrip("/") for origin in allowed_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = is_read = False

        async def watched_receive() -> Message:
            nonlocal is_read
            message = await receive()
            is_read = message["type"] != "http.request" or not message.get("more_body", False)
            return message

        async def watched_send(message: Message) -> None:
            nonlocal started
            if not started and not is_read:
                await drain(watched_receive)
            started = True
            await send(message)

        try:
            scope["grant"] = await self._admit(scope)
        except ZoneError as error:
            headers = {"www-authenticate": 'Bearer realm="snapshot"'} if isinstance(error, Unauthorized) else {}
            await error_answer(error, headers=headers)(scope, watched_receive, watched_send)
            return
        try:
            await self._app(scope, watched_receive, watched_send)
        except ClientDisconnect:
            return  # nobody is there to read an answer
        except Exception as error:
            answer = unexpected_answer(error)
            if not started:
                await answer(scope, watched_receive, watched_send)

    async def _admit(self, scope: Scope) -> Grant | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not self._is_ours(host):
            raise BadRequest(
                f"The Host {clean_text(host)!r} is not served here.", hint="Use the address it listens on."
            )
        origin = headers.get("origin")
        if origin is not None and origin.lower().rstrip("/") not in self._origins:
            raise Forbidden(f"The Origin {clean_text(origin)!r} is not allowed.")
        if scope["path"] in PUBLIC_PATHS:
            return None
        await self._tokens.refresh()
        scheme, _, token = headers.get("authorization", "").partition(" ")
        grant = self._tokens.grant_of(token.strip()) if scheme.lower() == "bearer" else None
        if grant is None:
            raise Unauthorized("No valid token.", hint="Fetch one with POST /v2/oauth2/token and send it as Bearer.")
        return grant

    def _is_ours(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name in self._hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


async def read_body(request: Request) -> bytes:
    """Return the body. Raises `BodyTooLarge` past the limit."""
    declared = request.headers.get("content-length", "0")
    body = bytearray()
    if declared.isdigit() and int(declared) <= MAX_BODY_BYTES:
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                break
        else:
            return bytes(body)
    raise BodyTooLarge(f"The body has more than {MAX_BODY_BYTES} bytes.")


class BodyTooLarge(BadRequest):
    http_status = 413


async def drain(receive: Receive) -> None:
    """Read on to the end of the body, within bounds: who is still sending is reset, and never reads the answer."""
    taken = 0
    with anyio.move_on_after(DRAIN_SECONDS):
        while taken < DRAIN_BYTES:
            message = await receive()
            taken += len(message.get("body", b""))
            if message["type"] != "http.request" or not message.get("more_body", False):
                return
