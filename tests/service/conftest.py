"""A face over one embedded zone that all of these tests share."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from snapshot_mcp.providers.local import LocalZone
from tests.conftest import end_worker
from tests.rest_face import Served, fetch_token, served_in_thread


@pytest.fixture(scope="session")
def service_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("service") / "zone"
    yield folder
    end_worker(folder)


@pytest.fixture
async def shared_zone(service_folder: Path) -> AsyncIterator[LocalZone]:
    zone = LocalZone(service_folder)
    yield zone
    await zone.aclose()


@pytest.fixture(scope="session")
def face(service_folder: Path) -> Iterator[Served]:
    with served_in_thread(service_folder) as face:
        yield face


@pytest.fixture
async def token(face: Served) -> str:
    return await fetch_token(face.url)
