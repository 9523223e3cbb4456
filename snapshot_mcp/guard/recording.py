"""Records acts that need no approval: renames, and what a person does with the zone's own commands."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anyio import CancelScope
from anyio.to_thread import run_sync as in_thread

from snapshot_mcp.contract.models import Snapshot, SnapshotUpdate
from snapshot_mcp.ground.clock import Clock
from snapshot_mcp.guard.consent.client import Client
from snapshot_mcp.zones import Zone

if TYPE_CHECKING:
    from snapshot_mcp.guard.consent.journal import Deed
    from snapshot_mcp.guard.consent.records import Records


class ActRecorder:
    """The records of a home, with what is recorded there without an approval. `roles` returns the current roles of people."""

    def __init__(self, folder: Path, clock: Clock, roles: Callable[[], Mapping[str, frozenset[str]] | None]) -> None:
        self._folder = folder
        self._clock = clock
        self._roles = roles

    @cached_property
    def _records(self) -> "Records":
        from snapshot_mcp.guard.consent.records import Records

        return Records(self._folder, self._clock, self._roles)

    @asynccontextmanager
    async def recorded(self, deed: "Deed") -> "AsyncIterator[dict[str, Any]]":
        """Record the start of an act and its end, with what the block put into the dictionary. Raises: GuardBroken."""
        found: dict[str, Any] = {}
        act = await in_thread(self._records.journal.begin, deed)
        try:
            yield found
        except BaseException as error:
            with CancelScope(shield=True):
                await in_thread(self._records.journal.end, act, deed, error)
            raise
        await in_thread(lambda: self._records.journal.end(act, deed, **found))

    async def note_refusal(self, deed: "Deed", rule: str) -> None:
        """Record that a rule forbids the act."""
        await in_thread(lambda: self._records.journal.note("refused", deed, rule=rule))

    async def note_no(self, deed: "Deed") -> None:
        """Record that the person who started it did not agree to it."""
        await in_thread(lambda: self._records.journal.note("declined", deed))

    @asynccontextmanager
    async def renaming(
        self, zone: Zone, snapshot: Snapshot, update: SnapshotUpdate, client: Client
    ) -> AsyncIterator[None]:
        """Record a change of name or tags, on which rules can rest, like `recorded`; record nothing if both stay the same."""
        from snapshot_mcp.guard.consent.journal import rename_deed

        deed = rename_deed(zone.name, zone.provider.location, snapshot, update, client)
        if deed is None:
            yield
            return
        async with self.recorded(deed):
            yield
