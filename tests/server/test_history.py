"""`list_jobs` with `finished`, and `snapshot-mcp jobs`: what was done, how it ended, who asked and who approved."""

import json
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from snapshot_mcp.cli import main
from snapshot_mcp.contract.errors import NotFound, Unsupported
from snapshot_mcp.contract.models import Job, Page
from snapshot_mcp.contract.provider import Feature
from snapshot_mcp.contract.states import JobAction
from snapshot_mcp.providers.local import LocalZone
from tests.guard.test_attacks import Victim
from tests.guard.test_attacks import victim as victim
from tests.guard.test_tokens import EVERYBODY, serve
from tests.patience import PATIENCE_SECONDS
from tests.server.lab import Lab, back_up, data_of, finish, text_of
from tests.server.test_consent import Person

pytestmark = pytest.mark.anyio
FINISHED = {"finished": True}
HOUR = timedelta(hours=1)


@asynccontextmanager
async def history(lab: Lab, mode: str = "auto", **arguments: Any) -> AsyncIterator[list[dict[str, Any]]]:
    async with lab.connect(mode) as client:
        result = await client.call_tool("list_jobs", FINISHED | arguments)
        rows = data_of(result)["jobs"]
        for row in rows:
            for part in (
                row["job_id"],
                row["action"],
                row["status"],
                *row.get("snapshots", ()),
                row.get("asked_by", ""),
            ):
                assert part in text_of(result)
        yield rows


async def test_what_was_done_and_who_approved_is_one_call(lab: Lab, mode: str) -> None:
    """It outlives the server that did it, and another server on the home knows it too."""
    await lab.add_disk("web")
    async with lab.connect(mode, elicitation_callback=(person := Person("web"))) as client:
        kept = await back_up(client, "web", "kept")
        gone = await back_up(client, "web", "gone", full=True)
        deleted = await client.call_tool("delete_snapshot", {"snapshot_id": gone, "wait_seconds": 50})
        assert data_of(deleted).get("outcome") == "successful", person.questions
        assert "not done yet" not in text_of(deleted)
        exported = await client.call_tool(
            "export_to_volume", {"snapshot_id": kept, "volume_name": "copy", "wait_seconds": 50}
        )
    async with history(lab, mode) as rows:
        by_action = {row["action"]: row for row in rows}
        assert [row["action"] for row in rows].count("backup") == 2
        deletion = by_action["deletion"]
        assert deletion["status"] == "successful"
        assert f"{gone} “gone”" in deletion["snapshots"]
        assert deletion["approved_through"] == "client"
        assert deletion["asked_by"] == deletion["approved_by"] == "local"
        export = by_action["export to a new volume"]
        assert export["job_id"] == data_of(exported)["job_id"]
        assert export["made"][0].endswith("“copy”")
        assert len({row["job_id"] for row in rows}) == len(rows) == 4


async def test_since_when_is_asked_for_in_words_that_people_use(lab: Lab) -> None:
    await lab.add_disk("web")
    async with lab.connect() as client:
        await back_up(client, "web", "one")
        for since in ("1h", "7d", "24h", "2020-01-01", "2020-01-01T00:00:00Z"):
            assert len(data_of(await client.call_tool("list_jobs", {"since": since}))["jobs"]) == 1
        assert data_of(await client.call_tool("list_jobs", {"since": "2999-01-01T00:00:00Z"}))["jobs"] == []
        wrong = await client.call_tool("list_jobs", {"since": "yesterday"})
        assert wrong.is_error
        assert "24h" in text_of(wrong)


