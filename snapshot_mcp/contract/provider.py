"""`Provider`: what a zone can do, one method for each operation of the contract. One Provider object is one zone.

Every change answers a Job and returns as soon as the zone has accepted it. Every method raises errors of
`contract.errors` and nothing else. A provider is cheap to construct: no I/O before the first call.
"""

from collections.abc import AsyncGenerator, Sequence
from enum import StrEnum
from typing import Protocol

from snapshot_mcp.contract.models import (
    Image,
    Instance,
    Job,
    Page,
    Quota,
    ResourceFilter,
    Snapshot,
    SnapshotFilter,
    SnapshotUpdate,
    Volume,
)
from snapshot_mcp.contract.terms import Terms


class Feature(StrEnum):
    """What not every zone can do."""

    RECOVER = "recover"
    """`recover_snapshots` brings a deleted chain back within `recovery_seconds`."""
    RECOVER_INCREMENTALS = "recover_incrementals"
    """…and a deleted incremental too."""
    WATCH = "watch"
    """`watch_jobs` pushes; without it a waiter must poll."""
    TAGS = "tags"
    """`update_snapshot` keeps tags."""
    PROGRESS = "progress"
    """Unfinished jobs say how far they are (`Job.progress`)."""
    TERMS = "terms"
    """A deletion and a roll-back compare their `Terms` themselves, and resources carry `identity` and `held_by`."""
    ONE_HOLD = "one_hold"
    """A roll-back takes its safety snapshot itself, under the same hold on the disk (`safety_snapshot_name`)."""
    CANCEL = "cancel"
    """`cancel_job` ends what has had no effect yet."""


class Provider(Protocol):
    """One zone.

    `zone` is the zone's name in the operator's settings, `location` where it is, for people and for binding an approval
    (a URL without credentials, or a folder), `recovery_seconds` the grace after a deletion (0: none).
    """

    @property
    def zone(self) -> str: ...
    @property
    def location(self) -> str: ...
    @property
    def features(self) -> frozenset[Feature]: ...
    @property
    def recovery_seconds(self) -> int: ...

    async def list_snapshots(self, query: SnapshotFilter) -> Page[Snapshot]:
        """GET /volume_snapshots, newest `snapshot_time` first, then by id."""
        ...

    async def create_snapshots(self, resource_ids: Sequence[str], snapshot_name: str, *, is_full: bool = False) -> Job:
        """POST /volume_snapshots. All or nothing: an unknown, repeated or unusable id is refused before anything starts."""
        ...

    async def delete_snapshot(self, snapshot_id: str, *, terms: Terms | None = None) -> Job:
        """DELETE /volume_snapshots/{snapshot_id}: it and everything that was built on it.

        Raises TermsChanged where `terms` forbid it now; Unsupported for terms without `Feature.TERMS`.
        """
        ...

    async def apply_snapshots(
        self, snapshot_ids: Sequence[str], *, terms: Terms | None = None, safety_snapshot_name: str = ""
    ) -> Job:
        """POST /volume_snapshots/apply: roll the resources back, at most one snapshot a resource.

        With `safety_snapshot_name` each disk's present content is captured and verified first, under the hold that it is
        overwritten under; the job's `extra` names them (`safety_snapshots`: resource id → snapshot id) from the start.
        They are kept once a byte was overwritten, and leave nothing behind before. Raises TermsChanged as above;
        Unsupported for terms without `Feature.TERMS`, for a safety snapshot without `Feature.ONE_HOLD`.
        """
        ...

    async def cancel_job(self, job_id: str) -> Job:
        """DELETE /job/{job_id}: end a waiting job, a running create or export, or a roll-back before its first byte.

        The job ends as failed with the code `cancelled` and leaves nothing behind; one that runs may take a moment, so the
        answer can still be `working`. A job that was cancelled before is answered as it is. Raises NotFound, NotUsable (it
        has ended, or its effect has begun), Unsupported without `Feature.CANCEL`.
        """
        ...

    async def capture_instance(self, snapshot_id: str, image_name: str) -> Job:
        """POST /volume_snapshots/capture_instance: export an instance's snapshot to an image."""
        ...

    async def create_volume(self, snapshot_id: str, volume_name: str) -> Job:
        """POST /volume_snapshots/create_volume: export a volume's snapshot to a new volume."""
        ...

    async def get_job(self, job_id: str) -> Job:
        """GET /job/{job_id}. Raises NotFound."""
        ...

    async def list_unfinished_jobs(self) -> tuple[Job, ...]:
        """GET /unfinished_jobs, oldest first."""
        ...

    def watch_jobs(self) -> AsyncGenerator[tuple[Job, ...], None]:
        """GET /notifier/stream: list the unfinished jobs, then watch them and every job that follows.

        The first item has the unfinished jobs; it is sent once the subscription stands, also when there are none. Each
        later item has the jobs whose status changed (or their progress, where the zone tells it), in the order of the
        changes: from the first item on, none is missed. A job that is known to be unfinished and is not in the first
        item has ended, or is out of the zone's sight: `get_job` tells which. Ends only by being closed, or by a ZoneError.
        """
        ...

    async def list_volumes(self, query: ResourceFilter) -> Page[Volume]:
        """GET /volumes."""
        ...

    async def list_instances(self, query: ResourceFilter) -> Page[Instance]:
        """GET /instances."""
        ...

    async def list_images(self, query: ResourceFilter) -> Page[Image]:
        """GET /images."""
        ...

    async def update_snapshot(self, snapshot_id: str, update: SnapshotUpdate) -> None:
        """PUT /volume_snapshots/{snapshot_id}."""
        ...

    async def recover_snapshots(self, snapshot_ids: Sequence[str]) -> Job:
        """POST /lease: bring deleted snapshots back. Raises Unsupported without `Feature.RECOVER`."""
        ...

    async def list_quota_left(self) -> tuple[Quota, ...]:
        """GET /quota_left."""
        ...

    async def aclose(self) -> None:
        """Release connections. Jobs go on."""
        ...
