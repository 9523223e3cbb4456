"""`CopyStore`: named immutable objects at a place. Blocking; methods raise ZoneError."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Protocol

from snapshot_mcp.copies.settings import CopySettings, StoreSettings

BLOCK = 1 << 20
"""Bytes that are read and sent at a time."""


Pace = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class HeldObject:
    """An object that a store holds; `changed_at` by the store's own clock, in seconds since 1970."""

    name: str
    size: int
    changed_at: float


class CopyStore(Protocol):
    """A folder or a bucket. Names are made by us: letters, digits, `-`, `.` and `/`."""

    def prepare(self, *, is_known: bool) -> None:
        """Make sure that it can be written to; one that `is_known` must be the one that was written to before."""

    def put(self, name: str, content: bytes, pace: Pace | None = None) -> None:
        """Store an object, in the place of one of this name; nobody sees a part of it. Raises StorageFull.

        `pace` is called with the size of each block before it is sent.
        """

    def create(self, name: str, content: bytes) -> bool:
        """Store a small object unless there is one of this name; return whether it was stored."""

    def get(self, name: str) -> Iterator[bytes]:
        """Yield an object's bytes. Raises NotFound."""

    def list(self, prefix: str) -> Iterator[HeldObject]:
        """Yield the objects whose name begins with `prefix`, which ends at a slash or is empty."""

    def remove(self, names: Collection[str]) -> None:
        """Remove objects; those that are not there are none."""

    def settle(self, prefix: str) -> None:
        """Make what was stored under `prefix` durable."""


def open_store(settings: StoreSettings) -> CopyStore:
    """Return the store of these settings; its code is imported here. Raises Unsupported without the packages."""
    if settings.is_s3:
        from snapshot_mcp.copies.stores.s3 import ObjectStore

        if isinstance(settings, CopySettings) and settings.lock:
            from snapshot_mcp.copies.stores.lock import ObjectLock

            return ObjectStore(settings, ObjectLock(settings, settings.lock, settings.keep_deleted_days))
        return ObjectStore(settings)
    from snapshot_mcp.copies.stores.folder import FolderStore

    return FolderStore(settings.folder)


def read_small(store: CopyStore, name: str, limit: int) -> bytes:
    """Return an object of at most `limit` bytes; a longer one is cut one byte behind it. Raises NotFound."""
    content = bytearray()
    for chunk in store.get(name):
        content += chunk
        if len(content) > limit:
            break
    return bytes(content[: limit + 1])
