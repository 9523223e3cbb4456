"""Follows the states of the home's approvals while a page is served: whether any waits, and when one changes."""

from typing import TYPE_CHECKING

import anyio

from snapshot_mcp.contract.errors import ZoneError
from snapshot_mcp.contract.terms import BEGIN_WITHIN_SECONDS
from snapshot_mcp.guard.consent.states import OPEN, State

if TYPE_CHECKING:
    from snapshot_mcp.ground.clock import Moment
    from snapshot_mcp.guard.consent.approval import Approval
    from snapshot_mcp.guard.guard import Guard

LOOK_SECONDS = 0.5
"""How often the files are looked at, which costs microseconds."""
LOOKS_A_READING = 60
"""An approval expires without any change of a file, so they are read after this many looks at the latest."""
MAX_FAILURES = 20
"""Readings that may fail one after the other: a newer version may have changed the database, and is let in then."""

Stamp = tuple[tuple[int, int], ...]


class ApprovalWatch:
    """Reads the approvals when their database has changed; everybody who waits shares the reading."""

    def __init__(self, guard: "Guard") -> None:
        self._guard = guard
        self._stamp: Stamp | None = None
        self._looks = 0
        self._approvals: dict[str, Approval] = {}
        self._failures = 0
        self.has_ended = False

    @property
    def is_blind(self) -> bool:
        """Whether the approvals could not be read for a while."""
        return self._failures > MAX_FAILURES

    async def is_waiting(self) -> bool:
        """Whether any approval is open."""
        return any(one.state in OPEN for one in (await self._look()).values())

    async def can_take_back(self, now: "Moment") -> bool:
        """Whether an approval was just used whose job may not have begun yet, so that a person can still take it back."""
        spent = [one for one in (await self._look()).values() if one.state is State.SPENT and one.job_end is None]
        return any(one.ended and one.ended.is_within(now, BEGIN_WITHIN_SECONDS) for one in spent)

    async def until_changed(self, approval_id: str, state: State) -> bool:
        """Return True once the approval is in another state, False if the page ends first."""
        while not self.has_ended:
            found = (await self._look()).get(approval_id)
            if found is None or found.state is not state:
                return True
            await anyio.sleep(LOOK_SECONDS)
        return False

    def end(self) -> None:
        """Let everybody go who waits for a change."""
        self.has_ended = True

    async def _look(self) -> dict[str, "Approval"]:
        stamp = self._now()
        if stamp != self._stamp or self._looks >= LOOKS_A_READING:
            self._stamp, self._looks = stamp, 0
            try:
                self._approvals = {one.id: one for one in await self._guard.list_approvals()}
                self._failures = 0
            except ZoneError:  # busy or full: they are what they were
                self._stamp, self._failures = None, self._failures + 1
        self._looks += 1
        return self._approvals

    def _now(self) -> Stamp:
        """Return a value that changes with every commit to the database."""
        found = []
        for name in ("guard.sqlite", "guard.sqlite-wal"):
            try:
                stat = (self._guard.home / name).stat()
                found.append((stat.st_mtime_ns, stat.st_size))
            except OSError:
                found.append((0, 0))
        return tuple(found)
