"""A job as the history knows it, and the questions that are asked of it. Pure.

Texts are as they came from zones and callers; whoever shows them cleans them.
"""

import re
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from snapshot_mcp.contract.errors import BadRequest
from snapshot_mcp.contract.models import Job, Resource, Snapshot, format_time
from snapshot_mcp.contract.states import JobAction
from snapshot_mcp.contract.text import CLOCK_SKEW_SECONDS, MESSAGE_CHARACTERS, clean_text, quoted
from snapshot_mcp.ground.clock import Moment

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
    JobAction.COPY: "copy elsewhere",
}
"""What a job does, in words."""

MAKES = {JobAction.CAPTURE_INSTANCE, JobAction.CREATE_VOLUME}
"""Actions whose job names what it makes; APPLY names disks, the others snapshots."""

CLOCK_SKEW = timedelta(seconds=CLOCK_SKEW_SECONDS)
MAX_THINGS = 8
"""Disks or snapshots named in a row; the others are counted."""

THINGS = ("disks", "snapshots", "made")
WHO = ("asked_by", "asked_through", "approved_by", "door")
STORED = (*WHO, "boot", "uptime")
NOT_KNOWN_YET = "not known yet"

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
    approval was given. `boot` and `uptime` say when it was submitted by the clock that nobody sets.
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
    boot: str = ""
    uptime: str = ""

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

    @property
    def moment(self) -> Moment:
        """When it was submitted, by both clocks."""
        wall = self.submitted.timestamp() if self.submitted else 0.0
        try:
            return Moment(wall, self.boot, float(self.uptime or 0.0))
        except ValueError:
            return Moment(wall)

    def with_end(self, job: Job) -> Self:
        """Return it with the end of the job, if the zone says that it has ended."""
        if self.status or not job.is_finished:
            return self
        end = Entry.of(job, self.zone, self.location)
        return replace(self, status=end.status, error=end.error, ended=self.likely_end(end.ended))

    def likely_end(self, told: datetime | None) -> datetime:
        """Return when it ended, by the zone if that can be so: after its submission and not in the future."""
        now = datetime.now(UTC)
        is_late_enough = told is not None and (self.submitted is None or told >= self.submitted - CLOCK_SKEW)
        return told if told is not None and is_late_enough and told <= now + CLOCK_SKEW else now

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

    def as_dict(self) -> dict[str, Any]:
        """Return what is known of it, for programs."""
        things = {name: _shown(getattr(self, name)) for name in THINGS}
        who = {name: clean_text(getattr(self, name)) for name in WHO[:-1]} | {"approved_through": clean_text(self.door)}
        begun, ended = format_time(self.submitted), format_time(self.ended)
        times = {"created_at": begun, "finished_at": ended if ended != begun else ""}
        about = {"job_id": clean_text(self.job_id), "zone": clean_text(self.zone), "action": self.action_in_words}
        known = (
            about
            | {"status": clean_text(self.status) or NOT_KNOWN_YET, "error": self.error_shown}
            | times
            | things
            | who
        )
        return {name: value for name, value in known.items() if value}

    def in_words(self) -> str:
        """Return all of it as one line."""
        known = self.as_dict()
        span = " to ".join(filter(None, (known.get("created_at"), known.get("finished_at"))))
        of = f" of {', '.join(known['disks'])}" if "disks" in known else ""
        which = f": {', '.join(known['snapshots'])}" if "snapshots" in known else ""
        made = f"made {', '.join(known['made'])}" if "made" in known else ""
        reason = f", reason: {quoted(self.error, MESSAGE_CHARACTERS)}" if self.error else ""
        asked = f"asked by {_who(self.asked_by, self.asked_through)}" if self.asked_by else ""
        approved = f"approved by {_who(self.approved_by, self.door)}" if self.approved_by else ""
        job = f"job {known['job_id']} in zone {known['zone']}"
        parts = (span, f"{known['action']}{of}{which}", made, f"{known['status']}{reason}", asked, approved, job)
        return "  ".join(filter(None, parts))

    def without_names(self) -> Self:
        """Return it without who asked and who approved."""
        return replace(self, asked_by="", asked_through="", approved_by="", door="")


def _shown(things: tuple[Thing, ...]) -> list[str]:
    shown = [one.shown for one in things[:MAX_THINGS]]
    return [*shown, f"{len(things) - MAX_THINGS} more"] if len(things) > MAX_THINGS else shown


def _who(name: str, through: str) -> str:
    return f"{quoted(name)} ({clean_text(through)})" if through else quoted(name)


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
    things = {name: [[one.id, one.name] for one in getattr(entry, name)] for name in THINGS}
    who = {name: getattr(entry, name) for name in STORED}
    return {name: value for name, value in (things | who).items() if value}


def from_json(about: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that `to_json` stored, of others nothing. Raises TypeError for what it did not store."""
    things = {name: tuple(Thing(*one) for one in about[name]) for name in THINGS if name in about}
    return things | {name: str(about[name]) for name in STORED if name in about}
