"""Nobody is asked to agree to what cannot be done; a zone that is not as it was is named before anything else."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from mcp.types import CallToolResult

from snapshot_mcp.providers.local.snapshot_file.format import file_name
from tests.local.test_crash import kill_worker
from tests.marks import long, modern_first
from tests.server.lab import Lab, data_of, text_of
from tests.server.test_consent import Person, two_snapshots

pytestmark = pytest.mark.anyio


def refused(result: CallToolResult, words: str) -> None:
    assert result.is_error, text_of(result)
    assert words in text_of(result)


@modern_first
async def test_in_a_copy_nobody_is_asked_and_each_disk_says_so(lab: Lab, tmp_path: Path, mode: str) -> None:
    await lab.add_disk("web")
    async with lab.connect(mode) as client:
        first, second = await two_snapshots(client, "web")
    await kill_worker(lab.home / "zones" / "local")
    there = Lab(tmp_path / "there")
    there.folder.mkdir()
    shutil.copytree(lab.home, there.home)
    async with there.connect(mode, elicitation_callback=(person := Person())) as client:
        refused(await client.call_tool("delete_snapshot", {"snapshot_id": second}), "is a copy of the one in")
        refused(await client.call_tool("delete_snapshot", {"snapshot_id": second, "plan_only": True}), "is a copy of")
        refused(await client.call_tool("rollback_to_snapshots", {"snapshot_ids": [first]}), "is a copy of the one in")
        (row,) = data_of(await client.call_tool("list_resources", {}))["resources"]
        assert "is a copy of the one in" in row["problem"]
    assert person.questions == []


@pytest.mark.parametrize("mode", ["legacy", long("auto")])
async def test_nobody_is_asked_for_a_roll_back_to_what_only_a_newer_version_reads(lab: Lab, mode: str) -> None:
    await lab.add_disk("web")
    async with lab.connect(mode, elicitation_callback=(person := Person())) as client:
        first, second = await two_snapshots(client, "web")
        with (lab.home / "zones" / "local" / "snapshots" / file_name(first)).open("r+b") as file:
            file.seek(7)
            file.write(b"\x02")
        for extra in ({}, {"plan_only": True}):
            result = await client.call_tool("rollback_to_snapshots", {"snapshot_ids": [second], **extra})
            refused(result, "was written by a newer version")
    assert person.questions == []


@modern_first
async def test_snapshot_files_that_were_moved_away_are_missed_at_once(lab: Lab, mode: str) -> None:
    """A backup was "still running" for ever: the worker began anew and anew."""
    await lab.add_disk("web")
    zone = lab.home / "zones" / "local"
    async with lab.connect(mode, elicitation_callback=(person := Person())) as client:
        _, second = await two_snapshots(client, "web")
        (zone / "snapshots").rename(zone / "gone")
        refused(
            await client.call_tool("create_snapshots", {"resource_ids": ["web"], "name": "x"}),
            "with the files of 2 snapshots, is missing",
        )
        refused(await client.call_tool("delete_snapshot", {"snapshot_id": second}), "is missing")
        (zone / "gone").rename(zone / "snapshots")
        made = await client.call_tool("create_snapshots", {"resource_ids": ["web"], "name": "x", "wait_seconds": 50})
        assert data_of(made)["outcome"] == "successful"
    assert person.questions == []


@pytest.mark.parametrize("mode", ["legacy", long("auto")])
async def test_a_catalogue_that_knows_nothing_is_not_taken_for_the_zones_own(lab: Lab, mode: str) -> None:
    await lab.add_disk("web")
    zone = lab.home / "zones" / "local"
    async with lab.connect(mode) as client:
        await two_snapshots(client, "web")
    await kill_worker(zone)
    for path in zone.glob("catalogue.sqlite*"):
        path.unlink()
    with closing(sqlite3.connect(zone / "catalogue.sqlite")) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA user_version = 0")
    async with lab.connect(mode) as client:
        for tool, arguments in (
            ("list_snapshots", {}),
            ("list_resources", {}),
            ("create_snapshots", {"resource_ids": ["web"], "name": "x"}),
        ):
            refused(await client.call_tool(tool, arguments), "but 2 snapshot files are in")


@pytest.mark.parametrize("mode", ["auto", long("legacy")])
async def test_files_that_an_older_catalogue_does_not_know_are_named_by_the_lists(lab: Lab, mode: str) -> None:
    """ "NOT COVERED", "the zone has no snapshots yet", beside a file that has one."""
    await lab.add_disk("web")
    zone = lab.home / "zones" / "local"
    await kill_worker(zone)
    with closing(sqlite3.connect(zone / "catalogue.sqlite")) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    kept = (zone / "catalogue.sqlite").read_bytes()
    async with lab.connect(mode) as client:
        await two_snapshots(client, "web")
    await kill_worker(zone)
    for path in zone.glob("catalogue.sqlite*"):
        path.unlink()
    (zone / "catalogue.sqlite").write_bytes(kept)
    async with lab.connect(mode) as client:
        for tool in ("list_resources", "list_snapshots"):
            result = await client.call_tool(tool, {})
            assert "2 snapshot files are in the zone's folder that its catalogue does not know" in text_of(result)
            assert "zone rebuild" in data_of(result)["hint"]
