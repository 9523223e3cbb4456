"""The contract suite's subjects: our own REST face in both revisions, and a real provider where the environment names one.

A real provider is named by SNAPSHOT_MCP_TEST_API_URL, …_CLIENT_ID, …_CLIENT_SECRET, …_ZONE and …_REVISION, and what may be
backed up there by …_VOLUME and …_INSTANCE (ids). Snapshots are made and deleted there; the volume's content is left alone.
Run it with `-n 0`: one volume has one job at a time.
"""

import os
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from snapshot_mcp.contract.states import ResourceType
from snapshot_mcp.providers.anchcloud.settings import AnchCloudZoneSettings
from snapshot_mcp.providers.anchcloud.zone import AnchCloudZone
from snapshot_mcp.providers.local import LocalZone
from tests.contract.subject import Subject, Suite
from tests.rest_face import served, served_in_thread

PROVIDER = "SNAPSHOT_MCP_TEST_API_"


class RealSubject(Subject):
    """A real provider: its disks are those that the environment names."""

    async def resource(self, kind: ResourceType, name: str, size_bytes: int) -> str:
        if not (named := os.environ.get(f"{PROVIDER}{kind.name}")):
            pytest.skip(f"not configured: {PROVIDER}{kind.name} names no {kind}")
        return named


def subject_names(module: str, *, is_own_rule: bool) -> list[str]:
    """The later revision differs in the six operations only; a real provider need not keep our own zone's rules."""
    names = ["rest"]
    if module == "test_snapshots":
        names.append("rest of 2016-12")
    if os.environ.get(f"{PROVIDER}URL") and not is_own_rule:
        names.append("provider")
    return names


@asynccontextmanager
async def open_subject(name: str, suite: Suite, options: Mapping[str, Any]) -> AsyncIterator[Subject]:
    if name == "provider":
        zone = _real_zone()
        yield RealSubject(zone, None, Path())
        await zone.aclose()
        return
    shared_face = suite.once(served_in_thread)
    with tempfile.TemporaryDirectory() as disks:
        local = LocalZone(suite.folder, **options)
        revision = "2016-12" if "2016" in name else "specification"
        async with served(local) if options else nullcontext(shared_face) as face:
            client = face.client(api_revision=revision)
            yield Subject(client, local, Path(disks))
            await client.aclose()
        await local.aclose()


def _real_zone() -> AnchCloudZone:
    if os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1") != "1":
        pytest.skip("not configured: a real volume has one job at a time: run with -n 0")
    settings = AnchCloudZoneSettings(
        url=os.environ[f"{PROVIDER}URL"],
        client_id=os.environ[f"{PROVIDER}CLIENT_ID"],
        client_secret=SecretStr(os.environ[f"{PROVIDER}CLIENT_SECRET"]),
        zone=os.environ.get(f"{PROVIDER}ZONE", "ac1"),
        api_revision=os.environ.get(f"{PROVIDER}REVISION", "specification"),
    )
    return AnchCloudZone("provider", settings)
