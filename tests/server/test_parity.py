"""Every tool in every outcome says the same in both forms of its result (`parity`), and its structure is lean.

The conversations (`test_conversations.py`) compare what an owner meets on most days; here are the outcomes that are rarer.
"""

import fcntl
import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import pytest
from mcp import Client
from mcp.types import CallToolResult, ElicitResult, TextContent

from snapshot_mcp import app
from snapshot_mcp.contract.models import Job
from snapshot_mcp.contract.provider import Feature
from snapshot_mcp.contract.states import ResourceType
from snapshot_mcp.guard import Guard, Policy, Status
from snapshot_mcp.providers.local import LocalZone
from snapshot_mcp.server.build import build_server, build_tools
from tests.disks import worker_pid
from tests.server.lab import Lab, back_up, data_of, text_of
from tests.server.parity import differences
from tests.server.test_consent import Person

pytestmark = pytest.mark.anyio
WAIT = {"wait_seconds": 50}
TWO_ZONES = """
[zones.local]
provider = "local"
[zones.far]
provider = "anchcloud"
url = "http://127.0.0.1:9"
client_id = "k"
client_secret = "s"
"""


async def agrees(context: Any, params: Any) -> ElicitResult:
    """A person who agrees to everything, with the word or the name that is asked for."""
    name = next(one for one in ("pg-data", "deleted") if f"“{one}”" in params.message)
    words = params.requested_schema["properties"]["answer"].get("enum", ["keep", name])
    return ElicitResult(action="accept", content={"answer": words[-1]})


class Seen:
    """Calls tools, compares the two forms of each result, and notes which outcomes there were."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.outcomes: set[tuple[str, str]] = set()

    async def call(self, tool: str, expected: str, **arguments: Any) -> dict[str, Any]:
        result = await self.client.call_tool(tool, arguments)
        assert outcome_of(result) == expected, text_of(result)
        assert "\n".join(differences(result)) == "", text_of(result)
        self.outcomes.add((tool, expected))
        return dict(result.structured_content or {})


def outcome_of(result: CallToolResult) -> str:
    """How a call went, in a word or two."""
    if result.is_error:
        return "error"
    data = result.structured_content or {}
    rows = next(
        (data[name] for name in ("snapshots", "resources", "jobs", "lines") if isinstance(data.get(name), list)), None
    )
    word = data.get("status") or ("list" if rows else "empty")
    return " ".join(filter(None, (data.get("status") or (word if "outcome" not in data else ""), data.get("outcome"))))


@contextmanager
def stopped(lab: Lab) -> Iterator[None]:
    """Hold the zone's worker, as if its jobs took long."""
    pid = worker_pid(lab.home / "zones" / "local")
    assert pid
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def jobs_end(client: Client) -> None:
    """Wait until nothing runs any more."""
    if ids := [job["job_id"] for job in data_of(await client.call_tool("list_jobs", {}))["jobs"]]:
        await client.call_tool("wait_for_job", {"job_ids": ids, "timeout_seconds": 50})


