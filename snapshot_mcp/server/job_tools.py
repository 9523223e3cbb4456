"""Tools for jobs: wait for them, list the unfinished ones, cancel them.

The server waits, not the model: a wait is bounded and reports progress, and "still running" is a result. Without a zone a job
is looked for in every zone, and zones that cannot be reached are named.
"""

from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

import anyio
from mcp.server.mcpserver import Context
from mcp.types import CallToolResult
from pydantic import Field

from snapshot_mcp.contract.errors import NotFound, Unavailable, ZoneError
from snapshot_mcp.contract.models import MAX_IDS, Job, Snapshot
from snapshot_mcp.contract.states import FINAL_JOB_STATUSES, JobAction, JobStatus
from snapshot_mcp.contract.text import MESSAGE_CHARACTERS, clean_text, format_bytes, quoted
from snapshot_mcp.server.progress import ProgressReport
from snapshot_mcp.server.results import Cancellation, JobList, JobRow, Made, Unreachable, Waited, mixture_warning
from snapshot_mcp.server.state import ServerState, state_of
from snapshot_mcp.zones import Zone
from snapshot_mcp.zones.finding import try_find_snapshots

AnyZone = Annotated[str, Field(description="Zone; every one if left out")]

DEFAULT_WAIT_SECONDS = 25.0
MAX_WAIT_SECONDS = 50.0
"""Hosts abandon a call after 60 seconds; the result must arrive before."""

DESTRUCTIVE = {JobAction.DELETE, JobAction.APPLY}

NEXT_STEPS = {
    JobAction.CREATE: "The restore point is complete; show_chain shows it in its chain.",
    JobAction.APPLY: "The disk has the snapshot's content again; show_chain shows the new head.",
    JobAction.DELETE: "Deleted; recover_snapshots can bring it back while the zone keeps it.",
    JobAction.CREATE_VOLUME: "The new volume is in list_resources.",
    JobAction.CAPTURE_INSTANCE: "The image is in list_resources with kind image.",
    JobAction.LEASE: "Recovered; show_chain shows them.",
}


async def wait_for_job(
    ctx: Context,
    job_ids: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=MAX_IDS)],
    timeout_seconds: Annotated[float, Field(ge=0, le=MAX_WAIT_SECONDS)] = DEFAULT_WAIT_SECONDS,
    zone: AnyZone = "",
) -> Annotated[CallToolResult, Waited]:
    """Wait until these jobs have ended, with progress. "still_running" means: call it again. A job continues even if
    nobody waits."""
    wanted = list(dict.fromkeys(job_ids))
    places = await _find_zones(state_of(ctx), wanted, zone)
    jobs = await _wait(places, timeout_seconds, ProgressReport(ctx))
    await _note_ends(state_of(ctx), places, jobs)
    rows = [JobRow.of(jobs[job_id], places[job_id].name) for job_id in wanted]
    outcome, hint = _outcome(rows)
    made, unseen = await _find_made(places, jobs)
    if warning := mixture_warning(one for _, one in made):
        hint += f" {warning} Back up again while nothing else has the disk open."
    if unseen:
        hint += f" The consistency could not be read in {', '.join(unseen)}: list_snapshots shows it."
    points = [Made.of(one, name) for name, one in made]
    result = Waited(outcome=outcome, jobs=rows, made=points or None, hint=hint)
    return result.with_text(*map(job_line, rows), *map(_made_line, points), hint)


def _outcome(rows: Sequence[JobRow]) -> tuple[Literal["successful", "failed", "still_running"], str]:
    """Return the outcome of all jobs together, and the next step."""
    has_failed = any(row.status == JobStatus.FAILED for row in rows)
    if running := [row for row in rows if row.status not in FINAL_JOB_STATUSES]:
        hint = f"Still running: call wait_for_job again for {', '.join(row.job_id for row in running)}."
        if unknown := sorted({quoted(row.status) for row in running} - set(map(quoted, JobStatus))):
            hint += f" Unknown status {', '.join(unknown)}: check with list_snapshots what came of it."
        return "failed" if has_failed else "still_running", hint
    if has_failed:
        return "failed", "Report the reason verbatim. Do not retry until the cause is fixed."
    steps = (NEXT_STEPS[JobAction(row.action)] for row in rows if row.action in set(JobAction))
    return "successful", " ".join(dict.fromkeys(steps))


async def list_jobs(ctx: Context, zone: AnyZone = "") -> Annotated[CallToolResult, JobList]:
    """List unfinished jobs."""
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
    rows = [JobRow.of(job, name) for name in names for job in found.get(name, ())]
    unreachable = [
        Unreachable(zone=name, reason=clean_text(error, MESSAGE_CHARACTERS)) for name, error in errors.items()
    ]
    where = ", ".join(name for name in names if name in found)
    hint = "wait_for_job follows them." if rows else ""
    head = f"No unfinished jobs in {where}." if not rows else f"{len(rows)} unfinished in {where}:"
    result = JobList(jobs=rows, unreachable=unreachable, hint=hint)
    return result.with_text(head, *map(job_line, rows), _unreachable_text(errors) if errors else "", hint)


