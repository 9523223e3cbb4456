"""One cluster for a session, and for each test a pool's namespace of its own with a home."""

import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.ceph.bench import Bench
from tests.ceph.cluster import ceph
from tests.ceph.subject import POOL, Site, open_site


@pytest.fixture(scope="session")
def site() -> Iterator[Site]:
    with open_site() as opened:
        yield opened


@pytest.fixture
async def bench(site: Site, tmp_path: Path) -> AsyncIterator[Bench]:
    """A namespace of its own, so that a test knows all that is there."""
    namespace = f"test-{uuid.uuid4().hex[:8]}"
    ceph(site.conf, "rbd", "namespace", "create", f"{POOL}/{namespace}")
    with site.client.pool(POOL, namespace) as pool:
        made = Bench(replace(site, pool=pool, home=tmp_path / "home"), namespace)
        try:
            yield made
        finally:
            await made.aclose()
