"""The record's key, and the two places beside it that name its last record: the head, and the mark behind the key (GUARD.md,
"The seals"). Blocking; used under the database's lock.

A key that an earlier version wrote has no mark yet; it gets one with the next record.
"""

import hashlib
import hmac
import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from snapshot_mcp.ground.files import fsync_folder, replace_private
from snapshot_mcp.guard.consent.errors import GuardBroken

KEY_BYTES = 32
HEAD, MARK = "head", "mark"


@dataclass(frozen=True, slots=True)
class Named:
    """The record that a head or a mark names; before the first one it is number 0, without a MAC."""

    sequence: int
    mac: str
    seal: str

    @classmethod
    def parse(cls, text: str) -> "Named | None":
        """None for what cannot be read."""
        try:
            body = json.loads(text)
            return cls(int(body["sequence"]), str(body["mac"]), str(body["seal"]))
        except (ValueError, KeyError, TypeError):
            return None


class Seals:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key_path = folder / "audit.key"
        self._head_path = folder / "audit.head"

    @property
    def has_key(self) -> bool:
        return self._key_path.exists()

    def key(self) -> bytes:
        """Raises: GuardBroken."""
        return self._key_file()[0]

    def head(self) -> str | None:
        """The head's text; None where there is none, "" if it cannot be read."""
        try:
            return self._head_path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            return ""

    def mark(self) -> Named | None:
        """None where there is none yet. Raises: GuardBroken."""
        return self._key_file()[1]

    def is_genuine(self, kind: str, named: Named) -> bool:
        return hmac.compare_digest(_seal(self.key(), kind, named.sequence, named.mac), named.seal)

    def prepare(self, last: tuple[int, str] | None) -> bytes:
        """Return the key for the record after `last`, in its transaction; key, head and mark are made where they begin."""
        if last is None and not self.has_key:
            replace_private(self._key_path, secrets.token_bytes(KEY_BYTES))
        key, mark = self._key_file()
        if last is None and not self._head_path.exists():
            self._write_head(key, 0, "")
        if mark is None:
            self._write_mark(key, *(last or (0, "")))
            fsync_folder(self._folder)
        return key

    def advance(self, last: tuple[int, str], is_there: Callable[[Named], bool]) -> None:
        """Let head and mark name the last record. One that names what is not there stays, as the evidence of a cut, and a
        missing one stays missing."""
        key, mark = self._key_file()
        head = Named.parse(self.head() or "")
        if head and is_there(head):
            self._write_head(key, *last)
        if mark and is_there(mark):
            self._write_mark(key, *last)
        fsync_folder(self._folder)

    def _key_file(self) -> tuple[bytes, Named | None]:
        try:
            content = self._key_path.read_bytes()
        except FileNotFoundError:
            raise GuardBroken(
                "The audit's key (audit.key) is missing.",
                hint="Bring it back, or move guard.sqlite and audit.head away to begin a new record.",
            ) from None
        key, text = content[:KEY_BYTES], content[KEY_BYTES:]
        mark = Named.parse(text.decode("utf-8", "replace")) if text else None
        if len(key) != KEY_BYTES or (text and mark is None):
            raise GuardBroken("The audit's key (audit.key) is damaged.", hint="Bring it back from a backup.")
        return key, mark

    def _write_head(self, key: bytes, sequence: int, mac: str) -> None:
        replace_private(self._head_path, _named(key, HEAD, sequence, mac))

    def _write_mark(self, key: bytes, sequence: int, mac: str) -> None:
        replace_private(self._key_path, key + _named(key, MARK, sequence, mac))


def _named(key: bytes, kind: str, sequence: int, mac: str) -> bytes:
    return json.dumps({"sequence": sequence, "mac": mac, "seal": _seal(key, kind, sequence, mac)}).encode()


def _seal(key: bytes, kind: str, sequence: int, mac: str) -> str:
    return hmac.new(key, f"{kind} {sequence} {mac}".encode(), hashlib.sha256).hexdigest()
