"""What all guarded calls of a guard share."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from snapshot_mcp.ground.clock import Clock
from snapshot_mcp.guard.consent.records import Records
from snapshot_mcp.guard.plan.policy import Policy


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The operator's current rules for a zone, the records, the clock, and how long to wait for a safety snapshot."""

    rules: Callable[[str], Awaitable[Policy]]
    records: Records
    clock: Clock
    safety_wait_seconds: float
