"""The contract's models: what travels between a provider and everything above it (CONTRACT.md).

Answers tolerate unknown fields and unknown enum values and keep them; requests forbid unknown fields. All are frozen.
Times are aware UTC datetimes in Python and `YYYY-MM-DDTHH:MM:SSZ` on the wire, an unset one is None here and `""` there.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from snapshot_mcp.contract.states import FINAL_JOB_STATUSES, JobStatus, SnapshotStatus, SnapshotType
from snapshot_mcp.contract.values import (
    MAX_COUNT,
    Bytes,
    WireCode,
    WireCount,
    WireFlag,
    WireJobStatus,
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

MAX_LIMIT = 100
"""The largest page (CONTRACT.md, "What surrounds them")."""

MAX_OFFSET = 1 << 53
"""Beyond it a number is no longer the same in every JSON reader, and no zone has so many snapshots."""


def megabytes(size_bytes: int) -> int:
    """Bytes as the contract's MB: rounded up, zero stays 0."""
    return -(-size_bytes // MIB)


def gigabytes(size_bytes: int) -> int:
    """Bytes as the contract's GB: rounded up, zero stays 0."""
    return -(-size_bytes // GIB)


class Answer(BaseModel):
    """Base of what comes from a zone: frozen, unknown fields kept."""

    model_config = ConfigDict(frozen=True, extra="allow", hide_input_in_errors=True, defer_build=True)

    def to_wire(self) -> dict[str, Any]:
        """Return the JSON form, without optional fields that the zone does not fill."""
        return self.model_dump(mode="json", exclude_none=False, exclude_defaults=False)


class Request(BaseModel):
    """Base of what is asked of a zone: frozen, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, defer_build=True)


class SnapshotResource(Answer):
    """What a snapshot is of."""

    resource_id: WireText = ""
    resource_name: WireText = ""
    resource_type: WireText = ""


class Snapshot(Answer):
    """One restore point: the contract's 18 fields, its `resource`, and what our zone adds with `verbose=1`.

    `size` is what it occupies, in MB. The last five fields are our zone's own; a provider leaves them unset.
    """

    snapshot_id: str
    snapshot_name: WireText = ""
    description: WireText = ""
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

    @property
    def is_full(self) -> bool:
        return self.snapshot_type == SnapshotType.FULL

    @property
    def is_available(self) -> bool:
        """Usable for apply and export, as far as the zone says."""
        return self.status == SnapshotStatus.AVAILABLE and not self.transition_status

    @property
    def stored_bytes(self) -> int:
        """What it occupies: exact where the zone says so, else the contract's MB."""
        return self.size * MIB if self.size_bytes is None else self.size_bytes

    @property
    def parent(self) -> str | None:
        """The snapshot that this one builds on; None for a full one (its `parent_id` says `self`)."""
        return None if self.is_full or self.parent_id in {"", "self", self.snapshot_id} else self.parent_id


class JobError(Answer):
    """Why a job failed."""

    code: WireCode = ""
    message: WireText = ""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is: `done` of `total` (bytes unless `unit` says otherwise), in the phase it names."""

    done: int
    total: int
    phase: str = ""
    unit: str = "bytes"

    @property
    def fraction(self) -> float:
        """Between 0 and 1."""
        return min(self.done, self.total) / self.total if self.total > 0 else 0.0


class Job(Answer):
    """A change under way: the only answer that a change gives, and it must be waited for (CONTRACT.md, "Job").

    `extra` is the provider's; ours holds `progress`, and per operation what the contract asks for (see `providers.local`).
    """

    job_id: Annotated[str, Field(min_length=1)]
    id_prefix: WireText = ""
    action: WireText = ""
    request_id: WireText = ""
    status: WireJobStatus = JobStatus.PENDING
    create_time: WireTime = None
    begin_time: WireTime = None
    finished_time: WireTime = None
    info: WireText = ""
    extra: Any = None
    zone: WireText = ""
    resource_ids: Annotated[tuple[str, ...], unset_as(())] = ()
    error: Annotated[JobError | None, BeforeValidator(parse_job_error)] = None

    @property
    def is_finished(self) -> bool:
        return self.status in FINAL_JOB_STATUSES

    @property
    def is_successful(self) -> bool:
        return self.status == JobStatus.SUCCESSFUL

    @property
    def details(self) -> dict[str, Any]:
        """`extra` as a mapping; providers send it as an object, as JSON text, or not at all."""
        extra = self.extra
        if isinstance(extra, str):
            try:
                extra = json.loads(extra)
            except (ValueError, RecursionError):
                return {}
        return extra if isinstance(extra, dict) else {}

    @property
    def progress(self) -> Progress | None:
        """How far it is, where the zone says so."""
        match self.details.get("progress"):
            case {"done": int(done), "total": int(total), **rest} if 0 <= done <= MAX_COUNT and 0 <= total <= MAX_COUNT:
                return Progress(done, total, str(rest.get("phase", "")), str(rest.get("unit", "bytes")))
            case _:
                return None

    @property
    def reason(self) -> str:
        """Why it failed, in the provider's words; uncleaned."""
        return (self.error.message if self.error else "") or self.info


class AttachedInstance(Answer):
    """The host that a volume is attached to."""

    instance_id: WireText = ""
    instance_name: WireText = ""
    device: WireText = ""


class Resource(Answer):
    """Common to volume, instance and image. `size` is GB, an image's MB; the last six fields are our zone's own.

    With `ResourceFilter.verbose` a zone with `Feature.TERMS` fills three more of a disk: `identity` says which disk it is,
    opaque to all but the zone; `held_by` who has it open or which job is busy with it ("" for nobody, None where that
    cannot be told); `hard_links` how many names its file has.
    """

    description: WireText = ""
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


class Volume(Resource):
    volume_id: str
    volume_name: WireText = ""
    instance: AttachedInstance | None = None

    @property
    def id(self) -> str:
        return self.volume_id

    @property
    def name(self) -> str:
        return self.volume_name

    @property
    def byte_size(self) -> int:
        return int(self.size * GIB) if self.size_bytes is None else self.size_bytes


class Instance(Resource):
    instance_id: str
    instance_name: WireText = ""

    @property
    def id(self) -> str:
        return self.instance_id

    @property
    def name(self) -> str:
        return self.instance_name

    @property
    def byte_size(self) -> int:
        return int(self.size * GIB) if self.size_bytes is None else self.size_bytes


class Image(Resource):
    image_id: str
    image_name: WireText = ""
    provider: WireText = ""

    @property
    def id(self) -> str:
        return self.image_id

    @property
    def name(self) -> str:
        return self.image_name

    @property
    def byte_size(self) -> int:
        return int(self.size * MIB) if self.size_bytes is None else self.size_bytes


class Quota(Answer):
    """One row of `quota_left`."""

    type: WireText = ""
    quantity: Annotated[int | float, unset_as(0)] = 0
    left: Annotated[int | float, unset_as(0)] = 0
    name: WireText = ""


class SnapshotFilter(Request):
    """The list query: the specification's ten parameters, all optional (CONTRACT.md, "The six operations").

    `snapshots` are ids; several `status` or `tags` mean any of them; `search_word` is a part of an id or a name.
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
    """The query of volumes, instances and images; `ids` travels as `volumes`, `instances` or `images`.

    `verbose` asks for what costs a look at each disk; it is sent only where the zone has `Feature.TERMS`.
    """

    ids: tuple[str, ...] = ()
    status: tuple[str, ...] = ()
    search_word: str = ""
    verbose: Literal[0, 1] = 0
    offset: int = Field(default=0, ge=0, le=MAX_OFFSET)
    limit: int = Field(default=10, ge=1, le=MAX_LIMIT)


class SnapshotUpdate(Request):
    """The PUT's body; None leaves a field as it is. An empty `tags` removes all."""

    snapshot_name: str | None = Field(default=None, max_length=MAX_NAME_CHARACTERS)
    description: str | None = Field(default=None, max_length=4096)
    tags: tuple[str, ...] | None = None


Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    """A page of a list and how many there are in all."""

    items: tuple[Item, ...]
    total_count: int


def first_repeated(ids: Iterable[str]) -> str | None:
    """Return the first id that comes twice; a create or an apply with one is refused whole (CONTRACT.md, "All or nothing")."""
    seen: set[str] = set()
    for one in ids:
        if one in seen:
            return one
        seen.add(one)
    return None
