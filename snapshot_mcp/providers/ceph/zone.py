"""`CephZone`: a pool of RBD images as a Provider, `catalogue.zone` over Ceph."""

import errno
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import anyio.to_thread

from snapshot_mcp.catalogue import deletion
from snapshot_mcp.catalogue.admission import CHAIN_LIMIT, ZoneRules
from snapshot_mcp.catalogue.lookup import find_resource, label_of
from snapshot_mcp.catalogue.report import Advance, CheckReport, Finding
from snapshot_mcp.catalogue.zone import OWN_FEATURES, CatalogueZone
from snapshot_mcp.contract.errors import NotFound, ZoneError
from snapshot_mcp.contract.keep_free import NOTHING_FREE
from snapshot_mcp.contract.models import Instance, Page, ResourceFilter, Volume
from snapshot_mcp.providers.ceph.catalogue import PoolCatalogue
from snapshot_mcp.providers.ceph.clib import CephError
from snapshot_mcp.providers.ceph.cluster import Cluster
from snapshot_mcp.providers.ceph.errors import FENCED, GONE, translate
from snapshot_mcp.providers.ceph.names import PREFIX
from snapshot_mcp.providers.ceph.pool import SILENT_SECONDS, Pool
from snapshot_mcp.providers.ceph.settings import CephZoneSettings
from snapshot_mcp.providers.ceph.store import PoolStore
from snapshot_mcp.providers.ceph.work.verify import read_back, record
from snapshot_mcp.providers.ceph.worker import ensure_worker, machine_of

DISCOVER_SECONDS: Final = 2.0
"""How old the list of images may be in a call that changes nothing."""


CALL_SECONDS: Final = 8.0
"""How long a call may open images, one after the other; with its wait, and the limit of its last one, it ends within 20 s."""

CLOSE_SECONDS: Final = 20.0
"""How long closing waits for the call that runs."""

NOT_RECORDED: Final = "what was found is not recorded: the zone's user may only look"

NOT_REMOVED: Final = "its RBD snapshot is still there: `rbd children` shows whether an image was cloned from it"


