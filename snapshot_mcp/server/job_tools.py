"""Tools for jobs: wait for them, list the unfinished ones, cancel them.

The server waits, not the model: a wait is bounded and reports progress, and "still running" is a result. Without a zone a job
is looked for in every zone, and zones that cannot be reached are named.
"""

from collections.abc import Sequence
from typing import Annotated

import anyio
from mcp.server.mcpserver import Context
from mcp.types import CallToolResult
from pydantic import Field

from snapshot_mcp.contract.errors import BadRequest, Cancelled, NotFound, NotUsable, Unavailable, ZoneError
from snapshot_mcp.contract.models import MAX_IDS, Job
from snapshot_mcp.contract.text import MESSAGE_CHARACTERS, clean_text, format_bytes, quoted
from snapshot_mcp.server.deadline import CALL_SECONDS, LOOKUP_SECONDS, seconds_left
from snapshot_mcp.server.endings import find_made, note_ends, outcome_of, wait_in_zones
from snapshot_mcp.server.past import list_finished
from snapshot_mcp.server.results import Cancellation, JobList, JobRow, ListedJob, Unreachable, Waited, action_of
from snapshot_mcp.server.state import ServerState, state_of
from snapshot_mcp.zones import Zone

AnyZone = Annotated[str, Field(description="Zone; all if unset")]

DEFAULT_WAIT_SECONDS = 25.0

OTHERS_SECONDS = 2.0
"""How long the other zones may take once one knows a job that nobody here has submitted."""


async def wait_for_job(
    ctx: Context,
    job_ids: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=MAX_IDS)],
    timeout_seconds: Annotated[float, Field(ge=0, le=CALL_SECONDS, description="0 to 50")] = DEFAULT_WAIT_SECONDS,
    zone: AnyZone = "",
) -> Annotated[CallToolResult, Waited]:
    """How far is the backup, has the export or restore completed? Keeps an eye on a job until it has finished, with
    progress. "still_running": call it again."""
    wanted = list(dict.fromkeys(job_ids))
    places = await _find_zones(state_of(ctx), wanted, zone)
    jobs: dict[str, Job] = {}
    seconds = min(timeout_seconds, max(0.0, seconds_left() - LOOKUP_SECONDS))
    await wait_in_zones(ctx, places, seconds, jobs)
    for job_id in wanted:
        if job_id not in jobs:  # the host has left before the zone has said anything
            jobs[job_id] = await places[job_id].provider.get_job(job_id)
    await note_ends(state_of(ctx), places, jobs)
    rows = [JobRow.of(jobs[job_id], places[job_id].name) for job_id in wanted]
    outcome, hint = outcome_of(rows)
    found = await find_made(places, jobs)
    result = Waited(outcome=outcome, jobs=rows, made=found.made, hint=hint + found.hint)
    lines = [*map(job_line, rows), *(one.line for one in found.made or ())]
    return result.with_text(f"Outcome: {outcome}.", *lines, result.hint)


async def list_jobs(
    ctx: Context,
    finished: Annotated[bool, Field(description="The history instead")] = False,
    since: Annotated[str, Field(max_length=64, description="Of the history: 24h (default), 7d or a UTC time")] = "",
    zone: AnyZone = "",
) -> Annotated[CallToolResult, JobList]:
    """Which backups and other jobs are under way now? With finished, the history of today or since a time: what was
    done, did a backup fail, who asked for a deletion and who approved it."""
    if finished or since:
        return await list_finished(ctx, since, zone)
    state = state_of(ctx)
    names = [state.zones.get(zone).name] if zone else state.zones.names
    found: dict[str, tuple[Job, ...]] = {}
    errors: dict[str, ZoneError] = {}

    async def look(name: str) -> None:
        try:
            found[name] = await state.zones.get(name).provider.list_unfinished_jobs()
            await state.note_ends(state.zones.get(name))
        except ZoneError as error:
            errors[name] = error

    if len(names) == 1:
        await look(names[0])
    else:
        async with anyio.create_task_group() as tasks:
            for name in names:
                tasks.start_soon(look, name)
    if not found:
        raise next(iter(errors.values())) if len(errors) == 1 else Unavailable(_unreachable_text(errors))
    rows = [ListedJob.of(job, name) for name in names for job in found.get(name, ())]
    unreachable = [Unreachable(zone=name, reason=_reason(name, error)) for name, error in errors.items()]
    where = ", ".join(name for name in names if name in found)
    hint = "wait_for_job follows them." if rows else ""
    head = f"No unfinished jobs in {where}." if not rows else f"{len(rows)} unfinished in {where}:"
    result = JobList(jobs=rows, unreachable=unreachable, hint=hint)
    return result.with_text(head, *map(job_line, rows), _unreachable_text(errors) if errors else "", hint)


