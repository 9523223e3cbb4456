"""A job as the history knows it, and the questions that are asked of it. Pure.

Texts are as they came from zones and callers; whoever shows them cleans them.
"""

import re
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from snapshot_mcp.contract.errors import BadRequest
from snapshot_mcp.contract.models import Job, Resource, Snapshot
from snapshot_mcp.contract.states import JobAction
from snapshot_mcp.contract.text import MESSAGE_CHARACTERS, clean_text, quoted

MAX_ROWS = 50
"""Most jobs in one answer."""

DEFAULT_SINCE = "24h"

ACTIONS: dict[str, str] = {
    JobAction.CREATE: "backup",
    JobAction.DELETE: "deletion",
    JobAction.APPLY: "roll-back",
    JobAction.CAPTURE_INSTANCE: "export to an image",
    JobAction.CREATE_VOLUME: "export to a new volume",
    JobAction.LEASE: "recovery",
    JobAction.VERIFY: "verification",
}
"""What a job does, in words."""

MAKES = {JobAction.CAPTURE_INSTANCE, JobAction.CREATE_VOLUME}
"""Actions whose job names what it makes; APPLY names disks, the others snapshots."""

FORGOTTEN = "the zone no longer knows the job"


@dataclass(frozen=True, slots=True)
class Thing:
    """A disk, a snapshot, or what a job made."""

    id: str
    name: str = ""

    @classmethod
    def of(cls, one: Snapshot | Resource) -> Self:
        """Build it from a snapshot or a resource."""
        return cls(one.snapshot_id, one.snapshot_name) if isinstance(one, Snapshot) else cls(one.id, one.name)

    @property
    def shown(self) -> str:
        """Its id and quoted name, cleaned."""
        return f"{clean_text(self.id)} {quoted(self.name)}" if self.name else clean_text(self.id)


@dataclass(frozen=True, slots=True)
class Entry:
    """A job; what is unknown is empty.

    `status` is "" while nobody knows how it ended, `unknown` once nobody can. `asked_through` is the program, `door` how the
    approval was given.
    """

    location: str
    zone: str
    job_id: str
    action: str = ""
    status: str = ""
    error: str = ""
    submitted: datetime | None = None
    ended: datetime | None = None
    disks: tuple[Thing, ...] = ()
    snapshots: tuple[Thing, ...] = ()
    made: tuple[Thing, ...] = ()
    asked_by: str = ""
    asked_through: str = ""
    approved_by: str = ""
    door: str = ""

    @classmethod
    def of(cls, job: Job, zone: str, location: str) -> Self:
        """Build it from what the zone says about a job."""
        ids = tuple(Thing(one) for one in job.resource_ids)
        return cls(
            location=location,
            zone=zone,
            job_id=job.job_id,
            action=job.action,
            status=job.status if job.is_finished else "",
            error=job.reason or "no reason given" if job.is_finished and not job.is_successful else "",
            submitted=job.create_time,
            ended=job.finished_time if job.is_finished else None,
            disks=ids if job.action == JobAction.APPLY else (),
            snapshots=() if job.action in MAKES or job.action == JobAction.APPLY else ids,
            made=ids if job.action in MAKES else (),
        )

    def with_end(self, job: Job) -> Self:
        """Return it with the end of the job, if the zone says that it has ended."""
        if self.status or not job.is_finished:
            return self
        end = Entry.of(job, self.zone, self.location)
        return replace(self, status=end.status, error=end.error, ended=end.ended or datetime.now(UTC))

    def completed(self, other: "Entry") -> Self:
        """Return it with what only the other entry of the same job has."""
        missing = {one.name: getattr(other, one.name) for one in fields(self) if not getattr(self, one.name)}
        return replace(self, **missing)

    @property
    def at(self) -> datetime:
        """When something last happened to it."""
        times = [one for one in (self.submitted, self.ended) if one]
        return max(times) if times else datetime.min.replace(tzinfo=UTC)

    @property
    def action_in_words(self) -> str:
        """What it does."""
        return ACTIONS.get(self.action) or clean_text(self.action) or "job"

    @property
    def error_shown(self) -> str:
        """Why it failed, cleaned."""
        return clean_text(self.error, MESSAGE_CHARACTERS)

    def without_names(self) -> Self:
        """Return it without who asked and who approved."""
        return replace(self, asked_by="", asked_through="", approved_by="", door="")


def merge(*lists: list[Entry]) -> list[Entry]:
    """Return one entry a job, the newest first; where two know something different the earlier list is believed."""
    found: dict[tuple[str, str], Entry] = {}
    for one in (entry for entries in lists for entry in entries):
        key = one.location, one.job_id
        found[key] = found[key].completed(one) if key in found else one
    return sorted(found.values(), key=lambda one: (one.at, one.job_id), reverse=True)


def parse_since(text: str, now: datetime) -> datetime:
    """Return the moment that `24h`, `7d` or a UTC time means, the default for "". Raises BadRequest."""
    text = text.strip() or DEFAULT_SINCE
    hint = "Use hours (24h), days (7d) or a UTC time (2026-11-26T08:00:00Z)."
    try:
        if span := re.fullmatch(r"(\d{1,6})\s*([hd])", text, re.IGNORECASE):
            count = int(span[1])
            return now - (timedelta(days=count) if span[2] in "dD" else timedelta(hours=count))
        moment = datetime.fromisoformat(text)
        return moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)
    except (ValueError, OverflowError):
        raise BadRequest(f"since {quoted(text)} is not a time.", hint=hint) from None


def to_json(entry: Entry) -> dict[str, Any]:
    """Return what the register stores besides the columns that it searches by."""
    things = {name: [[one.id, one.name] for one in getattr(entry, name)] for name in ("disks", "snapshots", "made")}
    who = {name: getattr(entry, name) for name in ("asked_by", "asked_through", "approved_by", "door")}
    return {name: value for name, value in (things | who).items() if value}


def from_json(about: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that `to_json` stored."""
    things = {"disks", "snapshots", "made"}
    return {name: tuple(Thing(*one) for one in value) if name in things else value for name, value in about.items()}
