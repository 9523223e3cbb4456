"""What the contract suite runs over: the embedded zone, the same behind the REST face, and a real provider where named.

A real provider is named by SNAPSHOT_MCP_TEST_API_URL, …_CLIENT_ID, …_CLIENT_SECRET, …_ZONE and …_REVISION, and what may be
backed up there by …_VOLUME and …_INSTANCE (ids). Snapshots are made and deleted there; the volume's content is left alone.
Run it with `-n 0`: one volume has one job at a time.
"""

import os
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from pydantic import SecretStr

from snapshot_mcp.contract.models import Job
from snapshot_mcp.contract.provider import Provider
from snapshot_mcp.contract.states import ResourceType
from snapshot_mcp.providers.anchcloud import AnchCloudZone
from snapshot_mcp.providers.local import LocalZone
from snapshot_mcp.providers.local.worker import LOCK_NAME
from tests.conftest import end_worker
from tests.disks import MIB, change, make_image, succeed
from tests.patience import PATIENCE_SECONDS
from tests.rest_face import Served, served, served_in_thread

PROVIDER = "SNAPSHOT_MCP_TEST_API_"


@dataclass
class Subject:
    """A zone under test, and how to get disks in it. `local` is the embedded zone behind it; None at a real provider."""

    zone: Provider
    local: LocalZone | None
    folder: Path
    paths: dict[str, Path] = field(default_factory=dict)

    async def volume(self, name: str = "disk", size_bytes: int = 1 * MIB) -> str:
        return await self._resource(ResourceType.VOLUME, name, size_bytes)

    async def instance(self, name: str = "host", size_bytes: int = 1 * MIB) -> str:
        return await self._resource(ResourceType.INSTANCE, name, size_bytes)

    async def _resource(self, kind: ResourceType, name: str, size_bytes: int) -> str:
        if self.local is None:
            if not (named := os.environ.get(f"{PROVIDER}{kind.name}")):
                pytest.skip(f"{PROVIDER}{kind.name} names no {kind}")
            return named
        image = make_image(self.folder / f"{len(self.paths)}.img", size_bytes)
        resource = await self.local.add_resource(image, name, kind)
        self.paths[resource.id] = image
        return resource.id

    def write(self, resource_id: str, seed: int = 2) -> None:
        if self.local is not None:
            change(self.paths[resource_id], 4096, seed=seed, count=1)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The embedded zone's worker stands still: jobs are accepted and not begun."""
        assert self.local is not None
        worker = int((self.local.folder / LOCK_NAME).read_text())
        os.kill(worker, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(worker, signal.SIGCONT)

    def content(self, resource_id: str) -> bytes:
        return self.paths[resource_id].read_bytes()

    async def done(self, job: Job) -> Job:
        return await succeed(self.zone, job, timeout_seconds=PATIENCE_SECONDS if self.local else 1800)

    async def back_up(self, resource_id: str, name: str = "", *, is_full: bool = False) -> str:
        """Create a snapshot of one resource and return its id."""
        job = await self.done(await self.zone.create_snapshots([resource_id], name, is_full=is_full))
        return job.resource_ids[0]


@pytest.fixture(scope="session")
def contract_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One zone for the whole suite, so that one worker serves it; each test brings its own disks."""
    folder = tmp_path_factory.mktemp("contract") / "zone"
    yield folder
    end_worker(folder)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "own_rules: a rule of our own zone (contract.md, its last part)")
    config.addinivalue_line("markers", "zone_options(**options): how the embedded zone is set")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The later revision differs in the six operations only; a real provider need not keep our own zone's rules."""
    if "subject" not in metafunc.fixturenames:
        return
    subjects = ["local", "rest"]
    if metafunc.module.__name__.endswith("test_snapshots"):
        subjects.append("rest of 2016-12")
    if os.environ.get(f"{PROVIDER}URL") and not list(metafunc.definition.iter_markers("own_rules")):
        subjects.append("provider")
    metafunc.parametrize("subject", subjects, indirect=True)


@pytest.fixture(scope="session")
def contract_face(contract_folder: Path) -> Iterator[Served]:
    with served_in_thread(contract_folder) as face:
        yield face


@pytest.fixture
async def subject(
    request: pytest.FixtureRequest, contract_folder: Path, contract_face: Served
) -> AsyncIterator[Subject]:
    if request.param == "provider":
        if os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1") != "1":
            pytest.skip("not configured: a real volume has one job at a time: run with -n 0")
        zone = AnchCloudZone(
            "provider",
            url=os.environ[f"{PROVIDER}URL"],
            client_id=os.environ[f"{PROVIDER}CLIENT_ID"],
            client_secret=SecretStr(os.environ[f"{PROVIDER}CLIENT_SECRET"]),
            zone_id=os.environ.get(f"{PROVIDER}ZONE", "ac1"),
            api_revision=os.environ.get(f"{PROVIDER}REVISION", "specification"),
        )
        yield Subject(zone, None, Path())
        await zone.aclose()
        return
    with tempfile.TemporaryDirectory() as disks:
        options = getattr(request.node.get_closest_marker("zone_options"), "kwargs", {})
        local = LocalZone(contract_folder, **options)
        if request.param == "local":
            yield Subject(local, local, Path(disks))
        else:
            revision = "2016-12" if "2016" in request.param else "specification"
            own_face = served(local) if options else nullcontext(contract_face)
            async with own_face as face:
                client = face.client(api_revision=revision)
                yield Subject(client, local, Path(disks))
                await client.aclose()
        await local.aclose()
