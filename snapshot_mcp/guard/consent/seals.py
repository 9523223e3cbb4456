"""The audit key, and the two places that name the last record: the head, and the mark in the key's file (GUARD.md, "The seals").

A key from an earlier version has no mark until the next record. Blocking; used under the database's lock.
"""

import hashlib
import hmac
import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from snapshot_mcp.ground.files import fsync_folder, replace_private
from snapshot_mcp.ground.permissions import READ, reason_of
from snapshot_mcp.guard.consent.errors import GuardBroken

KEY_BYTES = 32
HEAD, MARK = "head", "mark"


@dataclass(frozen=True, slots=True)
class Named:
    """The record that a head or mark names; number 0 without a MAC before the first record."""

    sequence: int
    mac: str
    seal: str

    @classmethod
    def parse(cls, text: str) -> "Named | None":
        """Return what the text names, None if it is unreadable."""
        try:
            body = json.loads(text)
            return cls(int(body["sequence"]), str(body["mac"]), str(body["seal"]))
        except (ValueError, KeyError, TypeError):
            return None


class Seals:
    """The files audit.key and audit.head."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key_path = folder / "audit.key"
        self._head_path = folder / "audit.head"

    @property
    def has_key(self) -> bool:
        """Whether audit.key exists."""
        return self._key_path.exists()

    def key(self) -> bytes:
        """Return the key. Raises: GuardBroken."""
        return self._key_file()[0]

    def head(self) -> str | None:
        """Return the head's text; None if there is none, "" if it is unreadable."""
        try:
            return self._head_path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except PermissionError as error:
            raise _unreadable(error) from None
        except (OSError, ValueError):
            return ""

    def mark(self) -> Named | None:
        """Return the mark, None if there is none yet. Raises: GuardBroken."""
        return self._key_file()[1]

    def is_genuine(self, kind: str, named: Named) -> bool:
        """Whether the head or mark was sealed with the key."""
        return hmac.compare_digest(_seal(self.key(), kind, named.sequence, named.mac), named.seal)

    def prepare(self, last: tuple[int, str] | None) -> bytes:
        """Return the key for the record after `last`, within its transaction; create key, head and mark for the first one."""
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
        """Advance head and mark to the last record, except one that is missing or names a missing record: that is evidence."""
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
        except PermissionError as error:
            raise _unreadable(error) from None
        except FileNotFoundError:
            raise GuardBroken(
                "The audit key (audit.key) is missing.",
                hint="Restore it from a backup, or move guard.sqlite and audit.head away to begin a new record.",
            ) from None
        key, text = content[:KEY_BYTES], content[KEY_BYTES:]
        mark = Named.parse(text.decode("utf-8", "replace")) if text else None
        if len(key) != KEY_BYTES or (text and mark is None):
            raise GuardBroken("The audit key (audit.key) is damaged.", hint="Restore it from a backup.")
        return key, mark

    def _write_head(self, key: bytes, sequence: int, mac: str) -> None:
        replace_private(self._head_path, _named(key, HEAD, sequence, mac))

    def _write_mark(self, key: bytes, sequence: int, mac: str) -> None:
        replace_private(self._key_path, key + _named(key, MARK, sequence, mac))


def _unreadable(error: PermissionError) -> GuardBroken:
    message = f"The record's seals cannot be read: {reason_of(error, access=READ)}."
    return GuardBroken(message, hint="Run snapshot-mcp as their owner, or correct their permissions.")


def _named(key: bytes, kind: str, sequence: int, mac: str) -> bytes:
    return json.dumps({"sequence": sequence, "mac": mac, "seal": _seal(key, kind, sequence, mac)}).encode()


def _seal(key: bytes, kind: str, sequence: int, mac: str) -> str:
    return hmac.new(key, f"{kind} {sequence} {mac}".encode(), hashlib.sha256).hexdigest()
