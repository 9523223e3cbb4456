"""`JobHistory`: notes what is submitted, and recalls the jobs of a time from the register, the guard and the zones.

Noting is best effort: a job that was submitted does not fail because it could not be noted. Recalling asks each zone once.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING

import anyio
from anyio.to_thread import run_sync as in_thread

from snapshot_mcp.contract.errors import NotFound, Unavailable, Unsupported, ZoneError
from snapshot_mcp.contract.models import Job
from snapshot_mcp.contract.provider import Feature
from snapshot_mcp.contract.states import JobAction
from snapshot_mcp.contract.values import parse_time
from snapshot_mcp.ground.clock import Clock, SystemClock
from snapshot_mcp.guard import State
from snapshot_mcp.history.entry import FORGOTTEN, MAX_ROWS, Entry, Thing, merge
from snapshot_mcp.history.register import JobRegister
from snapshot_mcp.zones import Zone, Zones
from snapshot_mcp.zones.finding import try_find_snapshots

if TYPE_CHECKING:
    from snapshot_mcp.guard import Approval, Guard

ZONE_SECONDS = 20.0
"""How long a zone may take to answer; the others are not kept waiting longer."""

CONCURRENT_READS = 8
"""Jobs that a zone is asked for at once."""

MAX_ASKED = 100
"""Jobs without a known end that a zone is asked for in one call."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Recalled:
    """The newest jobs of a time. `total_count`: all that are known; `errors`: zones that did not answer, by name.

    `problem`: why it may not be known who asked and approved, "" normally.
    """

    entries: tuple[Entry, ...]
    total_count: int
    errors: dict[str, ZoneError] = field(default_factory=dict)
    problem: str = ""


