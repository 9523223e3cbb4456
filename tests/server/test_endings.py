"""A change that waits: what came of it in one call, within the call's time, and never an error once the job is submitted."""

from pathlib import Path
from typing import Any

import anyio
import pytest

from snapshot_mcp.contract.errors import NotFound, Unavailable
from snapshot_mcp.contract.models import Job
from snapshot_mcp.contract.states import ResourceType
from snapshot_mcp.providers.local import LocalZone
from snapshot_mcp.server import deadline, endings
from tests.server.lab import MIB, Lab, data_of, text_of

CREATE = {"resource_ids": ["web"], "name": "nightly", "wait_seconds": 50}


@pytest.mark.anyio
async def test_a_change_that_waits_says_what_it_made(lab: Lab, mode: str) -> None:
    await lab.add_disk("web")
    percents: list[float] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        percents.append(progress)

    async with lab.connect(mode) as client:
        created = await client.call_tool("create_snapshots", CREATE, progress_callback=on_progress)
        (point,) = data_of(created)["made"]
        exported = await client.call_tool(
            "export_to_volume", {"snapshot_id": point["snapshot_id"], "volume_name": "copy", "wait_seconds": 50}
        )
        await lab.delete(point["snapshot_id"])
        recovered = await client.call_tool(
            "recover_snapshots", {"snapshot_ids": [point["snapshot_id"]], "wait_seconds": 50}
        )
    assert percents[-1] == 100
    for result in (created, exported, recovered):
        assert (data_of(result)["status"], data_of(result)["outcome"]) == ("submitted", "successful")
        assert data_of(result)["job_id"] in text_of(result)
        assert "Outcome: successful." in text_of(result)
        assert text_of(result).endswith(data_of(result)["hint"])
    assert (point["type"], point["name"]) == ("full", "nightly")
    assert point["disk_bytes"] == 2 * MIB
    assert point["stored_bytes"] >= 2 * MIB
    assert point["time"] in text_of(created)
    (volume,) = data_of(exported)["made"]
    assert (volume["type"], volume["name"], volume["disk_bytes"]) == ("volume", "copy", 2 * MIB)
    assert volume["consistency"] == point["consistency"]
    assert Path(volume["path"]).stat().st_size == 2 * MIB
    assert volume["path"] in text_of(exported)
    assert [one["snapshot_id"] for one in data_of(recovered)["made"]] == [point["snapshot_id"]]


@pytest.mark.anyio
async def test_an_image_and_a_repeated_create_say_it_too(lab: Lab) -> None:
    await lab.add_disk("web", kind=ResourceType.INSTANCE)
    async with lab.connect() as client:
        first = data_of(await client.call_tool("create_snapshots", CREATE | {"wait_seconds": 0}))
        again = await client.call_tool("create_snapshots", CREATE)
        snapshot_id = first["snapshot_ids"][0]
        image = await client.call_tool(
            "export_to_image", {"snapshot_id": snapshot_id, "image_name": "gold", "wait_seconds": 50}
        )
    assert "outcome" not in first
    assert data_of(again)["status"] == "exists"
    assert data_of(again).get("outcome", "successful") == "successful"
    (made,) = data_of(image)["made"]
    assert (made["type"], made["name"]) == ("image", "gold")


@pytest.mark.anyio
async def test_a_failed_job_is_a_result(lab: Lab, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    await lab.add_disk("web")

    async def get_job(self: LocalZone, job_id: str) -> Job:
        return Job(job_id=job_id, action="CreateSnapshots", status="failed", info="the disk is\ngone")

    async def list_unfinished_jobs(self: LocalZone) -> tuple[Job, ...]:
        return ()

    async with lab.connect(mode) as client:
        monkeypatch.setattr(LocalZone, "features", frozenset())
        monkeypatch.setattr(LocalZone, "get_job", get_job)
        monkeypatch.setattr(LocalZone, "list_unfinished_jobs", list_unfinished_jobs)
        result = await client.call_tool("create_snapshots", CREATE)
    assert (data_of(result)["outcome"], data_of(result)["error"]) == ("failed", "the disk is gone")
    assert "Outcome: failed. Reason: “the disk is gone”." in text_of(result)
    assert "made" not in data_of(result)


@pytest.mark.anyio
@pytest.mark.parametrize("error", [Unavailable("No route."), NotFound("Unknown job.")], ids=["lost", "forgotten"])
async def test_a_job_that_cannot_be_followed_is_no_error(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, mode: str, error: Exception
) -> None:
    await lab.add_disk("web")

    async def get_job(self: LocalZone, job_id: str) -> Job:
        raise error

    async with lab.connect(mode) as client:
        monkeypatch.setattr(LocalZone, "features", frozenset())
        monkeypatch.setattr(LocalZone, "get_job", get_job)
        result = await client.call_tool("create_snapshots", CREATE | {"wait_seconds": 0.5})
    assert data_of(result)["job_id"] in text_of(result)
    is_lost = isinstance(error, Unavailable)
    assert data_of(result).get("outcome") == ("still_running" if is_lost else None)
    assert str(error) in text_of(result)
    assert data_of(result)["hint"] in text_of(result)


@pytest.mark.anyio
async def test_waiting_gets_what_is_left_of_the_call(lab: Lab, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    """The lookup before the submission has used up the call's time, and the zone does not answer either."""
    await lab.add_disk("web")

    async def get_job(self: LocalZone, job_id: str) -> Any:
        await anyio.sleep_forever()

    async with lab.connect(mode) as client:
        monkeypatch.setattr(deadline, "CALL_SECONDS", deadline.SUBMIT_SECONDS + 1)
        monkeypatch.setattr(endings, "LOOKUP_SECONDS", deadline.SUBMIT_SECONDS)
        monkeypatch.setattr(LocalZone, "features", frozenset())
        monkeypatch.setattr(LocalZone, "get_job", get_job)
        with anyio.fail_after(15):
            result = await client.call_tool("create_snapshots", CREATE)
    assert data_of(result)["outcome"] == "still_running"
    assert f"call wait_for_job again for {data_of(result)['job_id']}" in text_of(result)
