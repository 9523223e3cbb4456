"""The checks before any route: Host, Origin, and the token.

Without a valid token everything but token, health and OpenAPI answers 401, unknown routes too.
"""

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from snapshot_mcp.contract.errors import Unauthorized, ZoneError
from snapshot_mcp.ground.web import Gatekeeper, Refused, drain
from snapshot_mcp.service.answers import error_answer, refusal_answer, unexpected_answer
from snapshot_mcp.service.keys import Grant, TokenBook

PUBLIC_PATHS = frozenset({"/v2/oauth2/token", "/healthz", "/openapi.json"})


class Gate:
    """ASGI middleware that admits or refuses every request."""

    def __init__(self, app: ASGIApp, *, tokens: TokenBook, gatekeeper: Gatekeeper) -> None:
        self._app = app
        self._tokens = tokens
        self._gatekeeper = gatekeeper

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
            await self._app(scope, watched_receive, watched_send)
            return
        except ClientDisconnect:
            return
        except Refused as refused:
            answer = refusal_answer(refused)
        except ZoneError as error:
            headers = {"www-authenticate": 'Bearer realm="snapshot"'} if isinstance(error, Unauthorized) else {}
            answer = error_answer(error, headers=headers)
        except Exception as error:
            answer = unexpected_answer(error)
        if not started:
            await answer(scope, watched_receive, watched_send)

    async def _admit(self, scope: Scope) -> Grant | None:
        headers = Headers(scope=scope)
        self._gatekeeper.check(scope["method"], headers)
        if scope["path"] in PUBLIC_PATHS:
            return None
        await self._tokens.refresh()
        scheme, _, token = headers.get("authorization", "").partition(" ")
        grant = self._tokens.grant_of(token.strip()) if scheme.lower() == "bearer" else None
        if grant is None:
            raise Unauthorized("No valid token.", hint="Get one with POST /v2/oauth2/token and send it as Bearer.")
        return grant
