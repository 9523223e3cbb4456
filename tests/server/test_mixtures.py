"""After a mixture was taken no answer says that all is well: not the wait's, not a repeated create's, not an export's."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client

from snapshot_mcp.contract.errors import Unavailable
from snapshot_mcp.contract.models import Page, Snapshot, SnapshotFilter
from snapshot_mcp.contract.states import ResourceType
from snapshot_mcp.providers.local import LocalZone
from snapshot_mcp.zones import finding
from tests.server.lab import Lab, data_of, text_of

CRASH = "consistent as after a power cut"
MIXTURE = "may be a mixture of states: the disk was in use (fuzzy)"
NOT_GOOD = "does not count as a good restore point"
CREATE = {"resource_ids": ["web"], "name": "nightly"}


@asynccontextmanager
async def disk_in_use(lab: Lab, mode: str, kind: ResourceType = ResourceType.VOLUME) -> AsyncIterator[Client]:
    """A zone that allows mixtures, and a disk that another program has open for writing."""
    (lab.folder / "config.toml").write_text('[zones.local]\nprovider = "local"\nallow_fuzzy = true\n', encoding="utf-8")
    disk = await lab.add_disk("web", kind=kind)
    async with lab.connect(mode) as client:
        holder = os.open(Path(disk.path or ""), os.O_RDWR)
        try:
            yield client
        finally:
            os.close(holder)


async def create_and_wait(client: Client) -> Any:
    job_id = data_of(await client.call_tool("create_snapshots", CREATE))["job_id"]
    return await client.call_tool("wait_for_job", {"job_ids": [job_id]})


@pytest.mark.anyio
async def test_a_wait_says_that_what_was_made_may_be_a_mixture(lab: Lab, mode: str) -> None:
    async with disk_in_use(lab, mode) as client:
        waited = await create_and_wait(client)
    assert data_of(waited)["outcome"] == "successful"
    (made,) = data_of(waited)["made"]
    assert made["type"] == "full"
    assert made["consistency"] == f"{MIXTURE}; does not count as good"
    assert f"Snapshot {made['snapshot_id']} “nightly”  full  " in text_of(waited)
    assert f"  {MIXTURE}; does not count as good\n" in text_of(waited)
    assert f"{made['snapshot_id']}: {MIXTURE}; this {NOT_GOOD}." in data_of(waited)["hint"]
    assert data_of(waited)["hint"] in text_of(waited)


@pytest.mark.anyio
async def test_a_wait_says_how_consistent_a_sound_one_is(lab: Lab, mode: str) -> None:
    await lab.add_disk("web")
    async with lab.connect(mode) as client:
        waited = await create_and_wait(client)
        repeated = await client.call_tool("create_snapshots", CREATE)
    (made,) = data_of(waited)["made"]
    assert made["consistency"].startswith(CRASH)
    assert "count as good" not in made["consistency"]
    assert f"  {made['consistency']}\n" in text_of(waited)
    assert data_of(waited)["hint"] == "The restore point is complete; show_chain shows it in its chain."
    assert data_of(repeated)["hint"] == "It does not contain later changes; for a new backup use another name."


@pytest.mark.anyio
async def test_a_repeated_create_and_an_export_and_a_recovery_say_it_too(lab: Lab, mode: str) -> None:
    async with disk_in_use(lab, mode) as client:
        snapshot_id = data_of(await create_and_wait(client))["made"][0]["snapshot_id"]
        results = [
            await client.call_tool("create_snapshots", CREATE),
            await client.call_tool("export_to_volume", {"snapshot_id": snapshot_id, "volume_name": "copy"}),
        ]
        assert [data_of(one)["status"] for one in results] == ["exists", "submitted"]
        exported = await client.call_tool("wait_for_job", {"job_ids": [data_of(results[1])["job_id"]]})
        (volume,) = data_of(exported)["made"]
        assert Path(volume["path"]).stat().st_size == volume["disk_bytes"]
        assert f"Volume {volume['resource_id']} “copy”" in text_of(exported)
        await lab.delete(snapshot_id)
        results.append(await client.call_tool("recover_snapshots", {"snapshot_ids": [snapshot_id]}))
    for result in results:
        assert f"{snapshot_id}: {MIXTURE}; this {NOT_GOOD}." in data_of(result)["hint"]
        assert f"{snapshot_id}: {MIXTURE}; this {NOT_GOOD}." in text_of(result)


@pytest.mark.anyio
async def test_an_export_to_an_image_says_it_too(lab: Lab) -> None:
    async with disk_in_use(lab, "auto", ResourceType.INSTANCE) as client:
        snapshot_id = data_of(await create_and_wait(client))["made"][0]["snapshot_id"]
        result = await client.call_tool("export_to_image", {"snapshot_id": snapshot_id, "image_name": "gold"})
    assert f"{snapshot_id}: {MIXTURE}; this {NOT_GOOD}." in data_of(result)["hint"]
    assert NOT_GOOD in text_of(result)


@pytest.mark.anyio
@pytest.mark.parametrize("hangs", [False, True], ids=["refuses", "hangs"])
async def test_a_zone_that_does_not_list_fails_no_wait(lab: Lab, monkeypatch: pytest.MonkeyPatch, hangs: bool) -> None:
    await lab.add_disk("web")
    asked: list[SnapshotFilter] = []

    async def list_snapshots(self: LocalZone, query: SnapshotFilter) -> Page[Snapshot]:
        asked.append(query)
        if hangs:
            await anyio.sleep_forever()
        raise Unavailable("The zone does not answer.")

    async with lab.connect() as client:
        job_id = data_of(await client.call_tool("create_snapshots", CREATE))["job_id"]
        monkeypatch.setattr(finding, "TRY_SECONDS", 0.1)
        monkeypatch.setattr(LocalZone, "list_snapshots", list_snapshots)
        waited = await client.call_tool("wait_for_job", {"job_ids": [job_id]})
    assert data_of(waited)["outcome"] == "successful"
    assert "made" not in data_of(waited)
    assert "The consistency could not be read in local: list_snapshots shows it." in text_of(waited)
    assert [query.verbose for query in asked] == [1]
