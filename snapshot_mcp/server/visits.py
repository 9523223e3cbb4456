"""Open HTTP requests, event streams and sessions, which end when their token is no longer valid.

The operator's file is checked every second; new requests are checked anyway. A request in progress ends with an error in both
protocol eras; a session ends as if its client had closed it, with the client's subscriptions.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anyio
from mcp.server.auth.middleware.auth_context import get_access_token
from mcp.shared.exceptions import MCPError
from mcp.types import INVALID_REQUEST

from snapshot_mcp.contract.errors import ZoneError
from snapshot_mcp.server.callers import Callers, Roll

if TYPE_CHECKING:
    from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""Interval between two checks of the operator's file."""
SESSION_HEADER = b"mcp-session-id"

CallNext = Callable[[Any], Awaitable[Any]]
OnChange = Callable[[Roll, Roll], Awaitable[None]]


@dataclass(eq=False, slots=True)
class Visit:
    """A request in progress; `token` is "" for a caller without one."""

    token: str = field(repr=False)
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)


class Visits:
    """All open requests and sessions. `on_change` receives the tokens before and after a change of the file."""

    def __init__(
        self, callers: Callers, on_change: OnChange, sessions: "Callable[[], StreamableHTTPSessionManager]"
    ) -> None:
        self._callers = callers
        self._on_change = on_change
        self._sessions_of_http = sessions
        self._visits: set[Visit] = set()
        self._sessions: dict[str, tuple[str, dict[str, Any]]] = {}

    async def admit(self, ctx: Any, call_next: CallNext) -> Any:
        """Handle a request (middleware) and cancel it when its token is no longer valid."""
        token = get_access_token()
        visit = Visit(token.token if token else "")
        if ctx.method == "initialize":
            self._note_session(visit.token, ctx)
        self._visits.add(visit)
        try:
            with visit.scope:
                if self._callers.admits(visit.token):
                    return await call_next(ctx)
        finally:
            self._visits.discard(visit)
        raise MCPError(INVALID_REQUEST, "The token of this request is no longer valid.")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Check the tokens while the block runs."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch)
            yield
            tasks.cancel_scope.cancel()

    def _note_session(self, token: str, ctx: Any) -> None:
        connection = ctx.session._connection
        if connection.session_id:
            self._sessions[connection.session_id] = token, ctx.request.scope
            connection.exit_stack.callback(self._sessions.pop, connection.session_id, None)

    async def _watch(self) -> None:
        before = await self._callers.present()
        while True:
            await anyio.sleep(LOOK_SECONDS)
            now = await self._callers.present()
            if now.callers == before.callers:
                continue
            await self._end_invalid()
            try:
                await self._on_change(before, now)
            except ZoneError as error:
                logger.warning("A change of the tokens could not be recorded: %s", error.message)  # retried
            else:
                before = now

    async def _end_invalid(self) -> None:
        for visit in self._visits:
            if not self._callers.admits(visit.token):
                visit.scope.cancel()
        for session_id, (token, scope) in tuple(self._sessions.items()):
            if not self._callers.admits(token):
                await self._close_session(session_id, scope)

    async def _close_session(self, session_id: str, scope: dict[str, Any]) -> None:
        """Close a session like the client's own DELETE."""
        host = [header for header in scope["headers"] if header[0] == b"host"]
        request = {**scope, "method": "DELETE", "headers": [*host, (SESSION_HEADER, session_id.encode())]}
        self._sessions.pop(session_id, None)
        await self._sessions_of_http().handle_request(request, _nothing_more, _to_nobody)


async def _nothing_more() -> dict[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}


async def _to_nobody(message: Any) -> None:
    pass
