"""What the guard needs of a zone (`jobs.zones.Zone` is one)."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from snapshot_mcp.contract.models import Job
from snapshot_mcp.contract.provider import Provider


class Watcher(Protocol):
    async def wait(
        self,
        job_ids: Sequence[str],
        timeout_seconds: float,
        on_change: Callable[[tuple[Job, ...]], Awaitable[None]] | None = None,
    ) -> tuple[Job, ...]:
        """The jobs as they stand when all have finished or the time is over."""
        ...


class GuardedZone(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def provider(self) -> Provider: ...
    @property
    def watcher(self) -> Watcher: ...
    @property
    def is_production(self) -> bool: ...
