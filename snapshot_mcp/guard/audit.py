"""The record: every plan, question, answer and outcome, in the order in which they happened.

A record is written in the same transaction as the change that it is of, so nothing happens unrecorded, whatever is killed.
Each carries a MAC over itself and the MAC before it (key: HOME/audit.key, 0600), so a changed, removed or reordered record
shows; HOME/audit.head names the last one, so a cut tail shows too. The head is there before the first record, and a missing
one is not made again: it may be the evidence of a cut. It is written after the commit and may lag behind by what a killed
process could not name any more; the records beyond it still carry their MACs.

    record   one line of JSON: sequence, at, event, and what the event has
    mac      HMAC-SHA256(key, mac of the record before + "\\n" + record), hex; before the first: ""
    head     JSON: sequence, mac, seal = HMAC-SHA256(key, "head " + sequence + " " + mac)
"""

import hashlib
import hmac
import json
import os
import secrets
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snapshot_mcp.guard.clock import Moment
from snapshot_mcp.guard.database import Database
from snapshot_mcp.guard.errors import GuardBroken

KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class Verdict:
    """What `verify` found: `problem` is "" when all is well, else what is wrong, and `sequence` where."""

    records: int
    problem: str = ""
    sequence: int = 0
    note: str = ""


class Audit:
    """Appends inside the transactions of others; blocking."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._key_path = database.folder / "audit.key"
        self._head_path = database.folder / "audit.head"

    def append(self, connection: sqlite3.Connection, now: Moment, event: str, **fields: Any) -> None:
        """Add one record in the caller's transaction; `seal` is due after its commit."""
        last = _last(connection)
        sequence = last[0] + 1 if last else 1
        body = {"sequence": sequence, "at": now.time.isoformat(timespec="milliseconds"), "event": event} | fields
        record = json.dumps(body, ensure_ascii=True, separators=(",", ":"), default=str)
        key = self._key(create=last is None)
        if last is None and not self._head_path.exists():
            self._write_head(0, "")
        mac = _mac(key, last[1] if last else "", record)
        connection.execute("INSERT INTO audit (sequence, record, mac) VALUES (?, ?, ?)", (sequence, record, mac))

    def seal(self) -> None:
        """Let the head name the last record. One that names what is not there stays, and a missing one stays missing, as the
        evidence of a cut."""
        with self._database.transaction() as connection:
            last = _last(connection)
            named = self._named_by_head()
            if last is not None and named is not None and _holds(connection, *named):
                self._write_head(*last)

    def records(self) -> Iterator[dict[str, Any]]:
        """Every record, oldest first, as it stands (verified or not)."""
        for _, record, _ in self._read()[0]:
            try:
                body = json.loads(record)
            except ValueError:
                body = None
            yield body if isinstance(body, dict) else {"event": "unreadable record"}

    def verify(self) -> Verdict:
        """Read the whole record and say where it was tampered with, if it was."""
        rows, head = self._read()
        if not rows and head is None:
            return Verdict(0)
        try:
            key = self._key(create=False)
        except GuardBroken as error:
            return Verdict(len(rows), error.message, 1)
        before = ""
        macs = {0: ""}
        for expected, (sequence, record, mac) in enumerate(rows, start=1):
            if sequence != expected:
                return Verdict(len(rows), f"record {expected} is missing", expected)
            if not hmac.compare_digest(_mac(key, before, record), mac):
                return Verdict(len(rows), f"record {sequence} was changed, moved or put in", sequence)
            before = macs[sequence] = mac
        return self._verify_head(head, len(rows), macs)

    def _verify_head(self, text: str | None, count: int, macs: dict[int, str]) -> Verdict:
        if text is None:
            return Verdict(count, "the head record (audit.head) is missing, so a cut tail would not show", count)
        try:
            head = json.loads(text)
            sequence, mac, seal = int(head["sequence"]), str(head["mac"]), str(head["seal"])
        except (ValueError, KeyError, TypeError):
            return Verdict(count, "the head record (audit.head) cannot be read", count)
        if not hmac.compare_digest(self._seal(sequence, mac), seal):
            return Verdict(count, "the head record (audit.head) was changed", count)
        if sequence > count:
            return Verdict(count, f"records {count + 1} to {sequence} were cut off", count + 1)
        if not hmac.compare_digest(macs[sequence], mac):
            return Verdict(count, f"record {sequence} is not the one that the head names", sequence)
        late = count - sequence
        return Verdict(count, note=f"{late} newer than the head: a process was stopped in between" if late else "")

    def _named_by_head(self) -> tuple[int, str] | None:
        """None for a head that is missing or unreadable."""
        try:
            head = json.loads(self._head() or "")
            return int(head["sequence"]), str(head["mac"])
        except (ValueError, KeyError, TypeError):
            return None

    def _read(self) -> tuple[list[tuple[int, str, str]], str | None]:
        """All records and the head, as they are at one moment: writers hold the same lock."""
        if not self._database.exists:
            return [], self._head()
        with self._database.transaction() as connection:
            rows = connection.execute("SELECT sequence, record, mac FROM audit ORDER BY sequence")
            return [tuple(row) for row in rows], self._head()

    def _head(self) -> str | None:
        """None where there is none; "" if it cannot be read."""
        try:
            return self._head_path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            return ""

    def _write_head(self, sequence: int, mac: str) -> None:
        head = {"sequence": sequence, "mac": mac, "seal": self._seal(sequence, mac)}
        _replace(self._head_path, json.dumps(head).encode())

    def _seal(self, sequence: int, mac: str) -> str:
        return hmac.new(self._key(create=False), f"head {sequence} {mac}".encode(), hashlib.sha256).hexdigest()

    def _key(self, *, create: bool) -> bytes:
        """The key; made with the first record, under the transaction's lock."""
        try:
            key = self._key_path.read_bytes()
        except FileNotFoundError:
            if not create:
                raise GuardBroken(
                    "The audit's key (audit.key) is missing.",
                    hint="Bring it back, or move guard.sqlite and audit.head away to begin a new record.",
                ) from None
            key = secrets.token_bytes(KEY_BYTES)
            _replace(self._key_path, key)
        if len(key) != KEY_BYTES:
            raise GuardBroken("The audit's key (audit.key) is damaged.", hint="Bring it back from a backup.")
        return key


def _last(connection: sqlite3.Connection) -> tuple[int, str] | None:
    row = connection.execute("SELECT sequence, mac FROM audit ORDER BY sequence DESC LIMIT 1").fetchone()
    return (row[0], row[1]) if row else None


def _holds(connection: sqlite3.Connection, sequence: int, mac: str) -> bool:
    if sequence == 0:
        return mac == ""
    row = connection.execute("SELECT mac FROM audit WHERE sequence = ?", (sequence,)).fetchone()
    return row is not None and row[0] == mac


def _mac(key: bytes, before: str, record: str) -> str:
    return hmac.new(key, f"{before}\n{record}".encode(), hashlib.sha256).hexdigest()


def _replace(path: Path, content: bytes) -> None:
    """Write a small file whole, for its owner alone."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
