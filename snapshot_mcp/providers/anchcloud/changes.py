"""Changes: read the zone, send the change once, and look the change up if its answer was lost.

The items that a change would make or affect are read before it is sent (`lookup.Picture`), and compared with the zone if the
answer is lost. After a rename or a cancel whose answer was lost, the snapshot or the job is read.
"""

import logging
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, TypeVar

import anyio

from snapshot_mcp.contract import errors
from snapshot_mcp.contract.errors import ZoneError
from snapshot_mcp.contract.models import MAX_LIMIT, Job, Snapshot, SnapshotFilter, SnapshotUpdate, ZoneModel
from snapshot_mcp.contract.provider import Feature, Provider
from snapshot_mcp.contract.states import JobAction
from snapshot_mcp.contract.text import clean_text, quoted
from snapshot_mcp.providers.anchcloud import lookup
from snapshot_mcp.providers.anchcloud.calls import ApiCall
from snapshot_mcp.providers.anchcloud.filters import FilterIgnored
from snapshot_mcp.providers.anchcloud.lookup import FOUND_JOB_PREFIX, ChangeRequest, Picture
from snapshot_mcp.providers.anchcloud.memory import JobMemory
from snapshot_mcp.providers.anchcloud.patience import Patience
from snapshot_mcp.providers.anchcloud.replies import Lost, Reply, decoded, error_of, is_definite, is_error, parsed
from snapshot_mcp.providers.anchcloud.session import Session

logger = logging.getLogger(__name__)

Made = TypeVar("Made", bound=ZoneModel)

NOT_STARTED = "Nothing was sent: the change was not carried out."
NOT_CANCELLED = "The cancel was not sent."


