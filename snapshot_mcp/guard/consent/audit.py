"""The audit record: every plan, question, answer and outcome in order (GUARD.md, "The chain", "What verify finds").

A record is written in the transaction of the change that it describes. Its MAC covers it and the MAC before it; the head and
the mark (`seals.py`) name the last record.
"""

import hashlib
import hmac
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from snapshot_mcp.ground.clock import Moment
from snapshot_mcp.guard.consent.database import Database
from snapshot_mcp.guard.consent.errors import GuardBroken
from snapshot_mcp.guard.consent.seals import HEAD, MARK, Named, Seals

NAMERS = {HEAD: "the head record (audit.head)", MARK: "the mark in the key's file (audit.key)"}


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of `verify`: `problem` is "" if the record is intact, else what is wrong, and `sequence` where."""

    records: int
    problem: str = ""
    sequence: int = 0
    note: str = ""


@dataclass(frozen=True, slots=True)
class _Content:
    """A consistent view of all that `verify` compares."""

    rows: list[tuple[int, str, str]] = field(default_factory=list)
    states: dict[str, str] = field(default_factory=dict)
    head: str | None = None
    mark: Named | None = None


class Audit:
    """Appends to the record in the callers' transactions, and verifies it. Blocking."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._seals = Seals(database.folder)

    def append(self, connection: sqlite3.Connection, now: Moment, event: str, **fields: Any) -> None:
        """Add a record in the caller's transaction; call `seal` after its commit."""
        last = _last(connection)
        sequence = last[0] + 1 if last else 1
        body = {"sequence": sequence, "at": now.time.isoformat(timespec="milliseconds"), "event": event} | fields
        record = json.dumps(body, ensure_ascii=True, separators=(",", ":"), default=str)
        mac = _mac(self._seals.prepare(last), last[1] if last else "", record)
        connection.execute("INSERT INTO audit (sequence, record, mac) VALUES (?, ?, ?)", (sequence, record, mac))

    def seal(self) -> None:
        """Advance head and mark to the last record."""
        with self._database.transaction() as connection:
            last = _last(connection)
            if last is not None:
                self._seals.advance(last, lambda named: _holds(connection, named))

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield every record, oldest first, without verifying it."""
        for _, record, _ in self._read().rows:
            yield _body(record)

    def verify(self) -> Verdict:
        """Check the whole record for tampering."""
        try:
            content = self._read(with_mark=True)
            if not content.rows and content.head is None:
                return self._verify_nothing(content)
            key = self._seals.key()
        except GuardBroken as error:
            return Verdict(len(self._read().rows), error.message, 1)
        count, before, macs = len(content.rows), "", {0: ""}
        for expected, (sequence, record, mac) in enumerate(content.rows, start=1):
            if sequence != expected:
                return Verdict(count, f"record {expected} is missing", expected)
            if not hmac.compare_digest(_mac(key, before, record), mac):
                return Verdict(count, f"record {sequence} was changed, moved or inserted", sequence)
            before = macs[sequence] = mac
        return self._verify_ends(content, macs)

    def _verify_nothing(self, content: _Content) -> Verdict:
        """Judge an empty record without a head: a key that was used proves that records were removed."""
        never_began = content.mark is not None and content.mark.sequence == 0 and self._database.exists
        if not self._seals.has_key or never_began:
            return Verdict(0)
        return Verdict(0, "the key (audit.key) exists but there are no records: they were removed", 1)

    def _verify_ends(self, content: _Content, macs: dict[int, str]) -> Verdict:
        count = len(content.rows)
        if content.head is None:
            return Verdict(count, f"{NAMERS[HEAD]} is missing, so removed last records would go unnoticed", count)
        head = Named.parse(content.head)
        if head is None:
            return Verdict(count, f"{NAMERS[HEAD]} cannot be read", count)
        for kind, named in ((HEAD, head), (MARK, content.mark)):
            if named and (found := self._verify_named(kind, named, count, macs)):
                return found
        if found := _verify_states(content, count):
            return found
        late = count - head.sequence
        return Verdict(
            count, note=f"{late} newer than the head: a process was stopped before it sealed them" if late else ""
        )

    def _verify_named(self, kind: str, named: Named, count: int, macs: dict[int, str]) -> Verdict | None:
        """Return what is wrong with a head or mark, or with the record that it names."""
        if not self._seals.is_genuine(kind, named):
            return Verdict(count, f"{NAMERS[kind]} was changed", count)
        if named.sequence > count:
            cut = f"records {count + 1} to {named.sequence} were cut off"
            return Verdict(count, cut if kind == HEAD else f"{cut}: {NAMERS[kind]} names them", count + 1)
        if not hmac.compare_digest(macs[named.sequence], named.mac):
            problem = f"record {named.sequence} is not the one that {NAMERS[kind]} names"
            return Verdict(count, problem, named.sequence)
        return None

    def _read(self, *, with_mark: bool = False) -> _Content:
        """Read everything under the lock that writers hold. Raises GuardBroken if the mark is unreadable."""
        if not self._database.exists:
            return _Content(head=self._seals.head(), mark=self._mark() if with_mark else None)
        with self._database.transaction() as connection:
            rows = connection.execute("SELECT sequence, record, mac FROM audit ORDER BY sequence").fetchall()
            states = {row[0]: row[1] for row in connection.execute("SELECT id, state FROM approvals")}
            mark = self._mark() if with_mark else None
            return _Content([tuple(row) for row in rows], states, self._seals.head(), mark)

    def _mark(self) -> Named | None:
        return self._seals.mark() if self._seals.has_key else None


def _verify_states(content: _Content, count: int) -> Verdict | None:
    """Compare each approval's row with the last record about it, which was written in the same transaction."""
    said: dict[str, tuple[str, int]] = {}
    for body in (_body(record) for _, record, _ in content.rows):
        if "approval" in body and "state" in body:
            said[str(body["approval"])] = str(body["state"]), int(body["sequence"])
    for approval, state in content.states.items():
        if said.get(approval, ("", 0))[0] != state:
            last, sequence = said.get(approval, ("nothing", count))
            problem = f"approval {approval} is {state}, and the last record about it says {last}"
            return Verdict(count, problem, sequence)
    return None


def _body(record: str) -> dict[str, Any]:
    try:
        body = json.loads(record)
    except ValueError:
        body = None
    return body if isinstance(body, dict) else {"event": "unreadable record"}


def _last(connection: sqlite3.Connection) -> tuple[int, str] | None:
    row = connection.execute("SELECT sequence, mac FROM audit ORDER BY sequence DESC LIMIT 1").fetchone()
    return (row[0], row[1]) if row else None


def _holds(connection: sqlite3.Connection, named: Named) -> bool:
    if named.sequence == 0:
        return named.mac == ""
    row = connection.execute("SELECT mac FROM audit WHERE sequence = ?", (named.sequence,)).fetchone()
    return row is not None and row[0] == named.mac


def _mac(key: bytes, before: str, record: str) -> str:
    return hmac.new(key, f"{before}\n{record}".encode(), hashlib.sha256).hexdigest()
