"""The contract's models: what travels between a provider and everything above it (CONTRACT.md).

What a zone returns may have unknown fields and enum values, which are kept; requests forbid unknown fields. All are frozen.
Times are aware UTC datetimes in Python and `YYYY-MM-DDTHH:MM:SSZ` on the wire; an unset one is None here and `""` there.
"""

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar

from pydantic import BeforeValidator, Field

from snapshot_mcp.contract.base import Request as Request
from snapshot_mcp.contract.base import ZoneModel as ZoneModel
from snapshot_mcp.contract.copied import Copied
from snapshot_mcp.contract.states import FINAL_JOB_STATUSES, JobStatus, SnapshotStatus, SnapshotType
from snapshot_mcp.contract.values import (
    MAX_COUNT,
    Bytes,
    OwnTime,
    WireCode,
    WireCount,
    WireFlag,
    WireJobStatus,
    WireName,
    WireSnapshotStatus,
    WireSnapshotType,
    WireText,
    WireTime,
    WireTransitionStatus,
    parse_job_error,
    unset_as,
)
from snapshot_mcp.contract.values import format_time as format_time

MIB = 1 << 20
GIB = 1 << 30

MAX_NAME_CHARACTERS = 255
"""Names are any text up to this length and need not be unique (CONTRACT.md, "Names")."""

MAX_DESCRIPTION_CHARACTERS = 4096
MAX_LIMIT = 100
"""Items on the largest page (CONTRACT.md, "What surrounds them")."""

MAX_IDS = 100
"""Most ids in one request."""

MAX_OFFSET = 1 << 53
"""The largest integer that every JSON reader keeps exactly."""


