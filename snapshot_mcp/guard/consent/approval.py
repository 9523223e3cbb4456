"""One approval: what was asked for, the plan that a person saw, and what became of it; and its row in the database."""

import hashlib
import json
import sqlite3
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Literal

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
"""The same once its safety snapshot is begun: a full one of a large disk takes long."""


@dataclass(frozen=True, slots=True)
class Call:
    """What was asked for, and by whom. `is_strict`: only a proven door is enough."""

    operation: Literal["delete", "rollback"]
    arguments: tuple[tuple[str, Any], ...]
    zone: str
    location: str
    principal: str
    client: str = ""
    is_strict: bool = False

    @property
    def key(self) -> str:
        """The same for the same call of the same principal in the same zone, whatever client program makes it."""
        parts = [self.operation, self.arguments, self.zone, self.location, self.principal]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Safety:
    """The safety snapshot of a roll-back. `name` is secret until it is taken, so that nobody can lay one out beforehand.

    `begun` is when the first call set about it, `claimed` when the last one did.
    """

    name: str = ""
    begun: Moment | None = None
    claimed: Moment | None = None
    job_id: str = ""
    snapshot_ids: tuple[str, ...] = ()

    @property
    def is_started(self) -> bool:
        return bool(self.job_id or self.snapshot_ids)


@dataclass(frozen=True, slots=True)
class JobEnd:
    """How a job ended, in the zone's words, cleaned: `status` is `successful`, `failed`, or `unknown` for a job that the zone
    no longer knows. `at` is the zone's time of it, "" where it gives none."""

    status: str
    code: str = ""
    reason: str = ""
    at: str = ""

    @property
    def in_words(self) -> str:
        if self.status == "unknown":
            return f"end unknown: {self.reason}"
        if self.status == "successful":
            return "it ended successfully"
        return f"it failed ({': '.join(part for part in (self.code, self.reason) if part) or 'no reason given'})"


@dataclass(frozen=True, slots=True)
class Approval:
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
        """The whole effect, as of the last call."""
        return plan_lines(self.plan)

    @property
    def question(self) -> Question:
        """What a person answers before it is granted outside of the conversation."""
        return question_for(self.plan, self.id)

    @property
    def standing(self) -> str:
        """Its state, as a person reads it."""
        return IN_WORDS[self.state]

    @property
    def aftermath(self) -> str:
        """What comes next for one that waits no longer, in words for a person."""
        if self.state is State.GRANTED:
            return "The assistant can repeat its call."
        again = "The assistant has to ask again." if self.state in {State.DENIED, State.EXPIRED} else ""
        return f"{self.course} {again}".strip()

    @property
    def expires_at(self) -> datetime | None:
        """When it runs out if nothing happens to it; None for one that is closed."""
        since, seconds = self._lifetime
        return since.after(seconds) if self.state in OPEN else None

    def is_alive(self, now: Moment) -> bool:
        since, seconds = self._lifetime
        return self.state in OPEN and since.is_within(now, seconds)

    def kept(self, now: Moment) -> str:
        """What became of the consent after a refusal, in words."""
        expires_at = self.expires_at
        if expires_at is None or expires_at <= now.time or not self.is_alive(now):
            return "The approval's time is over; a repeated call asks anew."
        day = "" if expires_at.date() == now.time.date() else f"{expires_at:%Y-%m-%d} "
        return f"The approval is kept until {day}{expires_at:%H:%M} UTC; repeat the same call until then."

    @property
    def decision(self) -> str:
        """By whom it was decided, through which door; "" while it waits."""
        if self.door is None:
            return ""
        who = f"by {clean_text(self.decided_by)} {DOORS_IN_WORDS[self.door]}"
        return (
            f"Denied {who}." if self.state is State.DENIED else f"Approved {who}{PROOFS_IN_WORDS.get(self.door, '')}."
        )

    @property
    def course(self) -> str:
        """What was started under it, and how that ended; "" where nothing was."""
        if self.job_id:
            end = self.job_end.in_words if self.job_end else "end not known yet"
            return f"It was started as job {clean_text(self.job_id)}: {end}."
        is_spent = self.state is State.SPENT
        return "The zone was asked to carry it out, and its answer is not known." if is_spent else ""

    @property
    def _lifetime(self) -> tuple[Moment, float]:
        if self.state is State.GRANTED and self.decided:
            return self.decided, SAFETY_SECONDS if self.safety.is_started else GRANTED_SECONDS
        return self.opened, PENDING_SECONDS


def write_row(connection: sqlite3.Connection, approval: Approval) -> None:
    safety = asdict(approval.safety)
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
        "safety": json.dumps(
            safety | {name: moment_to_text(getattr(approval.safety, name)) for name in ("begun", "claimed")}
        ),
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
    call = json.loads(row["call"])
    safety = json.loads(row["safety"])
    return Approval(
        id=row["id"],
        call=Call(**call | {"arguments": _tuples(call["arguments"])}),
        state=State(row["state"]),
        plan=Plan.model_validate_json(row["plan"]),
        opened=moment_from_text(row["opened"]),
        door=Door(row["door"]) if row["door"] else None,
        decided_by=row["decided_by"],
        decided=moment_from_text(row["decided"]) if row["decided"] else None,
        ended=moment_from_text(row["ended"]) if row["ended"] else None,
        reason=row["reason"],
        safety=Safety(
            name=safety["name"],
            begun=moment_from_text(safety["begun"]) if safety.get("begun") else None,
            claimed=moment_from_text(safety["claimed"]) if safety["claimed"] else None,
            job_id=safety["job_id"],
            snapshot_ids=tuple(safety["snapshot_ids"]),
        ),
        job_id=row["job_id"],
        job_end=JobEnd(**json.loads(row["job_end"])) if row["job_end"] else None,
    )


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def moment_to_text(moment: Moment | None) -> str:
    return json.dumps([moment.wall, moment.boot, moment.uptime]) if moment else ""


def moment_from_text(text: str) -> Moment:
    return Moment(*json.loads(text))
