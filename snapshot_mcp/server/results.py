"""Results of the tools: a small model each, written for its reader, with sizes in bytes and times in UTC.

They are built from the contract's models only here, and text from outside is cleaned. Unset fields are omitted. `hint` is the
next step.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Literal, Self

from mcp.types import CallToolResult, TextContent
from pydantic import BaseModel, ConfigDict, PrivateAttr

from snapshot_mcp.contract.errors import Cancelled
from snapshot_mcp.contract.models import Job, Resource, Snapshot, format_time
from snapshot_mcp.contract.states import JobAction, JobStatus
from snapshot_mcp.contract.text import (
    CONSISTENCIES,
    MESSAGE_CHARACTERS,
    clean_text,
    consistency_in_words,
    format_bytes,
    quoted,
)
from snapshot_mcp.contract.tree import is_fuzzy
from snapshot_mcp.guard import GuardedOutcome, Status

Outcome = Literal["successful", "failed", "still_running"]
"""How a wait for jobs ended."""

MAX_PLAN_LINES = 300
"""Lines of a plan in a result; most approvals take a few snapshots."""

RECOVER = "RecoverSnapshots"
"""A recovery job's action as readers see it; on the wire it is `Lease`, the specification's name."""


class Result(BaseModel):
    """Base of all results."""

    model_config = ConfigDict(frozen=True)

    def lean(self) -> dict[str, Any]:
        """Return it as a structure, without the optional fields that say nothing."""
        return self.model_dump(mode="json", exclude_defaults=True)

    def with_text(self, *lines: str) -> CallToolResult:
        """Return it as a tool's result, with `lines` as its text."""
        return CallToolResult(
            content=[TextContent(type="text", text="\n".join(line for line in lines if line))],
            structured_content=self.lean(),
        )


class Made(Result):
    """What a job has made: a snapshot, or the volume or image of an export.

    `consistency` says so if it does not count as good; `zone` is set beside jobs of several zones.
    """

    snapshot_id: str | None = None
    resource_id: str | None = None
    type: str
    name: str
    zone: str | None = None
    time: str | None = None
    stored_bytes: int | None = None
    disk_bytes: int | None = None
    path: str | None = None
    consistency: str | None = None

    @classmethod
    def of(cls, snapshot: Snapshot, zone: str | None = None) -> Self:
        """Build it from a snapshot."""
        return cls(
            snapshot_id=clean_text(snapshot.snapshot_id),
            type=type_of(snapshot),
            name=clean_text(snapshot.snapshot_name),
            zone=zone,
            time=format_time(snapshot.snapshot_time or snapshot.create_time) or None,
            stored_bytes=snapshot.stored_bytes,
            disk_bytes=snapshot.virtual_size_bytes,
            consistency=_verdict_of(snapshot),
        )

    @classmethod
    def of_export(cls, resource: Resource, zone: str | None = None, source: Snapshot | None = None) -> Self:
        """Build it from a volume or image, and the snapshot that it has the content of."""
        return cls(
            resource_id=clean_text(resource.id),
            type=resource.kind,
            name=clean_text(resource.name),
            zone=zone,
            time=format_time(resource.create_time) or None,
            disk_bytes=resource.byte_size,
            path=clean_text(resource.path or "", MESSAGE_CHARACTERS) or None,
            consistency=_verdict_of(source) if source else None,
        )

    @property
    def line(self) -> str:
        """All of it as a line of text."""
        what = "Snapshot" if self.snapshot_id else self.type.capitalize()
        parts = [f"{what} {self.snapshot_id or self.resource_id} {quoted(self.name)}"]
        parts += [self.type] if self.snapshot_id else []
        parts += [f"in zone {self.zone}"] if self.zone else []
        parts += [self.time] if self.time else []
        parts += [f"stores {format_bytes(self.stored_bytes)}"] if self.stored_bytes is not None else []
        parts += [f"disk {format_bytes(self.disk_bytes)}"] if self.disk_bytes is not None else []
        parts += [one for one in (self.path, self.consistency) if one]
        return "  ".join(parts)


class Renamed(Result):
    """Outcome of a rename; `hint` says what was changed."""

    zone: str
    status: Literal["done"]
    snapshot_id: str
    hint: str = ""


class Submitted(Result):
    """Outcome of a change that a job carries out; `outcome` and `error` (the reason of a failed job) are set after a wait."""

    zone: str
    status: Literal["submitted", "exists"]
    job_id: str | None = None
    snapshot_ids: list[str] | None = None
    outcome: Outcome | None = None
    error: str | None = None
    hint: str = ""


class Change(Submitted):
    """Outcome of a change that makes something: `submitted` (accepted as a job) or `exists` (nothing was started).

    `snapshot_ids` are in the order in which the disks were given; `disk_bytes` is the size of the disks. `made` is set after
    a wait.
    """

    made_at: str | None = None
    disk_bytes: int | None = None
    made: list[Made] | None = None


