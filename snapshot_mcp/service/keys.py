"""The tokens that key pairs buy: OAuth 2 client credentials (CONTRACT.md, "What surrounds them").

Tokens are random, live in memory only and are kept as hashes; a restart forgets them and clients fetch new ones. A token is
good for as long as its key pair is: one that is removed from the file, or has another secret there, ends them at once.
Nothing here prints a secret.
"""

import hashlib
import logging
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import anyio
import anyio.to_thread

from snapshot_mcp.contract.errors import Forbidden, Unauthorized, Unavailable
from snapshot_mcp.service.key_file import KeyFile, KeyPair, Stamp
from snapshot_mcp.service.roles import Role

logger = logging.getLogger(__name__)

MAX_TOKENS = 10_000
"""Of all key pairs; the oldest goes first. A client that fetches a token for every call cannot fill the memory."""


@dataclass(frozen=True, slots=True)
class _Key:
    """A key pair as it is kept: its secret as a hash."""

    secret: bytes = field(repr=False)
    role: Role


@dataclass(frozen=True, slots=True)
class Grant:
    """Whom a token stands for, what it may do, and until when (on the book's clock)."""

    client_id: str
    role: Role
    expires_at: float
    secret: bytes = field(repr=False)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


class TokenBook:
    """Issues tokens to key pairs and tells whose they are until they expire.

    With a `KeyFile` the pairs are those of the file as it is now: `refresh` before each look. Raises Forbidden for a file
    that cannot be used, ValueError for no pair at all.
    """

    def __init__(
        self,
        key_pairs: Iterable[KeyPair] | KeyFile,
        *,
        expires_in_seconds: int = 3600,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._file = key_pairs if isinstance(key_pairs, KeyFile) else None
        self._stamp: Stamp | None = self._file.stamp() if self._file else None
        self._keys = _keys_of(key_pairs.read() if isinstance(key_pairs, KeyFile) else key_pairs)
        if not self._keys:
            raise ValueError("the REST face needs at least one key pair")
        self._is_usable = True
        self._rereading = anyio.Lock()
        self._nobody = _Key(secrets.token_bytes(32), Role.READER)
        self._grants: dict[bytes, Grant] = {}
        self.expires_in_seconds = expires_in_seconds
        self.clock = clock

    async def refresh(self) -> None:
        """Take over a file that has changed. Raises Unavailable while it cannot be used: then nobody is let in."""
        if self._file is not None and self._file.stamp() != self._stamp:
            async with self._rereading:
                await anyio.to_thread.run_sync(self._reread, self._file)
        if not self._is_usable:
            raise Unavailable(
                "The key pairs of this service cannot be read at the moment, so nobody is let in.",
                hint="Its log says why. Try again when the operator has corrected it.",
            )

    def issue(self, client_id: str, client_secret: str) -> str:
        """Return a new token. Raises Unauthorized, in the same time for a wrong id as for a wrong secret."""
        key = self._keys.get(client_id, self._nobody)
        if not secrets.compare_digest(key.secret, _digest(client_secret)):
            raise Unauthorized("The key pair is not valid here.", hint="Check client_id and client_secret.")
        now = self.clock()
        while self._grants:
            oldest, grant = next(iter(self._grants.items()))
            if grant.expires_at > now and len(self._grants) < MAX_TOKENS:
                break
            del self._grants[oldest]
        token = secrets.token_urlsafe(32)
        self._grants[_digest(token)] = Grant(client_id, key.role, now + self.expires_in_seconds, key.secret)
        return token

    def grant_of(self, token: str) -> Grant | None:
        """Return whom the token stands for, with the role that it has now; None once it or its key pair has ended."""
        grant = self._grants.get(_digest(token))
        if grant is None or not self.stands(grant):
            return None
        return Grant(grant.client_id, self._keys[grant.client_id].role, grant.expires_at, grant.secret)

    def stands(self, grant: Grant) -> bool:
        """Whether the grant is still good: in its time, and its key pair there with the same secret."""
        key = self._keys.get(grant.client_id)
        return key is not None and key.secret == grant.secret and self.clock() < grant.expires_at

    async def still_stands(self, grant: Grant) -> bool:
        """The same by the file as it is now."""
        try:
            await self.refresh()
        except Unavailable:
            return False
        return self.stands(grant)

    def _reread(self, file: KeyFile) -> None:
        stamp = file.stamp()  # before it is read: what changes meanwhile is read again
        if stamp == self._stamp:
            return
        try:
            self._keys, self._is_usable = _keys_of(file.read()), True
        except Forbidden as error:
            self._keys, self._is_usable = {}, False
            logger.warning("Nobody is let in: %s", error)
        self._stamp = stamp


def _keys_of(pairs: Iterable[KeyPair]) -> dict[str, _Key]:
    return {pair.client_id: _Key(_digest(pair.client_secret.get_secret_value()), pair.role) for pair in pairs}