class CephZone(CatalogueZone[PoolCatalogue]):
    """The zone (`contract.Provider` has the methods); it connects with its first call."""

    watch_seconds = 0.25
    wait_seconds = 6.0
    features = OWN_FEATURES

    def __init__(self, zone: str, settings: CephZoneSettings, home: Path, chain_limit: int = CHAIN_LIMIT) -> None:
        recovery_seconds = round(settings.recovery_hours * 3600)
        super().__init__(zone, ZoneRules(recovery_seconds, chain_limit, keep_free=NOTHING_FREE))
        self.settings = settings
        self.folder = home.absolute() / "zones" / zone
        self.recovery_seconds = self._rules.recovery_seconds
        self._cluster: Cluster | None = None
        self._pools: tuple[Pool, Pool] | None = None
        self._discovered_at = self._silent_until = 0.0
        self._is_looking = False
        self.obstacles: tuple[str, ...] = ()
        """What the last purge, or the last forgetting, could not remove, and why."""

    def look_only(self, copy: Path) -> None:
        """Start no worker; the copy in memory is one already."""
        self._is_looking = True

    def __repr__(self) -> str:
        return f"CephZone({self.zone!r}, {self.settings.images!r})"

    @property
    def location(self) -> str:
        """Return the pool, and the configuration of its cluster."""
        return f"Ceph pool {self.settings.images} ({self.settings.conf})"

    async def aclose(self) -> None:
        """Close the catalogue and the connection."""
        await super().aclose()

        def close() -> None:
            if self._lock.acquire(CLOSE_SECONDS):
                try:
                    self._disconnect()
                finally:
                    self._lock.release()

        await anyio.to_thread.run_sync(close)

    def _disconnect(self) -> None:
        for pool in set(self._pools or ()):
            pool.close()
        if self._cluster:
            self._cluster.close()
        self._pools, self._cluster = None, None

    def _connect(self) -> tuple[Pool, Pool]:
        if self._pools is None:
            if time.monotonic() < self._silent_until:
                raise CephError(errno.ETIMEDOUT, "it did not answer a moment ago")
            settings = self.settings
            try:
                cluster = Cluster(settings.conf, settings.user, settings.keyring)
            except CephError as error:
                if error.errno in GONE:
                    self._silent_until = time.monotonic() + SILENT_SECONDS
                raise
            try:
                for name in {settings.pool, settings.image_pool or settings.pool}:
                    _refuse_missing(cluster, name, settings.namespace)
                pool = cluster.pool(settings.pool, settings.namespace)
                with_images = cluster.pool(settings.image_pool, settings.namespace) if settings.image_pool else pool
            except BaseException:
                cluster.close()
                raise
            self._cluster, self._pools = cluster, (pool, with_images)
        return self._pools

    def _exists(self) -> bool:
        return True

    def _open(self) -> PoolCatalogue:
        pool, image_pool = self._connect()
        return PoolCatalogue(pool, PoolStore(pool, image_pool), machine_of(self.folder))

    def _identity(self) -> object:
        return self.settings.images

    def _opened(self) -> PoolCatalogue:
        until = time.monotonic() + CALL_SECONDS
        catalogue = super()._opened()
        catalogue.store.until = until
        loads = catalogue.loads
        catalogue.refresh()
        if catalogue.loads != loads or time.monotonic() - self._discovered_at > DISCOVER_SECONDS:
            catalogue.discover()
            self._discovered_at = time.monotonic()
        return catalogue

    async def list_volumes(self, query: ResourceFilter) -> Page[Volume]:
        """Return a page of the volumes that are there now."""
        self._discovered_at = 0.0
        return await super().list_volumes(query)

    async def list_instances(self, query: ResourceFilter) -> Page[Instance]:
        """Return a page of the instances that are there now."""
        self._discovered_at = 0.0
        return await super().list_instances(query)

    async def check(self, advance: Advance = lambda done, total: None) -> CheckReport:
        """Read every restore point back whole and record what is damaged; jobs may run meanwhile."""

        def run() -> CheckReport:
            with self._errors_translated(), self._connected() as catalogue:
                return _check(catalogue, advance)

        return await anyio.to_thread.run_sync(run)

    async def forget(self, resource_id: str, agreed: Collection[str]) -> tuple[str, ...]:
        """Destroy all restore points of a disk for ever, so that its manager can remove it (`deletion.forget`); return their ids.

        It may be repeated for RBD snapshots that cannot be removed yet, which `obstacles` names.
        """

        def work(catalogue: PoolCatalogue) -> tuple[str, ...]:
            store = catalogue.store
            resource = find_resource(catalogue, resource_id)
            ids = deletion.forget(catalogue, resource_id, agreed)
            left, unknown = store.remains(resource)
            stay = store.remove(left)
            for one in unknown:
                store.obstacles[one] = (
                    f"{PREFIX}{one} is no restore point of this zone: if it is of none, remove it with rbd."
                )
            self.obstacles = tuple(store.obstacles[one] for one in (*stay, *unknown))
            return (*ids, *(one for one in left if one not in stay and one not in ids))

        return await self._write(work)

    async def purge(self, snapshot_ids: Collection[str] | None = None) -> tuple[str, ...]:
        """Purge (`CatalogueZone.purge`); `obstacles` names what cannot be removed yet."""

        def work(catalogue: PoolCatalogue) -> tuple[str, ...]:
            gone = deletion.purge(catalogue, at_once=snapshot_ids)
            self.obstacles = tuple(catalogue.store.obstacles.values())
            return tuple(gone)

        return await self._write(work)

    @contextmanager
    def _connected(self) -> Iterator[PoolCatalogue]:
        """Open a connection of its own, so that what takes long holds no other call up."""
        settings = self.settings
        with (
            Cluster(settings.conf, settings.user, settings.keyring) as cluster,
            cluster.pool(settings.pool, settings.namespace) as pool,
            PoolCatalogue(pool, PoolStore(pool, pool), machine_of(self.folder)) as catalogue,
        ):
            catalogue.refresh()
            catalogue.discover()
            yield catalogue

    def _check_change(self, catalogue: PoolCatalogue) -> None:
        catalogue.discover()
        self._discovered_at = time.monotonic()

    def _ensure_worker(self) -> None:
        if not self._is_looking:
            ensure_worker(self.folder, self.settings)

    def _translate(self, error: Exception) -> ZoneError | None:
        if isinstance(error, CephError):
            if error.errno == FENCED:
                self._forget_connection()
            if error.errno == errno.ENOENT and self._pools is None:
                return NotFound(
                    f"There is no pool {self.settings.images!r}, or no configuration {str(self.settings.conf)!r}.",
                    hint="Check `pool`, `namespace` and `conf` of the zone.",
                )
        return translate(error)

    def _forget_connection(self) -> None:
        """Connect anew with the next call: this client was locked out of the cluster."""
        if self._catalogue:
            self._catalogue.close()
            self._catalogue = None
        with suppress(CephError):
            self._disconnect()


