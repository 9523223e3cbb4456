"""Jobs: waiting for them, listing the unfinished ones, cancelling them.

The server waits, not the model: a wait is pushed, bounded, tells its progress, and "still running" is a result. Without a
zone a job is looked for in every zone, and one that cannot be reached is named.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Literal

import anyio
from mcp.server.mcpserver import Context
from mcp.types import CallToolResult
from pydantic import Field

from snapshot_mcp.contract.errors import NotFound, Unavailable, ZoneError
from snapshot_mcp.contract.models import Job, Snapshot
from snapshot_mcp.contract.states import FINAL_JOB_STATUSES, JobAction, JobStatus
from snapshot_mcp.contract.text import MESSAGE_CHARACTERS, clean_text, format_bytes, quoted
from snapshot_mcp.server.face import Face, face_of
from snapshot_mcp.server.results import Cancellation, JobList, JobRow, Made, Unreachable, Waited, mixture_warning
from snapshot_mcp.zones import Zone
from snapshot_mcp.zones.finding import try_find_snapshots

AnyZone = Annotated[str, Field(description="Zone; every one if left out")]
Tell = Callable[[dict[str, Job]], Awaitable[None]]

DEFAULT_WAIT_SECONDS = 25.0
MAX_WAIT_SECONDS = 50.0
"""Hosts give a call up after 60 seconds; the answer must be back before."""

DESTRUCTIVE = {JobAction.DELETE, JobAction.APPLY}

NEXT_STEPS = {
    JobAction.CREATE: "The restore point is there; show_chain shows where it stands.",
    JobAction.APPLY: "The disk holds the snapshot's content again; show_chain shows where the head is now.",
    JobAction.DELETE: "Gone; recover_snapshots can bring it back while the zone keeps it.",
    JobAction.CREATE_VOLUME: "The new volume is in list_resources.",
    JobAction.CAPTURE_INSTANCE: "The image is in list_resources with kind image.",
    JobAction.LEASE: "They are back; show_chain shows them.",
}


async def wait_for_job(
    ctx: Context,
    job_ids: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=100)],
    timeout_seconds: Annotated[float, Field(ge=0, le=MAX_WAIT_SECONDS)] = DEFAULT_WAIT_SECONDS,
    zone: AnyZone = "",
) -> Annotated[CallToolResult, Waited]:
    """Wait until these jobs have ended, with progress. "still_running" means: call it again. A job goes on whether or not
    anybody waits."""
    wanted = list(dict.fromkeys(job_ids))
    places = await _find_zones(face_of(ctx), wanted, zone)
    told = -1.0

    async def tell(jobs: dict[str, Job]) -> None:
        nonlocal told
        if len(jobs) < len(wanted):
            return
        percent = round(sum(_fraction(job) for job in jobs.values()) / len(jobs) * 100, 1)
        if percent > told:
            told = percent
            await ctx.report_progress(percent, 100, _progress_text(list(jobs.values())))

    jobs = await _wait(places, timeout_seconds, tell)
    await _note_ends(face_of(ctx), places, jobs)
    rows = [JobRow.of(jobs[job_id], places[job_id].name) for job_id in wanted]
    failed = [row for row in rows if row.status == JobStatus.FAILED]
    running = [one for one in jobs.values() if not one.is_finished]
    outcome: Literal["successful", "failed", "still_running"] = (
        "failed" if failed else "still_running" if running else "successful"
    )
    if running:
        hint = f"Still running: call wait_for_job again for {', '.join(clean_text(one.job_id) for one in running)}."
        if strange := sorted({quoted(one.status) for one in running if one.status not in set(JobStatus)}):
            hint += (
                f" What the status {', '.join(strange)} means is not known: see with list_snapshots what came of it."
            )
    elif failed:
        hint = "Tell the reason as it is. Repeat nothing before its cause is gone."
    else:
        hint = " ".join(
            dict.fromkeys(NEXT_STEPS[JobAction(row.action)] for row in rows if row.action in set(JobAction))
        )
    made, unseen = await _look_at_made(places, jobs)
    if warning := mixture_warning(one for _, one in made):
        hint += f" {warning} Back up again while nothing else has the disk open."
    if unseen:
        hint += f" How consistent each one is could not be read in {', '.join(unseen)}: list_snapshots tells."
    points = [Made.of(one, name) for name, one in made]
    result = Waited(outcome=outcome, jobs=rows, made=points or None, hint=hint)
    return result.with_text(*map(job_line, rows), *map(_made_line, points), hint)


async def list_jobs(ctx: Context, zone: AnyZone = "") -> Annotated[CallToolResult, JobList]:
    """List the jobs that have not ended."""
    face = face_of(ctx)
    names = [face.zone(zone).name] if zone else face.zones.names
    found: dict[str, tuple[Job, ...]] = {}
    errors: dict[str, ZoneError] = {}

    async def look(name: str) -> None:
        try:
            found[name] = await face.zone(name).provider.list_unfinished_jobs()
            await face.note_ends(face.zone(name))
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
    """Stop a job: one that still waits, a running backup or export, or a roll-back that has not begun to overwrite the disk.
    It ends as failed with the code cancelled and leaves nothing behind."""
    place, _ = await find_job(face_of(ctx), job_id, zone)
    job = await place.provider.cancel_job(job_id)
    shown = f"Job {clean_text(job.job_id)} ({clean_text(job.action)}) in zone {place.name}"
    if job.is_finished:
        result = Cancellation(zone=place.name, job_id=clean_text(job.job_id), status="cancelled")
        return result.with_text(f"{shown} is cancelled and has left nothing behind.")
    hint = "Call wait_for_job until it has ended."
    result = Cancellation(zone=place.name, job_id=clean_text(job.job_id), status="cancelling", hint=hint)
    return result.with_text(f"{shown} has been told to stop and ends in a moment.", hint)


async def find_job(face: Face, job_id: str, zone: str = "") -> tuple[Zone, Job]:
    """Return a job and its zone, looked for in every zone unless one is named.

    Raises NotFound when all zones have answered, Unavailable naming those that have not.
    """
    names = [face.zone(zone).name] if zone else face.zones.names
    found: list[tuple[Zone, Job]] = []
    errors: dict[str, ZoneError] = {}

    async def look(name: str) -> None:
        try:
            place = face.zone(name)
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
        f"Job {quoted(job_id)} is in none of the zones that answered. {_unreachable_text(errors)}",
        hint="Ask again, or name its zone.",
    )


async def _find_zones(face: Face, job_ids: Sequence[str], zone: str) -> dict[str, Zone]:
    if zone or len(face.zones.names) == 1:
        return dict.fromkeys(job_ids, face.zone(zone))
    return {job_id: (await find_job(face, job_id))[0] for job_id in job_ids}


async def _wait(places: dict[str, Zone], timeout_seconds: float, tell: Tell) -> dict[str, Job]:
    """Wait in all zones at once; the first error is the wait's."""
    by_zone: dict[str, list[str]] = {}
    for job_id, place in places.items():
        by_zone.setdefault(place.name, []).append(job_id)
    jobs: dict[str, Job] = {}
    errors: list[ZoneError] = []

    async def note(some: tuple[Job, ...]) -> None:
        jobs.update({job.job_id: job for job in some})
        await tell(jobs)

    async def wait_in(place: Zone, job_ids: list[str]) -> None:
        try:
            jobs.update(zip(job_ids, await place.watcher.wait(job_ids, timeout_seconds, note), strict=True))
        except ZoneError as error:
            if place.name not in error.message:
                error.message = f"Zone {place.name}: {error.message}"
            errors.append(error)
            tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        for job_ids in by_zone.values():
            tasks.start_soon(wait_in, places[job_ids[0]], job_ids)
    if errors:
        raise errors[0]
    return jobs


