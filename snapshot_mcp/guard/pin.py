"""The operator's PIN: proof, at the terminal and on the approval page, that a person decides and not a program.

Kept as a scrypt hash. An attempt is counted before it is looked at, in the database that all processes share, so parallel
guesses, other doors and restarts win nothing: after `FREE_ATTEMPTS` wrong ones in a row each further one waits
`LOCKED_SECONDS`. Only the right PIN sets the count back, and only who knows the PIN can change it. Blocking.
"""

import hashlib
import hmac
import json
import secrets

from snapshot_mcp.contract.errors import BadRequest
from snapshot_mcp.guard.audit import Audit
from snapshot_mcp.guard.clock import Clock, Moment
from snapshot_mcp.guard.database import Database
from snapshot_mcp.guard.errors import PinLocked, WrongPin

MIN_CHARACTERS = 6
MAX_CHARACTERS = 128
FREE_ATTEMPTS = 5
LOCKED_SECONDS = 15 * 60.0
"""96 attempts a day: guessing six digits takes fourteen years on average."""

_N, _R, _P = 1 << 15, 8, 1
"""32 MiB and about 0.1 s an attempt."""


class Pin:
    def __init__(self, database: Database, audit: Audit, clock: Clock) -> None:
        self._database = database
        self._audit = audit
        self._clock = clock

    def is_set(self) -> bool:
        if not self._database.exists:
            return False
        with self._database.transaction() as connection:
            return connection.execute("SELECT 1 FROM pin").fetchone() is not None

    def set(self, new: str, old: str | None, *, by: str) -> None:
        """Set the first PIN, or change it with the old one. Raises: BadRequest, WrongPin, PinLocked."""
        if not MIN_CHARACTERS <= len(new) <= MAX_CHARACTERS or new.strip() != new or len(set(new)) < 3:
            raise BadRequest(
                f"A PIN has {MIN_CHARACTERS} to {MAX_CHARACTERS} characters, at least three different ones,"
                " and no blank at its ends.",
                hint="Choose another one.",
            )
        has_old = self.is_set()
        if has_old:
            self.check(old, door="pin")
        salt = secrets.token_bytes(16)
        digest = _hash(new, salt)
        with self._database.transaction() as connection:
            if not has_old and connection.execute("SELECT 1 FROM pin").fetchone():
                raise WrongPin("A PIN was set meanwhile.", hint="Give it as the old one.")
            connection.execute(
                "INSERT OR REPLACE INTO pin (only, salt, hash, failures, last_failure) VALUES (1, ?, ?, 0, '')",
                (salt, digest),
            )
            self._audit.append(
                connection, self._clock.read(), "PIN changed" if has_old else "PIN set", door="terminal", by=by
            )
        self._audit.seal()

    def check(self, pin: str | None, *, door: str) -> None:
        """Return if `pin` is the PIN. Raises: WrongPin, PinLocked."""
        if not pin:
            raise WrongPin("The PIN is needed.", hint="Enter the PIN that was set with `snapshot-mcp pin`.")
        salt, expected, failures = self._count_attempt(door)
        if not hmac.compare_digest(_hash(pin[: MAX_CHARACTERS + 1], salt), expected):
            left = max(0, FREE_ATTEMPTS - failures)
            raise WrongPin(
                "That is not the PIN.",
                hint=f"{left} more attempts before it is locked." if left else _locked_hint(),
                attempts_left=left,
            )
        with self._database.transaction() as connection:
            connection.execute("UPDATE pin SET failures = 0, last_failure = '' WHERE hash = ?", (expected,))

    def _count_attempt(self, door: str) -> tuple[bytes, bytes, int]:
        with self._database.transaction() as connection:
            now = self._clock.read()
            row = connection.execute("SELECT * FROM pin").fetchone()
            if row is None:
                raise WrongPin("No PIN is set.", hint="A person sets one with `snapshot-mcp pin`.")
            failures = row["failures"]
            if failures >= FREE_ATTEMPTS and not Moment(*json.loads(row["last_failure"])).is_over(now, LOCKED_SECONDS):
                self._audit.append(connection, now, "PIN refused while locked", door=door)
                locked = True
            else:
                stamp = json.dumps([now.wall, now.boot, now.uptime])
                connection.execute("UPDATE pin SET failures = failures + 1, last_failure = ?", (stamp,))
                self._audit.append(connection, now, "PIN attempt", door=door, in_a_row=failures + 1)
                locked = False
        self._audit.seal()
        if locked:
            raise PinLocked("The PIN is locked after too many wrong attempts.", hint=_locked_hint())
        return row["salt"], row["hash"], failures + 1


def _locked_hint() -> str:
    return f"It can be tried again {LOCKED_SECONDS / 60:.0f} minutes after the last attempt."


def _hash(pin: str, salt: bytes) -> bytes:
    return hashlib.scrypt(pin.encode("utf-8", "surrogatepass"), salt=salt, n=_N, r=_R, p=_P, maxmem=64 << 20, dklen=32)
