"""The register: the approvals' rows in HOME/guard.sqlite, as one transaction sees them, and their record in the audit.

It keeps what holds for every row whoever writes it: a state moves as the table of states says, what has run out expires, a
call has one open approval, few wait at once, and each change is recorded with it. Blocking; callers go through a worker thread.
"""

import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from snapshot_mcp.contract.errors import NotFound, TooManyRequests
from snapshot_mcp.contract.text import quoted
from snapshot_mcp.ground.clock import Clock, Moment
from snapshot_mcp.guard.consent.approval import Approval, Call, JobEnd, read_row, write_row
from snapshot_mcp.guard.consent.audit import Audit
from snapshot_mcp.guard.consent.database import Database
from snapshot_mcp.guard.consent.states import TRANSITIONS, Door, State

MAX_PENDING = 50
"""Who is asked more than they can read says yes to anything."""
KEPT_SECONDS = 30 * 24 * 3600.0
"""Closed approvals are shown for so long, and until the end of their job is recorded; the audit keeps them for good."""

_ID_ALPHABET = "23456789abcdefghjkmnpqrstuvwxyz"
_OPEN_SQL = "('pending', 'granted')"


@dataclass(frozen=True, slots=True)
class Rows:
    """One transaction on the register, at one moment."""

    connection: sqlite3.Connection
    now: Moment
    _audit: Audit

    def execute(self, statement: str, parameters: tuple[Any, ...] = ()) -> sqlite3.Cursor:
        return self.connection.execute(statement, parameters)

    def find(self, condition: str = "true", parameters: tuple[Any, ...] = ()) -> list[Approval]:
        return [read_row(row) for row in self.execute(f"SELECT * FROM approvals WHERE {condition}", parameters)]

    def get(self, id_: str) -> Approval:
        """Raises: NotFound."""
        for approval in self.find("id = ?", (id_,)):
            return approval
        raise unknown(id_)

    def open_of(self, call: Call) -> Approval | None:
        """The one approval of the call that is pending or granted."""
        return next(iter(self.find(f"call_key = ? AND state IN {_OPEN_SQL}", (call.key,))), None)

    def sweep(self) -> None:
        """Let expire what has run out."""
        for approval in self.find(f"state IN {_OPEN_SQL}"):
            if not approval.is_alive(self.now):
                self.expire(approval, "its time is over")

    def insert(self, approval: Approval) -> None:
        """Raises: TooManyRequests when too many wait for a person."""
        query = "SELECT count(*) FROM approvals WHERE state = 'pending'"
        if approval.state is State.PENDING and self.execute(query).fetchone()[0] >= MAX_PENDING:
            raise TooManyRequests(
                f"{MAX_PENDING} approvals wait for a person already; this one was not added.",
                hint="Nothing was done. A person has to decide about some of them first.",
            )
        self.execute(
            f"DELETE FROM approvals WHERE state NOT IN {_OPEN_SQL} AND (job_id = '' OR job_end != '')"
            " AND json_extract(ended, '$[0]') < ?",
            (self.now.wall - KEPT_SECONDS,),
        )
        self.write(approval)

    def write(self, approval: Approval) -> None:
        write_row(self.connection, approval)

    def move(self, old: Approval, new: Approval, event: str, **fields: Any) -> None:
        if new.state not in TRANSITIONS[old.state]:
            raise AssertionError(f"{old.id}: {old.state} → {new.state}")
        self.write(new)
        self.record(event, new, **({"reason": new.reason} if new.reason else {}) | fields)

    def deny(self, approval: Approval, *, door: Door, by: str) -> Approval:
        denied = replace(approval, state=State.DENIED, door=door, decided_by=by, decided=self.now, ended=self.now)
        self.move(approval, denied, "denied")
        return denied

    def end(self, approval: Approval, end: JobEnd) -> Approval:
        """Record how its job ended."""
        ended = replace(approval, job_end=end)
        self.write(ended)
        fields = {"status": end.status, "code": end.code, "reason": end.reason, "ended_at": end.at}
        self.record("ended", ended, job_id=ended.job_id, **{name: value for name, value in fields.items() if value})
        return ended

    def expire(self, approval: Approval, reason: str, event: str = "expired") -> None:
        self.move(approval, replace(approval, state=State.EXPIRED, ended=self.now, reason=reason), event)

    def record(self, event: str, of: Approval, **fields: Any) -> None:
        decided = {"door": of.door, "by": of.decided_by} if of.door else {}
        self.record_call(event, of.call, **{"approval": of.id, "state": of.state} | decided | fields)

    def record_call(self, event: str, call: Call, **fields: Any) -> None:
        """Audit what happened to a call, which may have no approval."""
        about = {
            "operation": call.operation,
            "arguments": dict(call.arguments),
            "zone": call.zone,
            "location": call.location,
            "principal": call.principal,
            "client": call.client,
        }
        self.append(event, **about, **fields)

    def append(self, event: str, **fields: Any) -> None:
        """Audit what is about no approval and no guarded call."""
        self._audit.append(self.connection, self.now, event, **fields)


class Register:
    def __init__(self, database: Database, audit: Audit, clock: Clock) -> None:
        self._database = database
        self._audit = audit
        self._clock = clock

    @property
    def exists(self) -> bool:
        """Whether anything was ever written; to look makes no file."""
        return self._database.exists

    @contextmanager
    def transaction(self) -> Iterator[Rows]:
        with self._database.transaction() as connection:
            before = connection.total_changes
            yield Rows(connection, self._clock.read(), self._audit)
            has_changed = connection.total_changes > before
        if has_changed:
            self._audit.seal()


def new_id(length: int, prefix: str = "") -> str:
    return prefix + "".join(secrets.choice(_ID_ALPHABET) for _ in range(length))


def unknown(id_: str) -> NotFound:
    return NotFound(f"There is no approval {quoted(id_)}.", hint="List the approvals to see which there are.")
