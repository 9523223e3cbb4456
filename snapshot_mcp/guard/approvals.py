"""Approvals: what people were asked to consent to, and what became of it (`states.py`). One row each in HOME/guard.sqlite.

An approval is bound to the call (operation, normalised arguments, zone by name and location, principal) and to the plan that
the person saw. A call has at most one that is open (pending or granted); the database sees to that. It is spent in one
transaction, before the provider is called, together with the epoch of each target. Moments are kept with the machine's
uptime, so that a clock set back revives nothing. Blocking; callers go through a worker thread.
"""

import secrets
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from snapshot_mcp.contract.errors import NotFound, TooManyRequests
from snapshot_mcp.contract.text import quoted
from snapshot_mcp.guard.approval import (
    SAFETY_SECONDS,
    Approval,
    Call,
    Safety,
    moment_from_text,
    moment_to_text,
    read_row,
    write_row,
)
from snapshot_mcp.guard.audit import Audit
from snapshot_mcp.guard.clock import Clock, Moment
from snapshot_mcp.guard.database import Database
from snapshot_mcp.guard.errors import NotDecidable
from snapshot_mcp.guard.plan import Plan
from snapshot_mcp.guard.states import OPEN, TRANSITIONS, Door, State

DENIED_SECONDS = 10 * 60.0
"""So long a person's no is remembered and not asked again."""
QUESTION_SECONDS = 15 * 60.0
"""So long an answer may take; the SDK's own rounds end after 10 minutes."""
HELD_SECONDS = 120.0
"""A provider's change answers within seconds; a hold older than this belongs to a process that died."""
MAX_PENDING = 50
"""Who is asked more than they can read says yes to anything."""
KEPT_SECONDS = 30 * 24 * 3600.0
"""Closed approvals are shown for so long; the audit keeps them for good."""

_ID_ALPHABET = "23456789abcdefghjkmnpqrstuvwxyz"


@dataclass(frozen=True, slots=True)
class Asked:
    """A question that is open. `nonce` makes it one that was never asked before, `plan` is the one it was first asked with."""

    nonce: str
    plan: Plan


class SpendRefusal(StrEnum):
    """Why a consent could not be spent just now."""

    NOT_GRANTED = "it is not granted any more"
    MOVED = "another consent was spent on the same target"
    HELD = "another call is just changing the same target"
    TOO_MANY = "too many deletions in the last hour"


