"""`CephZone`: a pool of RBD images as a Provider, `catalogue.zone` over Ceph."""

import errno
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from snapshot_mcp.catalogue.admission import CHAIN_LIMIT, ZoneRules
from snapshot_mcp.catalogue.zone import CatalogueZone
from snapshot_mcp.contract.errors import NotFound, ZoneError
from snapshot_mcp.contract.keep_free import NOTHING_FREE
from snapshot_mcp.contract.models import Instance, Page, ResourceFilter, Volume
from snapshot_mcp.contract.provider import Feature
from snapshot_mcp.providers.ceph.catalogue import PoolCatalogue
from snapshot_mcp.providers.ceph.clib import CephError
from snapshot_mcp.providers.ceph.cluster import Cluster
from snapshot_mcp.providers.ceph.errors import FENCED, translate
from snapshot_mcp.providers.ceph.pool import Pool
from snapshot_mcp.providers.ceph.settings import CephZoneSettings
from snapshot_mcp.providers.ceph.store import PoolStore
from snapshot_mcp.providers.ceph.worker import ensure_worker, machine_of

DISCOVER_SECONDS: Final = 2.0
"""How old the list of images may be in a call that changes nothing."""


class CephZone(CatalogueZone[PoolCatalogue]):
    """The zone (`contract.Provider` has the methods); it connects with its first call."""

    watch_seconds = 0.25
    features = frozenset(
        {
            Feature.RECOVER,
            Feature.RECOVER_INCREMENTALS,
            Feature.WATCH,
            Feature.TAGS,
            Feature.PROGRESS,
            Feature.TERMS,
            Feature.ONE_HOLD,
            Feature.CANCEL,
            Feature.VERIFY,
            Feature.HISTORY,
            Feature.COVERAGE,
        }
    )

    def __init__(self, zone: str, settings: CephZoneSettings, home: Path, chain_limit: int = CHAIN_LIMIT) -> None:
        recovery_seconds = round(settings.recovery_hours * 3600)
        super().__init__(zone, ZoneRules(recovery_seconds, chain_limit, keep_free=NOTHING_FREE))
        self.settings = settings
        self.folder = home.absolute() / "zones" / zone
        self.recovery_seconds = self._rules.recovery_seconds
        self._cluster: Cluster | None = None
        self._pools: tuple[Pool, Pool] | None = None
        self._discovered_at = 0.0

    def __repr__(self) -> str:
        return f"CephZone({self.zone!r}, {self.settings.images!r})"

    @property
    def location(self) -> str:
        """Return the pool, and the configuration of its cluster."""
        return f"Ceph pool {self.settings.images} ({self.settings.conf})"

    async def aclose(self) -> None:
        """Close the catalogue and the connection."""
        await super().aclose()
        with self._lock:
            self._disconnect()

    def _disconnect(self) -> None:
        for pool in set(self._pools or ()):
            pool.close()
        if self._cluster:
            self._cluster.close()
        self._pools, self._cluster = None, None

    def _connect(self) -> tuple[Pool, Pool]:
        if self._pools is None:
            settings = self.settings
            cluster = Cluster(settings.conf, settings.user, settings.keyring)
            try:
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
        catalogue = super()._opened()
        loads = catalogue.loads
        catalogue.refresh()
        if catalogue.loads != loads or time.monotonic() - self._discovered_at > DISCOVER_SECONDS:
            catalogue.discover()
            self._discovered_at = time.monotonic()
        return catalogue

    async def list_volumes(self, query: ResourceFilter) -> Page[Volume]:
        """Return a page of the volumes that are there now."""
        await self._read(PoolCatalogue.discover, None)
        return await super().list_volumes(query)

    async def list_instances(self, query: ResourceFilter) -> Page[Instance]:
        """Return a page of the instances that are there now."""
        await self._read(PoolCatalogue.discover, None)
        return await super().list_instances(query)

    def _check_change(self, catalogue: PoolCatalogue) -> None:
        catalogue.discover()
        self._discovered_at = time.monotonic()

    def _ensure_worker(self) -> None:
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
