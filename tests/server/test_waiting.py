"""Waiting: bounded, with progress that only grows, in every zone, truthful about what cannot be reached."""

import os
from typing import Any

import anyio
import pytest
from mcp.types import CallToolResult

from tests.server.lab import MIB, Lab, data_of, text_of


@pytest.mark.anyio
async def test_progress_only_grows_and_ends_at_a_hundred(lab: Lab, mode: str) -> None:
    await lab.add_disk("a", 64 * MIB)
    told: list[tuple[float, float | None]] = []
    messages: list[str | None] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        told.append((progress, total))
        messages.append(message)

    async with lab.connect(mode) as client:
        job_id = data_of(await client.call_tool("create_snapshots", {"resource_ids": ["a"], "name": "x"}))["job_id"]
        result = await client.call_tool("wait_for_job", {"job_ids": [job_id]}, progress_callback=on_progress)
    assert data_of(result)["outcome"] == "successful"
    percents = [progress for progress, _ in told]
    assert percents == sorted(set(percents))
    assert percents[-1] == 100
    assert {total for _, total in told} == {100}
    assert all(messages)
    assert "1 of 1 still running" not in messages
    assert messages[-1] == "successful"


@pytest.mark.anyio
async def test_still_running_is_a_result_with_a_next_step(lab: Lab, mode: str) -> None:
    await lab.add_disk("a", 256 * MIB)
    async with lab.connect(mode) as client:
        job_id = data_of(await client.call_tool("create_snapshots", {"resource_ids": ["a"], "name": "x"}))["job_id"]
        result = await client.call_tool("wait_for_job", {"job_ids": [job_id], "timeout_seconds": 0})
        assert data_of(result)["outcome"] == "still_running"
        assert "call wait_for_job again" in text_of(result)
        listed = data_of(await client.call_tool("list_jobs", {}))
        assert [job["job_id"] for job in listed["jobs"]] == [job_id]
        done = data_of(await client.call_tool("wait_for_job", {"job_ids": [job_id, job_id]}))
        assert done["outcome"] == "successful"
        assert len(done["jobs"]) == 1
        assert data_of(await client.call_tool("list_jobs", {}))["jobs"] == []


@pytest.mark.anyio
async def test_a_failed_job_tells_its_reason(lab: Lab) -> None:
    disk = await lab.add_disk("a", 64 * MIB)
    assert disk.path
    async with lab.connect() as client:
        job_id = data_of(await client.call_tool("create_snapshots", {"resource_ids": ["a"], "name": "x"}))["job_id"]
        os.truncate(disk.path, 32 * MIB)
        waited = await client.call_tool("wait_for_job", {"job_ids": [job_id]})
    if data_of(waited)["outcome"] == "failed":
        assert data_of(waited)["jobs"][0]["error"]
        assert "reason" in text_of(waited)


@pytest.mark.anyio
async def test_a_backup_that_is_cancelled_leaves_nothing(lab: Lab, mode: str) -> None:
    """`cancel_job` "ends any waiting job and any running create …, leaving nothing behind"; a cancelled one is `failed`."""
    await lab.add_disk("a", 64 * MIB)
    async with lab.connect(mode) as client:
        job_id = data_of(await client.call_tool("create_snapshots", {"resource_ids": ["a"], "name": "x"}))["job_id"]
        cancelled = await client.call_tool("cancel_job", {"job_id": job_id})
        if cancelled.is_error:
            assert "has already finished (successful)" in text_of(cancelled)
            return
        assert data_of(cancelled)["status"] in {"cancelled", "cancelling"}
        waited = data_of(await client.call_tool("wait_for_job", {"job_ids": [job_id]}))
        assert waited["outcome"] == "failed"
        assert "was cancelled" in waited["jobs"][0]["error"]
        assert data_of(await client.call_tool("list_snapshots", {}))["snapshots"] == []
        again = data_of(await client.call_tool("cancel_job", {"job_id": job_id}))
        assert again["status"] == "cancelled"
        unknown = await client.call_tool("cancel_job", {"job_id": "nonsense"})
        assert unknown.is_error
        assert "nonsense" in text_of(unknown)


TWO_ZONES = """
default_zone = "near"
[zones.near]
provider = "local"
[zones.far]
provider = "local"
"""


@pytest.mark.anyio
async def test_a_job_is_found_in_whichever_zone_has_it(lab: Lab) -> None:
    lab.folder.joinpath("config.toml").write_text(TWO_ZONES)
    from snapshot_mcp import app

    far = app.open_local_zone(lab.settings, "far")
    await far.add_resource(lab.image("a"), "a")
    await far.aclose()
    async with lab.connect() as client:
        made = await client.call_tool("create_snapshots", {"resource_ids": ["a"], "name": "x", "zone": "far"})
        job_id = data_of(made)["job_id"]
        waited = data_of(await client.call_tool("wait_for_job", {"job_ids": [job_id]}))
        assert waited["jobs"][0]["zone"] == "far"
        unknown = await client.call_tool("wait_for_job", {"job_ids": ["none"]})
        assert "in the zones near, far" in text_of(unknown)
        assert "No unfinished jobs in near, far" in text_of(await client.call_tool("list_jobs", {}))