class Approvals:
    """The rows, each method one transaction."""

    def __init__(self, database: Database, audit: Audit, clock: Clock) -> None:
        self._database = database
        self._audit = audit
        self._clock = clock

    # What a call finds

    def epochs(self, targets: Iterable[str]) -> dict[str, int]:
        """How often a consent was spent on each target."""
        if not self._database.exists:
            return {}
        with self._database.transaction() as connection:
            rows = ((target, _epoch(connection, target)) for target in targets)
            return dict(rows)

    def look(self, call: Call, plan: Plan) -> Approval | None:
        """Record the plan, and return what is there for this call: granted, else pending, else denied, else spent lately."""
        with self._writing() as (connection, now):
            self._sweep(connection, now)
            self._audit.append(connection, now, "plan", **_of_call(call), loss=_dump(plan.loss), digest=plan.digest)
            rows = connection.execute("SELECT * FROM approvals WHERE call_key = ?", (call.key,))
            found = [one for one in map(read_row, rows) if _still_counts(one, now)]
            return min(found, key=_relevance, default=None)

    def refresh(self, approval: Approval, call: Call, plan: Plan) -> Approval:
        """Let a pending approval show the plan as it is now; who looked at the old one has to look again."""
        if approval.plan.digest == plan.digest and approval.call.is_strict == call.is_strict:
            return approval
        with self._writing() as (connection, now):
            current = _get(connection, approval.id)
            if current.state is State.PENDING:
                current = replace(current, plan=plan, call=call)
                write_row(connection, current)
                self._record(connection, now, "approval shows a new plan", current, digest=plan.digest)
            return current

    def record_refusal(self, call: Call, rule: str) -> None:
        with self._writing() as (connection, now):
            self._audit.append(connection, now, "refused", **_of_call(call), rule=rule)

    # Door (a): a question through the client

    def ask(self, call: Call, plan: Plan) -> Asked:
        """Return the question that is open for this call and this loss, or open one."""
        with self._writing() as (connection, now):
            row = connection.execute("SELECT * FROM questions WHERE call_key = ?", (call.key,)).fetchone()
            if row and row["digest"] == plan.digest and moment_from_text(row["asked"]).is_within(now, QUESTION_SECONDS):
                return Asked(row["nonce"], Plan.model_validate_json(row["plan"]))
            nonce = _new_id(10)
            connection.execute(
                "INSERT OR REPLACE INTO questions (call_key, digest, nonce, plan, asked) VALUES (?, ?, ?, ?, ?)",
                (call.key, plan.digest, nonce, plan.model_dump_json(), moment_to_text(now)),
            )
            self._audit.append(connection, now, "question", **_of_call(call), digest=plan.digest, question=nonce)
            return Asked(nonce, plan)

    def answer(self, call: Call, asked: Asked, state: State, answer: str) -> Approval | None:
        """Use up the question: its answer opens an approval in `state`. None when it was used up before."""
        with self._writing() as (connection, now):
            self._sweep(connection, now)
            used = connection.execute(
                "DELETE FROM questions WHERE call_key = ? AND nonce = ?", (call.key, asked.nonce)
            ).rowcount
            if not used or self._open(connection, call):
                return None
            approval = Approval(_new_id(8, "ap-"), call, state, asked.plan, now)
            if state is not State.PENDING:
                approval = replace(approval, door=Door.CLIENT, decided_by=call.principal, decided=now)
            if state is State.DENIED:
                approval = replace(approval, ended=now)
            self._insert(connection, now, approval)
            self._record(connection, now, "answer", approval, door=Door.CLIENT, question=asked.nonce, answer=answer)
            return approval

    # Door (b): a person decides outside of the conversation

    def open(self, call: Call, plan: Plan) -> Approval:
        """Return the open approval of this call, or open a pending one."""
        with self._writing() as (connection, now):
            self._sweep(connection, now)
            existing = self._open(connection, call)
            if existing:
                return existing
            approval = Approval(_new_id(8, "ap-"), call, State.PENDING, plan, now)
            self._insert(connection, now, approval)
            self._record(connection, now, "approval opened", approval, digest=plan.digest)
            return approval

    def grant(self, id_: str, *, digest: str, door: Door, by: str) -> Approval:
        """Grant what the person saw. Raises: NotFound, NotDecidable."""
        with self._writing() as (connection, now):
            self._sweep(connection, now)
            approval = _get(connection, id_)
            if approval.state is not State.PENDING:
                raise NotDecidable(f"Approval {id_} is {approval.state}, so it cannot be approved.")
            if approval.plan.digest != digest:
                raise NotDecidable(
                    f"The plan of {id_} has changed since it was shown.", hint="Look at it again and decide then."
                )
            granted = replace(approval, state=State.GRANTED, door=door, decided_by=by, decided=now)
            self._move(connection, now, approval, granted, "granted")
            return granted

    def deny(self, id_: str, *, door: Door, by: str) -> Approval:
        """Deny what is pending, or withdraw what was granted and not yet used. Raises: NotFound, NotDecidable."""
        with self._writing() as (connection, now):
            self._sweep(connection, now)
            approval = _get(connection, id_)
            if approval.state not in OPEN:
                raise NotDecidable(f"Approval {id_} is {approval.state}; there is nothing to deny.")
            denied = replace(approval, state=State.DENIED, door=door, decided_by=by, decided=now, ended=now)
            self._move(connection, now, approval, denied, "denied")
            return denied

    # Carrying out

    def void(self, id_: str, reason: str) -> None:
        """End a granted approval that covers the present plan no longer."""
        with self._writing() as (connection, now):
            approval = _get(connection, id_)
            if approval.state is State.GRANTED:
                self._move(connection, now, approval, _expired(approval, now, reason), "voided")

    def spend(self, id_: str, plan: Plan, *, deletions_per_hour: int) -> SpendRefusal | None:
        """Use the approval up for `plan` and raise its targets' epochs, all or nothing."""
        with self._writing() as (connection, now):
            self._sweep(connection, now)
            approval = _get(connection, id_)
            refusal = self._spend_refusal(connection, now, approval, plan, deletions_per_hour)
            if refusal:
                self._record(connection, now, "not spent", approval, reason=refusal.value)
                return refusal
            for target in plan.targets:
                connection.execute(
                    "INSERT INTO targets (target, epoch, held_by, held_at) VALUES (?, 1, ?, ?) ON CONFLICT (target)"
                    " DO UPDATE SET epoch = epoch + 1, held_by = excluded.held_by, held_at = excluded.held_at",
                    (target, id_, moment_to_text(now)),
                )
            for disk in plan.disks:
                connection.execute(
                    "INSERT INTO targets (target, epoch, held_by, held_at) VALUES (?, 0, ?, ?) ON CONFLICT (target)"
                    " DO UPDATE SET held_by = excluded.held_by, held_at = excluded.held_at",
                    (disk, id_, moment_to_text(now)),
                )
            self._move(connection, now, approval, replace(approval, state=State.SPENT, ended=now), "spent")
            return None

    def jobs_on(self, disks: Iterable[str]) -> frozenset[str]:
        """The jobs that consents were lately spent on for these disks; some may still run."""
        wanted = set(disks)
        with self._database.transaction() as connection:
            now = self._clock.read()
            rows = connection.execute("SELECT * FROM approvals WHERE state = 'spent' AND job_id != ''").fetchall()
            spent = (one for one in map(read_row, rows) if _still_counts(one, now))
            return frozenset(one.job_id for one in spent if wanted & set(one.plan.disks))

    def settle(self, id_: str, job_id: str) -> None:
        """The zone has accepted the change as `job_id`."""
        with self._writing() as (connection, now):
            approval = replace(_get(connection, id_), job_id=job_id)
            write_row(connection, approval)
            _release(connection, id_)
            self._record(connection, now, "started", approval, job_id=job_id)

    def give_back(self, id_: str, reason: str) -> Approval:
        """The zone refused for certain: nothing happened, and the consent is as before."""
        with self._writing() as (connection, now):
            approval = _get(connection, id_)
            for target in approval.plan.targets:
                connection.execute(
                    "UPDATE targets SET epoch = epoch - 1 WHERE held_by = ? AND target = ?", (id_, target)
                )
            _release(connection, id_)
            newer = self._open(connection, approval.call)
            if newer and newer.state is State.PENDING:
                self._move(connection, now, newer, _expired(newer, now, "an earlier approval holds again"), "expired")
            elif newer:
                # A person has agreed anew meanwhile; a call has one open approval.
                self._record(connection, now, "not given back", approval, reason=reason)
                return approval
            granted = replace(approval, state=State.GRANTED, ended=None)
            self._move(connection, now, approval, granted, "given back", reason=reason)
            return granted

    def leave_unknown(self, id_: str, reason: str) -> None:
        """What became of the change is not known: the consent stays spent."""
        with self._writing() as (connection, now):
            approval = replace(_get(connection, id_), reason="outcome unknown")
            write_row(connection, approval)
            self._record(connection, now, "outcome unknown", approval, reason=reason)

    def deletions_last_hour(self) -> int:
        if not self._database.exists:
            return 0
        with self._database.transaction() as connection:
            return _deletions_last_hour(connection, self._clock.read())

    # The safety snapshot

    def claim_safety(self, id_: str) -> tuple[Safety, bool] | None:
        """Become the one that starts the safety snapshot. None while another call is at it.

        With it, whether somebody was at it before, who may have started it and died.
        """
        with self._writing() as (connection, now):
            self._sweep(connection, now)
            approval = _get(connection, id_)
            safety = approval.safety
            if approval.state is not State.GRANTED or safety.is_started:
                return None
            if safety.claimed and safety.claimed.is_within(now, HELD_SECONDS):
                return None
            claimed = replace(safety, name=safety.name or f"before roll-back {_new_id(10)}", claimed=now)
            write_row(connection, replace(approval, safety=claimed))
            self._record(connection, now, "safety snapshot wanted", approval, name=claimed.name)
            return claimed, safety.claimed is not None

    def start_safety(self, id_: str, job_id: str, snapshot_ids: tuple[str, ...] = ()) -> Approval:
        """The safety snapshot is being taken by `job_id`, or is there already as `snapshot_ids`."""
        return self._change_safety(id_, "safety snapshot started", job_id=job_id, snapshot_ids=snapshot_ids)

    def finish_safety(self, id_: str, snapshot_ids: tuple[str, ...]) -> Approval:
        return self._change_safety(id_, "safety snapshot taken", snapshot_ids=snapshot_ids)

    def drop_safety(self, id_: str, reason: str) -> Approval:
        """There will be no safety snapshot from this attempt; the next one begins anew while the approval holds."""
        with self._writing() as (connection, now):
            approval = _get(connection, id_)
            if approval.state is State.GRANTED:
                approval = replace(approval, safety=Safety())
                write_row(connection, approval)
                self._record(connection, now, "safety snapshot failed", approval, reason=reason)
            return approval

    # Looking

    def list_all(self) -> tuple[Approval, ...]:
        """Open ones first, then by age, newest first."""
        if not self._database.exists:
            return ()
        with self._writing() as (connection, now):
            self._sweep(connection, now)
            found = map(read_row, connection.execute("SELECT * FROM approvals"))
            return tuple(sorted(found, key=lambda one: (one.state not in OPEN, -one.opened.wall, one.id)))

    def get(self, id_: str) -> Approval:
        """Raises: NotFound."""
        if not self._database.exists:
            raise _unknown(id_)
        with self._writing() as (connection, now):
            self._sweep(connection, now)
            return _get(connection, id_)

    # Rows

    @contextmanager
    def _writing(self) -> Iterator[tuple[sqlite3.Connection, Moment]]:
        with self._database.transaction() as connection:
            before = connection.total_changes
            yield connection, self._clock.read()
            has_changed = connection.total_changes > before
        if has_changed:
            self._audit.seal()

    def _sweep(self, connection: sqlite3.Connection, now: Moment) -> None:
        for approval in map(
            read_row, connection.execute(f"SELECT * FROM approvals WHERE state IN {OPEN_SQL}").fetchall()
        ):
            if not approval.is_alive(now):
                self._move(connection, now, approval, _expired(approval, now, "its time is over"), "expired")

    def _open(self, connection: sqlite3.Connection, call: Call) -> Approval | None:
        query = f"SELECT * FROM approvals WHERE call_key = ? AND state IN {OPEN_SQL}"
        row = connection.execute(query, (call.key,)).fetchone()
        return read_row(row) if row else None

    def _insert(self, connection: sqlite3.Connection, now: Moment, approval: Approval) -> None:
        query = "SELECT count(*) FROM approvals WHERE state = 'pending'"
        if approval.state is State.PENDING and connection.execute(query).fetchone()[0] >= MAX_PENDING:
            raise TooManyRequests(
                f"{MAX_PENDING} approvals wait for a person already; this one was not added.",
                hint="Nothing was done. A person has to decide about some of them first (`snapshot-mcp approvals`).",
            )
        connection.execute(
            f"DELETE FROM approvals WHERE state NOT IN {OPEN_SQL} AND json_extract(ended, '$[0]') < ?",
            (now.wall - KEPT_SECONDS,),
        )
        write_row(connection, approval)

    def _move(
        self, connection: sqlite3.Connection, now: Moment, old: Approval, new: Approval, event: str, **fields: Any
    ) -> None:
        if new.state not in TRANSITIONS[old.state]:
            raise AssertionError(f"{old.id}: {old.state} → {new.state}")
        write_row(connection, new)
        fields = {"door": new.door, "by": new.decided_by, "reason": new.reason} | fields
        self._record(connection, now, event, new, **{name: value for name, value in fields.items() if value})

    def _record(self, connection: sqlite3.Connection, now: Moment, event: str, of: Approval, **fields: Any) -> None:
        self._audit.append(connection, now, event, approval=of.id, state=of.state, **_of_call(of.call), **fields)

    def _change_safety(self, id_: str, event: str, **changes: Any) -> Approval:
        with self._writing() as (connection, now):
            approval = _get(connection, id_)
            if approval.state is State.GRANTED:
                approval = replace(approval, safety=replace(approval.safety, **changes))
                write_row(connection, approval)
                self._record(connection, now, event, approval, **changes)
            return approval

    def _spend_refusal(
        self, connection: sqlite3.Connection, now: Moment, approval: Approval, plan: Plan, deletions_per_hour: int
    ) -> SpendRefusal | None:
        if approval.state is not State.GRANTED:
            return SpendRefusal.NOT_GRANTED
        for target in {*plan.targets, *plan.disks}:
            row = connection.execute("SELECT * FROM targets WHERE target = ?", (target,)).fetchone()
            if row and row["held_by"] and not moment_from_text(row["held_at"]).is_over(now, HELD_SECONDS):
                return SpendRefusal.HELD
        for target, epoch in zip(plan.targets, plan.epochs, strict=True):
            if _epoch(connection, target) != epoch:
                return SpendRefusal.MOVED
        if plan.loss.operation == "delete" and _deletions_last_hour(connection, now) >= deletions_per_hour:
            return SpendRefusal.TOO_MANY
        return None


