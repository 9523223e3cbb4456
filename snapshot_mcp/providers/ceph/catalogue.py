"""`PoolCatalogue`: the catalogue of a zone whose truth is one object in the pool (CEPH.md, "The catalogue").

Each row is a key of the object. A process reads it through a copy in memory, which SQLite queries; a change compares the
object's revision while it is written, so of two that changed the same state one is refused. Images are found, not registered:
their rows are in the copy alone until something is recorded of them.
"""

import contextlib
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Final

from snapshot_mcp.catalogue import schema
from snapshot_mcp.catalogue.database import Catalogue
from snapshot_mcp.catalogue.store import Row
from snapshot_mcp.contract.errors import Damaged, OutcomeUnknown
from snapshot_mcp.contract.terms import BEGIN_WITHIN_SECONDS
from snapshot_mcp.ground.clock import Clock
from snapshot_mcp.ground.sqlite import transaction
from snapshot_mcp.providers.ceph.clib import ECANCELED, CephError
from snapshot_mcp.providers.ceph.clock import ClusterClock
from snapshot_mcp.providers.ceph.errors import GONE, CommittedFirst
from snapshot_mcp.providers.ceph.found import Finder
from snapshot_mcp.providers.ceph.names import OBJECT
from snapshot_mcp.providers.ceph.object import LOGGED, CatalogueObject, PoolState, log_key

if TYPE_CHECKING:
    from snapshot_mcp.providers.ceph.pool import Pool
    from snapshot_mcp.providers.ceph.store import PoolStore

KEYS: Final = {
    "resources": "resource_id",
    "snapshots": "snapshot_id",
    "deletions": "deletion_id",
    "images": "image_id",
    "jobs": "job_id",
    "claims": "rowid",
}
"""The tables whose rows are keys of the object, in an order in which they can be inserted, and what tells their rows apart."""

IN_ORDER: Final = frozenset({"snapshots", "deletions", "claims"})
"""Tables whose rowids are kept: recovery and purge go by them."""

UNCLAIMED_SECONDS: Final = BEGIN_WITHIN_SECONDS + 30.0
"""How long a destructive job of another machine may be seen waiting: that machine is gone then."""


class Fenced(BaseException):
    """Another worker has taken over the job of this thread."""


