"""The two destructive tools. They validate and delegate: the guard decides what happens and who must agree."""

from collections.abc import Awaitable
from typing import Annotated, NamedTuple

from mcp.server.mcpserver import Context
from mcp.types import CallToolResult, InputRequiredResult
from pydantic import Field

from snapshot_mcp.contract.models import Job
from snapshot_mcp.contract.states import JobAction
from snapshot_mcp.guard import NOT_DONE, Client, GuardedOutcome
from snapshot_mcp.server.change_tools import SnapshotId, SnapshotIds
from snapshot_mcp.server.elicitation import AnswerNeeded, HostClient
from snapshot_mcp.server.endings import WaitSeconds, follow
from snapshot_mcp.server.past import note_guarded
from snapshot_mcp.server.progress import ProgressReport
from snapshot_mcp.server.read_tools import ZoneArgument
from snapshot_mcp.server.results import Guarded
from snapshot_mcp.server.state import state_of
from snapshot_mcp.zones import Zone

PlanOnly = Annotated[bool, Field(description="Only show what it would do; ask nobody")]


async def delete_snapshot(
    ctx: Context,
    snapshot_id: SnapshotId,
    plan_only: PlanOnly = False,
    wait_seconds: WaitSeconds = 0.0,
    zone: ZoneArgument = "",
) -> Annotated[CallToolResult, Guarded] | InputRequiredResult:
    """Remove, erase or drop an old backup or restore point that is not needed any more, with everything built on it.
    A person is asked first; no argument replaces that."""
    state = state_of(ctx)
    place = state.zones.get(zone)
    guard = await state.guard()
    act = GuardedCall(ctx, place, JobAction.DELETE, wait_seconds)
    if plan_only:
        return await _carry(act, guard.preview_deletion(place, snapshot_id, caller_of(ctx)))
    return await _carry(act, guard.delete_snapshot(place, snapshot_id, caller_of(ctx)))


async def rollback_to_snapshots(
    ctx: Context,
    snapshot_ids: SnapshotIds,
    safety_snapshot: Annotated[bool, Field(description="First save the present content as a snapshot")] = True,
    plan_only: PlanOnly = False,
    wait_seconds: WaitSeconds = 0.0,
    zone: ZoneArgument = "",
) -> Annotated[CallToolResult, Guarded] | InputRequiredResult:
    """Put disks back to an earlier state: undo everything since a backup by overwriting their present content with
    snapshots, one per disk. Later changes are lost, a running host restarts. A person is asked first.
    export_to_volume restores without loss."""
    state = state_of(ctx)
    place = state.zones.get(zone)
    progress = ProgressReport(ctx)

    async def report(jobs: tuple[Job, ...]) -> None:
        await progress.send(jobs, "taking the safety snapshot")

    guard = await state.guard()
    act = GuardedCall(ctx, place, JobAction.APPLY, wait_seconds)
    if plan_only:
        seen = guard.preview_rollback(place, snapshot_ids, caller_of(ctx), safety_snapshot=safety_snapshot)
        return await _carry(act, seen)
    call = guard.rollback_to_snapshots(
        place, snapshot_ids, caller_of(ctx), safety_snapshot=safety_snapshot, on_progress=report
    )
    return await _carry(act, call)


def caller_of(ctx: Context) -> Client:
    """Return whom the guard asks: the person at this process's terminal, else the host."""
    return state_of(ctx).person or HostClient(ctx)


class GuardedCall(NamedTuple):
    """What a guarded call wants done, and how long it waits for that."""

    ctx: Context
    zone: Zone
    action: JobAction
    wait_seconds: float


async def _carry(act: GuardedCall, call: Awaitable[GuardedOutcome]) -> CallToolResult | InputRequiredResult:
    try:
        outcome = await call
    except AnswerNeeded as needed:
        return needed.result
    await note_guarded(act.ctx, outcome)
    result = Guarded.of(outcome, act.zone.name)
    if outcome.status == "started":
        return await _follow(act, outcome, result)
    return result.with_text(*_lines(result), result.hint)


def _lines(result: Guarded) -> list[str]:
    """Return all but the hint as lines of text."""
    lines = [f"Status: {result.status}. {result.message}", result.how_to_approve or "", *result.plan]
    if result.approval_id:
        until = f" can be given until {result.approval_expires_at}" if result.approval_expires_at else ""
        lines.append(f"Approval {result.approval_id}{until}.")
    if result.safety_job_id:
        ids = ", ".join(result.safety_snapshot_ids or ())
        lines.append(f"Job of the safety snapshot{f' {ids}' if ids else ''}: {result.safety_job_id}")
    return lines


async def _follow(act: GuardedCall, outcome: GuardedOutcome, result: Guarded) -> CallToolResult:
    """Add what came of the job, as far as the call may wait for it."""
    if not act.wait_seconds:
        return result.with_text(*_lines(result), result.hint)
    job = Job(job_id=outcome.job_id, action=act.action)
    ending = await follow(act.ctx, act.zone, job, act.wait_seconds)
    over = f"and has ended: {ending.outcome}." if ending.outcome in {"successful", "failed"} else NOT_DONE
    result = result.model_copy(update={"message": result.message.replace(NOT_DONE, over)})
    told = ending.fields | {"made": [one.line for one in ending.made or ()] or None}
    return result.model_copy(update=told).with_text(*_lines(result), *ending.lines)
