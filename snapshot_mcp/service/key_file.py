"""The file of key pairs in the home folder, which its owner edits by hand or with `snapshot-mcp zone keys`. Blocking.

    [{"client_id": "key-…", "client_secret": "…", "role": "reader" | "writer" | "full"}, …]

A single object without a role, as earlier versions wrote it, is one pair with the role `full`. Mode 0600; a file that others
can read is not used. It is written whole or not at all, and only one process changes it at a time.
"""

import json
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, SecretStr, TypeAdapter, ValidationError

from snapshot_mcp.contract.errors import Forbidden, NotFound
from snapshot_mcp.contract.models import first_repeated
from snapshot_mcp.contract.text import clean_text
from snapshot_mcp.ground.files import fsync_folder, make_private_folder, replace_private, written_beside
from snapshot_mcp.service.roles import Role

Stamp = tuple[int, ...]


class KeyPair(BaseModel):
    """What a program shows to get a token."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    client_id: str
    client_secret: SecretStr
    role: Role = Role.FULL


_PAIRS = TypeAdapter(tuple[KeyPair, ...])


class KeyFile:
    """Reading raises Forbidden where others may read the file or it cannot be used: then nobody is served with it."""

    def __init__(self, path: Path, command: str = "snapshot-mcp") -> None:
        self.path = path
        self._command = command  # as a shell runs this program

    def stamp(self) -> Stamp | None:
        """Return what differs once the file has changed, None where there is none. A stat, cheap enough for each request."""
        try:
            found = os.stat(self.path)  # noqa: PTH116
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_mode

    def read(self) -> tuple[KeyPair, ...]:
        with self._in_our_words():
            return self._read()

    def read_or_create(self) -> tuple[tuple[KeyPair, ...], bool]:
        """Return the pairs, of which there is at least one, and whether a full one was made just now."""
        with self._in_our_words():
            if not self.path.exists():
                make_private_folder(self.path.parent)
                with written_beside(self.path, _as_bytes([new_pair(Role.FULL)])) as temporary:
                    try:
                        os.link(temporary, self.path)  # only one of two first starts wins
                    except FileExistsError:
                        return self._read(), False
                return self._read(), True
            if not (pairs := self._read()):
                raise Forbidden(
                    f"The file {str(self.path)!r} holds no key pair, so nobody could use the zone.",
                    hint=f"Make one with: {self._command} zone keys --new full",
                )
            return pairs, False

    def add(self, role: Role) -> KeyPair:
        """Make another pair, and the file where there is none."""
        with self._in_our_words(), self._alone():
            pairs = self._read() if self.path.exists() else ()
            pair = new_pair(role)
            self._replace([*pairs, pair])
        return pair

    def remove(self, client_id: str) -> KeyPair:
        """Raises NotFound."""
        with self._in_our_words(), self._alone():
            pairs = self._read() if self.path.exists() else ()
            for pair in pairs:
                if pair.client_id == client_id:
                    self._replace([one for one in pairs if one is not pair])
                    return pair
        raise NotFound(
            f"There is no key pair {clean_text(client_id)!r} in {str(self.path)!r}.",
            hint=f"`{self._command} zone keys` lists them.",
        )

    def _read(self) -> tuple[KeyPair, ...]:
        if os.name == "posix" and self.path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise Forbidden(
                f"The key pairs' file {str(self.path)!r} can be read by others.", hint=f"Run: chmod 600 {self.path}"
            )
        try:
            value = json.loads(self.path.read_bytes())
            pairs = _PAIRS.validate_python([value] if isinstance(value, dict) else value)
        except (ValidationError, ValueError, RecursionError):
            raise Forbidden(
                f"The file {str(self.path)!r} holds no list of key pairs.",
                hint="Correct it, or move it away: the next start writes a new one.",
            ) from None
        if (repeated := first_repeated(pair.client_id for pair in pairs)) is not None:
            raise Forbidden(
                f"The file {str(self.path)!r} has two key pairs with the client_id {clean_text(repeated)!r}.",
                hint="Remove one of them.",
            )
        return pairs

    def _replace(self, pairs: Sequence[KeyPair]) -> None:
        replace_private(self.path, _as_bytes(pairs))
        fsync_folder(self.path.parent)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the home folder's lock, so that of two changes none is lost."""
        import fcntl  # the embedded zone does not run where it is missing

        make_private_folder(self.path.parent)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    @contextmanager
    def _in_our_words(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise Forbidden(
                f"The key pairs' file {str(self.path)!r} cannot be read or written: {error.strerror}.",
                hint="Make the home folder writable, or set SNAPSHOT_MCP_HOME to one that is.",
            ) from None


def new_pair(role: Role) -> KeyPair:
    return KeyPair(
        client_id=f"key-{secrets.token_hex(6)}", client_secret=SecretStr(secrets.token_urlsafe(32)), role=role
    )


def as_json(pair: KeyPair) -> dict[str, Any]:
    """The pair as the file has it, with its secret."""
    return {
        "client_id": pair.client_id,
        "client_secret": pair.client_secret.get_secret_value(),
        "role": str(pair.role),
    }


def _as_bytes(pairs: Sequence[KeyPair]) -> bytes:
    return json.dumps([as_json(pair) for pair in pairs], indent=2).encode() + b"\n"
