"""The operator's PIN: proof, in a terminal and on the approval page, that a person decides and not a program.

An attempt is recorded before it is checked, in the database that all processes share, and counts as wrong until its check has
ended, so parallel guesses, other doors and restarts gain nothing (GUARD.md, "PIN"). Blocking.
"""

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from typing import Any

from snapshot_mcp.contract.errors import BadRequest
from snapshot_mcp.guard.consent.approval import moment_from_text, moment_to_text
from snapshot_mcp.guard.consent.errors import PinLocked, WrongPin
from snapshot_mcp.guard.consent.register import Register, Rows

MIN_CHARACTERS = 6
MAX_CHARACTERS = 128
FREE_ATTEMPTS = 5
LOCKED_SECONDS = 15 * 60.0
"""96 attempts a day: guessing six digits takes fourteen years on average."""
LOCKED_HINT = f"It can be tried again {LOCKED_SECONDS / 60:.0f} minutes after the last attempt."

CUT_OFF_SECONDS = 60.0
"""An attempt older than this was interrupted with its process; a check takes a tenth of a second."""

_N, _R, _P = 1 << 15, 8, 1
"""The cost of scrypt: 32 MiB and about 0.1 s per attempt."""


class Pin:
    """The one PIN of a home."""

    def __init__(self, register: Register) -> None:
        self._register = register

    def is_set(self) -> bool:
        """Whether there is one; does not create the database."""
        if not self._register.exists:
            return False
        with self._register.transaction() as rows:
            return rows.execute("SELECT 1 FROM pin").fetchone() is not None

    def is_locked(self) -> bool:
        """Whether no attempt may begin now."""
        if not self.is_set():
            return False
        with self._register.transaction() as rows:
            return _is_locked(rows)

    def set(self, new: str, old: str | None, *, by: str) -> None:
        """Set the first PIN, or change it with the old one. Raises: BadRequest, WrongPin, PinLocked."""
        if not MIN_CHARACTERS <= len(new) <= MAX_CHARACTERS or new.strip() != new or len(set(new)) < 3:
            raise BadRequest(
                f"A PIN must have {MIN_CHARACTERS} to {MAX_CHARACTERS} characters, at least three different ones,"
                " and no blank at either end.",
                hint="Choose another PIN.",
            )
        has_old = self.is_set()
        if has_old:
            self.check(old, door="pin")
        salt = secrets.token_bytes(16)
        digest = _hash(new, salt)
        with self._register.transaction() as rows:
            if not has_old and rows.execute("SELECT 1 FROM pin").fetchone():
                raise WrongPin("A PIN was set in the meantime.", hint="Enter it as the old one.")
            rows.execute(
                "INSERT OR REPLACE INTO pin (only, salt, hash, failures, last_failure) VALUES (1, ?, ?, 0, '')",
                (salt, digest),
            )
            rows.append("PIN changed" if has_old else "PIN set", door="terminal", by=by)

    def check(self, pin: str | None, *, door: str, about: Mapping[str, Any] | None = None) -> None:
        """Verify the PIN; the record says what it was given for (`about`). Raises: WrongPin, PinLocked."""
        fields = {**(about or {}), "door": door}
        if not pin:
            raise WrongPin("The PIN is missing.", hint="Enter the PIN that was set in this home.")
        attempt, salt, expected = self._begin(fields)
        is_right = hmac.compare_digest(_hash(pin[: MAX_CHARACTERS + 1], salt), expected)
        failures = self._end(attempt, fields, expected, is_right=is_right)
        if not is_right:
            left = max(0, FREE_ATTEMPTS - failures)
            raise WrongPin(
                "That is not the PIN.",
                hint=f"Attempts left before it is locked: {left}." if left else LOCKED_HINT,
                attempts_left=left,
            )

    def _begin(self, fields: Mapping[str, Any]) -> tuple[str, bytes, bytes]:
        """Record an attempt; return its id, the salt and the hash. Raises: WrongPin, PinLocked."""
        with self._register.transaction() as rows:
            row = rows.execute("SELECT * FROM pin").fetchone()
            if row is None:
                raise WrongPin("No PIN is set.", hint="The operator sets one with the command `pin` in this home.")
            _count_cut_off(rows)
            is_locked = _is_locked(rows)
            attempt = secrets.token_hex(8)
            if is_locked:
                rows.append("PIN refused while locked", **fields)
            else:
                entry = (attempt, fields["door"], moment_to_text(rows.now))
                rows.execute("INSERT INTO pin_attempts (id, door, begun) VALUES (?, ?, ?)", entry)
        if is_locked:
            raise PinLocked("The PIN is locked after too many wrong attempts.", hint=LOCKED_HINT)
        return attempt, row["salt"], row["hash"]

    def _end(self, attempt: str, fields: Mapping[str, Any], expected: bytes, *, is_right: bool) -> int:
        """Record the result of an attempt; return how many in a row were wrong."""
        with self._register.transaction() as rows:
            was_open = rows.execute("DELETE FROM pin_attempts WHERE id = ?", (attempt,)).rowcount
            if is_right:
                rows.execute("UPDATE pin SET failures = 0, last_failure = '' WHERE hash = ?", (expected,))
                rows.append("PIN right", **fields)
            elif was_open:
                _count_failure(rows, "PIN wrong", fields)
            return int(rows.execute("SELECT failures FROM pin").fetchone()[0])


def _count_cut_off(rows: Rows) -> None:
    """Count attempts whose process ended before their check as wrong."""
    for row in rows.execute("SELECT * FROM pin_attempts").fetchall():
        if not moment_from_text(row["begun"]).is_within(rows.now, CUT_OFF_SECONDS):
            rows.execute("DELETE FROM pin_attempts WHERE id = ?", (row["id"],))
            _count_failure(rows, "PIN attempt cut off", {"door": row["door"]})


def _count_failure(rows: Rows, event: str, fields: Mapping[str, Any]) -> None:
    rows.execute("UPDATE pin SET failures = failures + 1, last_failure = ?", (moment_to_text(rows.now),))
    failures = rows.execute("SELECT failures FROM pin").fetchone()[0]
    rows.append(event, **fields, in_a_row=failures)


def _is_locked(rows: Rows) -> bool:
    """Whether no further attempt may begin now; those being checked count as wrong."""
    failures, last = rows.execute("SELECT failures, last_failure FROM pin").fetchone()
    running = rows.execute("SELECT count(*) FROM pin_attempts").fetchone()[0]
    if failures + running < FREE_ATTEMPTS:
        return False
    return bool(running) or not moment_from_text(last).is_over(rows.now, LOCKED_SECONDS)


def _hash(pin: str, salt: bytes) -> bytes:
    return hashlib.scrypt(pin.encode("utf-8", "surrogatepass"), salt=salt, n=_N, r=_R, p=_P, maxmem=64 << 20, dklen=32)
