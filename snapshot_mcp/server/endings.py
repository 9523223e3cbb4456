"""What came of submitted jobs: a bounded wait with progress, the outcome, what was made, and the next step.

A wait gets what is left of the call's time. It never turns a job that was submitted into an error: if it cannot be followed,
the result says so and has the job's id.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Self, TypeVar

import anyio
from mcp.server.mcpserver import Context
from pydantic import Field

from snapshot_mcp.contract.errors import NotFound, ZoneError
from snapshot_mcp.contract.models import MAX_LIMIT, Job, Page, ResourceFilter, Snapshot, SnapshotFilter
from snapshot_mcp.contract.states import FINAL_JOB_STATUSES, JobAction, JobStatus
from snapshot_mcp.contract.text import MESSAGE_CHARACTERS, clean_text, quoted
from snapshot_mcp.server.deadline import CALL_SECONDS, LOOKUP_SECONDS, seconds_left
from snapshot_mcp.server.progress import ProgressReport
from snapshot_mcp.server.results import RECOVER, JobRow, Made, Outcome, mixture_warning
from snapshot_mcp.server.state import ServerState, state_of
from snapshot_mcp.zones import Zone, finding

LEAVING_SECONDS = 1.0
"""How long waits go on once the host has closed its end: some jobs end in a moment."""

MAX_MADE = 20
"""Most rows of `made`; a list tool has the others."""

WaitSeconds = Annotated[float, Field(ge=0, le=CALL_SECONDS, description="Wait for the end")]

WAIT_HINT = "Submitted, not done. Call wait_for_job with this job_id."

NEXT_STEPS: dict[str, str] = {
    JobAction.CREATE: "The restore point is complete; show_chain shows it in its chain.",
    JobAction.APPLY: "The disk has the snapshot's content again; show_chain shows the new head.",
    JobAction.DELETE: "Deleted; recover_snapshots brings it back if the zone still keeps it.",
    JobAction.CREATE_VOLUME: "The new volume is in list_resources.",
    JobAction.CAPTURE_INSTANCE: "The image is in list_resources with kind image.",
    JobAction.VERIFY: "Read back whole: they can be restored.",
    JobAction.COPY: "These are whole in the copy elsewhere, read back from there.",
    RECOVER: "Recovered; show_chain shows them.",
}

DESTRUCTIVE = {JobAction.DELETE, JobAction.APPLY}

Query = TypeVar("Query", SnapshotFilter, ResourceFilter)
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class JobResult:
    """What came of one job; without a wait only `hint` is set. `error` is the reason of a failed job."""

    outcome: Outcome | None = None
    made: list[Made] | None = None
    error: str | None = None
    hint: str = WAIT_HINT

    def and_say(self, warning: str) -> Self:
        """Return it with a warning in its hint, unless it is there already."""
        return self if warning in self.hint else replace(self, hint=f"{self.hint} {warning}".strip())

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of a result."""
        return {"outcome": self.outcome, "made": self.made, "error": self.error, "hint": self.hint}

    @property
    def lines(self) -> list[str]:
        """All of it as lines of text, the hint last."""
        reason = f" Reason: {quoted(self.error, MESSAGE_CHARACTERS)}." if self.error else ""
        outcome = [f"Outcome: {self.outcome}.{reason}"] if self.outcome else []
        return [*outcome, *(one.line for one in self.made or ()), self.hint]


async def follow(
    ctx: Context[Any, Any], zone: Zone, job: Job, wait_seconds: float, *, source: Snapshot | None = None
) -> JobResult:
    """Wait for a job that was just submitted, within what is left of the call; return what came of it.

    `source` is the snapshot that an export has the content of. Raises no ZoneError.
    """
    if not wait_seconds:
        return JobResult()
    places, latest = {job.job_id: zone}, {job.job_id: job}
    seconds = min(wait_seconds, seconds_left() - LOOKUP_SECONDS)
    trouble = ""
    with anyio.move_on_after(max(0.0, seconds)):
        try:
            await wait_in_zones(ctx, places, max(0.0, seconds), latest)
        except NotFound as error:
            return JobResult(hint=clean_text(error, MESSAGE_CHARACTERS))
        except ZoneError as error:
            trouble = f"The job could not be followed: {clean_text(error.message, MESSAGE_CHARACTERS)} It continues. "
    job = latest[job.job_id]
    await note_ends(state_of(ctx), places, latest)
    row = JobRow.of(job, zone.name)
    outcome, hint = outcome_of([row])
    with anyio.move_on_after(max(LOOKUP_SECONDS, seconds_left())):
        found = await find_made(places, latest, source)
        return JobResult(outcome, found.made, row.error, trouble + hint + found.hint)
    return JobResult(outcome, None, row.error, trouble + hint + NOT_LISTED.format(zone.name))


def outcome_of(rows: Sequence[JobRow]) -> tuple[Outcome, str]:
    """Return the outcome of all jobs together, and the next step."""
    has_failed = any(row.status == JobStatus.FAILED for row in rows)
    if running := [row for row in rows if row.status not in FINAL_JOB_STATUSES]:
        hint = f"Still running: call wait_for_job again for {', '.join(row.job_id for row in running)}."
        if unknown := sorted({quoted(row.status) for row in running} - set(map(quoted, JobStatus))):
            hint += f" Unknown status {', '.join(unknown)}: check with list_snapshots what came of it."
        return "failed" if has_failed else "still_running", hint
    if has_failed:
        if all(row.is_cancelled for row in rows if row.status == JobStatus.FAILED):
            return "failed", "It was cancelled and left nothing behind."
        return "failed", "Report the reason verbatim. Do not retry until the cause is fixed."
    return "successful", " ".join(dict.fromkeys(NEXT_STEPS[row.action] for row in rows if row.action in NEXT_STEPS))


