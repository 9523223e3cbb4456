"""What guarded calls are planned and carried out in."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from snapshot_mcp.ground.clock import Clock
from snapshot_mcp.guard.consent.records import Records
from snapshot_mcp.guard.plan.policy import Policy


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The operator's rules for a zone as they are by now, the records, the time, and how long a safety snapshot is waited for."""

    rules: Callable[[str], Awaitable[Policy]]
    records: Records
    clock: Clock
    safety_wait_seconds: float
