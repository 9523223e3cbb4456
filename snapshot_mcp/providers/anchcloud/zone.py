"""`AnchCloudZone`: the Provider over the REST API. Each method is one operation; changes go through `_change`."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import anyio
from pydantic import SecretStr

from snapshot_mcp.contract.errors import (
    BadRequest,
    Forbidden,
    NotFound,
    OutcomeUnknown,
    Unavailable,
    Unsupported,
    ZoneError,
)
from snapshot_mcp.contract.models import (
    Answer,
    Image,
    Instance,
    Job,
    Page,
    Quota,
    Resource,
    ResourceFilter,
    Snapshot,
    SnapshotFilter,
    SnapshotUpdate,
    Volume,
)
from snapshot_mcp.contract.provider import Feature
from snapshot_mcp.contract.states import JobAction
from snapshot_mcp.contract.terms import Terms
from snapshot_mcp.contract.text import clean_text, quoted
from snapshot_mcp.providers.anchcloud import lookup
from snapshot_mcp.providers.anchcloud.asked import NotAsked, resources_page, snapshots_page
from snapshot_mcp.providers.anchcloud.calls import Call, Calls
from snapshot_mcp.providers.anchcloud.lookup import Change, Picture
from snapshot_mcp.providers.anchcloud.memory import JobMemory
from snapshot_mcp.providers.anchcloud.replies import (
    Lost,
    NoRoute,
    Reply,
    decoded,
    error_of,
    is_definite,
    is_error,
    member,
    parsed,
    parsed_list,
    whole_number,
)
from snapshot_mcp.providers.anchcloud.session import Session
from snapshot_mcp.providers.anchcloud.settings import ApiRevision, Endpoint, Patience
from snapshot_mcp.providers.anchcloud.watch import Watch

logger = logging.getLogger(__name__)

Listed = TypeVar("Listed", bound=Resource)
Made = TypeVar("Made", bound=Answer)

PROVIDER_FEATURES = frozenset({Feature.RECOVER, Feature.WATCH})
PROVIDER_RECOVERY_SECONDS = 7200
"""What the provider documents; our own face says in its headers what its zone can do."""

NOT_STARTED = "Nothing was sent: the change was not carried out."

NO_PROXY = SecretStr("")


class AnchCloudZone:
    """One zone of one provider. Cheap to construct: nothing is loaded and nobody is called before the first call.

    Raises BadRequest for settings that cannot be right, or that would send credentials in the clear.
    """

    def __init__(
        self,
        zone: str,
        *,
        url: str,
        client_id: str,
        client_secret: SecretStr,
        zone_id: str = "",
        api_revision: str = ApiRevision.SPECIFICATION,
        ca_file: Path | None = None,
        proxy: SecretStr = NO_PROXY,
        patience: Patience | None = None,
    ) -> None:
        revisions = [str(revision) for revision in ApiRevision]
        if api_revision not in revisions:
            raise BadRequest(f"No API revision {api_revision!r}.", hint=f"One of {', '.join(map(repr, revisions))}.")
        revision = ApiRevision(api_revision)
        self._zone = zone
        self._endpoint = Endpoint(url, client_id, client_secret, zone_id or zone, revision, ca_file, proxy)
        self._patience = patience or Patience()
        self._calls = Calls(revision)
        self._session = Session(self._endpoint, self._patience)
        self._memory = JobMemory()

    def __repr__(self) -> str:
        return f"AnchCloudZone({self._zone!r}, {self.location!r})"

    @property
    def zone(self) -> str:
        return self._zone

    @property
    def location(self) -> str:
        return self._endpoint.location

    @property
    def features(self) -> frozenset[Feature]:
        told = self._session.headers.get("x-snapshot-features")
        if told is None:
            return PROVIDER_FEATURES
        names = {name.strip() for name in told.split(",")}
        return frozenset(feature for feature in Feature if feature in names)

    @property
    def recovery_seconds(self) -> int:
        told = self._session.headers.get("x-snapshot-recovery-seconds", "")
        return int(told) if told.isascii() and told.isdigit() else PROVIDER_RECOVERY_SECONDS

    async def list_snapshots(self, query: SnapshotFilter) -> Page[Snapshot]:
        call = self._calls.list_snapshots(query)
        answer = await self._session.read(call)
        items = parsed_list(Snapshot, member(answer, "snapshots", call.what), call.what)
        return snapshots_page(query, items, _total_count(answer, call), call.what)

    async def list_volumes(self, query: ResourceFilter) -> Page[Volume]:
        return await self._list_resources("volumes", Volume, query)

    async def list_instances(self, query: ResourceFilter) -> Page[Instance]:
        return await self._list_resources("instances", Instance, query)

    async def list_images(self, query: ResourceFilter) -> Page[Image]:
        return await self._list_resources("images", Image, query)

    async def _list_resources(self, kind: str, model: type[Listed], query: ResourceFilter) -> Page[Listed]:
        call = self._calls.list_resources(kind, query)
        answer = await self._session.read(call)
        items = parsed_list(model, member(answer, kind, call.what), call.what)
        return resources_page(query, items, _total_count(answer, call), call.what)

    async def list_quota_left(self) -> tuple[Quota, ...]:
        call = self._calls.list_quota_left()
        return parsed_list(Quota, await self._session.read(call), call.what)

    async def get_job(self, job_id: str) -> Job:
        if job_id.startswith(lookup.FOUND_JOB_PREFIX):
            if (found := self._memory.jobs.get(job_id)) is None:
                raise NotFound(f"No job {clean_text(job_id)!r} any more.", hint="Look at what it made or changed.")
            return found
        call = self._calls.get_job(job_id)
        job = parsed(Job, await self._session.read(call), call.what)
        if job.job_id != job_id:
            raise Unavailable(f"{call.what}: the zone answered job {quoted(job.job_id)}.")
        return self._memory.see(job)

    async def list_unfinished_jobs(self) -> tuple[Job, ...]:
        """Raises Unsupported where the provider has no such list."""
        call = self._calls.list_unfinished_jobs()
        try:
            answer = await self._session.read(call)
        except (NotFound, NoRoute, Unsupported) as error:
            raise Unsupported(
                f"{error.message} The zone does not list its jobs.", hint="Ask for a job by its id."
            ) from None
        jobs = parsed_list(Job, answer, call.what)
        for job in jobs:
            self._memory.see(job)
        return jobs

    def watch_jobs(self) -> AsyncIterator[Job]:
        watch = Watch(
            self._session, self._patience, self._memory, self._calls.stream(), self.list_unfinished_jobs, self.get_job
        )
        return watch.jobs()

    async def create_snapshots(self, resource_ids: Sequence[str], snapshot_name: str, *, is_full: bool = False) -> Job:
        if not resource_ids:
            raise BadRequest("Nothing to back up.", hint="Give at least one resource id.")
        call = self._calls.create_snapshots(resource_ids, snapshot_name, is_full=is_full)
        return await self._change(call, Change(JobAction.CREATE, tuple(resource_ids), snapshot_name))

    async def delete_snapshot(self, snapshot_id: str, *, terms: Terms | None = None) -> Job:
        return await self._change(self._calls.delete_snapshot(snapshot_id), Change(JobAction.DELETE, (snapshot_id,)))

    async def apply_snapshots(
        self, snapshot_ids: Sequence[str], *, terms: Terms | None = None, safety_snapshot_name: str = ""
    ) -> Job:
        if not snapshot_ids:
            raise BadRequest("Nothing to roll back to.", hint="Give at least one snapshot id.")
        return await self._change(
            self._calls.apply_snapshots(snapshot_ids), Change(JobAction.APPLY, tuple(snapshot_ids))
        )

    async def capture_instance(self, snapshot_id: str, image_name: str) -> Job:
        call = self._calls.capture_instance(snapshot_id, image_name)
        return await self._change(call, Change(JobAction.CAPTURE_INSTANCE, (snapshot_id,), image_name))

    async def create_volume(self, snapshot_id: str, volume_name: str) -> Job:
        call = self._calls.create_volume(snapshot_id, volume_name)
        return await self._change(call, Change(JobAction.CREATE_VOLUME, (snapshot_id,), volume_name))

    async def recover_snapshots(self, snapshot_ids: Sequence[str]) -> Job:
        if not snapshot_ids:
            raise BadRequest("Nothing to recover.", hint="Give at least one snapshot id.")
        if Feature.RECOVER not in self.features:
            raise Unsupported(f"The zone {self._zone!r} recovers nothing.")
        return await self._change(self._calls.lease(snapshot_ids), Change(JobAction.LEASE, tuple(snapshot_ids)))

    async def cancel_job(self, job_id: str) -> Job:
        raise Unsupported(f"The zone {self._zone!r} cancels no jobs.")

    async def update_snapshot(self, snapshot_id: str, update: SnapshotUpdate) -> None:
        """The answer is empty; a lost one is settled by reading the snapshot."""
        call = self._calls.update_snapshot(snapshot_id, update)
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

    async def aclose(self) -> None:
        await self._session.aclose()

    async def _check_update(self, snapshot_id: str, update: SnapshotUpdate, call: Call, reason: str) -> None:
        wanted = {key: value for key, value in dict(update).items() if value is not None}
        try:
            page = await self.list_snapshots(SnapshotFilter(snapshots=(snapshot_id,)))
            if any({key: getattr(item, key) for key in wanted} == wanted for item in page.items):
                return
        except ZoneError as error:
            reason = f"{reason}; looking it up failed too"
            logger.info("%s: %s", call.what, error)
        raise OutcomeUnknown(
            f"{call.what}: the answer was lost ({reason}), and it is not known whether it was carried out.",
            hint=f"Look at snapshot {clean_text(snapshot_id)!r}; asking for the same again does no harm.",
        )

    async def _change(self, call: Call, change: Change) -> Job:
        """Look, send once, and look again if the answer was lost."""
        before = await self._picture_before(change)
        try:
            job = self._job_of(await self._sent(call), call)
        except Lost as lost:
            logger.info("%s: the answer was lost (%s), looking it up", call.what, lost)
            job = await self._looked_up(call, change, before, str(lost))
        self._memory.claim([job.job_id, *(job.resource_ids if change.is_making else ())])
        return self._memory.see(job)

    async def _sent(self, call: Call) -> Reply:
        """Return a change's reply. Raises Lost; every other error means that nothing was sent, and says so."""
        try:
            return await self._session.change(call)
        except ZoneError as error:
            error.message = f"{error.message} {NOT_STARTED}"
            raise

    def _job_of(self, reply: Reply, call: Call) -> Job:
        """Return the Job of a change's answer. Raises the zone's refusal, or Lost for what proves nothing."""
        if is_error(reply):
            error = error_of(reply, call.what)
            if is_definite(reply):
                raise error
            raise Lost(clean_text(error.message.removeprefix(f"{call.what}: "), 200))
        return self._decoded(reply, call, Job)

    def _decoded(self, reply: Reply, call: Call, model: type[Made]) -> Made:
        """Return a change's answer. Raises Lost for nonsense: a page of a proxy says nothing of the change."""
        try:
            return parsed(model, decoded(reply, call.what), call.what)
        except Unavailable as error:
            raise Lost(clean_text(error.message.removeprefix(f"{call.what}: "), 200)) from None

    async def _picture_before(self, change: Change) -> Picture | None:
        """Look before the leap. None where we may not look; an outage already now means that nothing is sent."""
        try:
            return await self._picture(change)
        except (Forbidden, NotFound, Unsupported, BadRequest, NotAsked) as error:
            logger.info("The zone %r cannot be looked at before a change: %s", self._zone, error)
            return None
        except ZoneError as error:
            error.message = f"{error.message} {NOT_STARTED}"
            raise

    async def _picture(self, change: Change) -> Picture:
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
            return await self.list_unfinished_jobs()
        except Unsupported:
            return ()

    async def _items(self, change: Change) -> dict[str, lookup.Item]:
        if (query := change.snapshots_to_look_at) is not None:
            return {item.snapshot_id: item for item in (await self.list_snapshots(query)).items}
        if change.action == JobAction.CAPTURE_INSTANCE:
            return {image.id: image for image in (await self.list_images(change.exports_to_look_at)).items}
        return {volume.id: volume for volume in (await self.list_volumes(change.exports_to_look_at)).items}

    async def _looked_up(self, call: Call, change: Change, before: Picture | None, reason: str) -> Job:
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


def _total_count(answer: object, call: Call) -> int:
    return whole_number(member(answer, "total_count", call.what), "total_count", call.what)
