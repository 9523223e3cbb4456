"""`Provider`: what a zone can do, one method for each operation of the contract. One Provider object is one zone.

A change returns a Job as soon as the zone has accepted it. Methods raise only errors of `contract.errors`.
Constructing a provider is cheap: it does no I/O before the first call.
"""

from collections.abc import AsyncGenerator, Collection, Sequence
from datetime import datetime
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
    """Abilities that not every zone has."""

    RECOVER = "recover"
    """`recover_snapshots` brings a deleted chain back within `recovery_seconds`."""
    RECOVER_INCREMENTALS = "recover_incrementals"
    """`recover_snapshots` brings deleted incrementals back too."""
    WATCH = "watch"
    """`watch_jobs` pushes changes; without it jobs must be polled."""
    TAGS = "tags"
    """`update_snapshot` keeps tags."""
    PROGRESS = "progress"
    """Unfinished jobs report their progress (`Job.progress`)."""
    TERMS = "terms"
    """The zone itself compares the `Terms` of a deletion or a roll-back; resources carry `identity` and `held_by`."""
    ONE_HOLD = "one_hold"
    """A roll-back takes its safety snapshot itself, under the same hold on the disk (`safety_snapshot_name`)."""
    CANCEL = "cancel"
    """`cancel_job` ends a job that has had no effect yet."""
    VERIFY = "verify"
    """`verify_snapshots` reads snapshots back."""
    HISTORY = "history"
    """`list_finished_jobs` lists what has ended."""
    COVERAGE = "coverage"
    """Disks carry their `Coverage` where a list is verbose."""
    PARTS = "parts"
    """Restore points are made of immutable parts that can be copied elsewhere (`contract.parts`)."""
    SEPARATE = "separate"
    """Restore points are kept apart from the disks: they outlive the loss of what a disk is stored in."""


SHARED_FATE = "Restore points of this zone lie in the disk's own pool, share its storage, and are lost with it."
"""What is said of a zone without `Feature.SEPARATE`."""


def shares_fate(features: Collection[Feature]) -> bool:
    """Return whether a zone's restore points are lost with its disks; one that tells nothing of itself does not say."""
    return Feature.TERMS in features and Feature.SEPARATE not in features


class Provider(Protocol):
    """One zone."""

    @property
    def zone(self) -> str:
        """The zone's name in the operator's settings."""

    @property
    def location(self) -> str:
        """Where the zone is (a URL without credentials, or a folder): shown to people, and part of what an approval binds."""

    @property
    def features(self) -> frozenset[Feature]:
        """The optional abilities of the zone, as far as they are known."""

    @property
    def recovery_seconds(self) -> int:
        """The grace period after a deletion; 0 for none."""

    async def list_snapshots(self, query: SnapshotFilter) -> Page[Snapshot]:
        """GET /volume_snapshots, newest `snapshot_time` first, then by id."""

    async def create_snapshots(self, resource_ids: Sequence[str], snapshot_name: str, *, is_full: bool = False) -> Job:
        """POST /volume_snapshots. Atomic: an unknown, repeated or unusable id is rejected before anything starts."""

    async def delete_snapshot(self, snapshot_id: str, *, terms: Terms | None = None) -> Job:
        """DELETE /volume_snapshots/{snapshot_id}: delete the snapshot and everything that was built on it.

        Raises TermsChanged if `terms` forbid it now, Unsupported for terms without `Feature.TERMS`.
        """

    async def apply_snapshots(
        self, snapshot_ids: Sequence[str], *, terms: Terms | None = None, safety_snapshot_name: str = ""
    ) -> Job:
        """POST /volume_snapshots/apply: roll the resources back, at most one snapshot a resource.

        With `safety_snapshot_name` each disk's present content is captured and verified first, under the same hold on the
        disk; the job's `extra` names these snapshots from the start (`safety_snapshots`: resource id → snapshot id). They are
        kept once a byte was overwritten; a job that ends before that removes them. Raises TermsChanged as above;
        Unsupported for terms without `Feature.TERMS`, for a safety snapshot without `Feature.ONE_HOLD`.
        """

    async def cancel_job(self, job_id: str) -> Job:
        """DELETE /job/{job_id}: end a waiting job, a running create or export, or a roll-back before its first byte.

        The job fails with the code `cancelled` and leaves nothing behind. A running job may take a moment, so the returned
        status can still be `working`; an already cancelled job is returned as it is. Raises NotFound, NotUsable (the job
        has ended or its effect has begun), Unsupported without `Feature.CANCEL`.
        """

    async def capture_instance(self, snapshot_id: str, image_name: str) -> Job:
        """POST /volume_snapshots/capture_instance: export an instance's snapshot to an image."""

    async def create_volume(self, snapshot_id: str, volume_name: str) -> Job:
        """POST /volume_snapshots/create_volume: export a volume's snapshot to a new volume."""

    async def get_job(self, job_id: str) -> Job:
        """GET /job/{job_id}. Raises NotFound."""

    async def list_unfinished_jobs(self) -> tuple[Job, ...]:
        """GET /unfinished_jobs, oldest first."""

    async def list_finished_jobs(self, since: datetime, limit: int) -> Page[Job]:
        """GET /finished_jobs, the newest end first: at most `limit` (1 to MAX_LIMIT) of those that ended at `since` or later.

        Raises Unsupported without `Feature.HISTORY`.
        """

    def watch_jobs(self) -> AsyncGenerator[tuple[Job, ...], None]:
        """GET /notifier/stream: list the unfinished jobs, then watch them and every job that follows.

        The first item holds the unfinished jobs, possibly none; it is sent once the subscription is active. Each later item
        holds the jobs whose status changed (or progress, if the zone reports it), in the order of the changes; none is
        missed. A job known to be unfinished that is not in the first item has ended or is not visible to us: `get_job`
        tells which. Ends only by being closed or by a ZoneError.
        """

    async def list_volumes(self, query: ResourceFilter) -> Page[Volume]:
        """GET /volumes."""

    async def list_instances(self, query: ResourceFilter) -> Page[Instance]:
        """GET /instances."""

    async def list_images(self, query: ResourceFilter) -> Page[Image]:
        """GET /images."""

    async def update_snapshot(self, snapshot_id: str, update: SnapshotUpdate) -> None:
        """PUT /volume_snapshots/{snapshot_id}."""

    async def recover_snapshots(self, snapshot_ids: Sequence[str]) -> Job:
        """POST /lease: bring deleted snapshots back. Raises Unsupported without `Feature.RECOVER`."""

    async def verify_snapshots(self, snapshot_ids: Sequence[str]) -> Job:
        """POST /volume_snapshots/verify: read these snapshots, and all that they build on, back whole.

        A snapshot that cannot be read is marked as damaged, and the job fails with the code `damaged`; nothing else changes.
        Raises Unsupported without `Feature.VERIFY`.
        """

    async def list_quota_left(self) -> tuple[Quota, ...]:
        """GET /quota_left."""

    async def aclose(self) -> None:
        """Release connections. Jobs continue."""