async def test_a_provider_that_forgets_its_jobs_is_remembered_for(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    await lab.add_disk("web")
    async with lab.connect() as client:
        await back_up(client, "web", "remembered")

    async def forgets(zone: LocalZone, job_id: str) -> Job:
        raise NotFound(f"There is no job {job_id}.")

    async def lists_none(zone: LocalZone, *arguments: Any) -> Any:
        raise Unsupported("It lists no finished jobs.")

    monkeypatch.setattr(LocalZone, "get_job", forgets)
    monkeypatch.setattr(LocalZone, "list_finished_jobs", lists_none)
    monkeypatch.setattr(LocalZone, "features", LocalZone.features - {Feature.HISTORY})
    async with history(lab) as (row,):
        assert (row["action"], row["status"]) == ("backup", "successful")
        assert row["snapshots"][0].endswith("“remembered”")
        assert row["disks"][0].endswith("“web”")


async def test_a_broken_register_costs_no_job(lab: Lab) -> None:
    """An odd row still has its job; without a readable file jobs run, and the list says what it lacks."""
    await lab.add_disk("web")
    path = lab.home / "history.sqlite"
    async with lab.connect() as client:
        await back_up(client, "web", "one")
        with closing(sqlite3.connect(path)) as db, db:
            db.execute("UPDATE jobs SET about = '[1]'")
        listed = await client.call_tool("list_jobs", FINISHED)
        assert [row["action"] for row in data_of(listed)["jobs"]] == ["backup"]
        for leftover in lab.home.glob("history.sqlite*"):
            leftover.unlink()
        path.write_bytes(b"no database" * 999)
        await back_up(client, "web", "two")
        listed = await client.call_tool("list_jobs", FINISHED)
    assert [row["action"] for row in data_of(listed)["jobs"]] == ["backup", "backup"]
    assert "cannot be used" in text_of(listed)


def job(number: int, status: str, begun: datetime, ended: datetime | None = None) -> Job:
    return Job(
        job_id=f"job-{number}",
        action=JobAction.CREATE,
        status=status,
        create_time=begun,
        finished_time=ended,
    )


@pytest.fixture
def many_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A zone with one old job that runs, and eighty that have ended since."""
    now = datetime.now(UTC)
    ended = tuple(job(number, "successful", now - HOUR, now) for number in range(80))

    async def unfinished(zone: LocalZone) -> tuple[Job, ...]:
        return (job(99, "working", now - 3 * HOUR),)

    async def finished(zone: LocalZone, since: datetime, limit: int) -> Page[Job]:
        return Page(items=ended[:limit], total_count=80)

    monkeypatch.setattr(LocalZone, "list_unfinished_jobs", unfinished)
    monkeypatch.setattr(LocalZone, "list_finished_jobs", finished)


async def test_a_running_job_is_shown_however_many_have_ended(lab: Lab, many_jobs: None) -> None:
    """And that the list is cut is said: "a job that runs is dropped, the history is cut in silence"."""
    async with lab.connect() as client:
        listed = await client.call_tool("list_jobs", FINISHED)
    rows = data_of(listed)["jobs"]
    assert [row["job_id"] for row in rows if row["status"] == "working"] == ["job-99"]
    assert len(rows) == 50
    assert "Only the newest 50 of 81" in text_of(listed)


def in_the_shell(
    lab: Lab, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str
) -> tuple[int, str, str]:
    for name, value in lab.environ.items():
        monkeypatch.setenv(name, value)
    status = main(["jobs", *words])
    return status, *capsys.readouterr()


def test_the_shell_says_what_runs_and_what_was_cut(
    lab: Lab, many_jobs: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """ "Nothing runs", while a job ran."""
    status, out, _ = in_the_shell(lab, capsys, monkeypatch)
    assert status == 0
    assert "job-99" in out
    assert "Only the newest 50 of 81" in in_the_shell(lab, capsys, monkeypatch, "--finished")[1]


@pytest.mark.parametrize("words", [("--since=-1h",), ("--since", "9999999d"), ("--zone", "nope")])
def test_the_shell_explains_a_wrong_argument(
    lab: Lab, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    status, out, errors = in_the_shell(lab, capsys, monkeypatch, *words)
    assert (status, out) == (1, "")
    assert errors.startswith("snapshot-mcp: ")
    assert "Traceback" not in errors


@pytest.mark.parametrize("year", [1970, 2001, 9999])
async def test_a_wrong_clock_of_a_zone_does_not_decide_what_is_remembered(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, year: int
) -> None:
    """A job of 1970 was forgotten at once, one of 9999 headed the list for ever."""
    await lab.add_disk("web")
    moment = datetime(year, 1, 1, tzinfo=UTC)
    create, get = LocalZone.create_snapshots, LocalZone.get_job

    async def created(zone: LocalZone, *arguments: Any, **options: Any) -> Job:
        made = await create(zone, *arguments, **options)
        return made.model_copy(update={"create_time": moment})

    async def got(zone: LocalZone, job_id: str) -> Job:
        return (await get(zone, job_id)).model_copy(update={"create_time": moment, "finished_time": moment})

    monkeypatch.setattr(LocalZone, "create_snapshots", created)
    monkeypatch.setattr(LocalZone, "get_job", got)
    monkeypatch.setattr(LocalZone, "features", LocalZone.features - {Feature.HISTORY, Feature.WATCH})
    before = datetime.now(UTC) - HOUR
    async with lab.connect() as client:
        await back_up(client, "web", "one")
    async with history(lab) as (row,):
        assert row["status"] == "successful"
        for name in ("created_at", "finished_at"):
            if name in row:
                assert before < datetime.fromisoformat(row[name]) < before + 2 * HOUR


async def test_a_job_that_was_not_found_once_is_not_unknown_for_good(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A zone may answer 404 for a moment."""
    await lab.add_disk("web")
    get = LocalZone.get_job
    monkeypatch.setattr(LocalZone, "features", LocalZone.features - {Feature.HISTORY})

    async def not_found(zone: LocalZone, job_id: str) -> Job:
        raise NotFound(f"There is no job {job_id}.")

    async with lab.connect() as client:
        made = data_of(await client.call_tool("create_snapshots", {"resource_ids": ["web"], "name": "one"}))
        await client.call_tool("wait_for_job", {"job_ids": [made["job_id"]]})
    with closing(sqlite3.connect(lab.home / "history.sqlite")) as db, db:
        db.execute("UPDATE jobs SET status = '', ended_at = NULL")
    monkeypatch.setattr(LocalZone, "get_job", not_found)
    async with history(lab) as (row,):
        assert row["status"] == "unknown"
    monkeypatch.setattr(LocalZone, "get_job", get)
    async with history(lab) as (row,):
        assert row["status"] == "successful"


@pytest.mark.long
async def test_the_shell_tells_the_same(lab: Lab) -> None:
    await lab.add_disk("web")
    async with lab.connect() as client:
        made = {"resource_ids": ["web"], "name": "nightly\x1b[31m", "wait_seconds": 50}
        assert data_of(await client.call_tool("create_snapshots", made))["outcome"] == "successful"

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "snapshot_mcp", "jobs", *arguments]
        done = subprocess.run(
            command, env=lab.environ, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=True
        )
        assert done.stderr == ""
        return done.stdout

    assert "Nothing runs" in run()
    (line,) = run("--finished").splitlines()
    assert "backup of" in line
    assert "nightly" in line
    assert "\x1b" not in line
    (row,) = json.loads(run("--since", "7d", "--json"))
    assert (row["action"], row["status"], row["asked_by"]) == ("backup", "successful", "local")


@pytest.mark.long
async def test_names_are_for_those_who_asked_and_for_approvers(victim: Victim) -> None:
    """A viewer and another operator see the job without names."""
    roles = EVERYBODY | {"otto": "operator"}
    async with serve(victim, roles=roles) as service:
        async with service.connect("olga") as olga:
            made = await olga.call_tool("create_snapshots", {"resource_ids": [victim.disk_id], "name": "by olga"})
            await finish(olga, made)
        seen: dict[str, str] = {}
        for name in ("olga", "vera", "otto", "axel"):
            async with service.connect(name) as client:
                result = await client.call_tool("list_jobs", FINISHED)
                rows = {row["job_id"]: row for row in data_of(result)["jobs"]}
                row = rows[data_of(made)["job_id"]]
                seen[name] = row.get("asked_by", "")
                assert ("asked by “olga”" in text_of(result)) == bool(seen[name])
        assert seen == {"olga": "olga", "vera": "", "otto": "", "axel": "olga"}
