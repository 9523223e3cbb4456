"""The guard: nothing is destroyed without a human's yes to the exact consequences, still true when it happens."""

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from snapshot_mcp.contract.models import Job
from snapshot_mcp.guard.client import Client
from snapshot_mcp.guard.outcome import GuardedOutcome
from snapshot_mcp.guard.policy import Policy
from snapshot_mcp.guard.zone import GuardedZone

OnProgress = Callable[[tuple[Job, ...]], Awaitable[None]]


class Guard:
    def __init__(self, folder: Path, policy: Policy) -> None:
        self.folder = folder
        self.policy = policy

    async def delete_snapshot(self, zone: GuardedZone, snapshot_id: str, client: Client) -> GuardedOutcome:
        raise NotImplementedError

    async def rollback_to_snapshots(
        self,
        zone: GuardedZone,
        snapshot_ids: Sequence[str],
        client: Client,
        *,
        safety_snapshot: bool = True,
        on_progress: OnProgress | None = None,
    ) -> GuardedOutcome:
        raise NotImplementedError
