"""The record says how each act ended, and the commands say what became of each approval (GUARD.md, "Records": "each plan,
question, answer, act and how it ended, renames, registrations, purges")."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest
from mcp.types import ElicitResult

from snapshot_mcp import app
from snapshot_mcp.contract.errors import NotFound, OutcomeUnknown, ZoneError
from snapshot_mcp.contract.models import Snapshot, SnapshotUpdate
from snapshot_mcp.guard.consent.approvals import Approvals
from snapshot_mcp.guard.consent.audit import Audit
from snapshot_mcp.guard.consent.database import Database
from snapshot_mcp.guard.consent.journal import Deed, Journal
from snapshot_mcp.guard.consent.register import Register
from snapshot_mcp.zones import Zone
from tests.conftest import end_worker
from tests.guard.conftest import nobody
from tests.guard.test_states import HandClock
from tests.marks import long
from tests.patience import PATIENCE_SECONDS
from tests.server.lab import Lab, back_up, data_of
from tests.whole_way.workers import Nursery

pytestmark = pytest.mark.anyio


@pytest.fixture
def lab(tmp_path: Path, nursery: Nursery) -> Iterator[Lab]:
    yield Lab(tmp_path, nursery=nursery)
    end_worker(tmp_path / "home" / "zones" / "local")
    shutil.rmtree(tmp_path / "home", ignore_errors=True)


async def yes(context: Any, params: Any) -> ElicitResult:
    """A person who agrees to whatever is asked."""
    field = params.requested_schema["properties"]["answer"]
    word = field["enum"][1] if "enum" in field else field["description"].split("“")[1].rstrip("”")
    return ElicitResult(action="accept", content={"answer": word})


async def command(lab: Lab, *words: str) -> subprocess.CompletedProcess[str]:
    """A command of a person's shell, without a terminal."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("SNAPSHOT_MCP_")}
    environ = clean | lab.environ | {"COLUMNS": "200"}
    run = [sys.executable, "-m", "snapshot_mcp", *words]
    return await anyio.to_thread.run_sync(
        lambda: subprocess.run(run, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    )


def records(lab: Lab, event: str) -> list[dict[str, Any]]:
    return [one for one in app.build_guard(lab.settings).audit.records() if one["event"] == event]


async def deleted(lab: Lab, wait: bool) -> str:
    """A deletion that a person agreed to through the host; the job's id. With `wait` the server sees it end."""
    await lab.add_disk("web")
    async with lab.connect(elicitation_callback=yes) as client:
        await back_up(client, "web", "full")
        last = await back_up(client, "web", "monday")
        started = data_of(await client.call_tool("delete_snapshot", {"snapshot_id": last}))
        assert started["status"] == "started"
        if wait:
            await client.call_tool("wait_for_job", {"job_ids": [started["job_id"]]})
        return str(started["job_id"])


async def ended(lab: Lab, job_id: str) -> None:
    """Wait past the guard."""
    async with app.build_zones(lab.settings) as zones:
        await zones.get().watcher.wait([job_id], PATIENCE_SECONDS)


async def test_the_end_that_the_server_sees_is_recorded_once(lab: Lab) -> None:
    """“whoever next looks at the zone from this home writes the ends that are missing”, each once, door and person with it."""
    job_id = await deleted(lab, wait=True)
    (end,) = records(lab, "ended")
    assert (end["job_id"], end["status"], end["operation"]) == (job_id, "successful", "delete")
    assert (end["door"], end["by"], end["principal"]) == ("client", "local", "local")
    async with lab.connect() as client:
        await client.call_tool("wait_for_job", {"job_ids": [job_id]})
        await client.call_tool("list_jobs", {})
    await command(lab, "audit")
    assert len(records(lab, "ended")) == 1
    assert app.build_guard(lab.settings).audit.verify().problem == ""


@pytest.mark.parametrize("look", ["list_jobs", "guarded call", long("approvals"), long("audit")])
async def test_an_end_that_nobody_saw_is_recorded_by_the_next_look(lab: Lab, look: str) -> None:
    """The process that started it is gone when it ends."""
    job_id = await deleted(lab, wait=False)
    await ended(lab, job_id)
    assert records(lab, "ended") == []
    async with lab.connect() as client:
        match look:
            case "list_jobs":
                await client.call_tool("list_jobs", {})
            case "guarded call":
                full = data_of(await client.call_tool("list_snapshots", {}))["snapshots"][0]
                await client.call_tool("delete_snapshot", {"snapshot_id": full["snapshot_id"]})
            case _:
                await command(lab, look)
    assert [one["job_id"] for one in records(lab, "ended")] == [job_id]


def forget_job(lab: Lab, job_id: str) -> None:
    with closing(sqlite3.connect(lab.home / "zones" / "local" / "catalogue.sqlite", isolation_level=None)) as db:
        db.execute("DELETE FROM jobs WHERE job_id = ?", (job_id,))


@pytest.mark.long
async def test_until_then_the_commands_say_that_the_end_is_not_known_yet(lab: Lab) -> None:
    """“until then `audit` and `approvals --all` say "end not known yet"”."""
    job_id = await deleted(lab, wait=False)
    await ended(lab, job_id)
    shutil.move(lab.home / "zones", lab.home / "elsewhere")
    (lab.folder / "config.toml").write_text('[zones.other]\nprovider = "local"\n', encoding="utf-8")
    for words in (["audit"], ["approvals", "--all"]):
        assert "end not known yet" in (await command(lab, *words)).stdout
    (approval,) = json.loads((await command(lab, "approvals", "--all", "--json")).stdout)
    assert approval["job_end"] == {"status": "not known yet"}
    lines = (await command(lab, "audit", "--json")).stdout.splitlines()
    (started,) = [one for one in map(json.loads, lines) if one["event"] == "started"]
    assert started["end"] == "not known yet"
    (lab.folder / "config.toml").write_text("", encoding="utf-8")
    shutil.move(lab.home / "elsewhere", lab.home / "zones")
    assert "end not known yet" not in (await command(lab, "audit")).stdout
    shown = (await command(lab, "approvals", "--all")).stdout
    assert "Approved by local through the host's dialog." in shown
    assert f"It was started as job {job_id}: it ended successfully." in shown
    (approval,) = json.loads((await command(lab, "approvals", "--all", "--json")).stdout)
    assert (approval["door"], approval["decided_by"], approval["job_id"]) == ("client", "local", job_id)
    assert approval["job_end"]["status"] == "successful"


@pytest.mark.long
async def test_a_job_that_the_zone_has_forgotten_has_an_unknown_end(lab: Lab) -> None:
    """“A job that the zone has forgotten is recorded as "end unknown: the zone no longer knows the job"”."""
    job_id = await deleted(lab, wait=False)
    await ended(lab, job_id)
    forget_job(lab, job_id)
    assert "end unknown: the zone no longer knows the job" in (await command(lab, "audit")).stdout
    assert "end unknown: the zone no longer knows the job" in (await command(lab, "approvals", "--all")).stdout
    assert [one["status"] for one in records(lab, "ended")] == ["unknown"]


async def test_a_rename_is_recorded_with_both_names_and_who_did_it(lab: Lab) -> None:
    """“Renames are recorded with the old and the new name and by whom”: a name can be changed right before the question."""
    await lab.add_disk("web")
    async with lab.connect() as client:
        snapshot_id = await back_up(client, "web", "keep me")
        for name in ("old junk", "older junk"):
            await client.call_tool("rename_snapshot", {"snapshot_id": snapshot_id, "name": name})
        await client.call_tool("rename_snapshot", {"snapshot_id": snapshot_id, "description": "nothing of its name"})
        await client.call_tool("rename_snapshot", {"snapshot_id": snapshot_id, "name": "older junk"})
    first, second = records(lab, "rename")
    assert (first["arguments"]["old_name"], first["arguments"]["name"]) == ("keep me", "old junk")
    assert (second["arguments"]["old_name"], second["arguments"]["snapshot_id"]) == ("old junk", snapshot_id)
    assert (first["by"], first["door"], first["client"]) == ("local", "client", "mcp 0.1.0")
    assert [one["status"] for one in records(lab, "ended")] == ["successful", "successful"]
    shown = (await command(lab, "audit")).stdout
    assert f"rename {snapshot_id} from “keep me” to “old junk” in local" in shown
    assert "not known yet" not in shown


async def test_the_question_names_a_recent_rename(lab: Lab) -> None:
    """“the question names a recent rename”: made over MCP right before, by whoever asks for the deletion."""
    await lab.add_disk("web")
    asked: list[str] = []

    async def no(context: Any, params: Any) -> ElicitResult:
        asked.append(params.message)
        return ElicitResult(action="accept", content={"answer": "keep"})

    async with lab.connect(elicitation_callback=no) as client:
        await back_up(client, "web", "full")
        snapshot_id = await back_up(client, "web", "before the migration")
        await client.call_tool("rename_snapshot", {"snapshot_id": snapshot_id, "name": "tmp junk"})
        await client.call_tool("delete_snapshot", {"snapshot_id": snapshot_id})
    assert "tmp junk" in asked[0]
    assert "before the migration" in asked[0]


async def test_a_rename_that_the_zone_refuses_is_recorded_as_refused(lab: Lab) -> None:
    await lab.add_disk("web")
    guard, unknown = app.build_guard(lab.settings), Snapshot(snapshot_id="ss-gone", snapshot_name="keep me")

    async def rename(zone: Zone) -> None:
        async with guard.renaming(zone, unknown, SnapshotUpdate(snapshot_name="junk"), nobody()):
            await zone.provider.update_snapshot("ss-gone", SnapshotUpdate(snapshot_name="junk"))

    async with app.build_zones(lab.settings) as zones:
        with pytest.raises(NotFound):
            await rename(zones.get())
    assert [(one["status"], one["code"]) for one in records(lab, "ended")] == [("failed", "not_found")]


def pass_time(clock: HandClock, seconds: float) -> None:
    clock.wall += seconds
    clock.uptime += seconds


def test_recent_names_are_known_for_a_day(tmp_path: Path) -> None:
    """“(snapshot_id → old name, moment; last 24 h)”: the oldest name of the day, which is the one that people know."""
    clock = HandClock()
    database = Database(tmp_path / "home")
    register = Register(database, Audit(database), clock)
    store, journal = Approvals(register), Journal(register)

    def rename(snapshot_id: str, old: str, new: str, location: str = "/zone", error: ZoneError | None = None) -> None:
        names = {"snapshot_id": snapshot_id, "old_name": old, "name": new}
        deed = Deed("rename", "local", location, "local", "client", names)
        journal.end(journal.begin(deed), deed, error)

    assert store.history("/zone", ()).renames == {}
    rename("ss-1", "prod", "tmp")
    at = clock.read().time
    pass_time(clock, 60)
    rename("ss-1", "tmp", "junk")
    rename("ss-2", "there", "and")
    rename("ss-2", "and", "there")
    rename("ss-3", "elsewhere", "x", location="/other")
    rename("ss-4", "refused", "x", error=NotFound("no such snapshot"))
    rename("ss-5", "perhaps", "x", error=OutcomeUnknown("the answer was lost"))
    found = store.history("/zone", ()).renames
    assert (found["ss-1"], sorted(found)) == (("prod", at), ["ss-1", "ss-5"])
    pass_time(clock, 24 * 3600 - 60)
    assert store.history("/zone", ()).renames["ss-1"][0] == "tmp"
    pass_time(clock, 61)
    assert store.history("/zone", ()).renames == {}
