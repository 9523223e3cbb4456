"""A clock that is wrong, or was: what is a repetition, what is called new, and what is forgotten."""

import json
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from snapshot_mcp.contract.states import JobAction
from snapshot_mcp.history.entry import Entry
from snapshot_mcp.history.register import JobRegister
from tests.server.lab import Lab, back_up, data_of, text_of

pytestmark = pytest.mark.anyio
MINUTE = 60
CREATE = {"resource_ids": ["web"], "name": "one"}


def correct_clock(lab: Lab, seconds: int) -> None:
    """As if what is there had been made while the clock ran so far ahead."""
    with closing(sqlite3.connect(lab.home / "zones" / "local" / "catalogue.sqlite")) as db, db:
        db.execute("UPDATE snapshots SET created_at = created_at + ?, snapshot_at = snapshot_at + ?", (seconds,) * 2)
    with closing(sqlite3.connect(lab.home / "history.sqlite")) as db, db:
        db.execute("UPDATE jobs SET submitted_at = submitted_at + ?, at = at + ?", (seconds,) * 2)


def pass_time(lab: Lab, seconds: float) -> None:
    """As if the machine had been up for so much longer since."""
    with closing(sqlite3.connect(lab.home / "zones" / "local" / "catalogue.sqlite")) as db, db:
        db.execute("UPDATE snapshots SET uptime = uptime - ?", (seconds,))
    with closing(sqlite3.connect(lab.home / "history.sqlite")) as db, db:
        for job_id, about in db.execute("SELECT job_id, about FROM jobs").fetchall():
            known = json.loads(about)
            known["uptime"] = str(float(known["uptime"]) - seconds)
            db.execute("UPDATE jobs SET about = ? WHERE job_id = ?", (json.dumps(known), job_id))


def forget_history(lab: Lab) -> None:
    for path in lab.home.glob("history.sqlite*"):
        path.unlink()


@pytest.mark.parametrize("is_remembered", [True, False])
async def test_a_corrected_clock_neither_blocks_nor_doubles_a_backup(lab: Lab, is_remembered: bool) -> None:
    """ "One made while the clock ran 30 minutes ahead answers "exists already" until the clock has caught up"."""
    await lab.add_disk("web")
    async with lab.connect() as client:
        await back_up(client, "web", "one")
        for seconds in (30 * MINUTE, -60 * MINUTE):
            correct_clock(lab, seconds)
            if not is_remembered:
                forget_history(lab)
                JobRegister(lab.home).note([Entry("elsewhere", "other", "job", boot="x", uptime="1")])
            assert data_of(await client.call_tool("create_snapshots", CREATE))["status"] == "exists"
        correct_clock(lab, 60 * MINUTE)
        pass_time(lab, 10 * MINUTE + 1)
        assert data_of(await client.call_tool("create_snapshots", CREATE))["status"] == "submitted"


@pytest.mark.parametrize(
    ("ahead", "status"), [(4 * MINUTE, "exists"), (6 * MINUTE, "submitted"), (-11 * MINUTE, "submitted")]
)
async def test_a_zone_elsewhere_is_believed_within_five_minutes(lab: Lab, ahead: int, status: str) -> None:
    """Its clock runs a little ahead of ours; more is a wrong clock, and is called one."""
    await lab.add_disk("web")
    async with lab.connect() as client:
        snapshot_id = await back_up(client, "web", "one")
        correct_clock(lab, ahead)
        forget_history(lab)
        with closing(sqlite3.connect(lab.home / "zones" / "local" / "catalogue.sqlite")) as db, db:
            db.execute("UPDATE snapshots SET boot = ''")
        result = await client.call_tool("create_snapshots", CREATE)
        assert data_of(result)["status"] == status
        is_named = f"the time of {snapshot_id} lies ahead" in text_of(result)
        assert is_named == (ahead > 5 * MINUTE)


async def test_restore_points_of_the_future_are_marked(lab: Lab, mode: str) -> None:
    """They head "newest first", so every list that shows them says so."""
    await lab.add_disk("web")
    async with lab.connect(mode) as client:
        snapshot_id = await back_up(client, "web", "one")
        correct_clock(lab, 3 * 86_400)
        for tool, arguments in (("list_snapshots", {}), ("list_resources", {}), ("show_chain", {"resource_id": "web"})):
            result = await client.call_tool(tool, arguments)
            assert f"the time of {snapshot_id} lies ahead" in data_of(result)["hint"], tool
            assert data_of(result)["hint"] in text_of(result)
        assert "3 days AHEAD of the clock" in text_of(
            await client.call_tool("list_snapshots", {})
        ) or "2 days AHEAD" in (text_of(await client.call_tool("list_snapshots", {})))


def test_a_clock_that_jumps_ahead_forgets_nothing(tmp_path: Path) -> None:
    """The history is kept for 90 days of use, not until the clock says so."""
    register = JobRegister(tmp_path)
    now = datetime.now(UTC)

    def job(number: int, days_ago: int) -> Entry:
        submitted = now - timedelta(days=days_ago)
        return Entry("place", "local", f"job-{number}", JobAction.CREATE, "successful", submitted=submitted)

    register.note([job(1, 400)])
    register.note([job(2, 0)])
    assert {one.job_id for one in register.list_since(now - timedelta(days=999))} == {"job-1", "job-2"}
    register.note([job(3, 0)])
    assert {one.job_id for one in register.list_since(now - timedelta(days=999))} == {"job-2", "job-3"}
