"""The tokens of key pairs: OAuth 2 client credentials (CONTRACT.md, "What surrounds them").

Tokens are random and kept as hashes, in memory only: after a restart clients fetch new ones. A token is revoked at once when
its key pair is removed from the file, or gets another secret there. Nothing here prints a secret.
"""

import hashlib
import logging
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import anyio
import anyio.to_thread

from snapshot_mcp.contract.errors import Forbidden, Unauthorized, Unavailable
from snapshot_mcp.service.key_file import KeyFile, KeyPair, Stamp
from snapshot_mcp.service.roles import Role

logger = logging.getLogger(__name__)

MAX_TOKENS = 10_000
"""For all key pairs together; the oldest is dropped first. Bounds the memory if a client fetches a token for every call."""


@dataclass(frozen=True, slots=True)
class _Key:
    """A key pair, with its secret as a hash."""

    secret: bytes = field(repr=False)
    role: Role


@dataclass(frozen=True, slots=True)
class Grant:
    """The owner of a token, its role, and when it expires (on the book's clock)."""

    client_id: str
    role: Role
    expires_at: float
    secret: bytes = field(repr=False)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


class TokenBook:
    """The tokens issued to key pairs, until they expire or are revoked.

    With a `KeyFile`, call `refresh` before each use: it follows the file. Raises Forbidden for a file that cannot be used,
    ValueError if there is no pair.
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
        """Reload the file if it has changed. Raises Unavailable while it cannot be used: then nobody is admitted."""
        if self._file is not None and self._file.stamp() != self._stamp:
            async with self._rereading:
                await anyio.to_thread.run_sync(self._reread, self._file)
        if not self._is_usable:
            raise Unavailable(
                "The key pairs of this service cannot be read at the moment, so no client is admitted.",
                hint="See the service's log. Retry when the operator has corrected the file.",
            )

    def issue(self, client_id: str, client_secret: str) -> str:
        """Return a new token. Raises Unauthorized, after the same time for an unknown id as for a wrong secret."""
        key = self._keys.get(client_id, self._nobody)
        if not secrets.compare_digest(key.secret, _digest(client_secret)):
            raise Unauthorized("The key pair is not valid.", hint="Check client_id and client_secret.")
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
        """Return the token's grant with the key pair's present role; None if it has expired or was revoked."""
        grant = self._grants.get(_digest(token))
        if grant is None or not self._is_valid(grant):
            return None
        return replace(grant, role=self._keys[grant.client_id].role)

    async def is_still_valid(self, grant: Grant) -> bool:
        """Return whether a grant is still valid according to the file as it is now."""
        try:
            await self.refresh()
        except Unavailable:
            return False
        return self._is_valid(grant)

    def _is_valid(self, grant: Grant) -> bool:
        key = self._keys.get(grant.client_id)
        return key is not None and key.secret == grant.secret and self.clock() < grant.expires_at

    def _reread(self, file: KeyFile) -> None:
        stamp = file.stamp()  # taken before reading: a change made during the read is seen next time
        if stamp == self._stamp:
            return
        try:
            self._keys, self._is_usable = _keys_of(file.read()), True
        except Forbidden as error:
            self._keys, self._is_usable = {}, False
            logger.warning("No client is admitted: %s", error)
        self._stamp = stamp


def _keys_of(pairs: Iterable[KeyPair]) -> dict[str, _Key]:
    return {pair.client_id: _Key(_digest(pair.client_secret.get_secret_value()), pair.role) for pair in pairs}