def megabytes(size_bytes: int) -> int:
    """Return bytes as the contract's MB, rounded up."""
    return -(-size_bytes // MIB)


def gigabytes(size_bytes: int) -> int:
    """Return bytes as the contract's GB, rounded up."""
    return -(-size_bytes // GIB)


class SnapshotResource(ZoneModel):
    """The resource that a snapshot was taken of."""

    resource_id: WireText = ""
    resource_name: WireName = ""
    resource_type: WireText = ""


class Snapshot(ZoneModel):
    """A restore point: the contract's 18 fields, its `resource`, and what our zone adds with `verbose=1`.

    `size` is the space it occupies, in MB. The fields after `tags` are our zone's own; others leave them unset. When it was
    asked for, by the uptime of the machine whose boot has this id, is known on that machine alone and never sent.
    """

    snapshot_id: str
    snapshot_name: WireName = ""
    description: WireName = ""
    snapshot_type: WireSnapshotType = SnapshotType.INCREMENTAL
    status: WireSnapshotStatus = ""
    transition_status: WireTransitionStatus = ""
    create_time: WireTime = None
    status_time: WireTime = None
    snapshot_time: WireTime = None
    is_taken: WireFlag = 0
    is_head: WireFlag = 0
    head_chain: WireFlag = 0
    root_id: WireText = ""
    parent_id: WireText = ""
    size: WireCount = 0
    total_size: WireCount = 0
    total_count: WireCount = 0
    lastest_snapshot_time: WireTime = None
    resource: Annotated[SnapshotResource, unset_as({})] = SnapshotResource()
    tags: Annotated[tuple[str, ...], unset_as(())] = ()
    size_bytes: Bytes | None = None
    virtual_size_bytes: Bytes | None = None
    consistency: str | None = None
    is_damaged: int | None = None
    deleted_at: OwnTime = None
    recoverable_until: OwnTime = None
    verified_at: OwnTime = None
    copies: Annotated[tuple[Copied, ...], unset_as(())] = ()
    created_boot: str = Field("", exclude=True)
    created_uptime: float = Field(0.0, exclude=True)

    @property
    def is_full(self) -> bool:
        """Whether it builds on no other snapshot."""
        return self.snapshot_type == SnapshotType.FULL

    @property
    def is_available(self) -> bool:
        """Whether the zone allows it to be rolled back to and exported."""
        return self.status == SnapshotStatus.AVAILABLE and not self.transition_status

    @property
    def stored_bytes(self) -> int:
        """The space it occupies: exact if the zone reports bytes, else from MB."""
        return self.size * MIB if self.size_bytes is None else self.size_bytes

    @property
    def parent(self) -> str | None:
        """Id of the snapshot that it builds on; None for a full one (whose `parent_id` is `self`)."""
        return None if self.is_full or self.parent_id in {"", "self", self.snapshot_id} else self.parent_id


class JobError(ZoneModel):
    """Why a job failed."""

    code: WireCode = ""
    message: WireName = ""


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of a job: `done` of `total` in `unit`, within the named phase."""

    done: int
    total: int
    phase: str = ""
    unit: str = "bytes"

    @property
    def fraction(self) -> float:
        """The finished share, between 0 and 1."""
        return min(self.done, self.total) / self.total if self.total > 0 else 0.0


class Job(ZoneModel):
    """A change in progress: all that an operation which changes something returns (CONTRACT.md, "Job").

    `extra` is the provider's own; our zone's has `progress` and details of the operation (see `providers.local`).
    """

    job_id: Annotated[str, Field(min_length=1)]
    id_prefix: WireText = ""
    action: WireText = ""
    request_id: WireText = ""
    status: WireJobStatus = JobStatus.PENDING
    create_time: WireTime = None
    begin_time: WireTime = None
    finished_time: WireTime = None
    info: WireName = ""
    extra: Any = None
    zone: WireText = ""
    resource_ids: Annotated[tuple[str, ...], unset_as(())] = ()
    error: Annotated[JobError | None, BeforeValidator(parse_job_error)] = None

    @property
    def is_finished(self) -> bool:
        """Whether its status is final."""
        return self.status in FINAL_JOB_STATUSES

    @property
    def is_successful(self) -> bool:
        """Whether it has succeeded."""
        return self.status == JobStatus.SUCCESSFUL

    @property
    def details(self) -> dict[str, Any]:
        """`extra` as a mapping; providers send an object, JSON text, or nothing."""
        extra = self.extra
        if isinstance(extra, str):
            with suppress(ValueError, RecursionError):
                extra = json.loads(extra)
        return extra if isinstance(extra, dict) else {}

    @property
    def progress(self) -> Progress | None:
        """Its progress, if the zone reports it."""
        match self.details.get("progress"):
            case {"done": int(done), "total": int(total), **rest} if 0 <= done <= MAX_COUNT and 0 <= total <= MAX_COUNT:
                return Progress(done, total, str(rest.get("phase", "")), str(rest.get("unit", "bytes")))
            case _:
                return None

    @property
    def reason(self) -> str:
        """Why it failed, in the provider's words; not cleaned."""
        return (self.error.message if self.error else "") or self.info


class AttachedInstance(ZoneModel):
    """The host that a volume is attached to."""

    instance_id: WireText = ""
    instance_name: WireName = ""
    device: WireText = ""


class Coverage(ZoneModel):
    """What protects a disk: its restore points by worth, and the newest good one (CONTRACT.md, "What our own face adds").

    `verified_at`: when the newest good one was last read back; None for never. `copied_id`, `copied_time`: the newest good one
    that copies elsewhere have; `copied_to`: their names.
    """

    newest_good_id: WireText = ""
    newest_good_time: OwnTime = None
    newest_good_consistency: WireText = ""
    good_count: WireCount = 0
    damaged_count: WireCount = 0
    fuzzy_count: WireCount = 0
    stored_bytes: WireCount = 0
    verified_at: OwnTime = None
    copied_id: WireText = ""
    copied_time: OwnTime = None
    copied_to: WireName = ""


class Resource(ZoneModel):
    """Base of volumes, instances and images. `size` is in `unit`; the fields after `status_time` are our zone's own.

    With `ResourceFilter.verbose` a zone with `Feature.TERMS` adds three fields to a disk: `identity`, which disk it is, opaque
    to all but the zone; `held_by`, the process that has it open or the job that uses it ("" for none, None if unknown);
    `hard_links`, how many names its file has. A zone with `Feature.COVERAGE` adds `coverage`. `format` is what
    wraps a disk's content, such as qcow2; None for nothing, or if the zone does not say.
    """

    kind: ClassVar[Literal["volume", "instance", "image"]]
    unit: ClassVar[int] = GIB
    description: WireName = ""
    size: Annotated[int | float, unset_as(0), Field(ge=0, le=MAX_COUNT)] = 0
    status: WireText = ""
    transition_status: WireText = ""
    create_time: WireTime = None
    status_time: WireTime = None
    size_bytes: Bytes | None = None
    path: str | None = None
    problem: str | None = None
    identity: str | None = None
    held_by: str | None = None
    hard_links: int | None = None
    format: str | None = None
    coverage: Coverage | None = None

    @property
    def id(self) -> str:
        """The value of `volume_id`, `instance_id` or `image_id`."""
        return str(getattr(self, f"{self.kind}_id"))

    @property
    def name(self) -> str:
        """The value of `volume_name`, `instance_name` or `image_name`."""
        return str(getattr(self, f"{self.kind}_name"))

    @property
    def byte_size(self) -> int:
        """Its size: exact if the zone reports bytes, else from `size`."""
        return int(self.size * self.unit) if self.size_bytes is None else self.size_bytes


class Volume(Resource):
    """A disk."""

    kind = "volume"
    volume_id: str
    volume_name: WireName = ""
    instance: AttachedInstance | None = None


class Instance(Resource):
    """A machine."""

    kind = "instance"
    instance_id: str
    instance_name: WireName = ""


class Image(Resource):
    """An image of a machine."""

    kind = "image"
    unit = MIB
    image_id: str
    image_name: WireName = ""
    provider: WireText = ""


class Quota(ZoneModel):
    """A row of `quota_left`."""

    type: WireText = ""
    quantity: Annotated[int | float, unset_as(0)] = 0
    left: Annotated[int | float, unset_as(0)] = 0
    name: WireText = ""


class SnapshotFilter(Request):
    """Query of the list of snapshots: the specification's ten parameters, all optional (CONTRACT.md, "The six operations").

    `snapshots` are ids. Several values of `status` or `tags` match any of them; `search_word` matches part of an id or a name.
    """

    snapshots: tuple[str, ...] = ()
    resource_id: str = ""
    snapshot_type: SnapshotType | None = None
    status: tuple[str, ...] = ()
    search_word: str = ""
    tags: tuple[str, ...] = ()
    verbose: Literal[0, 1] = 0
    offset: int = Field(default=0, ge=0, le=MAX_OFFSET)
    limit: int = Field(default=10, ge=1, le=MAX_LIMIT)
    root_id: str = ""


class ResourceFilter(Request):
    """Query of volumes, instances and images; `ids` is sent as `volumes`, `instances` or `images`.

    `verbose` requests fields that take a look at each disk; it is sent only to a zone with `Feature.TERMS`.
    """

    ids: tuple[str, ...] = ()
    status: tuple[str, ...] = ()
    search_word: str = ""
    verbose: Literal[0, 1] = 0
    offset: int = Field(default=0, ge=0, le=MAX_OFFSET)
    limit: int = Field(default=10, ge=1, le=MAX_LIMIT)


class SnapshotUpdate(Request):
    """Body of the PUT: None leaves a field unchanged, an empty `tags` removes all tags."""

    snapshot_name: str | None = Field(default=None, max_length=MAX_NAME_CHARACTERS)
    description: str | None = Field(default=None, max_length=MAX_DESCRIPTION_CHARACTERS)
    tags: tuple[str, ...] | None = None


Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    """A page of a list, with the number of items in the whole list; `unread`: why rows of it could not be read."""

    items: tuple[Item, ...]
    total_count: int
    unread: tuple[str, ...] = ()


def first_repeated(ids: Iterable[str]) -> str | None:
    """Return the first id that occurs twice, None for none (CONTRACT.md, "All or nothing")."""
    seen: set[str] = set()
    for one in ids:
        if one in seen:
            return one
        seen.add(one)
    return None