ONE_IS_FAR = """
[zones.near]
provider = "local"
[zones.far]
provider = "anchcloud"
url = "http://127.0.0.1:9"
client_id = "a key pair for"
client_secret = "a port where nobody listens"
"""


@pytest.mark.anyio
async def test_a_zone_that_cannot_be_reached_is_named_and_never_an_empty_list(lab: Lab) -> None:
    lab.folder.joinpath("config.toml").write_text(ONE_IS_FAR)
    async with lab.connect() as client:
        assert client.instructions is not None
        assert "Zones: near, far. Without zone a tool means near" in client.instructions
        answers: dict[str, CallToolResult] = {}

        async def call(tool: str, arguments: dict[str, Any]) -> None:
            answers[tool] = await client.call_tool(tool, arguments)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call, "wait_for_job", {"job_ids": ["none"]})
            tasks.start_soon(call, "list_jobs", {})
            tasks.start_soon(call, "list_snapshots", {"zone": "far"})
            tasks.start_soon(call, "list_resources", {"zone": "far"})
            tasks.start_soon(call, "create_snapshots", {"zone": "far", "resource_ids": ["vol-1"], "name": "x"})
    assert answers["wait_for_job"].is_error
    assert "Zone far did not answer" in text_of(answers["wait_for_job"])
    (unreachable,) = data_of(answers["list_jobs"])["unreachable"]
    assert unreachable["zone"] == "far"
    assert "No unfinished jobs in near." in text_of(answers["list_jobs"])
    assert "Zone far did not answer" in text_of(answers["list_jobs"])
    for tool in ("list_snapshots", "list_resources", "create_snapshots"):
        assert answers[tool].is_error
        assert f"{tool} failed: Zone far: " in text_of(answers[tool])


@pytest.mark.anyio
async def test_a_job_that_was_found_does_not_wait_for_a_zone_that_does_not_answer(lab: Lab) -> None:
    lab.folder.joinpath("config.toml").write_text(ONE_IS_FAR)
    await lab.add_disk("a")
    async with lab.connect() as client:
        made = data_of(await client.call_tool("create_snapshots", {"resource_ids": ["a"], "name": "x"}))
        waited = data_of(await client.call_tool("wait_for_job", {"job_ids": [made["job_id"]]}))
    assert waited["outcome"] == "successful"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("export_to_volume", {"snapshot_id": "ss-1", "volume_name": "x"}),
        ("recover_snapshots", {"snapshot_ids": ["ss-1"]}),
        ("delete_snapshot", {"snapshot_id": "ss-1"}),
        ("show_chain", {"resource_id": "vol-1"}),
        ("wait_for_job", {"job_ids": ["j"], "zone": "near"}),
    ],
)
async def test_an_id_that_is_not_in_this_zone_may_be_in_another(
    lab: Lab, mode: str, tool: str, arguments: dict[str, Any]
) -> None:
    lab.folder.joinpath("config.toml").write_text(TWO_ZONES)
    async with lab.connect(mode) as client:
        result = await client.call_tool(tool, arguments)
    assert result.is_error
    assert "zone near" in text_of(result).lower()
    assert text_of(result).endswith("Other zones: far.")


ONE_CANNOT_BE = ONE_IS_FAR.replace('"http://127.0.0.1:9"', '"https://127.0.0.1:9"\nca_file = "/nowhere/ca.pem"')


@pytest.mark.anyio
async def test_a_zone_with_unusable_settings_takes_nothing_from_the_others(lab: Lab, mode: str) -> None:
    """A private authority whose file is not there: the zone cannot be used at all, and says so in each answer."""
    lab.folder.joinpath("config.toml").write_text(ONE_CANNOT_BE)
    await lab.add_disk("a")
    async with lab.connect(mode) as client:
        made = data_of(await client.call_tool("create_snapshots", {"resource_ids": ["a"], "name": "x"}))
        waited = data_of(await client.call_tool("wait_for_job", {"job_ids": [made["job_id"]]}))
        assert waited["outcome"] == "successful"
        listed = await client.call_tool("list_jobs", {})
        (unreachable,) = data_of(listed)["unreachable"]
        assert "/nowhere/ca.pem" in unreachable["reason"]
        assert text_of(listed).count("Zone far") == 1
        unknown = await client.call_tool("wait_for_job", {"job_ids": ["none"]})
        assert "Zone far did not answer: " in text_of(unknown)
        assert "/nowhere/ca.pem" in text_of(unknown)
        asked = await client.call_tool("list_resources", {"zone": "far"})
        assert "/nowhere/ca.pem" in text_of(asked)