async def test_what_reads_says_the_same_twice(lab: Lab) -> None:
    disk = await lab.add_disk("pg-data")
    await lab.add_disk("empty", kind=ResourceType.INSTANCE)
    async with lab.connect(elicitation_callback=agrees) as client:
        seen = Seen(client)
        await seen.call("list_snapshots", "empty")
        await seen.call("show_chain", "empty", resource_id="empty")
        ids = [await back_up(client, "pg-data", f"night {night}", full=night == 3) for night in range(7)]
        await seen.call("list_snapshots", "list")
        await seen.call("list_snapshots", "list", limit=2, offset=2)
        await seen.call(
            "list_snapshots", "list", snapshot_type="full", resource_id=disk.id, status=["available"], root_id=ids[3]
        )
        await seen.call("list_snapshots", "empty", search="nigth", tags=["a"])
        await seen.call("list_snapshots", "empty", snapshot_ids=["ss-none0000"])
        await seen.call("list_snapshots", "error", resource_id="pg-dat")
        await client.call_tool("rename_snapshot", {"snapshot_id": ids[3], "description": "a\nb", "tags": ["x", "y"]})
        damaged = lab.home / "zones" / "local" / "snapshots" / f"{ids[3]}.snap"
        damaged.write_bytes(damaged.read_bytes()[:-40])
        failed = await seen.call("verify_snapshots", "submitted failed", snapshot_ids=[ids[5]], **WAIT)
        assert ids[3] in failed["error"]
        await seen.call("verify_snapshots", "error", snapshot_ids=["ss-none0000"])
        await seen.call("list_snapshots", "list", verbose=True)
        await seen.call("delete_snapshot", "started successful", snapshot_id=ids[1], **WAIT)
        await seen.call("list_snapshots", "list", status=["deleted"], verbose=True)
        await seen.call("list_snapshots", "list", tags=["x"], verbose=True)
        await seen.call("show_chain", "list", resource_id="pg-data")
        await seen.call("list_resources", "list")
        await seen.call("list_resources", "list", search="pg")
        await seen.call("list_resources", "empty", search="pgdata")
        await seen.call("list_resources", "empty", kind="image")
        await seen.call("list_jobs", "list", since="7d")
        await seen.call("list_jobs", "empty", since="2999-01-01")
        await seen.call("list_jobs", "error", since="yesterday")
    read_only = {tool.name for tool in build_tools(read_only=True)} - {"wait_for_job"}
    assert {tool for tool, _ in seen.outcomes} >= read_only


async def test_what_changes_says_the_same_twice(lab: Lab) -> None:
    await lab.add_disk("pg-data")
    await lab.add_disk("web", kind=ResourceType.INSTANCE)
    async with lab.connect() as client:
        seen = Seen(client)
        machine = await back_up(client, "web", "w")
        made = await seen.call("create_snapshots", "submitted successful", resource_ids=["pg-data"], name="one", **WAIT)
        snapshot_id = made["made"][0]["snapshot_id"]
        await seen.call("create_snapshots", "exists", resource_ids=["pg-data"], name="one", full=True)
        await seen.call("create_snapshots", "error", resource_ids=["pg-dat"], name="one")
        volume, image = {"snapshot_id": snapshot_id, "volume_name": "v"}, {"snapshot_id": machine, "image_name": "i"}
        for tool, given in (("export_to_volume", volume), ("export_to_image", image)):
            await seen.call(tool, "submitted", **given)
            await seen.call(tool, "submitted successful", **given, **WAIT)
        await seen.call("export_to_volume", "error", snapshot_id=machine, volume_name="v")
        submitted = await seen.call("verify_snapshots", "submitted", snapshot_ids=[snapshot_id])
        await seen.call("wait_for_job", "successful", job_ids=[submitted["job_id"], made["job_id"]])
        await seen.call("wait_for_job", "error", job_ids=["none"])
        await seen.call("list_resources", "list", kind="image")
        await seen.call("rename_snapshot", "done", snapshot_id=snapshot_id, name="two", description="d", tags=["x"])
        await seen.call("rename_snapshot", "done", snapshot_id=snapshot_id, tags=[""], description=" ")
        await lab.delete(snapshot_id)
        await seen.call("recover_snapshots", "submitted", snapshot_ids=[snapshot_id])
        await jobs_end(client)
        await lab.delete(snapshot_id)
        await seen.call("recover_snapshots", "submitted successful", snapshot_ids=[snapshot_id], **WAIT)
        await seen.call("recover_snapshots", "error", snapshot_ids=["ss-none0000"])
    every = {tool.name for tool in build_tools()} - {tool.name for tool in build_tools(read_only=True)}
    assert {tool for tool, _ in seen.outcomes} >= every - {"delete_snapshot", "rollback_to_snapshots", "cancel_job"}


async def test_what_is_still_running_or_was_cancelled_says_the_same_twice(lab: Lab) -> None:
    await lab.add_disk("pg-data")
    async with lab.connect() as client:
        seen = Seen(client)
        snapshot_id = await back_up(client, "pg-data", "one")
        create = {"resource_ids": ["pg-data"], "name": "two"}
        with stopped(lab):
            running = await seen.call("create_snapshots", "submitted still_running", **create, wait_seconds=0.1)
            await seen.call("create_snapshots", "exists", **create)
            await seen.call("create_snapshots", "exists still_running", **create, wait_seconds=0.1)
            await seen.call("list_jobs", "list")
            await seen.call("list_resources", "list")
            await seen.call("wait_for_job", "still_running", job_ids=[running["job_id"]], timeout_seconds=0)
            await seen.call("cancel_job", "cancelled", job_id=running["job_id"])
            await seen.call("cancel_job", "error", job_id="none")
            await seen.call("wait_for_job", "failed", job_ids=[running["job_id"]])
            await seen.call("export_to_volume", "submitted", snapshot_id=snapshot_id, volume_name="copy")
        await jobs_end(client)