class JobHistory:
    """The history of a home, over its zones. `guard` returns its guard."""

    def __init__(
        self,
        register: JobRegister,
        zones: Zones,
        guard: "Callable[[], Awaitable[Guard]]",
        clock: Clock | None = None,
    ) -> None:
        self._register = register
        self._zones = zones
        self._guard = guard
        self._clock = clock or SystemClock()

    async def note(self, zone: Zone, job: Job, known: Entry) -> None:
        """Note a job that was just submitted to the zone, with what is `known` of it."""
        now = self._clock.read()  # a provider's clock does not decide what is remembered
        entry = replace(known, submitted=now.time, boot=now.boot, uptime=str(now.uptime))
        async with _best_effort():
            await in_thread(self._register.note, [entry.completed(Entry.of(job, zone.name, zone.provider.location))])

    async def find_create(self, zone: Zone, resource_ids: Sequence[str], name: str, seconds: float) -> list[str] | None:
        """Return the snapshots of the last create of these disks under this name that was submitted from here.

        [] if that is longer ago than `seconds`, None if there was none.
        """
        with suppress(ZoneError):
            for one in await in_thread(self._register.list_creates, zone.provider.location):
                is_same = [thing.id for thing in one.disks] == list(resource_ids)
                if is_same and one.snapshots and one.snapshots[0].name == name:
                    is_recent = not one.moment.is_over(self._clock.read(), seconds)
                    return [thing.id for thing in one.snapshots] if is_recent else []
        return None

    async def note_approval(self, approval_id: str) -> None:
        """Note the job of an approval, and that of its safety snapshot."""
        async with _best_effort():
            approval = await (await self._guard()).get_approval(approval_id)
            await in_thread(self._register.note, entries_of(approval))

    async def note_ends(self, zone: Zone, jobs: Iterable[Job]) -> None:
        """Note how jobs ended that were submitted from here."""
        ended = {job.job_id: job for job in jobs if job.is_finished}
        if ended:
            async with _best_effort():
                found = await in_thread(self._register.unended, zone.provider.location, list(ended))
                await in_thread(self._register.replace, [one.with_end(ended[one.job_id]) for one in found])

    async def recall(self, since: datetime, zone: str = "") -> Recalled:
        """Return the jobs that were submitted or have ended since then, in one zone or all.

        Raises the error of the only zone that is asked, unless the register knows something of it.
        """
        places, errors = self._places([zone] if zone else self._zones.names)
        known, problem = await self._known(since)
        if zone:
            wanted = {place.provider.location for place in places}
            known = [one for one in known if one.location in wanted or (not wanted and one.zone == zone)]
        answers: dict[str, list[Entry]] = {}
        unlisted: list[int] = []

        async def ask(place: Zone) -> None:
            try:
                answers[place.name], more = await self._ask(place, since, known)
                unlisted.append(more)
            except ZoneError as error:
                errors[place.name] = error

        async with anyio.create_task_group() as tasks:
            for place in places:
                tasks.start_soon(ask, place)
        if errors and not answers and not known:
            raise next(iter(errors.values()))
        told = {(one.location, one.job_id): one for entries in answers.values() for one in entries}
        settled = [_settled(one, told.get((one.location, one.job_id))) for one in known]
        await self._write_ends(known, settled)
        found = [one for one in merge(settled, list(told.values())) if one.at >= since or one.status == "working"]
        running = [one for one in found if one.status == "working"][:MAX_ROWS]
        ended = [one for one in found if one.status != "working"][: MAX_ROWS - len(running)]
        rows = await self._with_names(places, [one for one in found if one in running or one in ended])
        return Recalled(tuple(rows), len(found) + sum(unlisted), errors, problem)

    async def zones_of(self, job_id: str) -> list[str]:
        """Return the names of the zones that a job was submitted to from here: one, unless ids collide."""
        with suppress(ZoneError):
            locations = {one.location for one in await in_thread(self._register.find, job_id)}
            return [place.name for place in self._places(self._zones.names)[0] if place.provider.location in locations]
        return []

    def _places(self, names: Sequence[str]) -> tuple[list[Zone], dict[str, ZoneError]]:
        """Return the zones, each place once, and the errors of those that cannot be used."""
        found: dict[str, Zone] = {}
        errors: dict[str, ZoneError] = {}
        for name in names:
            try:
                place = self._zones.get(name)
                found.setdefault(place.provider.location, place)
            except ZoneError as error:
                errors[name] = error
        return list(found.values()), errors

    async def _known(self, since: datetime) -> tuple[list[Entry], str]:
        """Return the register's jobs with the guard's, and why one of them could not be read, "" if both were.

        The guard's are copied into the register, which keeps them longer.
        """
        entries: list[Entry] = []
        try:
            approvals = await (await self._guard()).list_approvals()
            entries = [entry for one in approvals for entry in entries_of(one)]
            await in_thread(self._register.note, entries)
            return await in_thread(self._register.list_since, since), ""
        except ZoneError as error:
            problem = error.message
        with suppress(ZoneError):
            return await in_thread(self._register.list_since, since), problem
        return [one for one in entries if one.at >= since], problem

    async def _ask(self, place: Zone, since: datetime, known: Sequence[Entry]) -> tuple[list[Entry], int]:
        """Return what the zone says, its unfinished jobs, its finished ones, and those that the register asks about; and how
        many more have finished."""
        location = place.provider.location
        open_ids = [one.job_id for one in known if one.location == location and one.status in {"", "unknown"}]
        with anyio.move_on_after(ZONE_SECONDS):
            running = await place.list_unfinished_jobs(open_ids)
            finished: tuple[Job, ...] = ()
            more = 0
            if Feature.HISTORY in place.provider.features:
                with suppress(Unsupported):
                    page = await place.provider.list_finished_jobs(since, MAX_ROWS)
                    finished, more = page.items, max(0, page.total_count - len(page.items))
            jobs = {job.job_id: job for job in (*running, *finished)}
            gone = await self._look_up(place, [one for one in open_ids if one not in jobs][:MAX_ASKED], jobs)
            lost = [Entry(location, place.name, one, status="unknown", error=FORGOTTEN) for one in gone]
            return [*(_told(job, place.name, location) for job in jobs.values()), *lost], more
        raise Unavailable("The zone did not answer in time.", hint="Try again in a moment.")

    async def _look_up(self, place: Zone, job_ids: Sequence[str], jobs: dict[str, Job]) -> list[str]:
        """Read jobs into `jobs`; return the ids of those that the zone no longer knows."""
        gone: list[str] = []
        errors: list[ZoneError] = []
        limiter = anyio.Semaphore(CONCURRENT_READS)

        async def look(job_id: str) -> None:
            async with limiter:
                try:
                    jobs[job_id] = await place.provider.get_job(job_id)
                except NotFound:
                    gone.append(job_id)
                except ZoneError as error:
                    errors.append(error)

        async with anyio.create_task_group() as tasks:
            for job_id in job_ids:
                tasks.start_soon(look, job_id)
        if errors:
            raise errors[0]
        return gone

    async def _write_ends(self, known: Sequence[Entry], settled: Sequence[Entry]) -> None:
        ended = [
            new
            for old, new in zip(known, settled, strict=True)
            if new.status != old.status and new.status not in {"", "working"}
        ]
        if ended:
            async with _best_effort():
                await in_thread(self._register.replace, ended)

    async def _with_names(self, places: Sequence[Zone], rows: Sequence[Entry]) -> list[Entry]:
        """Add the names that only the zone knows, of jobs that were not submitted from here: one call a zone."""
        found: dict[tuple[str, str], tuple[Thing, Thing]] = {}
        for place in places:
            location = place.provider.location
            ids = [thing.id for one in rows if one.location == location and not one.disks for thing in one.snapshots]
            for snapshot in (await try_find_snapshots(place.provider, ids))[0]:
                disk = Thing(snapshot.resource.resource_id, snapshot.resource.resource_name)
                found[location, snapshot.snapshot_id] = Thing.of(snapshot), disk
        return [_named(one, found) for one in rows]


