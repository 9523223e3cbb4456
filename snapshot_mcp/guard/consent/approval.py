"""An approval: what was requested, the plan that a person saw, and what became of it; and its row in the database."""

import hashlib
import json
import sqlite3
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Literal

from snapshot_mcp.contract.models import format_time
from snapshot_mcp.contract.text import clean_text
from snapshot_mcp.ground.clock import Moment
from snapshot_mcp.guard.consent.states import DOORS_IN_WORDS, IN_WORDS, OPEN, PROOFS_IN_WORDS, Door, State
from snapshot_mcp.guard.plan.plan import Plan
from snapshot_mcp.guard.plan.question import Question
from snapshot_mcp.guard.plan.wording import plan_lines, question_for, title_of

PENDING_SECONDS = 24 * 3600.0
GRANTED_SECONDS = 15 * 60.0
"""A granted approval must be used within this time."""
SAFETY_SECONDS = 24 * 3600.0
"""The same once its safety snapshot has been started: a full one of a large disk takes long."""

ANEW = "The consent was for this one call and is closed; the same call asks you again."
"""Said of a consent given in a terminal to the call of that process."""


@dataclass(frozen=True, slots=True)
class Call:
    """What was requested, and by whom. `is_strict`: the approval must come through a door that proves a person.

    `process`: a secret of the process that alone may use the consent, "" if any may that makes the same call.
    """

    operation: Literal["delete", "rollback"]
    arguments: tuple[tuple[str, Any], ...]
    zone: str
    location: str
    principal: str
    client: str = ""
    is_strict: bool = False
    process: str = field(default="", repr=False)

    @property
    def key(self) -> str:
        """The identity of the call: operation, arguments, zone and principal, whichever client program makes it."""
        parts = [
            self.operation,
            self.arguments,
            self.zone,
            self.location,
            self.principal,
            *filter(None, [self.process]),
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Safety:
    """The safety snapshot of a roll-back. `name` is secret until it is taken, so that nobody can plant one.

    `begun`: when the first call started on it, `claimed`: when the last one did.
    """

    name: str = ""
    begun: Moment | None = None
    claimed: Moment | None = None
    job_id: str = ""
    snapshot_ids: tuple[str, ...] = ()

    @property
    def is_started(self) -> bool:
        """Whether the zone is taking it, or has."""
        return bool(self.job_id or self.snapshot_ids)


@dataclass(frozen=True, slots=True)
class JobEnd:
    """How a job ended, in the zone's words, cleaned.

    `status`: `successful`, `failed`, or `unknown` if the zone no longer knows the job. `at`: the zone's time, or "".
    """

    status: str
    code: str = ""
    reason: str = ""
    at: str = ""

    @property
    def in_words(self) -> str:
        """The end as a clause for people."""
        if self.status == "unknown":
            return f"end unknown: {self.reason}"
        if self.status == "successful":
            return "it ended successfully"
        return f"it failed ({': '.join(part for part in (self.code, self.reason) if part) or 'no reason given'})"


@dataclass(frozen=True, slots=True)
class Approval:
    """A person's consent to one call and one plan, from the request for it to the end of its job."""

    id: str
    call: Call
    state: State
    plan: Plan
    opened: Moment
    door: Door | None = None
    decided_by: str = ""
    decided: Moment | None = None
    ended: Moment | None = None
    reason: str = ""
    safety: Safety = field(default=Safety())
    job_id: str = ""
    job_end: JobEnd | None = None

    @property
    def title(self) -> str:
        """The act in one line."""
        return title_of(self.plan)

    @property
    def lines(self) -> tuple[str, ...]:
        """The whole effect as of the last call, one entry per line."""
        return plan_lines(self.plan)

    @property
    def question(self) -> Question:
        """The question to a person who grants it outside the conversation."""
        return question_for(self.plan, self.id)

    @property
    def state_in_words(self) -> str:
        """The state as people read it."""
        return IN_WORDS[self.state]

    @property
    def what_next(self) -> str:
        """What happened and what happens next, for a person, once it is decided."""
        if self.state is State.GRANTED:
            return "The assistant can repeat its call."
        again = "The assistant has to ask again." if self.state in {State.DENIED, State.EXPIRED} else ""
        return f"{self.course} {again}".strip()

    @property
    def expires_at(self) -> datetime | None:
        """When it expires if nothing happens; None once it is closed."""
        since, seconds = self._lifetime
        return since.after(seconds) if self.state in OPEN else None

    def to_json(self) -> dict[str, Any]:
        """Return what a person or another program decides by."""
        call = self.call
        return {
            "id": self.id,
            "state": self.state,
            "title": self.title,
            "plan": list(self.lines),
            **{"zone": call.zone, "principal": call.principal, "client": call.client},
            **{"opened_at": format_time(self.opened.time), "expires_at": format_time(self.expires_at)},
        }

    def is_alive(self, now: Moment) -> bool:
        """Whether it is pending or granted and has not expired."""
        since, seconds = self._lifetime
        return self.state in OPEN and since.is_within(now, seconds)

    def validity(self, now: Moment) -> str:
        """Return, in words, how long the consent is still valid after a refusal."""
        if self.call.process:
            return ANEW
        expires_at = self.expires_at
        if expires_at is None or expires_at <= now.time or not self.is_alive(now):
            return "The approval has expired; repeating the call asks again."
        day = "" if expires_at.date() == now.time.date() else f"{expires_at:%Y-%m-%d} "
        return f"The approval is valid until {day}{expires_at:%H:%M} UTC; repeat the same call before then."

    @property
    def decision(self) -> str:
        """Who decided it, and through which door; "" while it is pending."""
        if self.door is None:
            return ""
        who = f"by {clean_text(self.decided_by)} {DOORS_IN_WORDS[self.door]}"
        proof = PROOFS_IN_WORDS.get(self.door, "")
        return f"Denied {who}." if self.state is State.DENIED else f"Approved {who}{proof}."

    @property
    def course(self) -> str:
        """What was started under it and how that ended; "" if nothing was."""
        if self.job_id:
            end = self.job_end.in_words if self.job_end else "end not known yet"
            return f"It was started as job {clean_text(self.job_id)}: {end}."
        is_spent = self.state is State.SPENT
        return "The zone was asked to carry it out; its answer is unknown." if is_spent else ""

    @property
    def _lifetime(self) -> tuple[Moment, float]:
        if self.state is State.GRANTED and self.decided:
            return self.decided, SAFETY_SECONDS if self.safety.is_started else GRANTED_SECONDS
        return self.opened, PENDING_SECONDS


def write_row(connection: sqlite3.Connection, approval: Approval) -> None:
    """Insert the approval's row, or update it."""
    safety = approval.safety
    moments = {"begun": moment_to_text(safety.begun), "claimed": moment_to_text(safety.claimed)}
    columns = {
        "id": approval.id,
        "call_key": approval.call.key,
        "state": approval.state.value,
        "door": approval.door.value if approval.door else "",
        "decided_by": approval.decided_by,
        "reason": approval.reason,
        "call": json.dumps(asdict(approval.call)),
        "plan": approval.plan.model_dump_json(),
        "opened": moment_to_text(approval.opened),
        "decided": moment_to_text(approval.decided),
        "ended": moment_to_text(approval.ended),
        "safety": json.dumps(asdict(safety) | moments),
        "job_id": approval.job_id,
        "job_end": json.dumps(asdict(approval.job_end)) if approval.job_end else "",
    }
    names, marks = ", ".join(columns), ", ".join("?" * len(columns))
    updates = ", ".join(f"{name} = excluded.{name}" for name in columns if name != "id")
    connection.execute(
        f"INSERT INTO approvals ({names}) VALUES ({marks}) ON CONFLICT (id) DO UPDATE SET {updates}",
        tuple(columns.values()),
    )


def read_row(row: sqlite3.Row) -> Approval:
    """Return the approval that a row holds."""
    call = json.loads(row["call"])
    safety = json.loads(row["safety"])
    moments = {name: _moment(safety.get(name, "")) for name in ("begun", "claimed")}
    return Approval(
        id=row["id"],
        call=Call(**call | {"arguments": _tuples(call["arguments"])}),
        state=State(row["state"]),
        plan=Plan.model_validate_json(row["plan"]),
        opened=moment_from_text(row["opened"]),
        door=Door(row["door"]) if row["door"] else None,
        decided_by=row["decided_by"],
        decided=_moment(row["decided"]),
        ended=_moment(row["ended"]),
        reason=row["reason"],
        safety=Safety(**safety | moments | {"snapshot_ids": tuple(safety["snapshot_ids"])}),
        job_id=row["job_id"],
        job_end=JobEnd(**json.loads(row["job_end"])) if row["job_end"] else None,
    )


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _moment(text: str) -> Moment | None:
    return moment_from_text(text) if text else None


def moment_to_text(moment: Moment | None) -> str:
    """Return a moment as the database stores it, "" for None."""
    return json.dumps([moment.wall, moment.boot, moment.uptime]) if moment else ""


def moment_from_text(text: str) -> Moment:
    """Return the moment that `moment_to_text` stored."""
    return Moment(*json.loads(text))