class PoolCatalogue(Catalogue):
    """The catalogue in `pool`. `machine` tells this home on this boot of this machine from every other."""

    store: "PoolStore"

    def __init__(self, pool: "Pool", store: "PoolStore", machine: str, clock: Clock | None = None) -> None:
        self.pool, self.machine = pool, machine
        self.revision = self.loads = 0
        self.lock = threading.RLock()
        self.object = CatalogueObject(pool)
        self._is_outdated = False
        self._found: set[str] = set()
        self._finder = Finder(self)
        self._waiting: dict[str, float] = {}
        self._beside: dict[str, bytes] = {}
        self._equal: dict[str, bytes] = {}
        self._thread = threading.local()
        super().__init__(schema.open_in_memory(), store, clock or ClusterClock(pool))
        store.catalogue = self
        self._track()

    def close(self) -> None:
        """Forget the copy; the pool stays open."""
        super().close()

    # reading

    def row(self, query: str, *values: object) -> Row | None:
        """Return the first row of a query, None if there is none."""
        with self.lock:
            return super().row(query, *values)

    def rows(self, query: str, *values: object) -> list[Row]:
        """Return all rows of a query."""
        with self.lock:
            return super().rows(query, *values)

    def count(self, query: str, *values: object) -> int:
        """Return the single number that a query yields."""
        with self.lock:
            return super().count(query, *values)

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Read one state."""
        with self.lock:
            self.refresh()
            yield

    def version(self) -> int:
        """Return the object's revision."""
        self.refresh()
        return self.revision

    def refresh(self) -> None:
        """Bring the copy up to date. Raises CommittedFirst, Damaged, Unsupported."""
        with self.lock, self.pool.answering():
            state = self.object.changed_since(self.revision)
            if state is None or not self._has_caught_up(state):
                self._load(self.object.whole())

    def _has_caught_up(self, state: PoolState) -> bool:
        """Take changes into the copy; return False if they do not fit to it."""
        if state.revision == self.revision:
            return True
        try:
            with transaction(self.db):
                self.db.execute("PRAGMA defer_foreign_keys = ON")
                for key, value in state.rows.items():
                    if value is None:
                        self._drop_row(key)
                self._take_in(state, self._put_row)
        except (Damaged, sqlite3.Error):
            return False
        self._note_state(state)
        return True

    def _load(self, state: PoolState) -> None:
        """Make a fresh copy of all of the object."""
        if self.revision and not state.revision:
            self.object.refuse_lost()
        seen = [dict(row) for row in self.db.execute("SELECT * FROM resources") if row["resource_id"] in self._found]
        before, self.db = self.db, schema.open_in_memory(state.format)
        try:
            with transaction(self.db):
                self.db.execute("PRAGMA defer_foreign_keys = ON")
                self._take_in(state, self._insert)
            schema.bring_up_to_date(self.db)
        except BaseException as error:
            self.db.close()
            self.db = before
            if isinstance(error, sqlite3.Error):
                raise self.object.damaged(f"is damaged: its rows do not fit together ({error})") from None
            raise
        before.close()
        self._find_again(seen)
        self._track()
        self.loads += 1
        self._note_state(state)

    def _note_state(self, state: PoolState) -> None:
        self.revision, self._is_outdated = state.revision, state.format < len(schema.MIGRATIONS)

    def _take_in(self, state: PoolState, take: Callable[[str, dict[str, Any]], None]) -> None:
        """Take the rows in, table by table. Raises Damaged, which names the row that is none."""
        for table in KEYS:
            for key, value in state.rows.items():
                if value is not None and key.startswith(f"{table}/"):
                    try:
                        take(table, json.loads(value))
                    except (ValueError, TypeError, KeyError, sqlite3.Error) as error:
                        raise self.object.damaged(f"is damaged: its row {key!r} cannot be read ({error})") from None

    def _find_again(self, seen: Collection[dict[str, Any]]) -> None:
        """Keep the found disks of which nothing is recorded, also in a copy that was loaded anew."""
        known = {row["path"] for row in self.db.execute("SELECT path FROM resources")}
        new = [row for row in seen if row["path"] not in known]
        for row in new:
            self._insert("resources", row)
        self._found = {row["resource_id"] for row in new}

    def _put_row(self, table: str, row: dict[str, Any]) -> None:
        key = KEYS[table]
        names = [name for name in row if name != "rowid" or table in IN_ORDER]
        sets = ", ".join(f"{name} = ?" for name in names)
        values = [row[name] for name in names]
        changed = self.db.execute(f"UPDATE {table} SET {sets} WHERE {key} = ?", (*values, row[key]))
        if not changed.rowcount:
            self._insert(table, row)
        if table == "resources":
            self._found.discard(row["resource_id"])

    def _insert(self, table: str, row: dict[str, Any]) -> None:
        names = [name for name in row if name != "rowid" or table in IN_ORDER]
        marks = ", ".join("?" * len(names))
        self.db.execute(f"INSERT INTO {table} ({', '.join(names)}) VALUES ({marks})", [row[name] for name in names])

    def _drop_row(self, key: str) -> None:
        table, _, id_ = key.partition("/")
        if table in KEYS:
            self.db.execute(f"DELETE FROM {table} WHERE {KEYS[table]} = ?", (id_,))

    def _track(self) -> None:
        """Note which rows a transaction touches."""
        self.db.execute("CREATE TEMP TABLE touched (tab TEXT, key TEXT, PRIMARY KEY (tab, key))")
        for table, key in KEYS.items():
            for event, side in (("INSERT", "new"), ("UPDATE", "new"), ("DELETE", "old")):
                self.db.execute(
                    f"CREATE TEMP TRIGGER {table}_{event} AFTER {event} ON main.{table} BEGIN"
                    f" INSERT OR IGNORE INTO touched VALUES ('{table}', {side}.{key}); END"
                )

    # changing

    def transaction(self) -> AbstractContextManager[sqlite3.Connection]:
        """Begin a transaction that is committed to the cluster. Raises CommittedFirst, OutcomeUnknown, Fenced."""
        return self._transaction()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        later: list[Callable[[], None]] = []
        with self.lock, self.object.locked():
            self.refresh()
            self._thread.later, self._beside, self._equal = later, {}, {}
            try:
                with transaction(self.db):
                    self.db.execute("DELETE FROM touched")
                    yield self.db
                    self._commit()
            finally:
                self._thread.later = None
        for act in later:
            act()

    def after_commit(self, act: Callable[[], None]) -> bool:
        """Do something once this thread's transaction is committed; return False if it has none."""
        later: list[Callable[[], None]] | None = getattr(self._thread, "later", None)
        if later is None:
            return False
        later.append(act)
        return True

    def put_with_commit(self, key: str, value: bytes) -> None:
        """Write a key that is no row with the transaction that runs."""
        self._beside[key] = value

    def compare_with_commit(self, key: str, value: bytes) -> None:
        """Let the transaction that runs fail if a key has another value by then."""
        self._equal[key] = value

    def _commit(self) -> None:
        touched = {(row["tab"], row["key"]) for row in self.db.execute("SELECT tab, key FROM touched")}
        if not touched:
            return
        if self._is_outdated:
            touched |= {(table, str(row[0])) for table, key in KEYS.items() for row in self._ids(table, key)}
        touched |= {("resources", one) for one in self._to_be_kept(touched)}
        put: dict[str, bytes] = {}
        drop: list[str] = []
        for table, id_ in sorted(touched):
            row = self.db.execute(f"SELECT rowid, * FROM {table} WHERE {KEYS[table]} = ?", (id_,)).fetchone()
            if row is None:
                drop.append(f"{table}/{id_}")
                continue
            put[f"{table}/{id_}"] = json.dumps({name: row[name] for name in self._columns(table)}).encode()
            if table == "jobs":
                self._note_job(row, put, drop)
        present = str(self.revision + 1).encode()
        rows = [key for key in (*put, *drop) if key.partition("/")[0] in KEYS]
        put |= self._beside | {"rev": present, "format": str(len(schema.MIGRATIONS)).encode()}
        put[log_key(self.revision + 1)] = json.dumps(rows).encode()
        drop.append(log_key(self.revision + 1 - LOGGED))
        equal = {"rev": str(self.revision).encode() if self.revision else b"", **self._guard(), **self._equal}
        try:
            with self.pool.answering():
                self.pool.write_keys(OBJECT, equal, put, drop)
        except CephError as error:
            if error.errno == ECANCELED:
                self.refuse_fenced()
                raise CommittedFirst("Another machine has changed the zone's catalogue at the same moment") from None
            if error.errno in GONE:
                raise OutcomeUnknown(
                    "The Ceph cluster did not answer while the change was written.",
                    hint="It may have been accepted: look at the unfinished jobs before you repeat it.",
                ) from None
            raise
        self.revision += 1
        self._is_outdated = False
        self._found -= {id_ for table, id_ in touched if table == "resources"}

    def _ids(self, table: str, key: str) -> list[Row]:
        found: list[Row] = self.db.execute(f"SELECT {key} FROM {table}").fetchall()
        return found

    def _columns(self, table: str) -> list[str]:
        """Return the columns that are stored; computed ones are not."""
        return ["rowid", *(row["name"] for row in self.db.execute(f"PRAGMA table_info({table})"))]

    def _to_be_kept(self, touched: Collection[tuple[str, str]]) -> set[str]:
        """Return the found disks of which something is recorded now."""
        named = {id_ for table, id_ in touched if table == "resources"}
        for table, id_ in touched:
            if table == "snapshots" and (row := self.snapshot(id_)):
                named.add(row["resource_id"])
            if table == "claims":
                row = self.db.execute("SELECT kind, id FROM claims WHERE rowid = ?", (id_,)).fetchone()
                named |= {row["id"]} if row and row["kind"] == "resource" else set()
        return named & self._found

    def _note_job(self, row: Row, put: dict[str, bytes], drop: list[str]) -> None:
        """Note of a job who has entered it, and forget who works on it once it has ended."""
        if row["finished_at"] is not None:
            drop += [f"{kind}/{row['job_id']}" for kind in ("entered", "owner", "beat", "holds")]
        elif row["status"] == "pending" and row["begin_until"]:
            put[f"entered/{row['job_id']}"] = self.machine.encode()

    # who works on a job

    @contextlib.contextmanager
    def working_on(self, job_id: str, owner: str) -> Iterator[None]:
        """Let this thread's transactions fail once another worker has the job."""
        self._thread.held = f"owner/{job_id}", owner.encode()
        try:
            yield
        finally:
            self._thread.held = None

    def _guard(self) -> dict[str, bytes]:
        held = getattr(self._thread, "held", None)
        return dict([held]) if held else {}

    def refuse_fenced(self) -> None:
        """Raise Fenced if the job of this thread is another worker's by now."""
        held = getattr(self._thread, "held", None)
        if held and self.object.read(held[0]).get(held[0]) != held[1]:
            raise Fenced(held[0])

    def holds(self, job_id: str) -> dict[str, str]:
        """Return which client had each disk of a roll-back locked when it marked it, by the client's address."""
        found: dict[str, str] = json.loads(self.object.read(f"holds/{job_id}").get(f"holds/{job_id}") or "{}")
        return found

    def set_holds(self, job_id: str, holds: Mapping[str, str]) -> None:
        """Say at once, without a commit, which disks of this thread's job are still locked as they were."""
        try:
            self.pool.write_keys(OBJECT, self._guard(), {f"holds/{job_id}": json.dumps(holds).encode()})
        except CephError as error:
            if error.errno != ECANCELED:  # the job is another worker's by now
                raise

    def has_entered(self, job_id: str) -> bool:
        """Return whether this machine has entered a job."""
        key = f"entered/{job_id}"
        return self.object.read(key).get(key) == self.machine.encode()

    def may_expire(self, job: Row) -> bool:
        """Return whether a waiting destructive job is this machine's, or that of a machine that is gone."""
        if self.has_entered(job["job_id"]):
            return True
        first = self._waiting.setdefault(job["job_id"], time.monotonic())
        return time.monotonic() - first > UNCLAIMED_SECONDS

    # disks

    def discover(self) -> None:
        """Take the pool's images into the copy as disks, and note those that are gone or renamed."""
        with self.lock, self.pool.answering():
            self._finder.look(self._found)
            if not self.revision:
                self.object.refuse_lost()
