"""Subscriptions: hosts are notified when a resource changes, in both protocol eras.

A `job://` changes with its job, an `approval://` when it is decided, spent or expired; anything else may have changed whenever a
job of its zone has ended or a snapshot was renamed here. One task follows each URI while it has subscribers. Modern hosts keep a
stream open; older ones call two methods, which the SDK does not offer publicly and which are therefore added to its low-level
server. That the list of resources has changed is told after calls that change it; other programs' changes are found by listing.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any

import anyio
from anyio.abc import TaskGroup
from mcp.server.lowlevel import NotificationOptions
from mcp.server.mcpserver import MCPServer
from mcp.server.subscriptions import ResourcesListChanged, ResourceUpdated, SubscriptionBus
from mcp.shared.exceptions import MCPError
from mcp.types import INVALID_PARAMS, EmptyResult, SubscribeRequestParams, UnsubscribeRequestParams

from snapshot_mcp.contract.errors import ZoneError
from snapshot_mcp.contract.models import Job
from snapshot_mcp.zones import Zone, Zones

if TYPE_CHECKING:
    from snapshot_mcp.guard import Guard

SCHEMES = ("zone", "disk", "points", "job", "snapshot", "chain", "approval")
LOOK_SECONDS = 1.0
"""Interval between two looks at an approval that somebody follows: a person decides in another process."""
GUARDED = {"delete_snapshot", "rollback_to_snapshots"}
MAKING = {"create_snapshots", "export_to_volume", "recover_snapshots", "wait_for_job"}
"""Tools after which disks, chains or approvals may have come or gone."""
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
        self._hosts: dict[int, Any] = {}
        self.guard: Callable[[], Awaitable[Guard]] | None = None
        """Returns a guard to read approvals from."""
        self._tasks: TaskGroup | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the tasks that follow URIs while the block runs."""
        async with anyio.create_task_group() as self._tasks:
            yield
            self._tasks.cancel_scope.cancel()

    async def listen(self, ctx: Any, call_next: Callable[[Any], Awaitable[Any]]) -> Any:
        """Follow the URIs of a `subscriptions/listen` stream while it is open, and tell when lists have changed (middleware)."""
        if ctx.method == "initialize":
            self._hosts[self._known_connection(ctx.session)] = ctx.session
        if ctx.method != "subscriptions/listen":
            result = await call_next(ctx)
            if ctx.method == "tools/call" and _has_changed_lists((ctx.params or {}).get("name"), result):
                await self._announce_lists()
            return result
        wanted = ((ctx.params or {}).get("notifications") or {}).get("resourceSubscriptions") or []
        uris = [str(uri) for uri in dict.fromkeys(wanted)]
        followed = [uri for uri in uris if self._follow(uri)]
        try:
            return await call_next(ctx)
        finally:
            for uri in followed:
                self._leave(uri)

    def add_to(self, server: MCPServer[Any]) -> None:
        """Register the older era's two methods, and with them the capabilities."""
        low_level = server._lowlevel_server
        low_level.add_request_handler("resources/subscribe", SubscribeRequestParams, self._subscribe)
        low_level.add_request_handler("resources/unsubscribe", UnsubscribeRequestParams, self._unsubscribe)
        options = partial(low_level.create_initialization_options, NotificationOptions(resources_changed=True))
        low_level.create_initialization_options = options  # type: ignore[method-assign]

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
        self._hosts.pop(connection, None)
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
                if scheme == "approval":
                    await self._watch_approval(uri, job_id)
                    return
                zone = self._zones.get(zone_name)
                if scheme == "job":
                    await zone.watcher.wait([job_id], inf, lambda _: self._announce(uri))
                else:
                    await self._watch_zone(zone, uri)
            except ZoneError:
                return  # unknown or unreachable: reading it reports that

    async def _watch_approval(self, uri: str, approval_id: str) -> None:
        """Announce each change, and at once that it is pending no more: it may have been decided while somebody subscribed."""
        assert self.guard is not None
        guard = await self.guard()
        before: tuple[Any, ...] = ("pending", "", None)
        while True:
            one = await guard.get_approval(approval_id)
            now = (one.state, one.job_id, one.job_end)
            if now != before:
                await self._announce(uri)
            before = now
            await anyio.sleep(LOOK_SECONDS)

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

    async def _announce_lists(self) -> None:
        await self._bus.publish(ResourcesListChanged())
        for connection, session in tuple(self._hosts.items()):
            try:
                await session.send_resource_list_changed()
            except (anyio.ClosedResourceError, anyio.BrokenResourceError, MCPError):
                self._hosts.pop(connection, None)

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


def _has_changed_lists(tool: object, result: Any) -> bool:
    """Return whether a call that ended so may have changed which disks, chains and approvals there are."""
    told = getattr(result, "structured_content", None)
    if told is None and isinstance(result, dict):
        told = result.get("structuredContent")
    if not isinstance(told, dict):
        return False
    if tool in GUARDED:
        return told.get("status") not in {None, "plan"}
    return tool in MAKING and told.get("outcome") not in {None, "still_running"}


def _parse(uri: str) -> tuple[str, str, str] | None:
    """Return scheme, zone and id, None if the URI is not one of ours; a zone has no id, and an approval no zone."""
    scheme, separator, rest = uri.partition("://")
    if not separator or not rest or scheme not in SCHEMES:
        return None
    if scheme == "approval":
        return scheme, "", rest
    zone, slash, name = rest.partition("/")
    is_whole = bool(zone) and (not slash and not name if scheme == "zone" else bool(slash and name))
    return (scheme, zone, name) if is_whole else None
