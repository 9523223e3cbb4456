"""What the tools answer: one small model each, written for its reader, with sizes in bytes and times in UTC.

Built from the contract's models here and nowhere else; text from outside is cleaned on the way in. Unset fields are left
out. `hint` is the next step.
"""

from collections.abc import Iterable
from typing import Any, Literal, Self

from mcp.types import CallToolResult, TextContent
from pydantic import BaseModel, ConfigDict

from snapshot_mcp.contract.models import Image, Instance, Job, Snapshot, Volume, format_time
from snapshot_mcp.contract.states import JobStatus
from snapshot_mcp.contract.text import CONSISTENCIES, MESSAGE_CHARACTERS, clean_text, consistency_in_words
from snapshot_mcp.contract.tree import is_fuzzy
from snapshot_mcp.guard import GuardedOutcome, Status


class Result(BaseModel):
    """Base of all answers."""

    model_config = ConfigDict(frozen=True)

    def with_text(self, *lines: str) -> CallToolResult:
        """Return it as a tool's result with `lines` beside it."""
        return CallToolResult(
            content=[TextContent(type="text", text="\n".join(line for line in lines if line))],
            structured_content=self.model_dump(mode="json", exclude_none=True),
        )


class SnapshotRow(Result):
    """A restore point in a list; the last fields come with `verbose` only."""

    snapshot_id: str
    name: str
    type: str
    status: str
    resource_id: str
    resource_name: str
    snapshot_time: str
    size_bytes: int
    root_id: str
    parent_id: str | None = None
    consistency: str | None = None
    is_head: bool | None = None
    is_damaged: bool | None = None
    description: str | None = None
    tags: list[str] | None = None
    disk_bytes: int | None = None
    chain_bytes: int | None = None
    chain_count: int | None = None

    @classmethod
    def of(cls, snapshot: Snapshot, *, verbose: bool = False) -> Self:
        details: dict[str, Any] = {}
        if verbose:
            details = {
                "description": clean_text(snapshot.description, MESSAGE_CHARACTERS),
                "tags": [clean_text(tag) for tag in snapshot.tags],
                "disk_bytes": snapshot.virtual_size_bytes,
            }
            if snapshot.is_full:
                details |= {"chain_bytes": snapshot.total_size << 20, "chain_count": snapshot.total_count}
        return cls(
            snapshot_id=clean_text(snapshot.snapshot_id),
            name=clean_text(snapshot.snapshot_name),
            type=type_of(snapshot),
            status=status_of(snapshot),
            resource_id=clean_text(snapshot.resource.resource_id),
            resource_name=clean_text(snapshot.resource.resource_name),
            snapshot_time=format_time(snapshot.snapshot_time or snapshot.create_time),
            size_bytes=snapshot.stored_bytes,
            root_id=clean_text(snapshot.root_id),
            parent_id=clean_text(snapshot.parent) if snapshot.parent else None,
            consistency=consistency_of(snapshot),
            is_head=True if snapshot.is_head else None,
            is_damaged=True if snapshot.is_damaged else None,
            **details,
        )


class SnapshotList(Result):
    zone: str
    total_count: int
    snapshots: list[SnapshotRow]
    hint: str = ""


class ResourceRow(Result):
    resource_id: str
    name: str
    kind: Literal["volume", "instance", "image"]
    status: str
    size_bytes: int
    attached_to: str | None = None
    path: str | None = None
    held_by: str | None = None
    problem: str | None = None

    @classmethod
    def of(cls, resource: Volume | Instance | Image) -> Self:
        kind: Literal["volume", "instance", "image"] = "image"
        attached = None
        if isinstance(resource, Volume):
            kind = "volume"
            if resource.instance and resource.instance.instance_id:
                attached = clean_text(resource.instance.instance_id)
        elif isinstance(resource, Instance):
            kind = "instance"
        return cls(
            resource_id=clean_text(resource.id),
            name=clean_text(resource.name),
            kind=kind,
            status=clean_text(resource.transition_status or resource.status),
            size_bytes=resource.byte_size,
            attached_to=attached,
            path=clean_text(resource.path, MESSAGE_CHARACTERS) if resource.path else None,
            held_by=clean_text(resource.held_by, MESSAGE_CHARACTERS) if resource.held_by else None,
            problem=clean_text(resource.problem, MESSAGE_CHARACTERS) if resource.problem else None,
        )


class ResourceList(Result):
    zone: str
    total_count: int
    resources: list[ResourceRow]
    hint: str = ""


class Change(Result):
    """`submitted`: the zone has accepted it and `wait_for_job` follows it. `exists`: nothing was started. `done`: it is so.

    `snapshot_ids` stand in the order in which the disks were named; `size_bytes` is the disks' size, not what is stored.
    """

    zone: str
    status: Literal["submitted", "exists", "done"]
    job_id: str | None = None
    snapshot_ids: list[str] | None = None
    made_at: str | None = None
    size_bytes: int | None = None
    hint: str = ""


