"""The two destructive tools. They validate and delegate: the guard decides what happens and who must agree."""

from collections.abc import Awaitable
from typing import Annotated

from mcp.server.mcpserver import Context
from mcp.types import CallToolResult, InputRequiredResult
from pydantic import Field

from snapshot_mcp.contract.errors import ResourceBusy
from snapshot_mcp.contract.models import Job
from snapshot_mcp.guard import GuardedOutcome
from snapshot_mcp.server.change_tools import SnapshotId, SnapshotIds
from snapshot_mcp.server.elicitation import AnswerNeeded, HostClient
from snapshot_mcp.server.progress import ProgressReport
from snapshot_mcp.server.read_tools import ZoneArgument
from snapshot_mcp.server.results import Guarded
from snapshot_mcp.server.state import state_of
from snapshot_mcp.zones import Zone


async def delete_snapshot(
    ctx: Context, snapshot_id: SnapshotId, zone: ZoneArgument = ""
) -> Annotated[CallToolResult, Guarded] | InputRequiredResult:
    """Delete a snapshot and everything that was built on it. A person is asked first; no argument replaces that."""
    state = state_of(ctx)
    place = state.zones.get(zone)
    guard = await state.guard()
    return await _carry(place, guard.delete_snapshot(place, snapshot_id, HostClient(ctx)))


async def rollback_to_snapshots(
    ctx: Context,
    snapshot_ids: SnapshotIds,
    safety_snapshot: Annotated[bool, Field(description="First save the present content as a snapshot")] = True,
    zone: ZoneArgument = "",
) -> Annotated[CallToolResult, Guarded] | InputRequiredResult:
    """Roll disks or machines back: overwrite their present content with these snapshots (one per disk). Later changes are
    lost and a running host restarts. A person is asked first. export_to_volume restores without loss."""
    state = state_of(ctx)
    place = state.zones.get(zone)
    progress = ProgressReport(ctx)

    async def report(jobs: tuple[Job, ...]) -> None:
        await progress.send(jobs, "taking the safety snapshot")

    guard = await state.guard()
    call = guard.rollback_to_snapshots(
        place, snapshot_ids, HostClient(ctx), safety_snapshot=safety_snapshot, on_progress=report
    )
    return await _carry(place, call)


async def _carry(zone: Zone, call: Awaitable[GuardedOutcome]) -> CallToolResult | InputRequiredResult:
    try:
        outcome = await call
    except AnswerNeeded as needed:
        return needed.result
    except ResourceBusy as busy:
        refused = Guarded(zone=zone.name, status="refused", hint=str(busy)).with_text(f"Refused for now: {busy}")
        return refused.model_copy(update={"is_error": True})
    result = Guarded.of(outcome, zone.name)
    if outcome.status == "started":
        return result.with_text(outcome.message)
    lines = [outcome.message, *outcome.plan]
    if outcome.approval_id and result.approval_expires_at:
        lines.append(f"Approval {outcome.approval_id} can be given until {result.approval_expires_at}.")
    if outcome.safety_job_id:
        lines.append(f"Job of the safety snapshot: {result.safety_job_id}")
    return result.with_text(*lines, result.hint)
