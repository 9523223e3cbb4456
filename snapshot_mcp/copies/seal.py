"""How bytes are wrapped before they leave: as they are, or by age for one recipient; and unwrapped again.

What age has sealed the ordinary `age` command opens: the way out when this program is gone.
"""

import io
from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING, Any, Final

from blake3 import blake3

from snapshot_mcp.contract.errors import Damaged
from snapshot_mcp.copies.errors import needs_extra
from snapshot_mcp.copies.stores import BLOCK

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, SupportsRead

PIECE: Final = 8 << 20
"""Bytes of a part that become one object: what a cut connection costs at most. Some of them are held in memory at once."""

MAX_PIECE: Final = 64 << 20
"""A piece that is read is at most this long, whoever wrote it."""

SEALED_MORE: Final = 1 << 20
"""A sealed object is at most this much longer than what is in it (age: a header, and 16 bytes for each 64 KiB)."""


def age() -> Any:
    """Return the module `pyrage`. Raises Unsupported without the package."""
    try:
        import pyrage
    except ImportError:
        raise needs_extra("An encrypted copy") from None
    return pyrage


class HashingReader(io.RawIOBase):
    """A reader that hashes what passes through it."""

    def __init__(self, source: "SupportsRead[bytes]", limit: int) -> None:
        self._source, self._left = source, limit
        self.hash, self.size = blake3(), 0

    def readable(self) -> bool:
        """Return that it can be read."""
        return True

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes, at most up to the limit."""
        wanted = min(self._left, BLOCK if size < 0 else size)
        chunk = self._source.read(wanted) if wanted else b""
        self._left -= len(chunk)
        self.size += len(chunk)
        self.hash.update(chunk)
        return chunk

    def readall(self) -> bytes:
        """Return all up to the limit."""
        return b"".join(iter(lambda: self.read(self._left), b""))


class HashingWriter(io.RawIOBase):
    """A writer that hashes what passes through it."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        self.hash, self.size = blake3(), 0

    def writable(self) -> bool:
        """Return that it can be written to."""
        return True

    def write(self, content: "ReadableBuffer") -> int:
        """Pass bytes on."""
        chunk = bytes(content)
        self.hash.update(chunk)
        self.size += len(chunk)
        self._write(chunk)
        return len(chunk)


def seal(source: HashingReader, recipient: str) -> bytes:
    """Return what is stored for the bytes of `source`: age's file for a recipient, or the bytes themselves for ""."""
    if not recipient:
        return source.readall()
    module, target = age(), io.BytesIO()
    module.encrypt_io(source, target, [module.x25519.Recipient.from_str(recipient)])
    return target.getvalue()


def unseal(stored: IO[bytes], target: "IO[bytes] | HashingWriter", identity: str, what: str) -> None:
    """Write what is in a sealed object. Raises Damaged if it is not sealed for this identity, or was changed."""
    module = age()
    try:
        module.decrypt_io(stored, target, [module.x25519.Identity.from_str(identity)])
    except module.DecryptError:
        raise Damaged(
            f"{what} cannot be opened with this recovery key: it was changed, or sealed for another key.",
            hint="Check the key; `restore-from` names what else is there.",
        ) from None


def digest(hashes: Iterator[str]) -> str:
    """Return the hash of a part: BLAKE3 of the hashes of its pieces, in order."""
    return blake3(b"".join(map(bytes.fromhex, hashes))).hexdigest()
