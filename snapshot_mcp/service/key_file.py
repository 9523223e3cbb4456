"""The file of key pairs in the home folder, edited by hand or with `snapshot-mcp zone keys`. Blocking.

    [{"client_id": "key-…", "client_secret": "…", "role": "reader" | "writer" | "full"}, …]

A single object without a role, as earlier versions wrote it, is one pair with the role `full`. The mode is 0600; a file that
other users can read is rejected. Writes are atomic, and only one process changes the file at a time.
"""

import json
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, SecretStr, TypeAdapter, ValidationError

from snapshot_mcp.contract.errors import Forbidden, NotFound
from snapshot_mcp.contract.models import first_repeated
from snapshot_mcp.contract.text import clean_text
from snapshot_mcp.ground.files import fsync_folder, make_private_folder, replace_private, written_beside
from snapshot_mcp.ground.permissions import reason_of
from snapshot_mcp.ground.shell import quote
from snapshot_mcp.service.roles import Role

Stamp = tuple[int, ...]


class KeyPair(BaseModel):
    """The credentials of a program, and what they permit."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    client_id: str
    client_secret: SecretStr
    role: Role = Role.FULL

    def to_json(self) -> dict[str, str]:
        """Return the pair as the file stores it, with its secret."""
        return {**self.model_dump(mode="json"), "client_secret": self.client_secret.get_secret_value()}


_PAIRS = TypeAdapter(tuple[KeyPair, ...])


class KeyFile:
    """The key pairs on disk. Every method raises Forbidden for a file that is unusable, or that other users can read."""

    def __init__(self, path: Path, command: str = "snapshot-mcp") -> None:
        self.path = path
        self._command = command  # as a shell runs this program

    def stamp(self) -> Stamp | None:
        """Return a value that changes with the file, None if there is no file. Costs one `stat`."""
        try:
            found = os.stat(self.path)  # noqa: PTH116
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_mode

    def read(self) -> tuple[KeyPair, ...]:
        """Return the pairs."""
        with self._translating_errors():
            return self._read()

    def read_or_create(self) -> tuple[tuple[KeyPair, ...], bool]:
        """Return the pairs, at least one, and whether the file was created just now, with a full one."""
        with self._translating_errors():
            is_new = False
            if not self.path.exists():
                make_private_folder(self.path.parent)
                content = _as_bytes([new_pair(Role.FULL)])
                with written_beside(self.path, content) as temporary, suppress(FileExistsError):
                    os.link(temporary, self.path)  # only one of two first starts wins
                    is_new = True
            if not (pairs := self._read()):
                raise Forbidden(
                    f"The file {str(self.path)!r} has no key pair, so no client could use the zone.",
                    hint=f"Create one with: {self._command} zone keys --new full",
                )
            return pairs, is_new

    def add(self, role: str) -> KeyPair:
        """Create a pair, and the file if it is missing; return the pair."""
        with self._translating_errors(), self._locked():
            pair = new_pair(Role(role))
            self._replace([*self._read_if_there(), pair])
        return pair

    def remove(self, client_id: str) -> KeyPair:
        """Remove a pair and return it. Raises NotFound."""
        with self._translating_errors(), self._locked():
            pairs = self._read_if_there()
            for pair in pairs:
                if pair.client_id == client_id:
                    self._replace([one for one in pairs if one is not pair])
                    return pair
        raise NotFound(
            f"{str(self.path)!r} has no key pair {clean_text(client_id)!r}.",
            hint=f"`{self._command} zone keys` lists them.",
        )

    def list_pairs(self) -> tuple[KeyPair, ...]:
        """Return the pairs; none if there is no file."""
        return self.read() if self.stamp() else ()

    def _read_if_there(self) -> tuple[KeyPair, ...]:
        return self._read() if self.path.exists() else ()

    def _read(self) -> tuple[KeyPair, ...]:
        if os.name == "posix" and self.path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise Forbidden(
                f"Other users can read the key file {str(self.path)!r}.", hint=f"Run: chmod 600 {quote(str(self.path))}"
            )
        try:
            value = json.loads(self.path.read_bytes())
            pairs = _PAIRS.validate_python([value] if isinstance(value, dict) else value)
        except (ValidationError, ValueError, RecursionError):
            raise Forbidden(
                f"The file {str(self.path)!r} is not a valid list of key pairs.",
                hint="Correct it, or move it away: the next start creates a new one.",
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
    def _locked(self) -> Iterator[None]:
        """Hold the home folder's lock, so that concurrent changes are not lost."""
        import fcntl  # missing on Windows, where the embedded zone does not run

        make_private_folder(self.path.parent)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    @contextmanager
    def _translating_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise Forbidden(
                f"Cannot read or write the key file {str(self.path)!r}: {reason_of(error, self.path)}.",
                hint="Make the home folder writable, or set SNAPSHOT_MCP_HOME to one that is.",
            ) from None


def new_pair(role: Role) -> KeyPair:
    """Return a new random key pair."""
    return KeyPair(
        client_id=f"key-{secrets.token_hex(6)}", client_secret=SecretStr(secrets.token_urlsafe(32)), role=role
    )


def _as_bytes(pairs: Sequence[KeyPair]) -> bytes:
    return json.dumps([pair.to_json() for pair in pairs], indent=2).encode() + b"\n"