def _named(entry: Entry, found: dict[tuple[str, str], tuple[Thing, Thing]]) -> Entry:
    if entry.disks:
        return entry
    pairs = [found.get((entry.location, one.id), (one, Thing(""))) for one in entry.snapshots]
    disks = tuple(dict.fromkeys(disk for _, disk in pairs if disk.id))
    return replace(entry, snapshots=tuple(snapshot for snapshot, _ in pairs), disks=disks)


def _told(job: Job, zone: str, location: str) -> Entry:
    entry = Entry.of(job, zone, location)
    return entry if entry.status else replace(entry, status="working")


def _settled(entry: Entry, told: Entry | None) -> Entry:
    """Return an entry with the status that the zone has told, if it was not known."""
    if told is None or entry.status not in {"", "unknown"} or told.status == entry.status:
        return entry
    return replace(entry, status=told.status, error=told.error, ended=entry.likely_end(told.ended))


def entries_of(approval: "Approval") -> list[Entry]:
    """Return the jobs of an approval: its own, and that of its safety snapshot."""
    loss, call, end = approval.plan.loss, approval.call, approval.job_end
    if loss.operation == "delete":
        disks = [(loss.resource_id, loss.resource_name)]
        snapshots = [(one.snapshot_id, one.name) for one in loss.snapshots]
    else:
        disks = [(one.resource_id, one.resource_name) for one in loss.overwrites]
        snapshots = [(one.snapshot_id, one.snapshot_name) for one in loss.overwrites]
    is_taken_back = approval.state is not State.SPENT  # then the one who decided has denied it
    shared = Entry(
        location=call.location,
        zone=call.zone,
        job_id=approval.job_id,
        submitted=(approval.ended or approval.decided or approval.opened).time,
        disks=tuple(Thing(*one) for one in disks if one[0]),
        asked_by=call.principal,
        asked_through=call.client,
        approved_by="" if is_taken_back else approval.decided_by,
        door=approval.door.value if approval.door and not is_taken_back else "",
    )
    job = replace(
        shared,
        action=JobAction.DELETE if loss.operation == "delete" else JobAction.APPLY,
        snapshots=tuple(Thing(*one) for one in snapshots),
        status=end.status if end else "",
        error=end.reason if end else "",
        ended=_moment(end.at) if end else None,
    )
    safety = replace(
        shared,
        action=JobAction.CREATE,
        job_id=approval.safety.job_id,
        submitted=(approval.safety.begun or approval.opened).time,
        snapshots=tuple(map(Thing, approval.safety.snapshot_ids)),
    )
    return [one for one in (job, safety) if one.job_id]


def _moment(text: str) -> datetime | None:
    moment = parse_time(text)
    return moment if isinstance(moment, datetime) else None


@asynccontextmanager
async def _best_effort() -> AsyncIterator[None]:
    """Let nothing that only notes fail or be interrupted."""
    with anyio.CancelScope(shield=True):
        try:
            yield
        except ZoneError as error:
            log.warning("the history could not be written: %s", error.message)
