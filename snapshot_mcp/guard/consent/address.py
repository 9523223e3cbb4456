"""The approval page's address: its port, and the secret that its links carry (GUARD.md, "The page").

One row in HOME/guard.sqlite, there only while something waits, so that a page that was killed comes back where its links lead.
Blocking; call it in a worker thread.
"""

import base64
import hashlib
import hmac
import secrets
from dataclasses import dataclass, field
from typing import Protocol

from snapshot_mcp.guard.consent.register import Register, Rows

HOST = "127.0.0.1"
SECRET_BYTES = 32
KEY_BYTES = 20


@dataclass(frozen=True, slots=True)
class PageAddress:
    """Where the page listens. `left_port`: the port that it had to leave to another program, 0 for none."""

    port: int
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(SECRET_BYTES), repr=False)
    left_port: int = 0

    def key(self, approval_id: str) -> str:
        """Return the secret of an approval's link, without which its page does not exist: 160 bits in 32 letters and digits."""
        return base64.b32encode(self._mac("link", approval_id)[:KEY_BYTES]).decode().lower()

    def has_key(self, approval_id: str, key: str) -> bool:
        """Whether `key` is that secret, compared in constant time."""
        return hmac.compare_digest(key.encode("utf-8", "replace"), self.key(approval_id).encode())

    def token(self, approval_id: str, digest: str) -> str:
        """Return what a decision about this plan carries, which only a page that was shown contains."""
        return self._mac("decision", approval_id, digest).hex()

    def path(self, approval_id: str) -> str:
        """Return the path of an approval's page, with the secret in it."""
        return f"/approvals/{approval_id}/{self.key(approval_id)}"

    def url(self, approval_id: str) -> str:
        """Return the link to an approval's page."""
        return f"http://{HOST}:{self.port}{self.path(approval_id)}"

    @property
    def warning(self) -> str:
        """What a person has to know if the page had to move, else ""."""
        if not self.left_port:
            return ""
        return f"Another program listens on port {self.left_port}, where the page was: enter nothing there."

    def _mac(self, *words: str) -> bytes:
        return hmac.digest(self.secret, " ".join(words).encode("utf-8", "replace"), hashlib.sha256)


class PageKeeper(Protocol):
    """Starts the page's process. Blocking."""

    def keep(self) -> PageAddress:
        """Return the address of the page, whose process runs then. Raises: PageNotDetached."""

    def revive(self) -> None:
        """Start the process again if links to the page were given out and it was killed; best effort."""


class AddressBook:
    """The address of one home; each method is one transaction."""

    def __init__(self, register: Register) -> None:
        self._register = register

    def find(self) -> PageAddress | None:
        """Return the address, None if no page is wanted."""
        if not self._register.exists:
            return None
        with self._register.transaction() as rows:
            row = rows.execute("SELECT port, secret, left_port FROM page").fetchone()
            return PageAddress(row["port"], row["secret"], row["left_port"]) if row else None

    def write(self, address: PageAddress) -> None:
        """Store the address; that the page had to leave its port is recorded."""
        with self._register.transaction() as rows:
            _store(rows, address)
            if address.left_port:
                rows.append("page moved", port=address.port, left_port=address.left_port)

    def remove(self) -> None:
        """Forget the address."""
        with self._register.transaction() as rows:
            rows.execute("DELETE FROM page")

    def remove_unless_wanted(self) -> bool:
        """Forget the address if nothing waits for a person; return whether it is forgotten."""
        if not self._register.exists:
            return True
        with self._register.transaction() as rows:
            if rows.is_waiting():
                return False
            rows.execute("DELETE FROM page")
            return True


def _store(rows: Rows, address: PageAddress) -> None:
    values = (address.port, address.secret, address.left_port)
    rows.execute("INSERT OR REPLACE INTO page (only, port, secret, left_port) VALUES (1, ?, ?, ?)", values)