async def _note_ends(face: Face, places: dict[str, Zone], jobs: dict[str, Job]) -> None:
    """Have the ends recorded of what people agreed to; other jobs are no business of the guard's, which stays asleep."""
    by_zone: dict[str, list[Job]] = {}
    for job_id, job in jobs.items():
        if job.is_finished and job.action in DESTRUCTIVE:
            by_zone.setdefault(places[job_id].name, []).append(job)
    for name, seen in by_zone.items():
        await face.note_ends(face.zone(name), seen)


async def _look_at_made(
    places: dict[str, Zone], jobs: dict[str, Job]
) -> tuple[list[tuple[str, Snapshot]], tuple[str, ...]]:
    """The snapshots that these jobs have made, each with its zone's name, and the zones that did not list all of them."""
    by_zone: dict[str, list[str]] = {}
    for job_id, job in jobs.items():
        if job.is_successful and job.action == JobAction.CREATE:
            by_zone.setdefault(places[job_id].name, []).extend(job.resource_ids)
    zones = {place.name: place for place in places.values()}
    found: dict[str, tuple[list[Snapshot], bool]] = {}

    async def look(name: str) -> None:
        found[name] = await try_find_snapshots(zones[name].provider, by_zone[name])

    async with anyio.create_task_group() as tasks:
        for name in by_zone:
            tasks.start_soon(look, name)
    made = [(name, one) for name in by_zone for one in found[name][0]]
    return made, tuple(name for name in by_zone if not found[name][1])


def _made_line(point: Made) -> str:
    """How far a snapshot is one state of its disk; "" where the zone does not say."""
    if point.consistency is None:
        return ""
    verdict = "; does not count as good" if point.counts_as_good is False else ""
    return f"Snapshot {point.snapshot_id} in zone {point.zone}: {point.consistency}{verdict}"


def job_line(row: JobRow) -> str:
    """One job as a line of text."""
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


def _fraction(job: Job) -> float:
    if job.is_successful:
        return 1.0
    return min(job.progress.fraction, 0.99) if job.progress else 0.0


def _progress_text(jobs: Sequence[Job]) -> str:
    running = [job for job in jobs if not job.is_finished]
    if not running:
        return ", ".join(dict.fromkeys(clean_text(job.status) for job in jobs))
    if len(running) == 1 and running[0].progress:
        progress = running[0].progress
        size = f" {format_bytes(progress.done)} of {format_bytes(progress.total)}" if progress.unit == "bytes" else ""
        return f"{clean_text(progress.phase) or running[0].status}{size}"
    if len(jobs) == 1:
        return clean_text(running[0].status)
    return f"{len(running)} of {len(jobs)} still running"


def _unreachable_text(errors: dict[str, ZoneError]) -> str:
    return " ".join(
        f"Zone {name} did not answer: {clean_text(error.message.removeprefix(f'Zone {name}: '), MESSAGE_CHARACTERS)}"
        for name, error in errors.items()
    )
