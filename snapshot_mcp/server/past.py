"""The history as tools write and show it: what a call has submitted, and the jobs of a time.

Who asked and who approved is shown to the one who asked, to approvers, and to everybody on a server without tokens.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from mcp.server.mcpserver import Context
from mcp.types import CallToolResult

from snapshot_mcp.contract.errors import Unsupported, ZoneError
from snapshot_mcp.contract.models import Job, Resource, Snapshot, format_time
from snapshot_mcp.contract.states import JobAction
from snapshot_mcp.contract.text import MESSAGE_CHARACTERS, clean_text, quoted
from snapshot_mcp.guard import GuardedOutcome
from snapshot_mcp.server.callers import sees_names_of
from snapshot_mcp.server.elicitation import HostClient
from snapshot_mcp.server.results import JobList, ListedJob, Unreachable
from snapshot_mcp.server.state import state_of
from snapshot_mcp.zones import Zone

if TYPE_CHECKING:
    from snapshot_mcp.history.entry import Entry, Thing

MAX_THINGS = 8
"""Disks or snapshots named in a row; the others are counted."""


async def note_submitted(
    ctx: Context[Any, Any],
    zone: Zone,
    job: Job,
    action: JobAction,
    *,
    disks: Iterable[Resource] = (),
    snapshots: Sequence[Snapshot] = (),
    makes: str = "",
) -> None:
    """Note in the history that this call has submitted a job; `makes` is the name of what an export makes."""
    history = state_of(ctx).history
    if history is None:
        return
    from snapshot_mcp.history.entry import Entry, Thing

    caller = HostClient(ctx)
    sources = {one.resource.resource_id: one.resource.resource_name for one in snapshots if one.resource.resource_id}
    used = {one.snapshot_id for one in snapshots}
    known = Entry(
        location=zone.provider.location,
        zone=zone.name,
        job_id=job.job_id,
        action=action,
        disks=tuple(map(Thing.of, disks)) or tuple(Thing(*one) for one in sources.items()),
        snapshots=tuple(map(Thing.of, snapshots)),
        made=tuple(Thing(one, makes) for one in job.resource_ids if makes and one not in used),
        asked_by=caller.principal,
        asked_through=f"{caller.name} {caller.version}".strip(),
    )
    await history.note(zone, job, known)


async def note_guarded(ctx: Context[Any, Any], outcome: GuardedOutcome) -> None:
    """Note in the history the jobs that a guarded call has started: the guard's records know all about them."""
    history = state_of(ctx).history
    if history is not None and outcome.approval_id and (outcome.job_id or outcome.safety_job_id):
        await history.note_approval(outcome.approval_id)


async def list_finished(ctx: Context[Any, Any], since: str, zone: str) -> CallToolResult:
    """Return the jobs that were submitted or have ended since then, newest first."""
    state = state_of(ctx)
    if state.history is None:
        raise Unsupported("This server keeps no history.", hint="list_jobs without finished shows what is running.")
    from snapshot_mcp.history.entry import MAX_ROWS, parse_since

    names = [state.zones.get(zone).name] if zone else list(state.zones.names)
    for name in names:
        await _note_ends(ctx, name)
    start = parse_since(since, datetime.now(UTC))
    recalled = await state.history.recall(start, zone)
    entries = [one if sees_names_of(one.asked_by) else one.without_names() for one in recalled.entries]
    rows = [past_row(one) for one in entries]
    unreachable = [
        Unreachable(zone=name, reason=clean_text(error.message, MESSAGE_CHARACTERS))
        for name, error in recalled.errors.items()
    ]
    hints = [
        f"Only the newest {MAX_ROWS} of {recalled.total_count}: give a later since."
        if recalled.total_count > len(rows)
        else "",
        f"Who approved is not known: {clean_text(recalled.problem, MESSAGE_CHARACTERS)}" if recalled.problem else "",
        "wait_for_job follows what is still working." if any(row.status == "working" for row in rows) else "",
    ]
    hint = " ".join(filter(None, hints))
    result = JobList(since=format_time(start), jobs=rows, unreachable=unreachable, hint=hint)
    where = ", ".join(names)
    head = f"{len(rows)} jobs in {where} since {result.since}:" if rows else f"No jobs in {where} since {result.since}."
    lines = [f"Zone {one.zone} did not answer: {one.reason}" for one in unreachable]
    return result.with_text(head, *map(past_line, rows), *lines, hint)


async def _note_ends(ctx: Context[Any, Any], name: str) -> None:
    state = state_of(ctx)
    with suppress(ZoneError):  # a zone with unusable settings: the recall names it
        await state.note_ends(state.zones.get(name))


def past_row(entry: "Entry") -> ListedJob:
    """Build a row from the history."""
    return ListedJob(
        job_id=clean_text(entry.job_id),
        zone=clean_text(entry.zone),
        action=entry.action_in_words,
        status=clean_text(entry.status) or "not known yet",
        created_at=format_time(entry.submitted) or None,
        finished_at=format_time(entry.ended) or None,
        error=entry.error_shown or None,
        disks=_shown(entry.disks),
        snapshots=_shown(entry.snapshots),
        made=_shown(entry.made),
        asked_by=clean_text(entry.asked_by) or None,
        asked_through=clean_text(entry.asked_through) or None,
        approved_by=clean_text(entry.approved_by) or None,
        approved_through=clean_text(entry.door) or None,
    )


def _shown(things: "Sequence[Thing]") -> list[str] | None:
    shown = [one.shown for one in things[:MAX_THINGS]]
    return [*shown, f"{len(things) - MAX_THINGS} more"] if len(things) > MAX_THINGS else shown or None


def past_line(row: ListedJob) -> str:
    """Return a row of the history as a line of text: all that is in it."""
    times = " to ".join(filter(None, (row.created_at, row.finished_at)))
    of = f" of {', '.join(row.disks)}" if row.disks else ""
    parts = [times, f"{row.action}{of}: {', '.join(row.snapshots or ())}".removesuffix(": ")]
    parts += [f"made {', '.join(row.made)}"] if row.made else []
    parts += [row.status + (f", reason: {quoted(row.error, MESSAGE_CHARACTERS)}" if row.error else "")]
    parts += [f"asked by {_who(row.asked_by, row.asked_through)}"] if row.asked_by else []
    parts += [f"approved by {_who(row.approved_by, row.approved_through)}"] if row.approved_by else []
    return "  ".join([*parts, f"job {row.job_id} in zone {row.zone}"])


def _who(name: str | None, through: str | None) -> str:
    return f"{quoted(name)} ({through})" if through else quoted(name)
