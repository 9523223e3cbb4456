"""The operator's PIN: proof, in a terminal and on the approval page, that a person decides and not a program.

An attempt is recorded before it is checked, in the database that all processes share, and counts as wrong until its check has
ended, so parallel guesses, other doors and restarts gain nothing. Each link to the page has a count of its own, and terminals
have one, so that nobody who has a link locks the person out (GUARD.md, "PIN"). Blocking.
"""

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from typing import Any

from snapshot_mcp.contract.errors import BadRequest
from snapshot_mcp.contract.text import clean_text
from snapshot_mcp.guard.consent.approval import moment_from_text, moment_to_text
from snapshot_mcp.guard.consent.errors import PinLocked, WrongPin
from snapshot_mcp.guard.consent.register import Register, Rows

MIN_CHARACTERS = 6
MAX_CHARACTERS = 128
FREE_ATTEMPTS = 5
LOCKED_SECONDS = 15 * 60.0
"""96 attempts a day: guessing six digits takes fourteen years on average."""
LOCKED_HINT = f"It can be tried again {LOCKED_SECONDS / 60:.0f} minutes after the last attempt."
OTHER_DOORS = "A terminal, and a link to another approval, have their own attempts."

MAX_PAUSE_SECONDS = 5 * 60.0
"""The longest pause between attempts through different links, reached after fourteen wrong ones: 288 guesses a day at most."""

TERMINAL, PAGE = "terminal", "page"
"""The places whose wrong attempts are counted, beside each link: all terminals, and all links together."""

MIN_PHRASE_CHARACTERS = 3
MAX_PHRASE_CHARACTERS = 60

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
        """Whether no attempt may begin in a terminal now."""
        if not self.is_set():
            return False
        with self._register.transaction() as rows:
            return _is_locked(rows, TERMINAL)

    def phrase(self) -> str:
        """Return the words by which the person knows their page, "" for none."""
        if not self._register.exists:
            return ""
        with self._register.transaction() as rows:
            row = rows.execute("SELECT phrase FROM pin").fetchone()
            return str(row["phrase"]) if row else ""

    def set(self, new: str, old: str | None, *, by: str, phrase: str | None = None) -> None:
        """Set the first PIN, or change it with the old one. Raises: BadRequest, WrongPin, PinLocked.

        `phrase`: words that only the person's own page shows, "" for none; None keeps those that there are.
        """
        _refuse_weak(new)
        kept = self.phrase() if phrase is None else _clean_phrase(phrase)
        has_old = self.is_set()
        if has_old:
            self.check(old, door="pin")
        salt = secrets.token_bytes(16)
        digest = _hash(new, salt)
        with self._register.transaction() as rows:
            if not has_old and rows.execute("SELECT 1 FROM pin").fetchone():
                raise WrongPin("A PIN was set in the meantime.", hint="Enter it as the old one.")
            rows.execute(
                "INSERT OR REPLACE INTO pin (only, salt, hash, phrase) VALUES (1, ?, ?, ?)", (salt, digest, kept)
            )
            rows.execute("DELETE FROM pin_places")
            rows.append("PIN changed" if has_old else "PIN set", door="terminal", by=by)

    def check(self, pin: str | None, *, door: str, about: Mapping[str, Any] | None = None, link: str = "") -> None:
        """Verify the PIN; the record says what it was given for (`about`). Raises: WrongPin, PinLocked.

        `link`: the approval whose link it came through, "" for a terminal.
        """
        fields = {**(about or {}), "door": door}
        if not pin:
            raise WrongPin("The PIN is missing.", hint="Enter the PIN that was set in this home.")
        attempt, salt, expected = self._begin(fields, link)
        is_right = hmac.compare_digest(_hash(pin[: MAX_CHARACTERS + 1], salt), expected)
        failures = self._end(attempt, fields, link, expected, is_right=is_right)
        if not is_right:
            left = max(0, FREE_ATTEMPTS - failures)
            what = "this link" if link else "it"
            raise WrongPin(
                "That is not the PIN.",
                hint=f"Attempts left before {what} is locked: {left}." if left else LOCKED_HINT,
                attempts_left=left,
            )

    def _begin(self, fields: Mapping[str, Any], link: str) -> tuple[str, bytes, bytes]:
        """Record an attempt; return its id, the salt and the hash. Raises: WrongPin, PinLocked."""
        with self._register.transaction() as rows:
            row = rows.execute("SELECT * FROM pin").fetchone()
            if row is None:
                raise WrongPin("No PIN is set.", hint="The operator sets one with the command `pin` in this home.")
            _count_cut_off(rows)
            obstacle = _obstacle(rows, link)
            attempt = secrets.token_hex(8)
            if obstacle:
                rows.append("PIN refused while locked", **fields)
            else:
                entry = (attempt, fields["door"], link, moment_to_text(rows.now))
                rows.execute("INSERT INTO pin_attempts (id, door, link, begun) VALUES (?, ?, ?, ?)", entry)
        if obstacle:
            raise obstacle
        return attempt, row["salt"], row["hash"]

    def _end(self, attempt: str, fields: Mapping[str, Any], link: str, expected: bytes, *, is_right: bool) -> int:
        """Record the result of an attempt; return how many in a row were wrong at its place."""
        with self._register.transaction() as rows:
            was_open = rows.execute("DELETE FROM pin_attempts WHERE id = ?", (attempt,)).rowcount
            if is_right:
                if rows.execute("SELECT 1 FROM pin WHERE hash = ?", (expected,)).fetchone():
                    for place in _places(link):
                        rows.execute("DELETE FROM pin_places WHERE place = ?", (place,))
                rows.append("PIN right", **fields)
            elif was_open:
                _count_failure(rows, "PIN wrong", fields, link)
            return _failures(rows, link or TERMINAL)


