"""Key pairs and the tokens that they buy: OAuth 2 client credentials (contract.md, "What surrounds them").

Tokens are random, live in memory only and are kept as hashes; a restart forgets them and clients fetch new ones. A key
pair's file is JSON with mode 0600. Nothing here prints a secret.
"""

import hashlib
import json
import os
import secrets
import stat
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError

from snapshot_mcp.contract.errors import Forbidden, Unauthorized

MAX_TOKENS = 10_000
"""Of all key pairs; the oldest goes first. A client that fetches a token for every call cannot fill the memory."""


class KeyPair(BaseModel):
    """What a program shows to get a token."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    client_id: str
    client_secret: SecretStr


@dataclass(frozen=True, slots=True)
class Grant:
    """Whom a token stands for, and until when (on the book's clock)."""

    client_id: str
    expires_at: float


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


class TokenBook:
    """Issues tokens to key pairs and tells whose they are until they expire."""

    def __init__(
        self,
        key_pairs: Iterable[KeyPair],
        *,
        expires_in_seconds: int = 3600,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._secrets = {pair.client_id: _digest(pair.client_secret.get_secret_value()) for pair in key_pairs}
        if not self._secrets:
            raise ValueError("the REST face needs at least one key pair")
        self._nobody = secrets.token_bytes(32)
        self._grants: dict[bytes, Grant] = {}
        self.expires_in_seconds = expires_in_seconds
        self.clock = clock

    def issue(self, client_id: str, client_secret: str) -> str:
        """Return a new token. Raises Unauthorized, in the same time for a wrong id as for a wrong secret."""
        expected = self._secrets.get(client_id, self._nobody)
        if not secrets.compare_digest(expected, _digest(client_secret)):
            raise Unauthorized("The key pair is not valid here.", hint="Check client_id and client_secret.")
        now = self.clock()
        while self._grants:
            oldest, grant = next(iter(self._grants.items()))
            if grant.expires_at > now and len(self._grants) < MAX_TOKENS:
                break
            del self._grants[oldest]
        token = secrets.token_urlsafe(32)
        self._grants[_digest(token)] = Grant(client_id, now + self.expires_in_seconds)
        return token

    def grant_of(self, token: str) -> Grant | None:
        """Return whom the token stands for; None once it has expired, or was never issued."""
        grant = self._grants.get(_digest(token))
        return grant if grant is not None and self.clock() < grant.expires_at else None


def load_or_create_key_pair(path: Path) -> tuple[KeyPair, bool]:
    """Return the key pair of the file and whether it was made just now (0600, never overwritten).

    Raises Forbidden where others may read the file or it holds no key pair: then nobody is served with it.
    """
    try:
        return (_load_key_pair(path), False) if path.exists() else _create_key_pair(path)
    except OSError as error:
        raise Forbidden(
            f"The key pair's file {str(path)!r} cannot be read or written: {error.strerror}.",
            hint="Make the home folder writable, or set SNAPSHOT_MCP_HOME to one that is.",
        ) from None


def _create_key_pair(path: Path) -> tuple[KeyPair, bool]:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    pair = KeyPair(client_id=f"key-{secrets.token_hex(6)}", client_secret=SecretStr(secrets.token_urlsafe(32)))
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)  # mode 0600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            secret = pair.client_secret.get_secret_value()
            json.dump({"client_id": pair.client_id, "client_secret": secret}, file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)  # whole or not at all, and only one of two first starts wins
    except FileExistsError:
        return _load_key_pair(path), False
    finally:
        Path(temporary).unlink()
    return pair, True


def _load_key_pair(path: Path) -> KeyPair:
    if os.name == "posix" and path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise Forbidden(f"The key pair's file {str(path)!r} can be read by others.", hint=f"Run: chmod 600 {path}")
    try:
        return KeyPair.model_validate_json(path.read_bytes())
    except ValidationError:
        raise Forbidden(
            f"The file {str(path)!r} holds no key pair.", hint="Move it away: the next start writes a new one."
        ) from None
