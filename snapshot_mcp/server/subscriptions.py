"""Subscriptions: hosts are notified when a resource changes, in both protocol eras.

A `job://` changes with its job; a `snapshot://` or a `chain://` may have changed whenever a job of its zone has ended or a
snapshot was renamed here. One task follows each URI while it has subscribers. Modern hosts keep a stream open; older ones call
two methods, which the SDK does not offer publicly and which are therefore added to its low-level server.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from math import inf
from typing import Any

import anyio
from anyio.abc import TaskGroup
from mcp.server.mcpserver import MCPServer
from mcp.server.subscriptions import ResourceUpdated, SubscriptionBus
from mcp.shared.exceptions import MCPError
from mcp.types import INVALID_PARAMS, EmptyResult, SubscribeRequestParams, UnsubscribeRequestParams

from snapshot_mcp.contract.errors import ZoneError
from snapshot_mcp.contract.models import Job
from snapshot_mcp.zones import Zone, Zones

SCHEMES = ("job", "snapshot", "chain")
MAX_FOLLOWED = 1000
"""Maximum number of URIs followed at a time; further subscriptions are rejected."""


class Subscriptions:
    """Follows the URIs that have subscribers, and notifies these over the bus or, in the older era, their sessions."""

    def __init__(self, zones: Zones, bus: SubscriptionBus) -> None:
        self._zones = zones
        self._bus = bus
        self._listeners: dict[str, int] = {}
        self._scopes: dict[str, anyio.CancelScope] = {}
        self._sessions: dict[str, dict[int, Any]] = {}
        self._connections: set[int] = set()
        self._tasks: TaskGroup | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the tasks that follow URIs while the block runs."""
        async with anyio.create_task_group() as self._tasks:
            yield
            self._tasks.cancel_scope.cancel()

    async def listen(self, ctx: Any, call_next: Callable[[Any], Awaitable[Any]]) -> Any:
        """Follow the URIs of a `subscriptions/listen` stream while it is open (middleware)."""
        if ctx.method != "subscriptions/listen":
            return await call_next(ctx)
        wanted = ((ctx.params or {}).get("notifications") or {}).get("resourceSubscriptions") or []
        uris = [str(uri) for uri in dict.fromkeys(wanted)]
        followed = [uri for uri in uris if self._follow(uri)]
        try:
            return await call_next(ctx)
        finally:
            for uri in followed:
                self._leave(uri)

    def add_to(self, server: MCPServer[Any]) -> None:
        """Register the older era's two methods, and with them the capability."""
        low_level = server._lowlevel_server
        low_level.add_request_handler("resources/subscribe", SubscribeRequestParams, self._subscribe)
        low_level.add_request_handler("resources/unsubscribe", UnsubscribeRequestParams, self._unsubscribe)

    async def _subscribe(self, ctx: Any, params: SubscribeRequestParams) -> EmptyResult:
        uri = str(params.uri)
        connection = self._known_connection(ctx.session)
        if connection not in self._sessions.get(uri, {}) and self._follow(uri):
            self._sessions.setdefault(uri, {})[connection] = ctx.session
        return EmptyResult()

    async def _unsubscribe(self, ctx: Any, params: UnsubscribeRequestParams) -> EmptyResult:
        self._forget(str(params.uri), _connection(ctx.session))
        return EmptyResult()

    def _known_connection(self, session: Any) -> int:
        """Return the session's connection, whose subscriptions end when it is closed."""
        connection = _connection(session)
        if connection not in self._connections:
            self._connections.add(connection)
            session._connection.exit_stack.callback(self._forget_all, connection)
        return connection

    def _forget_all(self, connection: int) -> None:
        self._connections.discard(connection)
        for uri in tuple(self._sessions):
            self._forget(uri, connection)

    def _forget(self, uri: str, connection: int) -> None:
        if self._sessions.get(uri, {}).pop(connection, None) is not None:
            self._leave(uri)

    def _follow(self, uri: str) -> bool:
        """Add a subscriber; the first one starts the task. Return False if the URI is not one of ours."""
        if _parse(uri) is None:
            return False
        if uri not in self._listeners and len(self._listeners) >= MAX_FOLLOWED:
            raise MCPError(INVALID_PARAMS, f"Too many subscriptions: {MAX_FOLLOWED} resources are already followed.")
        self._listeners[uri] = self._listeners.get(uri, 0) + 1
        if self._listeners[uri] == 1 and self._tasks is not None:
            self._scopes[uri] = anyio.CancelScope()
            self._tasks.start_soon(self._watch, uri, self._scopes[uri])
        return True

    def _leave(self, uri: str) -> None:
        self._listeners[uri] -= 1
        if not self._listeners[uri]:
            del self._listeners[uri]
            self._sessions.pop(uri, None)
            self._scopes.pop(uri).cancel()

    async def _watch(self, uri: str, scope: anyio.CancelScope) -> None:
        scheme, zone_name, job_id = _parse(uri) or ("", "", "")
        with scope:
            try:
                zone = self._zones.get(zone_name)
                if scheme == "job":
                    await zone.watcher.wait([job_id], inf, lambda _: self._announce(uri))
                else:
                    await self._watch_zone(zone, uri)
            except ZoneError:
                return  # unknown or unreachable: reading it reports that

    async def _watch_zone(self, zone: Zone, uri: str) -> None:
        has_ended = anyio.Event()

        def note(job: Job) -> None:
            if job.is_finished:
                has_ended.set()

        with zone.watcher.observing(note):
            while True:
                await has_ended.wait()
                has_ended = anyio.Event()
                await self._announce(uri)

    async def announce_zone(self, zone_name: str) -> None:
        """Notify the subscribers of a zone's snapshots and chains."""
        for uri in tuple(self._listeners):
            scheme, zone, _ = _parse(uri) or ("", "", "")
            if zone == zone_name and scheme != "job":
                await self._announce(uri)

    async def _announce(self, uri: str) -> None:
        await self._bus.publish(ResourceUpdated(uri=uri))
        for connection, session in tuple(self._sessions.get(uri, {}).items()):
            try:
                await session.send_resource_updated(uri)
            except (anyio.ClosedResourceError, anyio.BrokenResourceError, MCPError):
                self._forget(uri, connection)


def _connection(session: Any) -> int:
    """Return what identifies a connection; the SDK makes a new session object for each request."""
    return id(session._connection)


def _parse(uri: str) -> tuple[str, str, str] | None:
    """Return scheme, zone and id, None if the URI is not one of ours."""
    scheme, separator, rest = uri.partition("://")
    zone, slash, name = rest.partition("/")
    return (scheme, zone, name) if separator and slash and zone and name and scheme in SCHEMES else None
