"""The contract suite's subjects: a pool of a real cluster, and the same behind our REST face."""

import random
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snapshot_mcp.contract.states import ResourceType
from snapshot_mcp.providers.ceph.clib import CephError
from snapshot_mcp.providers.ceph.cluster import Cluster
from snapshot_mcp.providers.ceph.image import RbdImage
from snapshot_mcp.providers.ceph.names import KIND, snapshot_name
from snapshot_mcp.providers.ceph.pool import Pool
from snapshot_mcp.providers.ceph.settings import CephZoneSettings
from snapshot_mcp.providers.ceph.worker import LOCK_NAME
from snapshot_mcp.providers.ceph.zone import CephZone
from tests.ceph.cluster import cluster
from tests.contract.subject import Subject, Suite
from tests.disks import end_process
from tests.rest_face import served

POOL = "rbd"


@dataclass
class Site:
    """A cluster, a home for the zone's worker, and a client of its own for the tests."""

    conf: Path
    home: Path
    client: Cluster
    pool: Pool

    @property
    def settings(self) -> CephZoneSettings:
        return CephZoneSettings(provider="ceph", pool=POOL, conf=self.conf)


@contextmanager
def open_site(_: Path | None = None, *, has_manager: bool = False, is_hasty: bool = True) -> Iterator[Site]:
    with cluster(pools=POOL, has_manager=has_manager, is_hasty=is_hasty) as conf, tempfile.TemporaryDirectory() as home:
        client = Cluster(conf, "admin", None)
        pool = client.pool(POOL)
        try:
            yield Site(conf, Path(home), client, pool)
        finally:
            end_process(Path(home) / "zones" / "ceph" / LOCK_NAME)
            pool.close()
            client.close()
            shutil.rmtree(home, ignore_errors=True)


def subject_names(module: str, *, is_own_rule: bool) -> list[str]:
    return ["ceph", "ceph rest"]


@asynccontextmanager
async def open_subject(name: str, suite: Suite, options: Mapping[str, Any]) -> AsyncIterator[Subject]:
    site = suite.once(open_site)
    zone = CephZone("ceph", site.settings, site.home, **options)
    if name == "ceph":
        yield CephSubject(zone, None, Path(), site=site)
    else:
        async with served(zone) as face:
            client = face.client()
            yield CephSubject(client, None, Path(), site=site)
            await client.aclose()
    await zone.aclose()


@dataclass
class CephSubject(Subject):
    """Disks are images, which the tests write as a guest would."""

    site: Site = None  # type: ignore[assignment]

    @property
    def is_ours(self) -> bool:
        return True

    @property
    def worker_lock(self) -> Path:
        return self.site.home / "zones" / "ceph" / LOCK_NAME

    async def resource(self, kind: ResourceType, name: str, size_bytes: int) -> str:
        images = self.site.pool.list_images().values()
        if name in images:  # of an earlier test: an image's name is its own
            self.site.pool.rename_image(name, f"{name} {len(images)}")
        self.site.pool.create_image(name, size_bytes)
        chance = random.Random(1)
        with self.site.pool.open_by_name(name) as image:
            image.write(0, chance.randbytes(size_bytes // 4))
            image.set_metadata(KIND, kind)
            return f"{'vol' if kind == ResourceType.VOLUME else 'ins'}-{image.id}"

    @contextmanager
    def image(self, resource_id: str) -> Iterator[RbdImage]:
        with self.site.pool.open_image(resource_id.partition("-")[2], is_read_only=False) as image:
            yield image

    def write(self, resource_id: str, seed: int = 2) -> None:
        chance = random.Random(seed)
        with self.image(resource_id) as image:
            image.write(chance.randrange(0, image.size - 4096), chance.randbytes(4096))

    def grow(self, resource_id: str, data: bytes) -> None:
        with self.image(resource_id) as image:
            size = image.size
            image.resize(size + len(data))
            image.write(size, data)

    def lose(self, resource_id: str) -> None:
        with self.image(resource_id) as image:
            name = image.name
        self.site.pool.remove_image(name)

    def damage(self, snapshot_id: str) -> None:
        for image_id in self.site.pool.list_images():
            with self.site.pool.open_image(image_id, is_read_only=False) as image:
                image.drop(snapshot_name(snapshot_id))

    def traces(self) -> set[str]:
        found = set(self.site.pool.list_images().values())
        for image_id in self.site.pool.list_images():
            with suppress(CephError), self.site.pool.open_image(image_id) as image:  # one that is being removed
                found |= set(image.snapshots())
        return found

    @contextmanager
    def used(self, resource_id: str) -> Iterator[tuple[str, str]]:
        with self.image(resource_id):
            yield f"client.{self.site.client.client} at ", ""

    def content(self, resource_id: str) -> bytes:
        with self.site.pool.open_image(resource_id.partition("-")[2]) as image:
            return image.read(0, image.size)

    def content_at(self, path: str) -> bytes:
        with self.site.pool.open_by_name(path.removeprefix(f"{POOL}/")) as image:
            return image.read(0, image.size)