async def cancel_job(
    ctx: Context, job_id: Annotated[str, Field(min_length=1)], zone: AnyZone = ""
) -> Annotated[CallToolResult, Cancellation]:
    """Stop, abort or cancel a job: a waiting one, a running backup or export, a roll-back before its first byte. It
    leaves nothing behind."""
    place, _ = await find_job(state_of(ctx), job_id, zone)
    job = await place.provider.cancel_job(job_id)
    shown = f"Job {clean_text(job.job_id)} ({action_of(job)}) in zone {place.name}"
    if job.is_finished and (job.error is None or job.error.code != Cancelled.code):
        raise NotUsable(f"{shown} has ended as {quoted(job.status)}.", hint="It was not cancelled.")
    if job.is_finished:
        result = Cancellation(zone=place.name, job_id=clean_text(job.job_id), status="cancelled")
        return result.with_text(f"{shown} was cancelled and left nothing behind.")
    hint = "Call wait_for_job until it has ended."
    result = Cancellation(zone=place.name, job_id=clean_text(job.job_id), status="cancelling", hint=hint)
    return result.with_text(f"{shown} is being cancelled and ends in a moment.", hint)


async def find_job(state: ServerState, job_id: str, zone: str = "") -> tuple[Zone, Job]:
    """Return a job and its zone: that which it was submitted to from here, else the only one of all that knows it.

    Raises NotFound if all zones have answered, else Unavailable, which names those that have not; BadRequest if several zones
    claim to know it, because one of them may lie.
    """
    known = [] if zone or not state.history else await state.history.zones_of(job_id)
    names = [state.zones.get(zone).name] if zone else known or state.zones.names
    found: list[tuple[Zone, Job]] = []
    errors: dict[str, ZoneError] = {}

    async def look(name: str) -> None:
        try:
            place = state.zones.get(name)
            found.append((place, await place.provider.get_job(job_id)))
            tasks.cancel_scope.deadline = min(tasks.cancel_scope.deadline, anyio.current_time() + OTHERS_SECONDS)
        except NotFound:
            pass
        except ZoneError as error:
            errors[name] = error

    async with anyio.create_task_group() as tasks:
        for name in names:
            tasks.start_soon(look, name)
    if len({place.provider.location for place, _ in found}) > 1:
        claims = ", ".join(sorted(place.name for place, _ in found))
        raise BadRequest(f"Several zones know a job {quoted(job_id)}: {claims}.", hint="Give the zone that you mean.")
    if found:
        return found[0]
    where = f"zone {names[0]}" if len(names) == 1 else f"the zones {', '.join(names)}"
    if not errors:
        raise NotFound(f"There is no job {quoted(job_id)} in {where}.", hint="list_jobs shows the unfinished ones.")
    if len(names) == 1:
        raise errors[names[0]]
    raise Unavailable(
        f"Job {quoted(job_id)} was not found in the zones that answered. {_unreachable_text(errors)}",
        hint="Try again, or give its zone.",
    )


async def _find_zones(state: ServerState, job_ids: Sequence[str], zone: str) -> dict[str, Zone]:
    if zone or len(state.zones.names) == 1:
        return dict.fromkeys(job_ids, state.zones.get(zone))
    return {job_id: (await find_job(state, job_id))[0] for job_id in job_ids}


def job_line(row: JobRow) -> str:
    """Return a job as a line of text."""
    parts = [f"Job {row.job_id} in zone {row.zone}: {row.action}", row.status]
    if row.percent is not None:
        parts.append(f"{row.percent:g} %")
    if row.phase:
        parts.append(row.phase)
    if row.done_bytes is not None and row.total_bytes is not None:
        parts.append(f"{format_bytes(row.done_bytes)} of {format_bytes(row.total_bytes)}")
    if row.error:
        parts.append(f"reason: {quoted(row.error, MESSAGE_CHARACTERS)}")
    if row.resource_ids:
        parts.append(", ".join(row.resource_ids))
    if times := list(filter(None, (row.created_at, row.finished_at))):
        parts.append(" to ".join(times))
    return "  ".join(parts)


def _reason(name: str, error: ZoneError) -> str:
    return clean_text(str(error).removeprefix(f"Zone {name}: "), MESSAGE_CHARACTERS)


def _unreachable_text(errors: dict[str, ZoneError]) -> str:
    return " ".join(f"Zone {name} did not answer: {_reason(name, error)}" for name, error in errors.items())