class JobRow(Result):
    job_id: str
    zone: str
    action: str
    status: str
    percent: float | None = None
    phase: str | None = None
    done_bytes: int | None = None
    total_bytes: int | None = None
    resource_ids: list[str] = []
    created_at: str | None = None
    finished_at: str | None = None
    error: str | None = None

    @classmethod
    def of(cls, job: Job, zone: str) -> Self:
        progress = job.progress
        if job.is_finished:
            percent = 100.0 if job.is_successful else None
        else:
            percent = round(progress.fraction * 100, 1) if progress else None
        is_bytes = progress is not None and progress.unit == "bytes"
        return cls(
            job_id=clean_text(job.job_id),
            zone=zone,
            action=clean_text(job.action),
            status=clean_text(job.status),
            percent=percent,
            phase=clean_text(progress.phase) if progress and progress.phase and not job.is_finished else None,
            done_bytes=max(0, progress.done) if progress and is_bytes else None,
            total_bytes=max(0, progress.total) if progress and is_bytes else None,
            resource_ids=[clean_text(one) for one in job.resource_ids],
            created_at=format_time(job.create_time) or None,
            finished_at=format_time(job.finished_time) or None,
            error=clean_text(job.reason or "no reason given", MESSAGE_CHARACTERS)
            if job.status == JobStatus.FAILED
            else None,
        )


class Unreachable(Result):
    zone: str
    reason: str


class JobList(Result):
    jobs: list[JobRow]
    unreachable: list[Unreachable] = []
    hint: str = ""


class Made(Result):
    """A snapshot that a job has made; `counts_as_good` is set, to false, where it may be a mixture."""

    snapshot_id: str
    zone: str
    consistency: str | None = None
    counts_as_good: bool | None = None

    @classmethod
    def of(cls, snapshot: Snapshot, zone: str) -> Self:
        return cls(
            snapshot_id=clean_text(snapshot.snapshot_id),
            zone=zone,
            consistency=consistency_of(snapshot),
            counts_as_good=False if is_fuzzy(snapshot) else None,
        )


class Waited(Result):
    """`outcome` is about all of them: `failed` if one failed, `still_running` if one runs.

    `made` are the snapshots of the backups that have ended well, as far as the zone lists them.
    """

    outcome: Literal["successful", "failed", "still_running"]
    jobs: list[JobRow]
    made: list[Made] | None = None
    hint: str = ""


class Cancellation(Result):
    """`cancelled`: the job has ended without effect. `cancelling`: it runs, and ends so in a moment."""

    zone: str
    job_id: str
    status: Literal["cancelled", "cancelling"]
    hint: str = ""


class ChainNode(Result):
    snapshot_id: str
    parent_id: str | None = None
    root_id: str
    depth: int
    name: str
    type: str
    status: str
    snapshot_time: str
    size_bytes: int
    consistency: str | None = None
    is_head: bool = False
    is_damaged: bool = False


class Chain(Result):
    """The restore points of one resource as trees, parents before children; `depth` counts from the full one.

    `total_bytes` is what those in `nodes` store.
    """

    zone: str
    resource_id: str
    resource_name: str
    head_id: str | None = None
    total_bytes: int
    gone_count: int
    nodes: list[ChainNode]
    hint: str = ""


class Guarded(Result):
    """What became of a guarded call; only `started` has started anything."""

    zone: str
    status: Status
    plan: list[str] = []
    job_id: str | None = None
    approval_id: str | None = None
    approval_link: str | None = None
    how_to_approve: str | None = None
    approval_expires_at: str | None = None
    safety_job_id: str | None = None
    safety_snapshot_ids: list[str] | None = None
    hint: str = ""

    @classmethod
    def of(cls, outcome: GuardedOutcome, zone: str) -> Self:
        return cls(
            zone=zone,
            status=outcome.status,
            plan=list(outcome.plan),
            job_id=clean_text(outcome.job_id) or None,
            approval_id=outcome.approval_id or None,
            approval_link=outcome.approval_link or None,
            how_to_approve=outcome.how_to_approve or None,
            approval_expires_at=format_time(outcome.approval_expires_at) or None,
            safety_job_id=clean_text(outcome.safety_job_id) or None,
            safety_snapshot_ids=[clean_text(one) for one in outcome.safety_snapshot_ids] or None,
            hint=outcome.next_step,
        )


def type_of(snapshot: Snapshot) -> str:
    """`full` or `incremental`, in the words of the tools."""
    return "full" if snapshot.is_full else "incremental"


def status_of(snapshot: Snapshot) -> str:
    """Its status, or what it is on the way to."""
    return clean_text(snapshot.transition_status or snapshot.status)


def consistency_of(snapshot: Snapshot) -> str | None:
    """How far it is one state of its disk, in words; None where the zone does not say."""
    return consistency_in_words(snapshot.consistency) or None


def mixture_warning(snapshots: Iterable[Snapshot]) -> str:
    """Say which of them may be a mixture; "" where none is."""
    ids = dict.fromkeys(clean_text(one.snapshot_id) for one in snapshots if is_fuzzy(one))
    if not ids:
        return ""
    return f"{', '.join(ids)}: {CONSISTENCIES['fuzzy']} (fuzzy); this does not count as a good restore point."
