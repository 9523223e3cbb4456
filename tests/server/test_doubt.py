"""A zone that lies or is slow: a job belongs to the zone that it was given to, and every call ends in time."""

from typing import Any

import anyio
import pytest

from snapshot_mcp.contract.models import Job, Page
from snapshot_mcp.contract.states import JobAction
from snapshot_mcp.providers.local import LocalZone
from snapshot_mcp.server import deadline
from tests.server.lab import Lab, back_up, data_of, text_of

pytestmark = pytest.mark.anyio


@pytest.fixture
def two_zones(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """Beside `local` a zone that calls every job successful."""
    config = lab.folder / "config.toml"
    config.write_text(
        f"[zones.local]\nprovider = 'local'\n[zones.liar]\nprovider = 'local'\nfolder = '{lab.folder / 'liar'}'\n"
    )
    lab.extra["SNAPSHOT_MCP_CONFIG"] = str(config)
    get = LocalZone.get_job

    async def lies(zone: LocalZone, job_id: str) -> Job:
        if zone.zone == "liar":
            return Job(job_id=job_id, action=JobAction.CREATE, status="successful")
        await anyio.sleep(0.1)
        return await get(zone, job_id)

    monkeypatch.setattr(LocalZone, "get_job", lies)
    return lab


async def test_a_job_is_looked_for_in_the_zone_that_it_was_given_to(two_zones: Lab, mode: str) -> None:
    """Another zone that answers first took over the jobs of this one."""
    await two_zones.add_disk("web")
    async with two_zones.connect(mode) as client:
        made = data_of(
            await client.call_tool("create_snapshots", {"resource_ids": ["web"], "name": "one", "zone": "local"})
        )
        waited = data_of(await client.call_tool("wait_for_job", {"job_ids": [made["job_id"]]}))
        assert waited["jobs"][0]["zone"] == "local"


async def test_a_job_that_several_zones_claim_is_not_guessed(two_zones: Lab) -> None:
    """It was submitted from elsewhere, so this home does not know whose it is."""
    await two_zones.add_disk("web")
    async with two_zones.connect() as client:
        made = data_of(
            await client.call_tool("create_snapshots", {"resource_ids": ["web"], "name": "one", "zone": "local"})
        )
    for path in two_zones.home.glob("history.sqlite*"):
        path.unlink()
    async with two_zones.connect() as client:
        for tool, arguments in (
            ("wait_for_job", {"job_ids": [made["job_id"]]}),
            ("cancel_job", {"job_id": made["job_id"]}),
        ):
            result = await client.call_tool(tool, arguments)
            assert result.is_error
            assert "Several zones know a job" in text_of(result)
            assert "liar, local" in text_of(result)
        waited = await client.call_tool("wait_for_job", {"job_ids": [made["job_id"]], "zone": "local"})
        assert data_of(waited)["outcome"] == "successful"


@pytest.mark.parametrize(("status", "code"), [("successful", ""), ("failed", "storage_full")])
async def test_only_what_was_cancelled_is_called_cancelled(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, status: str, code: str
) -> None:
    """ "was cancelled and left nothing behind", of a job that had succeeded."""
    await lab.add_disk("web")

    async def cancel(zone: LocalZone, job_id: str) -> Job:
        found = await zone.get_job(job_id)
        error = {"code": code, "message": "3 of 4 done"} if code else None
        return Job.model_validate(found.model_dump() | {"status": status, "error": error})

    monkeypatch.setattr(LocalZone, "cancel_job", cancel)
    async with lab.connect() as client:
        made = data_of(await client.call_tool("create_snapshots", {"resource_ids": ["web"], "name": "one"}))
        result = await client.call_tool("cancel_job", {"job_id": made["job_id"]})
        await client.call_tool("wait_for_job", {"job_ids": [made["job_id"]]})
    assert result.is_error
    assert f"has ended as “{status}”" in text_of(result)


async def test_a_change_is_given_up_while_its_disks_are_looked_up_too_slowly(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is submitted late is answered after the host has given the call up."""
    await lab.add_disk("web")
    monkeypatch.setattr(deadline, "CALL_SECONDS", deadline.SUBMIT_SECONDS + 0.5)
    monkeypatch.setattr(LocalZone, "list_volumes", never)
    async with lab.connect() as client:
        result = await client.call_tool(
            "create_snapshots", {"resource_ids": ["web"], "name": "one", "wait_seconds": 50}
        )
        assert result.is_error
        assert "Nothing was submitted" in text_of(result)
        assert data_of(await client.call_tool("list_jobs", {}))["jobs"] == []


async def test_a_list_that_does_not_come_ends_in_time(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("snapshot_mcp.server.toolbox.CALL_SECONDS", 0.5)
    monkeypatch.setattr(LocalZone, "list_snapshots", never)
    async with lab.connect() as client:
        result = await client.call_tool("list_snapshots", {})
    assert result.is_error
    assert (result.meta or {})["code"] == "unavailable"


async def never(zone: LocalZone, *arguments: Any) -> Page[Any]:
    await anyio.sleep_forever()
    raise AssertionError


async def test_the_hint_of_a_cancelled_job_says_so(lab: Lab) -> None:
    await lab.add_disk("web", 64 << 20)
    async with lab.connect() as client:
        await back_up(client, "web", "zero")
        made = data_of(
            await client.call_tool("create_snapshots", {"resource_ids": ["web"], "name": "one", "full": True})
        )
        cancelled = await client.call_tool("cancel_job", {"job_id": made["job_id"]})
        waited = await client.call_tool("wait_for_job", {"job_ids": [made["job_id"]]})
    if not cancelled.is_error:
        assert data_of(waited)["hint"] == "It was cancelled and left nothing behind."
