"""The zones by name. A zone's provider is built on first use, so that listing the names costs nothing."""

from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Any, Self

import anyio
from anyio.abc import TaskGroup

from snapshot_mcp.contract.errors import Forbidden, NotFound, UnknownZone, Unsupported, ZoneError
from snapshot_mcp.contract.models import Job
from snapshot_mcp.contract.provider import Feature, Provider
from snapshot_mcp.contract.text import quoted
from snapshot_mcp.zones.finding import sorted_names
from snapshot_mcp.zones.watcher import JobWatcher


@dataclass(frozen=True, slots=True)
class Zone:
    """A zone with its provider and its watcher; in one with `is_production` the guard is strict."""

    name: str
    provider: Provider
    watcher: JobWatcher
    is_production: bool = False

    async def list_unfinished_jobs(self, known: Iterable[str] = ()) -> tuple[Job, ...]:
        """Return the unfinished jobs; if the zone does not list them to us, the unfinished ones of `known`."""
        try:
            return await self.provider.list_unfinished_jobs()
        except (Unsupported, Forbidden) as error:
            if isinstance(error, Unsupported) and Feature.HISTORY in self.provider.features:
                raise  # it lists jobs: what it says is about something else, such as a newer format
            found = []
            for job_id in known:
                with suppress(NotFound):
                    found.append(await self.provider.get_job(job_id))
            return tuple(job for job in found if not job.is_finished)


class Zones:
    """All zones of the settings.

    `async with zones:` runs the watchers and closes the providers at the end; jobs continue. Outside of it zones can be read,
    but jobs cannot be waited for.
    """

    def __init__(
        self, factories: Mapping[str, Callable[[], Provider]], *, default: str = "", production: Collection[str] = ()
    ) -> None:
        self._factories = dict(factories)
        self._production = frozenset(production)
        self._zones: dict[str, Zone] = {}
        self._stack = AsyncExitStack()
        self._tasks: TaskGroup | None = None
        self.default = default or next(iter(self._factories))

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the zones, in the order of the settings."""
        return tuple(self._factories)

    def get(self, name: str = "") -> Zone:
        """Return the zone, the default one for "". Raises UnknownZone, and ZoneError for unusable settings."""
        name = name or self.default
        if name not in self._zones:
            if name not in self._factories:
                names = sorted_names(name, self.names)
                raise UnknownZone(f"There is no zone {quoted(name)}.", hint=f"Zones: {', '.join(names)}.")
            try:
                provider = self._factories[name]()
            except ZoneError as error:
                error.within(name)
                raise
            zone = Zone(name, provider, JobWatcher(provider), name in self._production)
            self._zones[name] = zone
            if self._tasks is not None:
                self._tasks.start_soon(zone.watcher.run)
        return self._zones[name]

    async def __aenter__(self) -> Self:
        await self._stack.__aenter__()
        self._stack.push_async_callback(self._close)
        self._tasks = await self._stack.enter_async_context(anyio.create_task_group())
        for zone in self._zones.values():
            self._tasks.start_soon(zone.watcher.run)
        return self

    async def __aexit__(self, *exception: Any) -> bool | None:
        if self._tasks is not None:
            self._tasks.cancel_scope.cancel()
            self._tasks = None
        return await self._stack.__aexit__(*exception)

    async def _close(self) -> None:
        with anyio.CancelScope(shield=True):
            zones, self._zones = self._zones, {}
            for zone in zones.values():
                await zone.provider.aclose()