OPEN_SQL = "('pending', 'granted')"


def _still_counts(approval: Approval, now: Moment) -> bool:
    if approval.state is State.DENIED and approval.decided:
        return approval.decided.is_within(now, DENIED_SECONDS)
    if approval.state is State.SPENT and approval.ended:
        return approval.ended.is_within(now, SAFETY_SECONDS)
    return approval.state in OPEN


def _relevance(approval: Approval) -> tuple[int, float]:
    order = (State.GRANTED, State.PENDING, State.DENIED, State.SPENT)
    return order.index(approval.state), -approval.opened.wall


def _expired(approval: Approval, now: Moment, reason: str) -> Approval:
    return replace(approval, state=State.EXPIRED, ended=now, reason=reason)


def _deletions_last_hour(connection: sqlite3.Connection, now: Moment) -> int:
    rows = connection.execute("SELECT * FROM approvals WHERE state = 'spent'").fetchall()
    spent = (one for one in map(read_row, rows) if one.call.operation == "delete" and one.ended)
    return sum(1 for one in spent if one.ended and not one.ended.is_over(now, 3600))


def _epoch(connection: sqlite3.Connection, target: str) -> int:
    row = connection.execute("SELECT epoch FROM targets WHERE target = ?", (target,)).fetchone()
    return int(row[0]) if row else 0


def _release(connection: sqlite3.Connection, id_: str) -> None:
    connection.execute("UPDATE targets SET held_by = '', held_at = '' WHERE held_by = ?", (id_,))


def _get(connection: sqlite3.Connection, id_: str) -> Approval:
    row = connection.execute("SELECT * FROM approvals WHERE id = ?", (id_,)).fetchone()
    if row is None:
        raise _unknown(id_)
    return read_row(row)


def _unknown(id_: str) -> NotFound:
    return NotFound(f"There is no approval {quoted(id_)}.", hint="See `snapshot-mcp approvals`.")


def _new_id(length: int, prefix: str = "") -> str:
    return prefix + "".join(secrets.choice(_ID_ALPHABET) for _ in range(length))


def _of_call(call: Call) -> dict[str, Any]:
    return {
        "operation": call.operation,
        "arguments": dict(call.arguments),
        "zone": call.zone,
        "location": call.location,
        "principal": call.principal,
        "client": call.client,
    }


def _dump(loss: Any) -> Any:
    return loss.model_dump(mode="json")
