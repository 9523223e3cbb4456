"""Changes: look at the zone, send once, and look again if the answer was lost.

What a change would make or move is looked at before it is sent (`lookup.Picture`). A lost answer is looked for against that
picture; a lost answer of a rename or a cancel is settled by reading the snapshot or the job.
"""

import logging
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import anyio

from snapshot_mcp.contract.errors import (
    BadRequest,
    Cancelled,
    Forbidden,
    NotFound,
    NotUsable,
    OutcomeUnknown,
    Unavailable,
    Unsupported,
    ZoneError,
)
from snapshot_mcp.contract.models import Answer, Job, Snapshot, SnapshotFilter, SnapshotUpdate
from snapshot_mcp.contract.provider import Feature, Provider
from snapshot_mcp.contract.states import JobAction
from snapshot_mcp.contract.text import clean_text, quoted
from snapshot_mcp.providers.anchcloud import lookup
from snapshot_mcp.providers.anchcloud.asked import NotAsked
from snapshot_mcp.providers.anchcloud.calls import ApiCall
from snapshot_mcp.providers.anchcloud.lookup import FOUND_JOB_PREFIX, ChangeRequest, Picture
from snapshot_mcp.providers.anchcloud.memory import JobMemory
from snapshot_mcp.providers.anchcloud.patience import Patience
from snapshot_mcp.providers.anchcloud.replies import Lost, Reply, decoded, error_of, is_definite, is_error, parsed
from snapshot_mcp.providers.anchcloud.session import Session

logger = logging.getLogger(__name__)

Made = TypeVar("Made", bound=Answer)

NOT_STARTED = "Nothing was sent: the change was not carried out."
NOT_CANCELLED = "The cancel was not sent."