class JobRow(Result):
    """A job."""

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
    _is_cancelled: bool = PrivateAttr(False)

    @property
    def is_cancelled(self) -> bool:
        """Whether it failed because somebody cancelled it."""
        return self._is_cancelled

    @classmethod
    def of(cls, job: Job, zone: str) -> Self:
        """Build a row from a job."""
        progress = job.progress
        if job.is_finished:
            percent = 100.0 if job.is_successful else None
        else:
            percent = round(progress.fraction * 100, 1) if progress else None
        is_bytes = progress is not None and progress.unit == "bytes"
        reason = clean_text(job.reason or "no reason given", MESSAGE_CHARACTERS)
        row = cls(
            job_id=clean_text(job.job_id),
            zone=zone,
            action=action_of(job),
            status=clean_text(job.status),
            percent=percent,
            phase=clean_text(progress.phase) if progress and progress.phase and not job.is_finished else None,
            done_bytes=progress.done if progress and is_bytes else None,
            total_bytes=progress.total if progress and is_bytes else None,
            resource_ids=[clean_text(one) for one in job.resource_ids],
            created_at=format_time(job.create_time) or None,
            finished_at=format_time(job.finished_time) or None,
            error=reason if job.status == JobStatus.FAILED else None,
        )
        row._is_cancelled = job.error is not None and job.error.code == Cancelled.code
        return row


class ListedJob(JobRow):
    """A job in a list; its own fields are of the history, whose `action` is in words."""

    disks: list[str] | None = None
    snapshots: list[str] | None = None
    made: list[str] | None = None
    asked_by: str | None = None
    asked_through: str | None = None
    approved_by: str | None = None
    approved_through: str | None = None


class Unreachable(Result):
    """A zone that did not answer."""

    zone: str
    reason: str


class JobList(Result):
    """The unfinished jobs of one or all zones, or with `since` the history."""

    since: str | None = None
    jobs: list[ListedJob]
    unreachable: list[Unreachable] = []
    hint: str = ""


class Waited(Result):
    """Outcome of waiting for several jobs: `failed` if one has failed, else `still_running` if one is unfinished.

    `made` is what the successful ones have made, as far as the zone lists it.
    """

    outcome: Outcome
    jobs: list[JobRow]
    made: list[Made] | None = None
    hint: str = ""


class Cancellation(Result):
    """Outcome of a cancellation: `cancelled` (ended without effect) or `cancelling` (about to end so)."""

    zone: str
    job_id: str
    status: Literal["cancelled", "cancelling"]
    hint: str = ""


class Guarded(Result):
    """Outcome of a guarded call; only with the status `started` was anything started.

    `outcome`, `error` and `made` (a line for each safety snapshot) are set after a wait.
    """

    zone: str
    status: Status
    message: str
    plan: list[str] = []
    job_id: str | None = None
    approval_id: str | None = None
    approval_link: str | None = None
    how_to_approve: str | None = None
    approval_expires_at: str | None = None
    safety_job_id: str | None = None
    safety_snapshot_ids: list[str] | None = None
    frees_bytes: int | None = None
    declined_at: str | None = None
    ask_again_at: str | None = None
    outcome: Outcome | None = None
    made: list[str] | None = None
    error: str | None = None
    hint: str = ""

    @classmethod
    def of(cls, outcome: GuardedOutcome, zone: str) -> Self:
        """Build it from the guard's outcome."""
        return cls(
            zone=zone,
            status=outcome.status,
            message=outcome.message.removesuffix(f"\n{outcome.how_to_approve}"),
            plan=_cut(outcome.plan),
            job_id=clean_text(outcome.job_id) or None,
            approval_id=outcome.approval_id or None,
            approval_link=outcome.approval_link or None,
            how_to_approve=outcome.how_to_approve or None,
            approval_expires_at=format_time(outcome.approval_expires_at) or None,
            safety_job_id=clean_text(outcome.safety_job_id) or None,
            safety_snapshot_ids=[clean_text(one) for one in outcome.safety_snapshot_ids] or None,
            frees_bytes=outcome.frees_bytes,
            declined_at=format_time(outcome.declined_at) or None,
            ask_again_at=format_time(outcome.ask_again_at) or None,
            hint=outcome.next_step,
        )


def _cut(lines: Sequence[str]) -> list[str]:
    """Return the lines of a plan, of a very long one the first: a person who decides is shown all of it elsewhere."""
    more = len(lines) - MAX_PLAN_LINES
    return [*lines[:MAX_PLAN_LINES], f"… and {more} lines more"] if more > 0 else list(lines)


def type_of(snapshot: Snapshot) -> str:
    """Return `full` or `incremental`."""
    return "full" if snapshot.is_full else "incremental"


def action_of(job: Job) -> str:
    """Return what a job does, in words that a reader knows."""
    return RECOVER if job.action == JobAction.LEASE else clean_text(job.action)


def status_of(snapshot: Snapshot) -> str:
    """Return its status, or the one that it is changing to."""
    return clean_text(snapshot.transition_status or snapshot.status)


def consistency_of(snapshot: Snapshot) -> str | None:
    """Return its consistency in plain words, None if the zone does not report it."""
    return consistency_in_words(snapshot.consistency) or None


def _verdict_of(snapshot: Snapshot) -> str | None:
    consistency = consistency_of(snapshot)
    return f"{consistency}; does not count as good" if consistency and is_fuzzy(snapshot) else consistency


def mixture_warning(snapshots: Iterable[Snapshot]) -> str:
    """Return a warning that names those which may be a mixture of states, "" if there are none."""
    ids = dict.fromkeys(clean_text(one.snapshot_id) for one in snapshots if is_fuzzy(one))
    if not ids:
        return ""
    return f"{', '.join(ids)}: {CONSISTENCIES['fuzzy']} (fuzzy); this does not count as a good restore point."
