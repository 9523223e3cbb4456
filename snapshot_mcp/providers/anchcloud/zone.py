"""`AnchCloudZone`: the Provider over the REST API. Each method is one operation; `changes.Changes` sends the changes."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TypeVar

from snapshot_mcp.contract.errors import BadRequest, NotFound, Unavailable, Unsupported
from snapshot_mcp.contract.models import (
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
from snapshot_mcp.providers.anchcloud.calls import ApiCall, ApiCalls
from snapshot_mcp.providers.anchcloud.changes import Changes
from snapshot_mcp.providers.anchcloud.filters import resources_page, snapshots_page
from snapshot_mcp.providers.anchcloud.lookup import FOUND_JOB_PREFIX, ChangeRequest
from snapshot_mcp.providers.anchcloud.memory import JobMemory
from snapshot_mcp.providers.anchcloud.patience import Patience
from snapshot_mcp.providers.anchcloud.replies import NoRoute, member, parsed, parsed_list, readable, whole_number
from snapshot_mcp.providers.anchcloud.session import Session
from snapshot_mcp.providers.anchcloud.settings import AnchCloudZoneSettings
from snapshot_mcp.providers.anchcloud.watch import Watch

Listed = TypeVar("Listed", bound=Resource)

PROVIDER_FEATURES = frozenset({Feature.RECOVER, Feature.WATCH})
PROVIDER_RECOVERY_SECONDS = 7200
"""As the provider documents it; our own face says in its headers what its zone supports."""


class AnchCloudZone:
    """One zone of one provider. Cheap to construct: nothing is loaded or sent before the first call."""

    def __init__(self, zone: str, settings: AnchCloudZoneSettings, patience: Patience | None = None) -> None:
        self._zone = zone
        self._location = settings.location(zone)
        self._patience = patience or Patience()
        self._calls = ApiCalls(settings.api_revision)
        self._session = Session(settings, self._location, self._patience)
        self._memory = JobMemory()
        self._changes = Changes(self, self._session, self._memory, self._patience)

    def __repr__(self) -> str:
        return f"AnchCloudZone({self._zone!r}, {self.location!r})"

    @property
    def zone(self) -> str:
        """The zone's name in the settings."""
        return self._zone

    @property
    def clock_ahead_seconds(self) -> float | None:
        """Return how far the zone's clock is ahead of this machine's, None if no answer has told it."""
        return self._session.clock_ahead_seconds

    @property
    def location(self) -> str:
        """The zone's URL, without credentials."""
        return self._location

    @property
    def features(self) -> frozenset[Feature]:
        """What the zone supports: as its headers say, else as the provider documents."""
        listed = self._session.headers.get("x-snapshot-features")
        if listed is None:
            return PROVIDER_FEATURES
        names = {name.strip() for name in listed.split(",")}
        return frozenset(feature for feature in Feature if feature in names)

    @property
    def recovery_seconds(self) -> int:
        """How long a deleted snapshot can be recovered: as the zone's headers say, else as the provider documents."""
        text = self._session.headers.get("x-snapshot-recovery-seconds", "")
        return int(text) if text.isascii() and text.isdigit() and len(text) <= 10 else PROVIDER_RECOVERY_SECONDS

    async def list_snapshots(self, query: SnapshotFilter) -> Page[Snapshot]:
        """List snapshots, newest first."""
        call = self._calls.list_snapshots(query)
        answer = await self._session.read(call)
        items, unread = readable(Snapshot, member(answer, "snapshots", call.what), call.what)
        return replace(snapshots_page(query, items, _total_count(answer, call), call.what), unread=unread)

    async def list_volumes(self, query: ResourceFilter) -> Page[Volume]:
        """List volumes."""
        return await self._list_resources("volumes", Volume, query)

    async def list_instances(self, query: ResourceFilter) -> Page[Instance]:
        """List instances."""
        return await self._list_resources("instances", Instance, query)

    async def list_images(self, query: ResourceFilter) -> Page[Image]:
        """List images."""
        return await self._listed("images", Image, query.model_copy(update={"verbose": 0}))

    async def _list_resources(self, kind: str, model: type[Listed], query: ResourceFilter) -> Page[Listed]:
        """List volumes or instances; `verbose` is sent only to our own face, which is known by its first answer."""
        plain = query.model_copy(update={"verbose": 0})
        if not query.verbose or Feature.TERMS in self.features:
            return await self._listed(kind, model, query)
        page = await self._listed(kind, model, plain)
        return await self._listed(kind, model, query) if Feature.TERMS in self.features else page

    async def _listed(self, kind: str, model: type[Listed], query: ResourceFilter) -> Page[Listed]:
        call = self._calls.list_resources(kind, query)
        answer = await self._session.read(call)
        items, unread = readable(model, member(answer, kind, call.what), call.what)
        return replace(resources_page(query, items, _total_count(answer, call), call.what), unread=unread)

    async def list_quota_left(self) -> tuple[Quota, ...]:
        """List how much the zone has room for."""
        call = self._calls.list_quota_left()
        return parsed_list(Quota, await self._session.read(call), call.what)

    async def get_job(self, job_id: str) -> Job:
        """Return a job, also one made up here for a change whose answer was lost."""
        if job_id.startswith(FOUND_JOB_PREFIX):
            if (found := self._memory.jobs.get(job_id)) is None:
                raise NotFound(
                    f"Job {clean_text(job_id)!r} is no longer known.", hint="Look at what it made or changed."
                )
            return found
        call = self._calls.get_job(job_id)
        job = parsed(Job, await self._session.read(call), call.what)
        if job.job_id != job_id:
            raise Unavailable(f"{call.what}: the zone answered job {quoted(job.job_id)}.")
        return self._memory.remember(job)

    async def list_unfinished_jobs(self) -> tuple[Job, ...]:
        """List the unfinished jobs. Raises Unsupported if the provider has no such list."""
        call = self._calls.list_unfinished_jobs()
        try:
            answer = await self._session.read(call)
        except (NotFound, NoRoute, Unsupported) as error:
            raise Unsupported(
                f"{error.message} The zone does not list its jobs.", hint="Get a job by its id."
            ) from None
        jobs = parsed_list(Job, answer, call.what)
        for job in jobs:
            self._memory.remember(job)
        return jobs

    async def list_finished_jobs(self, since: datetime, limit: int) -> Page[Job]:
        """List the jobs that ended since then. Raises Unsupported if the zone has no such list."""
        call = self._calls.list_finished_jobs(since, limit)
        try:
            if self._session.headers and Feature.HISTORY not in self.features:
                raise Unsupported("It does not declare the feature.")
            answer = await self._session.read(call)
        except (NotFound, NoRoute, Unsupported):
            raise Unsupported(f"The zone {self._zone!r} does not list finished jobs.") from None
        jobs = parsed_list(Job, member(answer, "jobs", call.what), call.what)
        return Page(jobs[:limit], _total_count(answer, call))

    def watch_jobs(self) -> AsyncGenerator[tuple[Job, ...], None]:
        """Yield the unfinished jobs, then all changes."""
        watch = Watch(
            self._session, self._patience, self._memory, self._calls.stream(), self.list_unfinished_jobs, self.get_job
        )
        return watch.jobs()

    async def create_snapshots(self, resource_ids: Sequence[str], snapshot_name: str, *, is_full: bool = False) -> Job:
        """Back resources up."""
        if not resource_ids:
            raise BadRequest("Nothing to back up.", hint="Give at least one resource id.")
        call = self._calls.create_snapshots(resource_ids, snapshot_name, is_full=is_full)
        return await self._changes.carry_out(call, ChangeRequest(JobAction.CREATE, tuple(resource_ids), snapshot_name))

    async def delete_snapshot(self, snapshot_id: str, *, terms: Terms | None = None) -> Job:
        """Delete a snapshot and everything that was built on it."""
        needed = () if terms is None else (Feature.TERMS,)
        call = self._calls.delete_snapshot(snapshot_id, terms)
        change = ChangeRequest(JobAction.DELETE, (snapshot_id,), agreement=_agreement(terms))
        return await self._changes.carry_out(call, change, needed)

    async def apply_snapshots(
        self, snapshot_ids: Sequence[str], *, terms: Terms | None = None, safety_snapshot_name: str = ""
    ) -> Job:
        """Roll resources back."""
        if not snapshot_ids:
            raise BadRequest("Nothing to roll back to.", hint="Give at least one snapshot id.")
        needed = [Feature.TERMS] if terms is not None else []
        needed += [Feature.ONE_HOLD] if safety_snapshot_name else []
        call = self._calls.apply_snapshots(snapshot_ids, terms, safety_snapshot_name)
        change = ChangeRequest(
            JobAction.APPLY, tuple(snapshot_ids), safety_name=safety_snapshot_name, agreement=_agreement(terms)
        )
        return await self._changes.carry_out(call, change, needed)

    async def capture_instance(self, snapshot_id: str, image_name: str) -> Job:
        """Export an instance's snapshot to an image."""
        call = self._calls.capture_instance(snapshot_id, image_name)
        change = ChangeRequest(JobAction.CAPTURE_INSTANCE, (snapshot_id,), image_name)
        return await self._changes.carry_out(call, change)

    async def create_volume(self, snapshot_id: str, volume_name: str) -> Job:
        """Export a volume's snapshot to a new volume."""
        call = self._calls.create_volume(snapshot_id, volume_name)
        return await self._changes.carry_out(call, ChangeRequest(JobAction.CREATE_VOLUME, (snapshot_id,), volume_name))

    async def recover_snapshots(self, snapshot_ids: Sequence[str]) -> Job:
        """Bring deleted snapshots back."""
        if not snapshot_ids:
            raise BadRequest("Nothing to recover.", hint="Give at least one snapshot id.")
        if Feature.RECOVER not in self.features:
            raise Unsupported(f"The zone {self._zone!r} does not support recovery.")
        change = ChangeRequest(JobAction.LEASE, tuple(snapshot_ids))
        return await self._changes.carry_out(self._calls.lease(snapshot_ids), change)

    async def verify_snapshots(self, snapshot_ids: Sequence[str]) -> Job:
        """Read snapshots back whole."""
        if not snapshot_ids:
            raise BadRequest("Nothing to verify.", hint="Give at least one snapshot id.")
        change = ChangeRequest(JobAction.VERIFY, tuple(snapshot_ids))
        return await self._changes.carry_out(self._calls.verify(snapshot_ids), change, [Feature.VERIFY])

    async def cancel_job(self, job_id: str) -> Job:
        """Cancel a job."""
        return await self._changes.cancel(self._calls.cancel_job(job_id), job_id)

    async def update_snapshot(self, snapshot_id: str, update: SnapshotUpdate) -> None:
        """Change name, description or tags of a snapshot."""
        await self._changes.update(self._calls.update_snapshot(snapshot_id, update), snapshot_id, update)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._session.aclose()


def _total_count(answer: object, call: ApiCall) -> int:
    return whole_number(member(answer, "total_count", call.what), "total_count", call.what)


def _agreement(terms: Terms | None) -> str:
    return terms.agreement if terms else ""