async def cancel_job(
    ctx: Context, job_id: Annotated[str, Field(min_length=1)], zone: AnyZone = ""
) -> Annotated[CallToolResult, Cancellation]:
    """Cancel a job: a waiting one, a running backup or export, or a roll-back that has not begun to overwrite the disk. It
    fails with the code cancelled and leaves nothing behind."""
    place, _ = await find_job(state_of(ctx), job_id, zone)
    job = await place.provider.cancel_job(job_id)
    shown = f"Job {clean_text(job.job_id)} ({clean_text(job.action)}) in zone {place.name}"
    if job.is_finished:
        result = Cancellation(zone=place.name, job_id=clean_text(job.job_id), status="cancelled")
        return result.with_text(f"{shown} was cancelled and left nothing behind.")
    hint = "Call wait_for_job until it has ended."
    result = Cancellation(zone=place.name, job_id=clean_text(job.job_id), status="cancelling", hint=hint)
    return result.with_text(f"{shown} is being cancelled and ends in a moment.", hint)


async def find_job(state: ServerState, job_id: str, zone: str = "") -> tuple[Zone, Job]:
    """Return a job and its zone, looking in every zone unless one is given.

    Raises NotFound if all zones have answered, else Unavailable, which names those that have not.
    """
    names = [state.zones.get(zone).name] if zone else state.zones.names
    found: list[tuple[Zone, Job]] = []
    errors: dict[str, ZoneError] = {}

    async def look(name: str) -> None:
        try:
            place = state.zones.get(name)
            found.append((place, await place.provider.get_job(job_id)))
            tasks.cancel_scope.cancel()
        except NotFound:
            pass
        except ZoneError as error:
            errors[name] = error

    async with anyio.create_task_group() as tasks:
        for name in names:
            tasks.start_soon(look, name)
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


def _by_zone(places: dict[str, Zone], job_ids: Iterable[str]) -> list[tuple[Zone, list[str]]]:
    groups: dict[str, tuple[Zone, list[str]]] = {}
    for job_id in job_ids:
        groups.setdefault(places[job_id].name, (places[job_id], []))[1].append(job_id)
    return list(groups.values())


async def _wait(places: dict[str, Zone], timeout_seconds: float, progress: ProgressReport) -> dict[str, Job]:
    """Wait in all zones at once. Raises the first error."""
    jobs: dict[str, Job] = {}
    errors: list[ZoneError] = []

    async def note(some: tuple[Job, ...]) -> None:
        jobs.update({job.job_id: job for job in some})
        if len(jobs) >= len(places):
            await progress.send(list(jobs.values()))

    async def wait_in(place: Zone, job_ids: list[str]) -> None:
        try:
            jobs.update(zip(job_ids, await place.watcher.wait(job_ids, timeout_seconds, note), strict=True))
        except ZoneError as error:
            errors.append(error.within(place.name))
            tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        for place, job_ids in _by_zone(places, places):
            tasks.start_soon(wait_in, place, job_ids)
    if errors:
        raise errors[0]
    return jobs


async def _note_ends(state: ServerState, places: dict[str, Zone], jobs: dict[str, Job]) -> None:
    """Record the ends of destructive jobs; others do not concern the guard, which need not be started for them."""
    ended = [job_id for job_id, job in jobs.items() if job.is_finished and job.action in DESTRUCTIVE]
    for place, job_ids in _by_zone(places, ended):
        await state.note_ends(place, [jobs[job_id] for job_id in job_ids])


async def _find_made(places: dict[str, Zone], jobs: dict[str, Job]) -> tuple[list[tuple[str, Snapshot]], list[str]]:
    """Return the snapshots made by these jobs, each with its zone's name, and the zones that did not list all of them."""
    backups = [job_id for job_id, job in jobs.items() if job.is_successful and job.action == JobAction.CREATE]
    groups = _by_zone(places, backups)
    found: dict[str, tuple[list[Snapshot], bool]] = {}

    async def look(place: Zone, job_ids: list[str]) -> None:
        ids = [one for job_id in job_ids for one in jobs[job_id].resource_ids]
        found[place.name] = await try_find_snapshots(place.provider, ids)

    async with anyio.create_task_group() as tasks:
        for place, job_ids in groups:
            tasks.start_soon(look, place, job_ids)
    made = [(place.name, one) for place, _ in groups for one in found[place.name][0]]
    return made, [place.name for place, _ in groups if not found[place.name][1]]


def _made_line(point: Made) -> str:
    """Return a line about a snapshot's consistency, "" if the zone does not report it."""
    if point.consistency is None:
        return ""
    verdict = "; does not count as good" if point.counts_as_good is False else ""
    return f"Snapshot {point.snapshot_id} in zone {point.zone}: {point.consistency}{verdict}"


def job_line(row: JobRow) -> str:
    """Return a job as a line of text."""
    parts = [f"Job {row.job_id} in zone {row.zone}: {row.action}", row.status]
    if row.status not in FINAL_JOB_STATUSES:
        if row.percent is not None:
            parts.append(f"{row.percent:.0f} %")
        if row.phase:
            parts.append(row.phase)
        if row.done_bytes is not None and row.total_bytes:
            parts.append(f"{format_bytes(row.done_bytes)} of {format_bytes(row.total_bytes)}")
    if row.error:
        parts.append(f"reason: {quoted(row.error, MESSAGE_CHARACTERS)}")
    if row.resource_ids:
        parts.append(", ".join(row.resource_ids))
    return "  ".join(parts)


def _unreachable_text(errors: dict[str, ZoneError]) -> str:
    return " ".join(
        f"Zone {name} did not answer: {clean_text(error.message.removeprefix(f'Zone {name}: '), MESSAGE_CHARACTERS)}"
        for name, error in errors.items()
    )
