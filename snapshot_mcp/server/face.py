"""What a tool finds behind its call: the zones, and the guard once it is needed."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Self

import anyio
from anyio.to_thread import run_sync as in_thread
from mcp.server.mcpserver import Context

from snapshot_mcp.contract.errors import ZoneError
from snapshot_mcp.contract.models import Job
from snapshot_mcp.zones import Zone, Zones

if TYPE_CHECKING:
    from snapshot_mcp.guard import Guard

log = logging.getLogger(__name__)


class Face:
    """The server's lifespan value; one a process.

    The guard and its approval page are woken by the first call that needs them, in a task of the lifespan's own: a server
    that only looks pays for neither.
    """

    def __init__(
        self, zones: Zones, build_guard: "Callable[[], Guard]", announce_zone: Callable[[str], Awaitable[None]]
    ) -> None:
        self.zones = zones
        self.announce_zone = announce_zone
        """Tells who listens to a zone's snapshots and chains of a change that has no job."""
        self._create_locks: dict[str, anyio.Lock] = {}
        self._build_guard = build_guard
        self._guard: Guard | None = None
        self._is_guard_wanted = anyio.Event()
        self._is_guard_there = anyio.Event()

    def zone(self, name: str) -> Zone:
        return self.zones.get(name)

    def create_lock(self, zone: Zone) -> anyio.Lock:
        """A create looks for its like and starts in one step, or two equal calls at once would both find nothing."""
        return self._create_locks.setdefault(zone.name, anyio.Lock())

    async def guard(self) -> "Guard":
        if self._guard is None or not self._is_guard_there.is_set():
            self._is_guard_wanted.set()
            await self._is_guard_there.wait()
        assert self._guard is not None
        return self._guard

    async def command(self) -> str:
        """Return how a shell runs this program."""
        return await in_thread(lambda: self._build_guard().command)

    async def note_ends(self, zone: Zone, seen: Sequence[Job] | None = None) -> None:
        """Let the guard record how the acts ended that people agreed to: of the jobs that were `seen`, else of all in the zone.

        Best effort, because it is no part of what the caller asked for: the next look records what this one could not.
        """
        try:
            guard = await self.guard()
            await (guard.note_ends(zone.provider) if seen is None else guard.note_jobs(zone.provider, seen))
        except ZoneError as error:
            log.warning("the ends of jobs in zone %s could not be recorded: %s", zone.name, error.message)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Self]:
        """Own what runs as long as the server does."""
        async with self.zones, anyio.create_task_group() as tasks:
            tasks.start_soon(self._keep_guard)
            try:
                yield self
            finally:
                tasks.cancel_scope.cancel()

    async def _keep_guard(self) -> None:
        await self._is_guard_wanted.wait()
        from snapshot_mcp.guard.page import ApprovalPage

        self._guard = self._build_guard()
        async with ApprovalPage(self._guard):
            self._is_guard_there.set()
            await anyio.sleep_forever()


def face_of(ctx: Context[Any, Any]) -> Face:
    """Return the face of the server that this call came to."""
    face = ctx.request_context.lifespan_context
    assert isinstance(face, Face)
    return face