async def test_a_failed_job_says_the_same_twice(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tool that submits a job; the zone says of each that it has failed."""
    disks = ("new", "copied", "read", "recovered", "deleted")
    for name in disks:
        await lab.add_disk(name)
    await lab.add_disk("web", kind=ResourceType.INSTANCE)
    async with lab.connect() as client:  # one disk a call: in truth the jobs go on
        point = {name: await back_up(client, name, f"of {name}") for name in (*disks, "web")}
    await lab.delete(point["recovered"])
    finished: Callable[..., Any] = LocalZone.get_job

    async def get_job(self: LocalZone, job_id: str) -> Job:
        job: Job = await finished(self, job_id)
        return job.model_copy(update={"status": "failed", "info": "the disk is\ngone at 100 MiB"})

    async def list_unfinished_jobs(self: LocalZone) -> tuple[Job, ...]:
        return ()

    monkeypatch.setattr(LocalZone, "get_job", get_job)
    monkeypatch.setattr(LocalZone, "list_unfinished_jobs", list_unfinished_jobs)
    monkeypatch.setattr(LocalZone, "features", LocalZone.features - {Feature.WATCH})
    failed = "submitted failed"
    async with lab.connect(elicitation_callback=agrees) as client:
        seen = Seen(client)
        made = await seen.call("create_snapshots", failed, resource_ids=["new"], name="two", **WAIT)
        await seen.call("wait_for_job", "failed", job_ids=[made["job_id"]])
        await seen.call("export_to_volume", failed, snapshot_id=point["copied"], volume_name="copy", **WAIT)
        await seen.call("export_to_image", failed, snapshot_id=point["web"], image_name="copy", **WAIT)
        await seen.call("verify_snapshots", failed, snapshot_ids=[point["read"]], **WAIT)
        await seen.call("recover_snapshots", failed, snapshot_ids=[point["recovered"]], **WAIT)
        await seen.call("delete_snapshot", "started failed", snapshot_id=point["deleted"], **WAIT)


async def test_every_status_of_a_guarded_call_says_the_same_twice(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = await lab.add_disk("pg-data")
    async with lab.connect(elicitation_callback=Person("keep")) as client:
        seen = Seen(client)
        ids = [await back_up(client, "pg-data", name) for name in ("one", "two", "three", "four", "five")]
        await seen.call("delete_snapshot", "plan", snapshot_id=ids[2], plan_only=True)
        await seen.call("delete_snapshot", "error", snapshot_id="ss-none0000")
        await seen.call("delete_snapshot", "declined", snapshot_id=ids[2])
    async with lab.connect(elicitation_callback=agrees) as seen.client:
        client = seen.client
        await seen.call("delete_snapshot", "started", snapshot_id=ids[4])
        await seen.call("rollback_to_snapshots", "plan", snapshot_ids=[ids[0]], plan_only=True)
        await seen.call("rollback_to_snapshots", "error", snapshot_ids=["ss-none0000"])
        with Path(disk.path or "").open("rb") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            await seen.call("rollback_to_snapshots", "error", snapshot_ids=[ids[0]])
            await seen.call("rollback_to_snapshots", "plan", snapshot_ids=[ids[0]], plan_only=True)
        await seen.call("rollback_to_snapshots", "started", snapshot_ids=[ids[0]])
        await jobs_end(client)
        await seen.call(
            "rollback_to_snapshots", "started successful", snapshot_ids=[ids[1]], safety_snapshot=False, **WAIT
        )
        (lab.folder / "config.toml").write_text("[guard]\nminimum_age_hours = 1\n", encoding="utf-8")
        await seen.call("delete_snapshot", "refused", snapshot_id=ids[3])
        await seen.call("delete_snapshot", "plan", snapshot_id=ids[3], plan_only=True)
        (lab.folder / "config.toml").write_text("", encoding="utf-8")
        with stopped(lab):
            await seen.call("rollback_to_snapshots", "started still_running", snapshot_ids=[ids[2]], wait_seconds=0.1)
        await jobs_end(client)
    async with lab.connect() as client:
        mute = Seen(client)
        asked = await mute.call("delete_snapshot", "needs_approval", snapshot_id=ids[3])
        await app.build_guard(lab.settings).approve(asked["approval_id"], None)
        await lab.roll_back(ids[3])
        await back_up(client, "pg-data", "six")
        await mute.call("delete_snapshot", "plan_changed", snapshot_id=ids[3])
        back = await mute.call("rollback_to_snapshots", "needs_approval", snapshot_ids=[ids[0]])
    monkeypatch.setattr(LocalZone, "features", LocalZone.features - {Feature.ONE_HOLD})
    hasty = build_server(app.build_zones(lab.settings), lambda: Guard(lab.home, Policy(), safety_wait_seconds=0))
    async with Client(hasty) as client:
        slow = Seen(client)
        await app.build_guard(lab.settings).approve(back["approval_id"], None)
        with stopped(lab):
            await slow.call("rollback_to_snapshots", "safety_running", snapshot_ids=[ids[0]])
        await jobs_end(client)
        await slow.call("rollback_to_snapshots", "started", snapshot_ids=[ids[0]])
        await jobs_end(client)
    statuses = {outcome.split()[0] for one in (seen, mute, slow) for _, outcome in one.outcomes}
    assert statuses == {*get_args(Status), "error"}


@pytest.mark.long
async def test_a_zone_that_does_not_answer_says_the_same_twice(lab: Lab) -> None:
    (lab.folder / "config.toml").write_text(TWO_ZONES.format(lab.folder), encoding="utf-8")
    (lab.folder / "config.toml").chmod(0o600)
    async with lab.connect() as client:
        seen = Seen(client)
        await seen.call("list_jobs", "empty")
        await seen.call("list_jobs", "empty", finished=True)
        await seen.call("list_jobs", "error", zone="far")
        await seen.call("list_resources", "error", zone="far")
        await seen.call("wait_for_job", "error", job_ids=["none"])


@pytest.mark.parametrize(
    ("text", "structure", "expected"),
    [
        ("Snapshot ss-1.", {"snapshot_id": "ss-2"}, ["only in the structure: snapshot_id: ss-2", "only in the text: ss-1"]),
        ("2.0 KiB", {"stored_bytes": 1024}, ["only in the structure: stored_bytes: 1.0 KiB", "only in the text: 2.0 KiB"]),
        ("at /var/a.img", {}, ["only in the text: /var/a.img"]),
        ("Run `snapshot-mcp pin`.", {}, ["only in the text: snapshot-mcp pin"]),
        ("5 disks", {"resources": [1, 2]}, ["only in the structure: resources: 1", "only in the text: 5"]),
        ("ss-1", {"snapshot_id": "ss-1", "is_head": True}, ["only in the structure: is_head: head"]),
        ("2026-11-26T08:00:00Z", {}, ["only in the text: 2026-11-26T08:00:00Z"]),
        ("", {"hint": ""}, ["not lean: {'hint': ''}"]),
        ("", {"is_head": False}, ["not lean: {'is_head': False}"]),
    ],
)  # fmt: skip
async def test_the_comparison_sees_what_is_missing(text: str, structure: dict[str, Any], expected: list[str]) -> None:
    found = differences(CallToolResult(content=[TextContent(type="text", text=text)], structured_content=structure))
    assert [one for one in found if not one.endswith("resources: 2")] == expected


async def test_a_list_and_a_chain_of_seven_are_hardly_longer_as_structures(lab: Lab) -> None:
    """At most 1.6 times the text, as compact JSON."""
    await lab.add_disk("pg-data")
    async with lab.connect() as client:
        for night in range(7):
            await back_up(client, "pg-data", f"night {night}")
        for tool in ("list_snapshots", "show_chain"):
            result = await client.call_tool(tool, {"resource_id": "pg-data"})
            structure = json.dumps(result.structured_content, ensure_ascii=False, separators=(",", ":"))
            assert len(structure) <= 1.6 * len(text_of(result)), tool
