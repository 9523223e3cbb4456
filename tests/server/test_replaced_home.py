"""A home that is removed, replaced or restored under a running server: its records go with it, and who waits hears of it."""

import shutil
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from mcp import Client
from mcp.types import CallToolResult

from snapshot_mcp import app
from snapshot_mcp.ground import sqlite
from snapshot_mcp.guard.consent.database import MIGRATIONS
from snapshot_mcp.providers.local import LocalZone
from tests.local.test_agreed import standing_still
from tests.local.test_crash import kill_worker
from tests.marks import modern_first
from tests.patience import PATIENCE_SECONDS
from tests.server.lab import Lab, back_up, data_of, text_of
from tests.server.test_consent import Person, two_snapshots

pytestmark = pytest.mark.anyio


def leave_records_of_an_earlier_version(home: Path) -> None:
    """An empty guard.sqlite of the first format, and no history."""
    for path in home.glob("*.*"):
        path.unlink()
    sqlite.open_migrated(home / "guard.sqlite", MIGRATIONS[:1], busy_seconds=1).close()


@modern_first
async def test_a_home_that_is_restored_under_a_server_is_used(lab: Lab, mode: str) -> None:
    """A deletion, then a backup of the home from before it, by an earlier version too: approvals, record and history are its."""
    zone, kept = lab.home / "zones" / "local", lab.folder / "kept"
    await lab.add_disk("web")
    async with lab.connect(mode, elicitation_callback=Person("delete", "delete")) as client:
        _, second = await two_snapshots(client, "web")
        await kill_worker(zone)
        shutil.copytree(lab.home, kept)
        leave_records_of_an_earlier_version(kept)
        for _ in range(2):
            deleted = data_of(await client.call_tool("delete_snapshot", {"snapshot_id": second, "wait_seconds": 50}))
            assert deleted["outcome"] == "successful"
            done = data_of(await client.call_tool("list_jobs", {"finished": True}))["jobs"]
            assert [row["action"] for row in done].count("deletion") == 1, done
            verdict = app.build_guard(lab.settings).audit.verify()
            assert (verdict.records > 0, verdict.problem, verdict.note) == (True, "", "")
            await kill_worker(zone)
            shutil.rmtree(lab.home)
            shutil.copytree(kept, lab.home)


async def test_a_wait_ends_when_the_home_is_removed(lab: Lab, mode: str) -> None:
    """ "submitted", "the job is kept", for what no worker can see."""
    await lab.add_disk("web")
    zone = LocalZone(lab.home / "zones" / "local")
    async with lab.connect(mode) as client:
        await back_up(client, "web", "first")
        with standing_still(zone):
            made = data_of(await client.call_tool("create_snapshots", {"resource_ids": ["web"], "name": "second"}))
            await kill_worker(zone.folder)
            with anyio.fail_after(PATIENCE_SECONDS):
                waited = await removed_while_waiting(client, lab, made["job_id"])
        assert waited.is_error
        assert made["job_id"] in text_of(waited)
        again = await client.call_tool("create_snapshots", {"resource_ids": ["web"], "name": "third"})
        assert again.is_error
        assert "There is no disk or machine" in text_of(again)


async def removed_while_waiting(client: Client, lab: Lab, job_id: str) -> CallToolResult:
    """Return what the wait answers: it is entered before the list, whose answer is the sign to remove the home."""
    answers: list[CallToolResult] = []

    async def wait() -> None:
        answers.append(await client.call_tool("wait_for_job", {"job_ids": [job_id], "timeout_seconds": 50}))

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        await anyio.lowlevel.checkpoint()
        await client.call_tool("list_snapshots", {})
        assert not answers
        shutil.rmtree(lab.home)
    return answers[0]