class Changes:
    """The changes of one zone; `zone` is what they are looked for with."""

    def __init__(self, zone: Provider, session: Session, memory: JobMemory, patience: Patience) -> None:
        self._zone = zone
        self._session = session
        self._memory = memory
        self._patience = patience

    async def carry_out(self, call: ApiCall, change: ChangeRequest, needed: Collection[Feature] = ()) -> Job:
        """Return the change's job. Raises Unsupported, with nothing sent, where the zone does not declare what is `needed`."""
        before = await self._picture_before(change)
        self._require(needed)  # by now the zone has said what it can do
        try:
            job = self._job_of(await self._sent(call), call)
        except Lost as lost:
            logger.info("%s: the answer was lost (%s), looking it up", call.what, lost)
            job = await self._with_safety(await self._looked_up(call, change, before, str(lost)), change)
        self._memory.claim([job.job_id, *(job.resource_ids if change.is_making else ())])
        return self._memory.remember(job)

    async def update(self, call: ApiCall, snapshot_id: str, update: SnapshotUpdate) -> None:
        """The answer is empty; a lost one is settled by reading the snapshot."""
        try:
            reply = await self._sent(call)
            if is_error(reply):
                if is_definite(reply):
                    raise error_of(reply, call.what)
                raise Lost(f"the answer was {reply.status}")
            if reply.body.strip():
                self._decoded(reply, call, Answer)
        except Lost as lost:
            await self._check_update(snapshot_id, update, call, str(lost))

    async def cancel(self, call: ApiCall, job_id: str) -> Job:
        """Return the cancelled job; a lost answer is settled by reading it."""
        before = await self._job_before(job_id)
        self._require([Feature.CANCEL], NOT_CANCELLED)
        if before.job_id.startswith(FOUND_JOB_PREFIX):
            raise _ended(before)
        try:
            job = self._job_of(await self._sent(call, NOT_CANCELLED), call)
            if job.job_id != job_id:
                raise Lost(f"the zone answered job {quoted(job.job_id)}")
        except Lost as lost:
            logger.info("%s: the answer was lost (%s), reading the job", call.what, lost)
            job = await self._cancelled(call, job_id, str(lost))
        return self._memory.remember(job)

    def _require(self, needed: Collection[Feature], remark: str = NOT_STARTED) -> None:
        for feature in needed:
            if feature not in self._zone.features:
                raise Unsupported(f"The zone {self._zone.zone!r} has no {feature.value!r}. {remark}")

    async def _job_before(self, job_id: str) -> Job:
        try:
            return await self._zone.get_job(job_id)
        except ZoneError as error:
            error.message = f"{error.message} {NOT_CANCELLED}"
            raise

    async def _cancelled(self, call: ApiCall, job_id: str, reason: str) -> Job:
        """Read the job until it has ended, for a while. Raises NotUsable where it ended otherwise, OutcomeUnknown."""
        pause = self._patience.first_pause_seconds
        with anyio.move_on_after(self._patience.lookup_seconds):
            while True:
                try:
                    job = await self._zone.get_job(job_id)
                except ZoneError as error:
                    logger.info("%s: reading the job failed: %s", call.what, error)
                else:
                    if job.is_finished and job.error and job.error.code == Cancelled.code:
                        return job
                    if job.is_finished:
                        raise _ended(job)
                await anyio.sleep(pause)
                pause = min(pause * 2, self._patience.longest_pause_seconds)
        raise OutcomeUnknown(
            f"{call.what}: the answer was lost ({reason}), and the job has not ended yet.",
            hint=f"Look at job {clean_text(job_id)!r}; cancelling it again does no harm.",
        )

    async def _check_update(self, snapshot_id: str, update: SnapshotUpdate, call: ApiCall, reason: str) -> None:
        wanted = {key: value for key, value in dict(update).items() if value is not None}
        try:
            page = await self._zone.list_snapshots(SnapshotFilter(snapshots=(snapshot_id,)))
            if any({key: getattr(item, key) for key in wanted} == wanted for item in page.items):
                return
        except ZoneError as error:
            reason = f"{reason}; looking it up failed too"
            logger.info("%s: %s", call.what, error)
        raise OutcomeUnknown(
            f"{call.what}: the answer was lost ({reason}), and it is not known whether it was carried out.",
            hint=f"Look at snapshot {clean_text(snapshot_id)!r}; asking for the same again does no harm.",
        )

    async def _sent(self, call: ApiCall, remark: str = NOT_STARTED) -> Reply:
        """Return a change's reply. Raises Lost; every other error means that nothing was sent, and says so."""
        try:
            return await self._session.change(call)
        except ZoneError as error:
            error.message = f"{error.message} {remark}"
            raise

    def _job_of(self, reply: Reply, call: ApiCall) -> Job:
        """Return the Job of a change's answer. Raises the zone's refusal, or Lost for what proves nothing."""
        if is_error(reply):
            error = error_of(reply, call.what)
            if is_definite(reply):
                raise error
            raise Lost(clean_text(error.message.removeprefix(f"{call.what}: "), 200))
        return self._decoded(reply, call, Job)

    def _decoded(self, reply: Reply, call: ApiCall, model: type[Made]) -> Made:
        """Return a change's answer. Raises Lost for nonsense: a page of a proxy says nothing of the change."""
        try:
            return parsed(model, decoded(reply, call.what), call.what)
        except Unavailable as error:
            raise Lost(clean_text(error.message.removeprefix(f"{call.what}: "), 200)) from None

    async def _picture_before(self, change: ChangeRequest) -> Picture | None:
        """Look before the leap. None where we may not look; an outage already now means that nothing is sent."""
        try:
            return await self._picture(change)
        except (Forbidden, NotFound, Unsupported, BadRequest, NotAsked) as error:
            logger.info("The zone %r cannot be looked at before a change: %s", self._zone.zone, error)
            return None
        except ZoneError as error:
            error.message = f"{error.message} {NOT_STARTED}"
            raise

    async def _picture(self, change: ChangeRequest) -> Picture:
        results: dict[str, Any] = {}
        errors: list[ZoneError] = []

        async def note(name: str, look: Callable[[], Awaitable[Any]]) -> None:
            try:
                results[name] = await look()
            except ZoneError as error:
                errors.append(error)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(note, "jobs", self._jobs_if_listed)
            tasks.start_soon(note, "items", partial(self._items, change))
        if errors:
            raise errors[0]
        return Picture({job.job_id: job for job in results["jobs"]}, results["items"])

    async def _jobs_if_listed(self) -> tuple[Job, ...]:
        """Without the list, what a change makes or moves must be the evidence."""
        try:
            return await self._zone.list_unfinished_jobs()
        except Unsupported:
            return ()

    async def _items(self, change: ChangeRequest) -> dict[str, lookup.Item]:
        if (query := change.snapshots_to_look_at) is not None:
            return {item.snapshot_id: item for item in (await self._zone.list_snapshots(query)).items}
        if change.action == JobAction.CAPTURE_INSTANCE:
            return {image.id: image for image in (await self._zone.list_images(change.exports_to_look_at)).items}
        return {volume.id: volume for volume in (await self._zone.list_volumes(change.exports_to_look_at)).items}

    async def _looked_up(self, call: ApiCall, change: ChangeRequest, before: Picture | None, reason: str) -> Job:
        """Look for the change for a while. Raises OutcomeUnknown: what is not seen may still be on its way."""
        unclear = ""
        if before is not None:
            pause = self._patience.first_pause_seconds
            with anyio.move_on_after(self._patience.lookup_seconds):
                while True:
                    try:
                        after = await self._picture(change)
                    except ZoneError as error:
                        logger.info("%s: looking it up failed: %s", call.what, error)
                    else:
                        jobs = {**self._memory.jobs, **after.jobs}
                        finding = lookup.find(change, before, Picture(jobs, after.items), self._memory.claimed)
                        unclear = finding.unclear
                        if finding.job is not None:
                            self._memory.claim(finding.items)
                            return finding.job
                    await anyio.sleep(pause)
                    pause = min(pause * 2, self._patience.longest_pause_seconds)
        raise lookup.unknown(change, call.what, reason, unclear)

    async def _with_safety(self, job: Job, change: ChangeRequest) -> Job:
        """Name the safety snapshots of a roll-back that was found to be over, as its own job would: they are the way back."""
        if not change.safety_name or not job.job_id.startswith(FOUND_JOB_PREFIX):
            return job
        found: dict[str, str] = {}
        with suppress(ZoneError):
            for target in (await self._items(change)).values():
                disk = target.resource.resource_id if isinstance(target, Snapshot) else ""
                query = SnapshotFilter(resource_id=disk, search_word=change.safety_name, limit=lookup.PAGE)
                for one in (await self._zone.list_snapshots(query)).items if disk else ():  # newest first
                    if one.snapshot_name == change.safety_name:
                        found.setdefault(disk, one.snapshot_id)
        return job.model_copy(update={"extra": {**job.details, "safety_snapshots": found}})


def _ended(job: Job) -> NotUsable:
    return NotUsable(f"Job {clean_text(job.job_id)!r} has ended as {quoted(job.status)}, so it cannot be cancelled.")