class Changes:
    """Sends the changes of one zone; `zone` is used to read its state."""

    def __init__(self, zone: Provider, session: Session, memory: JobMemory, patience: Patience) -> None:
        self._zone = zone
        self._session = session
        self._memory = memory
        self._patience = patience

    async def carry_out(self, call: ApiCall, change: ChangeRequest, needed: Collection[Feature] = ()) -> Job:
        """Send a change and return its job. Raises Unsupported, with nothing sent, if the zone lacks a `needed` feature."""
        before = await self._picture_before(change)
        self._require(needed)  # the zone's features are known since its first answer
        try:
            job = self._job_of(await self._send(call), call)
        except Lost as lost:
            logger.info("%s: the answer was lost (%s), looking it up", call.what, lost)
            job = await self._add_safety(await self._look_up(call, change, before, str(lost)), change)
        self._memory.claim([job.job_id, *(job.resource_ids if change.is_making else ())])
        return self._memory.remember(job)

    async def update(self, call: ApiCall, snapshot_id: str, update: SnapshotUpdate) -> None:
        """Send a change of a snapshot's fields; if the answer is lost, read the snapshot."""
        try:
            reply = await self._send(call)
            if is_error(reply):
                if is_definite(reply):
                    raise error_of(reply, call.what)
                raise Lost(f"the answer was {reply.status}")
            if reply.body.strip():
                self._decoded(reply, call, ZoneModel)
        except Lost as lost:
            await self._check_update(snapshot_id, update, call, str(lost))

    async def cancel(self, call: ApiCall, job_id: str) -> Job:
        """Cancel a job and return it; if the answer is lost, read the job."""
        with _nothing_sent(NOT_CANCELLED):
            before = await self._zone.get_job(job_id)
        self._require([Feature.CANCEL], NOT_CANCELLED)
        if before.job_id.startswith(FOUND_JOB_PREFIX):
            raise _ended(before)
        try:
            job = self._job_of(await self._send(call, NOT_CANCELLED), call)
            if job.job_id != job_id:
                raise Lost(f"the zone answered job {quoted(job.job_id)}")
            _require_cancelled(job)
        except Lost as lost:
            logger.info("%s: the answer was lost (%s), reading the job", call.what, lost)
            job = await self._wait_cancelled(call, job_id, str(lost))
        return self._memory.remember(job)

    def _require(self, needed: Collection[Feature], remark: str = NOT_STARTED) -> None:
        for feature in needed:
            if feature not in self._zone.features:
                message = f"The zone {self._zone.zone!r} does not support {feature.value!r}."
                raise errors.Unsupported(f"{message} {remark}")

    async def _wait_cancelled(self, call: ApiCall, job_id: str, reason: str) -> Job:
        """Read the job until it has ended. Raises NotUsable if it was not cancelled, OutcomeUnknown if time is up."""

        async def read_ended() -> Job | None:
            job = await self._zone.get_job(job_id)
            return job if job.is_finished else None

        job = await self._poll(read_ended, call)
        if job is None:
            raise errors.OutcomeUnknown(
                f"{call.what}: the answer was lost ({reason}), and the job has not ended yet.",
                hint=f"Look at job {clean_text(job_id)!r}; cancelling it again is safe.",
            )
        _require_cancelled(job)
        return job

    async def _poll(self, look: Callable[[], Awaitable[Job | None]], call: ApiCall) -> Job | None:
        """Call `look`, with growing pauses, until it returns a job; return None when the time for a lookup is up."""
        pause = self._patience.first_pause_seconds
        with anyio.move_on_after(self._patience.lookup_seconds):
            while True:
                try:
                    if (job := await look()) is not None:
                        return job
                except ZoneError as error:
                    logger.info("%s: looking it up failed: %s", call.what, error)
                await anyio.sleep(pause)
                pause = min(pause * 2, self._patience.longest_pause_seconds)
        return None

    async def _check_update(self, snapshot_id: str, update: SnapshotUpdate, call: ApiCall, reason: str) -> None:
        wanted = {key: value for key, value in dict(update).items() if value is not None}
        try:
            page = await self._zone.list_snapshots(SnapshotFilter(snapshots=(snapshot_id,)))
            if any({key: getattr(item, key) for key in wanted} == wanted for item in page.items):
                return
        except ZoneError as error:
            reason = f"{reason}; looking it up failed too"
            logger.info("%s: %s", call.what, error)
        raise errors.OutcomeUnknown(
            f"{call.what}: the answer was lost ({reason}), so it is unknown whether it was carried out.",
            hint=f"Look at snapshot {clean_text(snapshot_id)!r}; repeating the same change is safe.",
        )

    async def _send(self, call: ApiCall, remark: str = NOT_STARTED) -> Reply:
        """Send a change and return the reply. Raises Lost; every other error says that nothing was sent."""
        with _nothing_sent(remark):
            return await self._session.change(call)

    def _job_of(self, reply: Reply, call: ApiCall) -> Job:
        """Return the job in a change's reply. Raises the zone's refusal, or Lost for a reply that proves nothing."""
        if is_error(reply):
            error = error_of(reply, call.what)
            if is_definite(reply):
                raise error
            raise _lost(error, call)
        return self._decoded(reply, call, Job)

    def _decoded(self, reply: Reply, call: ApiCall, model: type[Made]) -> Made:
        """Return a change's answer. Raises Lost for one that does not parse: a proxy's page proves nothing."""
        try:
            return parsed(model, decoded(reply, call.what), call.what)
        except errors.Unavailable as error:
            raise _lost(error, call) from None

    async def _picture_before(self, change: ChangeRequest) -> Picture | None:
        """Take a picture before a change; None if the zone does not allow that. Any other error means nothing is sent."""
        with _nothing_sent():
            try:
                return await self._take_picture(change)
            except (errors.Forbidden, errors.NotFound, errors.Unsupported, errors.BadRequest, FilterIgnored) as error:
                logger.info("The zone %r cannot be read before a change: %s", self._zone.zone, error)
                return None

    async def _take_picture(self, change: ChangeRequest) -> Picture:
        results: dict[str, Any] = {}
        failed: list[ZoneError] = []

        async def note(name: str, look: Callable[[], Awaitable[Any]]) -> None:
            try:
                results[name] = await look()
            except ZoneError as error:
                failed.append(error)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(note, "jobs", self._jobs_if_listed)
            tasks.start_soon(note, "items", partial(self._items, change))
        if failed:
            raise failed[0]
        return Picture({job.job_id: job for job in results["jobs"]}, results["items"])

    async def _jobs_if_listed(self) -> tuple[Job, ...]:
        """Return the unfinished jobs; none from a zone without that list, where the items are the only evidence."""
        try:
            return await self._zone.list_unfinished_jobs()
        except errors.Unsupported:
            return ()

    async def _items(self, change: ChangeRequest) -> dict[str, lookup.Item]:
        if (query := change.snapshots_to_look_at) is not None:
            return {item.snapshot_id: item for item in (await self._zone.list_snapshots(query)).items}
        if change.action == JobAction.CAPTURE_INSTANCE:
            return {image.id: image for image in (await self._zone.list_images(change.exports_to_look_at)).items}
        return {volume.id: volume for volume in (await self._zone.list_volumes(change.exports_to_look_at)).items}

    async def _look_up(self, call: ApiCall, change: ChangeRequest, before: Picture | None, reason: str) -> Job:
        """Look for a change whose answer was lost. Raises OutcomeUnknown: the request may still be in flight."""
        unclear = ""

        async def compare(before: Picture) -> Job | None:
            nonlocal unclear
            after = await self._take_picture(change)
            jobs = {**self._memory.jobs, **after.jobs}
            match = lookup.find(change, before, Picture(jobs, after.items), self._memory.claimed)
            unclear = match.unclear
            self._memory.claim(match.items if match.job else ())
            return match.job

        if before is not None and (job := await self._poll(partial(compare, before), call)) is not None:
            return job
        raise lookup.unknown(change, call.what, reason, unclear)

    async def _add_safety(self, job: Job, change: ChangeRequest) -> Job:
        """Add the ids of the safety snapshots to the made-up job of a roll-back, as its real job names them."""
        if not change.safety_name or not job.job_id.startswith(FOUND_JOB_PREFIX):
            return job
        found: dict[str, str] = {}
        with suppress(ZoneError):
            for target in (await self._items(change)).values():
                disk = target.resource.resource_id if isinstance(target, Snapshot) else ""
                query = SnapshotFilter(resource_id=disk, search_word=change.safety_name, limit=MAX_LIMIT)
                for one in (await self._zone.list_snapshots(query)).items if disk else ():  # newest first
                    if one.snapshot_name == change.safety_name:
                        found.setdefault(disk, one.snapshot_id)
        return job.model_copy(update={"extra": {**job.details, "safety_snapshots": found}})


@contextmanager
def _nothing_sent(remark: str = NOT_STARTED) -> Iterator[None]:
    """Add to an error that nothing was sent."""
    try:
        yield
    except ZoneError as error:
        error.add(after=remark)
        raise


def _lost(error: ZoneError, call: ApiCall) -> Lost:
    return Lost(clean_text(error.message.removeprefix(f"{call.what}: "), 200))


def _require_cancelled(job: Job) -> None:
    """Raise NotUsable if the job has ended otherwise than by being cancelled."""
    if job.is_finished and (job.error is None or job.error.code != errors.Cancelled.code):
        raise _ended(job)


def _ended(job: Job) -> errors.NotUsable:
    return errors.NotUsable(
        f"Job {clean_text(job.job_id)!r} has ended as {quoted(job.status)} and cannot be cancelled."
    )
