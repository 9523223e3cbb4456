"""State of a running server, which every tool call can reach: the zones, and the guard once it is needed."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import anyio
from anyio.to_thread import run_sync as in_thread
from mcp.server.mcpserver import Context

from snapshot_mcp.contract.errors import ZoneError
from snapshot_mcp.contract.models import Job
from snapshot_mcp.zones import Zone, Zones

if TYPE_CHECKING:
    from snapshot_mcp.guard import Client, Guard
    from snapshot_mcp.history.history import JobHistory

log = logging.getLogger(__name__)


class ServerState:
    """The server's lifespan value, one for each process.

    The guard and its approval page are started by the first call that needs them, in a task of the lifespan, so that a
    server that only reads does not pay for them.
    """

    def __init__(
        self,
        zones: Zones,
        build_guard: "Callable[[], Guard]",
        announce_zone: Callable[[str], Awaitable[None]],
        home: Path | None = None,
        leaving: anyio.Event | None = None,
        person: "Client | None" = None,
    ) -> None:
        self.zones = zones
        self.home = home
        """The folder of the history; None for a server that keeps none."""
        self.leaving = leaving or anyio.Event()
        """Set once the host has closed its end: whoever waits answers what is so."""
        self.person = person
        """The person whose own process this server is a part of; None for every server of a host."""
        self.announce_zone = announce_zone
        """Notify subscribers of a zone's snapshots and chains about a change without a job."""
        self._create_locks: dict[str, anyio.Lock] = {}
        self._build_guard = build_guard
        self._guard: Guard | None = None
        self._is_guard_wanted = anyio.Event()
        self._is_guard_there = anyio.Event()

    def create_lock(self, zone: Zone) -> anyio.Lock:
        """Return the lock that a create holds while it looks for an equal one, so that simultaneous equal calls start one job."""
        return self._create_locks.setdefault(zone.name, anyio.Lock())

    async def guard(self) -> "Guard":
        """Return the guard; start it and its page first if necessary."""
        self._is_guard_wanted.set()
        await self._is_guard_there.wait()
        assert self._guard is not None
        return self._guard

    async def guard_to_look(self) -> "Guard":
        """Return a guard to read from: the one that is there, else one without a task for a page of this server's own."""
        return self._guard if self._guard is not None else await in_thread(self._build_guard)

    @cached_property
    def history(self) -> "JobHistory | None":
        """The history of this home; imported with the first job."""
        if self.home is None:
            return None
        from snapshot_mcp.history.history import JobHistory
        from snapshot_mcp.history.register import JobRegister

        return JobHistory(JobRegister(self.home), self.zones, self.guard)

    async def command(self) -> str:
        """Return how a shell runs this program."""
        return await in_thread(lambda: self._build_guard().command)

    async def note_ends(self, zone: Zone, seen: Sequence[Job] | None = None) -> None:
        """Let the guard record how approved jobs ended: those `seen`, or all. Best effort; the next call tries again."""
        try:
            guard = await self.guard()
            await (guard.note_ends(zone.provider) if seen is None else guard.note_jobs(zone.provider, seen))
        except ZoneError as error:
            log.warning("the ends of jobs in zone %s could not be recorded: %s", zone.name, error.message)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Self]:
        """Run the zones and the guard's task while the block runs."""
        async with self.zones, anyio.create_task_group() as tasks:
            tasks.start_soon(self._keep_guard)
            try:
                yield self
            finally:
                tasks.cancel_scope.cancel()

    async def _keep_guard(self) -> None:
        await self._is_guard_wanted.wait()
        from snapshot_mcp.guard.page import approval_page

        self._guard = self._build_guard()
        async with approval_page(self._guard):
            self._is_guard_there.set()
            await anyio.sleep_forever()


def state_of(ctx: Context[Any, Any]) -> ServerState:
    """Return the state of the server that handles this call."""
    state = ctx.request_context.lifespan_context
    assert isinstance(state, ServerState)
    return state