def _refuse_missing(cluster: Cluster, pool: str, namespace: str) -> None:
    """Raise NotFound for a namespace that is not there, in which Ceph would find nothing without a word."""
    if not namespace:
        return
    with cluster.pool(pool) as outside:
        try:
            is_there = outside.has_namespace(namespace)
        except CephError as error:
            if error.errno not in {errno.EPERM, errno.EACCES}:  # who may enter that one alone is not told
                raise
            return
    if not is_there:
        raise NotFound(
            f"Pool {pool!r} has no namespace {namespace!r}.",
            hint=f"Check `namespace` of the zone, or make it: rbd namespace create {pool}/{namespace}.",
        )


def _left_over(catalogue: PoolCatalogue) -> list[str]:
    disks = catalogue.rows(
        """SELECT * FROM resources WHERE removed_at IS NULL
        AND resource_id IN (SELECT resource_id FROM snapshots WHERE status = 'ceased')"""
    )
    return [one for disk in disks for one in catalogue.store.remains(disk)[0]]


def _check(catalogue: PoolCatalogue, advance: Advance) -> CheckReport:
    rows = catalogue.rows(
        "SELECT * FROM snapshots WHERE status IN ('available', 'suspended', 'deleted') ORDER BY root_id, depth, snapshot_id"
    )
    total, done = sum(row["virtual_bytes"] for row in rows), 0

    def count(amount: int) -> None:
        nonlocal done
        done += amount
        advance(done, total)

    damaged = read_back(catalogue, rows, count)
    catalogue.refresh()
    present = {
        row["snapshot_id"] for row in catalogue.rows("SELECT snapshot_id FROM snapshots WHERE status != 'ceased'")
    }
    still = [row["snapshot_id"] for row in rows if row["snapshot_id"] in present]
    findings = [Finding(one, text, is_damage=True) for one, text in damaged.items() if one in still]
    try:
        with catalogue.transaction():
            record(catalogue, still, damaged)
    except CephError as error:
        if error.errno not in {errno.EPERM, errno.EACCES}:
            raise
        findings.append(Finding("the catalogue", NOT_RECORDED, is_damage=False))
    for row in catalogue.rows("SELECT * FROM resources WHERE applying_id IS NOT NULL AND removed_at IS NULL"):
        text = f"a roll-back to {row['applying_id']} is unfinished: {row['problem'] or 'it is in progress'}"
        findings.append(Finding(label_of(row), text, is_damage=False))
    findings += [Finding(one, NOT_REMOVED, is_damage=False) for one in _left_over(catalogue)]
    return CheckReport(len(rows), total, tuple(findings))
