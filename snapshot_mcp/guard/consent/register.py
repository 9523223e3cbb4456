"""The register: the approvals' rows in HOME/guard.sqlite, as one transaction sees them, and their audit records.

It enforces the invariants of every row: a state changes only as the table of states allows, approvals expire, a call has one
open approval, few are pending at once, and each change is recorded with it. Blocking; call it in a worker thread.
"""

import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

from snapshot_mcp.contract.errors import NotFound, TooManyRequests
from snapshot_mcp.contract.text import encodable, quoted
from snapshot_mcp.ground.clock import Clock, Moment
from snapshot_mcp.guard.consent.approval import Approval, Call, JobEnd, read_row, write_row
from snapshot_mcp.guard.consent.audit import Audit
from snapshot_mcp.guard.consent.database import Database
from snapshot_mcp.guard.consent.states import TRANSITIONS, Door, State

MAX_PENDING = 50
"""People who are asked more than they can read approve anything."""
KEPT_SECONDS = 30 * 24 * 3600.0
"""How long closed approvals are listed, at least until their job's end is recorded; the audit keeps them permanently."""

_ID_ALPHABET = "23456789abcdefghjkmnpqrstuvwxyz"
_OPEN_SQL = "('pending', 'granted')"


@dataclass(frozen=True, slots=True)
class Rows:
    """One transaction on the register. `now` is the same throughout."""

    connection: sqlite3.Connection
    now: Moment
    _audit: Audit

    def execute(self, statement: str, parameters: tuple[Any, ...] = ()) -> sqlite3.Cursor:
        """Execute a statement of SQL."""
        encoded = tuple(encodable(one) if isinstance(one, str) else one for one in parameters)
        return self.connection.execute(statement, encoded)

    def find(self, condition: str = "true", parameters: tuple[Any, ...] = ()) -> list[Approval]:
        """Return the approvals that meet a condition in SQL."""
        return [read_row(row) for row in self.execute(f"SELECT * FROM approvals WHERE {condition}", parameters)]

    def get(self, id_: str) -> Approval:
        """Return an approval. Raises: NotFound."""
        for approval in self.find("id = ?", (id_,)):
            return approval
        raise unknown(id_)

    def open_of(self, call: Call) -> Approval | None:
        """Return the call's pending or granted approval; there is at most one."""
        return next(iter(self.find(f"call_key = ? AND state IN {_OPEN_SQL}", (call.key,))), None)

    def sweep(self) -> None:
        """Expire the approvals whose time is over."""
        for approval in self.find(f"state IN {_OPEN_SQL}"):
            if not approval.is_alive(self.now):
                self.expire(approval, "its time is over")

    def is_waiting(self) -> bool:
        """Whether any approval is open."""
        self.sweep()
        return self.execute(f"SELECT 1 FROM approvals WHERE state IN {_OPEN_SQL}").fetchone() is not None

    def insert(self, approval: Approval) -> None:
        """Add an approval. Raises: TooManyRequests if too many wait for a person."""
        query = "SELECT count(*) FROM approvals WHERE state = 'pending'"
        if approval.state is State.PENDING and self.execute(query).fetchone()[0] >= MAX_PENDING:
            raise TooManyRequests(
                f"{MAX_PENDING} approvals already wait for a person; this one was not added.",
                hint="Nothing was done. A person has to decide some of them first.",
            )
        self.execute(
            f"DELETE FROM approvals WHERE state NOT IN {_OPEN_SQL} AND (job_id = '' OR job_end != '')"
            " AND json_extract(ended, '$[0]') < ?",
            (self.now.wall - KEPT_SECONDS,),
        )
        self.write(approval)

    def write(self, approval: Approval) -> None:
        """Store an approval as it is now."""
        write_row(self.connection, approval)

    def move(self, old: Approval, new: Approval, event: str, **fields: Any) -> None:
        """Store and record an approval in its next state."""
        if new.state not in TRANSITIONS[old.state]:
            raise AssertionError(f"{old.id}: {old.state} → {new.state}")
        self.write(new)
        self.record(event, new, **({"reason": new.reason} if new.reason else {}) | fields)

    def deny(self, approval: Approval, *, door: Door, by: str) -> Approval:
        """Deny a pending or granted approval."""
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
        """End a pending or granted approval without a decision."""
        self.move(approval, replace(approval, state=State.EXPIRED, ended=self.now, reason=reason), event)

    def record(self, event: str, of: Approval, **fields: Any) -> None:
        """Audit what happened to an approval."""
        decided = {"door": of.door, "by": of.decided_by} if of.door else {}
        self.record_call(event, of.call, **{"approval": of.id, "state": of.state} | decided | fields)

    def record_call(self, event: str, call: Call, **fields: Any) -> None:
        """Audit what happened to a call, which may have no approval."""
        about = asdict(call) | {"arguments": dict(call.arguments)}
        del about["process"]  # a secret
        del about["is_strict"]
        self.append(event, **about, **fields)

    def append(self, event: str, **fields: Any) -> None:
        """Audit an event that belongs to no guarded call."""
        self._audit.append(self.connection, self.now, event, **fields)


class Register:
    """Opens transactions, and seals the audit record after those that changed something."""

    def __init__(self, database: Database, audit: Audit, clock: Clock) -> None:
        self._database = database
        self._audit = audit
        self._clock = clock

    @property
    def exists(self) -> bool:
        """Whether anything was ever written; does not create the database."""
        return self._database.exists

    @contextmanager
    def transaction(self) -> Iterator[Rows]:
        """Run the block in one transaction."""
        with self._database.transaction() as connection:
            before = connection.total_changes
            yield Rows(connection, self._clock.read(), self._audit)
            has_changed = connection.total_changes > before
        if has_changed:
            self._audit.seal()


def new_id(length: int, prefix: str = "") -> str:
    """Return a random id without letters that look alike."""
    return prefix + "".join(secrets.choice(_ID_ALPHABET) for _ in range(length))


def unknown(id_: str) -> NotFound:
    """Return the error for an id that no approval has."""
    return NotFound(f"There is no approval {quoted(id_)}.", hint="List the approvals to see which there are.")
