"""An embedded zone with one disk, its face, a faulty proxy before it, and a client that only knows the proxy."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from snapshot_mcp.contract.models import Job
from snapshot_mcp.providers.anchcloud.zone import AnchCloudZone
from snapshot_mcp.providers.local import LocalZone
from tests.conftest import end_worker
from tests.disks import make_image, succeed
from tests.faulty_proxy import FaultyProxy, faulty_proxy
from tests.rest_face import PATIENT, Served, served_in_thread


@dataclass
class Wire:
    local: LocalZone
    face: Served
    proxy: FaultyProxy
    client: AnchCloudZone
    patient: AnchCloudZone
    volume: str
    disks: Path

    async def done(self, job: Job) -> Job:
        """Its end, seen from behind the wire; a job that a lookup made up is over already."""
        return job if job.is_finished else await succeed(self.local, job)

    async def back_up(self, name: str = "") -> str:
        return (await succeed(self.local, await self.local.create_snapshots([self.volume], name))).resource_ids[0]


@pytest.fixture(scope="session")
def wire_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("wire") / "zone"
    yield folder
    end_worker(folder)


@pytest.fixture(scope="session")
def wire_face(wire_folder: Path) -> Iterator[Served]:
    with served_in_thread(wire_folder) as face:
        yield face


@pytest.fixture
async def wire(wire_folder: Path, wire_face: Served, tmp_path: Path) -> AsyncIterator[Wire]:
    local = LocalZone(wire_folder)
    volume = await local.add_resource(make_image(tmp_path / "disk", 1 << 18), "disk")
    async with faulty_proxy(wire_face.url) as proxy:
        client = wire_face.client(url=proxy.url)
        patient = wire_face.client(url=proxy.url, patience=PATIENT)
        yield Wire(local, wire_face, proxy, client, patient, volume.id, tmp_path)
        await patient.aclose()
        await client.aclose()
    await local.aclose()