def by_zone(places: dict[str, Zone], job_ids: Iterable[str]) -> list[tuple[Zone, list[str]]]:
    """Return the jobs of each zone."""
    groups: dict[str, tuple[Zone, list[str]]] = {}
    for job_id in job_ids:
        groups.setdefault(places[job_id].name, (places[job_id], []))[1].append(job_id)
    return list(groups.values())


async def wait_in_zones(
    ctx: Context[Any, Any], places: dict[str, Zone], timeout_seconds: float, latest: dict[str, Job]
) -> None:
    """Wait in all zones at once and keep the jobs' states in `latest`; not for long once the host leaves.

    Raises the first error.
    """
    errors: list[ZoneError] = []
    progress = ProgressReport(ctx)

    async def note(some: tuple[Job, ...]) -> None:
        latest.update({job.job_id: job for job in some})
        if len(latest) >= len(places):
            await progress.send(list(latest.values()))

    async def wait_in(place: Zone, job_ids: list[str]) -> None:
        try:
            latest.update(zip(job_ids, await place.watcher.wait(job_ids, timeout_seconds, note), strict=True))
        except ZoneError as error:
            errors.append(error.within(place.name))
            tasks.cancel_scope.cancel()

    async def watch_the_host() -> None:
        await state_of(ctx).leaving.wait()
        await anyio.sleep(LEAVING_SECONDS)
        tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as around:
        around.start_soon(watch_the_host)
        async with anyio.create_task_group() as tasks:
            for place, job_ids in by_zone(places, places):
                tasks.start_soon(wait_in, place, job_ids)
        around.cancel_scope.cancel()
    if errors:
        raise errors[0]


async def note_ends(state: ServerState, places: dict[str, Zone], jobs: dict[str, Job]) -> None:
    """Record the ends of jobs in the history, and those of destructive ones in the guard's records.

    Others do not concern the guard, which need not be started for them.
    """
    if state.history:
        for place, job_ids in by_zone(places, jobs):
            await state.history.note_ends(place, [jobs[job_id] for job_id in job_ids])
    ended = [job_id for job_id, job in jobs.items() if job.is_finished and job.action in DESTRUCTIVE]
    for place, job_ids in by_zone(places, ended):
        await state.note_ends(place, [jobs[job_id] for job_id in job_ids])


NOT_LISTED = " The consistency could not be read in {}: list_snapshots shows it."


@dataclass(slots=True)
class MadeRows:
    """What jobs have made, as far as their zones list it; `unseen` are the zones that did not list all of it."""

    rows: list[Made] = field(default_factory=list)
    snapshots: list[Snapshot] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)

    @property
    def hint(self) -> str:
        """What has to be said about it, beginning with a space."""
        text = ""
        if warning := mixture_warning(self.snapshots):
            text += f" {warning} Back up again while nothing else has the disk open."
        if self.unseen:
            text += NOT_LISTED.format(", ".join(self.unseen))
        if (more := len(self.rows) - MAX_MADE) > 0:
            text += f" {more} more were made: list_snapshots shows them."
        return text

    @property
    def made(self) -> list[Made] | None:
        """The rows of a result."""
        return self.rows[:MAX_MADE] or None


async def find_made(places: dict[str, Zone], jobs: dict[str, Job], source: Snapshot | None = None) -> MadeRows:
    """Look up what the successful jobs have made, in all zones at once. Raises no ZoneError."""
    groups = by_zone(places, [job_id for job_id, job in jobs.items() if job.is_successful])
    label = len({zone.name for zone in places.values()}) > 1
    parts = [MadeRows() for _ in groups]
    async with anyio.create_task_group() as tasks:
        for part, (place, job_ids) in zip(parts, groups, strict=True):
            name = place.name if label else None
            tasks.start_soon(_look_in, place, [jobs[one] for one in job_ids], name, source, part)
    found = MadeRows()
    for part in parts:
        found.rows += part.rows
        found.snapshots += part.snapshots
        found.unseen += part.unseen
    return found


async def _look_in(
    place: Zone, jobs: Sequence[Job], label: str | None, source: Snapshot | None, into: MadeRows
) -> None:
    snapshots, is_whole = await finding.try_find_snapshots(
        place.provider, [one for job in jobs for one in _snapshots_of(job)]
    )
    into.snapshots += snapshots
    into.rows += [Made.of(one, label) for one in snapshots]
    into.unseen += [] if is_whole else [place.name]
    exports: dict[JobAction, Callable[[ResourceFilter], Awaitable[Page[Any]]]] = {
        JobAction.CREATE_VOLUME: place.provider.list_volumes,
        JobAction.CAPTURE_INSTANCE: place.provider.list_images,
    }
    for action, list_page in exports.items():
        ids = tuple(dict.fromkeys(one for job in jobs if job.action == action for one in job.resource_ids))
        if ids:
            query = ResourceFilter(ids=ids[:MAX_LIMIT], limit=MAX_LIMIT)
            into.rows += [Made.of_export(one, label, source) for one in await try_list(list_page, query)]


def _snapshots_of(job: Job) -> list[str]:
    """Return the ids of the snapshots that a job has made or brought back."""
    if job.action in {JobAction.CREATE, JobAction.LEASE}:
        return list(job.resource_ids)
    safety = job.details.get("safety_snapshots")
    return [str(one) for one in safety.values()] if job.action == JobAction.APPLY and isinstance(safety, dict) else []


async def try_list(list_page: Callable[[Query], Awaitable[Page[Item]]], query: Query) -> tuple[Item, ...]:
    """Return a page's items for details that the call can do without, () if the zone does not answer soon."""
    with anyio.move_on_after(finding.TRY_SECONDS):
        with suppress(ZoneError):
            return (await list_page(query)).items
    return ()