def _refuse_weak(new: str) -> None:
    if not MIN_CHARACTERS <= len(new) <= MAX_CHARACTERS or new.strip() != new or len(set(new)) < 3:
        raise BadRequest(
            f"A PIN must have {MIN_CHARACTERS} to {MAX_CHARACTERS} characters, at least three different ones,"
            " and no blank at either end.",
            hint="Choose another PIN.",
        )


def _clean_phrase(phrase: str) -> str:
    cleaned = clean_text(phrase.strip(), MAX_PHRASE_CHARACTERS + 1)
    if cleaned and not MIN_PHRASE_CHARACTERS <= len(cleaned) <= MAX_PHRASE_CHARACTERS:
        raise BadRequest(
            f"The phrase must have {MIN_PHRASE_CHARACTERS} to {MAX_PHRASE_CHARACTERS} characters.",
            hint="Choose another phrase, or none.",
        )
    return cleaned


def _places(link: str) -> tuple[str, ...]:
    """Return where an attempt counts: one through a link counts there and for the page as a whole."""
    return (link, PAGE) if link else (TERMINAL,)


def _count_cut_off(rows: Rows) -> None:
    """Count attempts whose process ended before their check as wrong."""
    for row in rows.execute("SELECT * FROM pin_attempts").fetchall():
        if not moment_from_text(row["begun"]).is_within(rows.now, CUT_OFF_SECONDS):
            rows.execute("DELETE FROM pin_attempts WHERE id = ?", (row["id"],))
            _count_failure(rows, "PIN attempt cut off", {"door": row["door"]}, row["link"])


def _count_failure(rows: Rows, event: str, fields: Mapping[str, Any], link: str) -> None:
    for place in _places(link):
        rows.execute(
            "INSERT INTO pin_places (place, failures, last_failure) VALUES (?, 1, ?) ON CONFLICT (place) DO UPDATE"
            " SET failures = failures + 1, last_failure = excluded.last_failure",
            (place, moment_to_text(rows.now)),
        )
    rows.append(event, **fields, in_a_row=_failures(rows, link or TERMINAL))


def _obstacle(rows: Rows, link: str) -> PinLocked | None:
    """Return why no further attempt may begin now at this place, None if one may."""
    if not link:
        is_locked = _is_locked(rows, TERMINAL)
        return PinLocked("The PIN is locked after too many wrong attempts.", hint=LOCKED_HINT) if is_locked else None
    if _is_locked(rows, link):
        return PinLocked("This link is locked after too many wrong PINs.", hint=f"{LOCKED_HINT} {OTHER_DOORS}")
    if pause := _pause(rows):
        return PinLocked(
            "Too many wrong PINs came through other links, so there is a pause between attempts.",
            hint=f"Try again in {pause:.0f} s. {OTHER_DOORS}",
        )
    return None


def _is_locked(rows: Rows, place: str) -> bool:
    """Whether the place has used up its attempts; those being checked count as wrong."""
    running = _running(rows, place)
    if _failures(rows, place) + running < FREE_ATTEMPTS:
        return False
    return bool(running) or not _is_over(rows, place, LOCKED_SECONDS)


def _pause(rows: Rows) -> float:
    """Return how long there is a pause for all links, in seconds; 0 if an attempt may begin. It doubles with each wrong one."""
    running = _running(rows, PAGE)
    extra = _failures(rows, PAGE) + running - FREE_ATTEMPTS
    if extra < 0:
        return 0
    pause = min(2.0 ** min(extra, 10), MAX_PAUSE_SECONDS)
    return pause if running or not _is_over(rows, PAGE, pause) else 0


def _failures(rows: Rows, place: str) -> int:
    row = rows.execute("SELECT failures FROM pin_places WHERE place = ?", (place,)).fetchone()
    return int(row["failures"]) if row else 0


def _is_over(rows: Rows, place: str, seconds: float) -> bool:
    row = rows.execute("SELECT last_failure FROM pin_places WHERE place = ?", (place,)).fetchone()
    return row is None or moment_from_text(row["last_failure"]).is_over(rows.now, seconds)


def _running(rows: Rows, place: str) -> int:
    condition = {TERMINAL: "link = ''", PAGE: "link != ''"}.get(place, "link = ?")
    parameters = (place,) if "?" in condition else ()
    return int(rows.execute(f"SELECT count(*) FROM pin_attempts WHERE {condition}", parameters).fetchone()[0])


def _hash(pin: str, salt: bytes) -> bytes:
    return hashlib.scrypt(pin.encode("utf-8", "surrogatepass"), salt=salt, n=_N, r=_R, p=_P, maxmem=64 << 20, dklen=32)
