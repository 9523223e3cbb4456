"""`CatalogueObject`: the object in a pool that is a zone's catalogue, read as of one state (CEPH.md, "The catalogue").

An OSD answers with some 1,000 keys at most, so all of a large object is of no single state: what was changed while it was read
is read again, by the log of changes, until a read tells the revision that the log was followed to.
"""

import contextlib
import errno
import json
import time
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from snapshot_mcp.catalogue import schema
from snapshot_mcp.contract.errors import Damaged, Unsupported
from snapshot_mcp.providers.ceph.clib import CephError
from snapshot_mcp.providers.ceph.errors import CommittedFirst
from snapshot_mcp.providers.ceph.names import OBJECT, PREFIX
from snapshot_mcp.providers.ceph.pool import PAGE

if TYPE_CHECKING:
    from snapshot_mcp.providers.ceph.pool import Pool

LOGGED: Final = 1000
"""Commits whose keys are remembered: a copy that is further behind is loaded anew."""

LOCK: Final = "catalogue"
LOCK_SECONDS: Final = 10
"""How long the lock lasts if its owner dies. It spares others a refused write; what is relied on is the comparison."""

TRIES: Final = 20
"""How often is read again because the object was changed meanwhile."""

POINTS: Final = f"{PREFIX}ss-"
"""What the names of our RBD snapshots begin with."""


class PoolState(NamedTuple):
    """Rows of the object as of a revision, by key; None for one that is gone. `format` is the number of migrations."""

    revision: int
    format: int
    rows: dict[str, bytes | None]


class CatalogueObject:
    """The object `snapshot-mcp.catalogue` of a pool."""

    def __init__(self, pool: "Pool") -> None:
        self.pool = pool
        self._cookie = uuid.uuid4().hex

    def read(self, *keys: str) -> dict[str, bytes]:
        """Return those of the keys that are there, at most a page of them as of one state."""
        try:
            return self.pool.read_keys(OBJECT, keys)
        except CephError as error:
            if error.errno == errno.ENOENT:
                return {}
            raise

    def changed_since(self, revision: int) -> PoolState | None:
        """Return the rows that were changed since a revision; None if all must be read. Raises Damaged, Unsupported."""
        logged, touched = revision, dict[str, None]()
        for _ in range(TRIES):
            found = self.read("rev", "format", *touched)
            present = self._number(found, "rev", 0)
            if present == logged:
                written_as = self._number(found, "format", len(schema.MIGRATIONS))
                _refuse_newer(written_as)
                return PoolState(present, written_as, {key: found.get(key) for key in touched})
            behind = range(logged + 1, present + 1)
            if not logged or not 0 < len(behind) <= LOGGED:
                return None
            logs = self.read(*map(log_key, behind))
            if len(logs) < len(behind):
                return None
            try:
                touched |= dict.fromkeys(key for name in sorted(logs) for key in json.loads(logs[name]))
            except (ValueError, TypeError):
                return None
            if len(touched) > PAGE - 2:
                return None
            logged = present
        raise _changed_too_often()

    def whole(self) -> PoolState:
        """Return all rows as of one state. Raises Damaged, Unsupported."""
        for _ in range(TRIES):
            before = self._number(self.read("rev"), "rev", 0)
            try:
                rows: dict[str, bytes | None] = {**self.pool.read_all_keys(OBJECT)}
            except CephError as error:
                if error.errno != errno.ENOENT:
                    raise
                rows = {}
            later = self.changed_since(before)
            if later is None:
                continue
            if not later.revision and any("/" in key for key in rows):
                raise self.damaged("has no revision")
            return PoolState(later.revision, later.format, rows | later.rows)
        raise _changed_too_often()

    def _number(self, found: dict[str, bytes], key: str, otherwise: int) -> int:
        try:
            return int(found.get(key) or otherwise)
        except ValueError:
            raise self.damaged(f"is damaged: its key {key!r} is no number") from None

    def damaged(self, what: str) -> Damaged:
        """Return the error of an object that cannot be used."""
        return Damaged(
            f"The zone's catalogue, the object {OBJECT} in pool {self.pool.name}, {what}.",
            hint="Nothing was changed. The restore points are there: `rbd snap ls IMAGE` lists them, each can be cloned or"
            " rolled back to by `rbd`. Put the object back; without a copy, remove or rename these RBD snapshots, then the"
            " object, and the zone begins anew.",
        )

    def refuse_lost(self) -> None:
        """Raise Damaged if there is no catalogue, but restore points that were in one."""
        for image_id, name in self.pool.list_images().items():
            if self.pool.has_snapshots(image_id, POINTS) and not self.read("rev"):
                raise self.damaged(f"is gone or empty, but image {name!r} has restore points of it")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Let no other process change it for a while. Raises CommittedFirst."""
        deadline, pause = time.monotonic() + LOCK_SECONDS + 2, 0.002
        with self.pool.answering():
            while not self.pool.lock(OBJECT, LOCK, self._cookie, LOCK_SECONDS):
                if time.monotonic() > deadline:
                    raise CommittedFirst("Other machines keep the zone's catalogue locked")
                time.sleep(pause)
                pause = min(pause * 1.5, 0.05)
        try:
            yield
        finally:
            with contextlib.suppress(CephError):
                self.pool.unlock(OBJECT, LOCK, self._cookie)


def log_key(revision: int) -> str:
    """Return the key that names the keys which a commit touched."""
    return f"log/{max(revision, 0):012}"


def _refuse_newer(written_as: int) -> None:
    if written_as > len(schema.MIGRATIONS):
        raise Unsupported(
            f"The zone's catalogue was written by a newer version of snapshot-mcp (format {written_as}).",
            hint="Update this installation. Nothing was changed.",
        )


def _changed_too_often() -> CommittedFirst:
    return CommittedFirst("The zone's catalogue is changed too often to be read")
