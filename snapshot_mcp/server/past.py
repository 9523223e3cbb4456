"""The history as tools write and show it: what a call has submitted, and the jobs of a time.

Who asked and who approved is shown to the one who asked, to approvers, and to everybody on a server without tokens.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from mcp.server.mcpserver import Context
from mcp.types import CallToolResult

from snapshot_mcp.contract.errors import Unsupported, ZoneError
from snapshot_mcp.contract.models import Job, Resource, Snapshot, format_time
from snapshot_mcp.contract.states import JobAction
from snapshot_mcp.contract.text import MESSAGE_CHARACTERS, clean_text
from snapshot_mcp.guard import GuardedOutcome
from snapshot_mcp.server.callers import sees_names_of
from snapshot_mcp.server.elicitation import HostClient
from snapshot_mcp.server.lines import count_of
from snapshot_mcp.server.results import JobList, ListedJob, Unreachable
from snapshot_mcp.server.state import state_of
from snapshot_mcp.zones import Zone


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
    rows = [ListedJob(**one.as_dict()) for one in entries]
    unreachable = [
        Unreachable(zone=name, reason=clean_text(error.message, MESSAGE_CHARACTERS))
        for name, error in recalled.errors.items()
    ]
    hints = [
        f"Only the newest {MAX_ROWS} of {recalled.total_count}: give a later since."
        if recalled.total_count > len(rows)
        else "",
        f"Who asked and approved may be missing: {clean_text(recalled.problem, MESSAGE_CHARACTERS)}"
        if recalled.problem
        else "",
        "wait_for_job follows what is still working." if any(row.status == "working" for row in rows) else "",
    ]
    hint = " ".join(filter(None, hints))
    result = JobList(since=format_time(start), jobs=rows, unreachable=unreachable, hint=hint)
    where = ", ".join(names)
    head = (
        f"{count_of(len(rows), 'job')} in {where} since {result.since}:"
        if rows
        else f"No jobs in {where} since {result.since}."
    )
    lines = [f"Zone {one.zone} did not answer: {one.reason}" for one in unreachable]
    return result.with_text(head, *(one.in_words() for one in entries), *lines, hint)


async def _note_ends(ctx: Context[Any, Any], name: str) -> None:
    state = state_of(ctx)
    with suppress(ZoneError):  # a zone with unusable settings: the recall names it
        await state.note_ends(state.zones.get(name))
