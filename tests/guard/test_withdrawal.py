"""`deny` of an approval that was used: what is submitted is called back, or a person hears how it stands.

`deny` takes it back until the first byte is overwritten (GUARD.md, "Taking back").
"""

import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from snapshot_mcp import app
from snapshot_mcp.contract.errors import OutcomeUnknown, Unavailable
from snapshot_mcp.contract.models import Job
from snapshot_mcp.contract.provider import Feature
from snapshot_mcp.guard import Door, Guard, Policy
from snapshot_mcp.guard.carry import withdrawal
from snapshot_mcp.guard.consent.approvals import Approvals
from snapshot_mcp.guard.consent.errors import NotDecidable
from snapshot_mcp.zones import Zones
from tests.conftest import end_worker
from tests.disks import finish, worker_pid
from tests.guard.conftest import Bench, Person, agrees, nobody
from tests.guard.test_page import fields_of, origin_of, served
from tests.guard.test_person import end_idle_worker, statuses
from tests.guard.test_record import command, records, yes
from tests.marks import long
from tests.rest_face import KEY_PAIR, ZONE_ID
from tests.rest_face import served as served_over_rest
from tests.server.lab import Lab, back_up, data_of
from tests.whole_way.workers import Nursery

pytestmark = pytest.mark.anyio


@pytest.fixture
def lab(tmp_path: Path, nursery: Nursery) -> Iterator[Lab]:
    yield Lab(tmp_path, nursery=nursery)
    end_worker(tmp_path / "home" / "zones" / "local")
    shutil.rmtree(tmp_path / "home", ignore_errors=True)


@contextmanager
def hung_worker(folder: Path) -> Iterator[None]:
    """The worker lives and does nothing: what is submitted waits."""
    pid = worker_pid(folder)
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def submitted(lab: Lab, operation: str) -> tuple[dict[str, Any], str]:
    """A deletion or a roll-back that a person agreed to, which waits for a hung worker; its answer, and what it is about."""
    disk = await lab.add_disk("web")
    async with lab.connect(elicitation_callback=yes) as client:
        await back_up(client, "web", "full")
        last = await back_up(client, "web", "monday")
        with hung_worker(lab.home / "zones" / "local"):
            if operation == "delete":
                call = {"snapshot_id": last}
                started = data_of(await client.call_tool("delete_snapshot", call))
            else:
                Path(disk.path or "").write_bytes(b"written since" * 1000)
                call = {"snapshot_ids": [last], "safety_snapshot": False}
                started = data_of(await client.call_tool("rollback_to_snapshots", call))
            assert started["status"] == "started"
            denied = await command(lab, "deny", started["approval_id"])
            again = await command(lab, "deny", started["approval_id"])
        assert (denied.returncode, again.returncode) == (0, 1), denied.stderr
        assert f"Job {started['job_id']} was cancelled before it had an effect" in denied.stdout
        assert "Nothing was done" not in denied.stdout
        assert "is already denied" in again.stderr
        return started, last


async def job_of(lab: Lab, job_id: str) -> Job:
    zone = app.open_local_zone(lab.settings)
    job = await finish(zone, await zone.get_job(job_id))
    await zone.aclose()
    return job


@pytest.mark.parametrize("operation", [long("delete"), "rollback"])
async def test_what_waits_is_taken_back_and_never_happens(lab: Lab, operation: str) -> None:
    """A person who ran `deny` was told that nothing was done, and the next look carried the deletion out."""
    started, snapshot_id = await submitted(lab, operation)
    job = await job_of(lab, started["job_id"])
    assert (job.status, job.error and job.error.code) == ("failed", "cancelled")
    assert await statuses(lab, [snapshot_id]) == ["available"]
    if operation == "rollback":
        assert (lab.folder / "web.img").read_bytes().startswith(b"written since")
    (taken,), (end,) = records(lab, "taken back"), records(lab, "ended")
    assert (taken["approval"], taken["by"], taken["door"]) == (started["approval_id"], Path.home().owner(), "terminal")
    assert (end["status"], end["code"], end["job_id"]) == ("failed", "cancelled", started["job_id"])
    (approval,) = json.loads((await command(lab, "approvals", "--all", "--json")).stdout)
    assert (approval["state"], approval["job_end"]["code"]) == ("denied", "cancelled")
    shown = (await command(lab, "approvals", "--all")).stdout
    assert "taken back before it had an effect (before: Approved by local through the host" in shown
    assert app.build_guard(lab.settings).audit.verify().problem == ""


@pytest.mark.long
async def test_after_it_was_taken_back_the_same_call_is_declined(lab: Lab) -> None:
    """It is a person's no, as any other."""
    _, snapshot_id = await submitted(lab, "delete")
    async with lab.connect(elicitation_callback=yes) as client:
        again = data_of(await client.call_tool("delete_snapshot", {"snapshot_id": snapshot_id}))
    assert again["status"] == "declined"


@pytest.mark.long
async def test_a_job_whose_worker_cannot_start_does_not_happen_after_the_deny(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """“A person who then ran `deny` was told "nothing was done", and the next server's `list_jobs` deleted the snapshot.”"""
    await lab.add_disk("web")
    async with lab.connect(elicitation_callback=yes) as client:
        await back_up(client, "web", "full")
        last = await back_up(client, "web", "monday")
        end_idle_worker(lab.home / "zones" / "local")
        with monkeypatch.context() as patch:
            patch.setattr(sys, "executable", "/nowhere/python")
            await client.call_tool("delete_snapshot", {"snapshot_id": last})
    (approval,) = await app.build_guard(lab.settings).list_approvals()
    denied = await command(lab, "deny", approval.id)
    assert (denied.returncode, "Nothing was done" in denied.stdout) == (0, False), denied.stderr
    async with lab.connect() as client:
        for job in data_of(await client.call_tool("list_jobs", {}))["jobs"]:
            await client.call_tool("wait_for_job", {"job_ids": [job["job_id"]]})
    assert await statuses(lab, [last]) == ["available"]


@pytest.mark.long
async def test_what_has_happened_is_said_and_how_it_ended(lab: Lab) -> None:
    """“if the job's effect has begun or it has ended, the error says so truthfully and how it ended”."""
    await lab.add_disk("web")
    async with lab.connect(elicitation_callback=yes) as client:
        await back_up(client, "web", "full")
        last = await back_up(client, "web", "monday")
        started = data_of(await client.call_tool("delete_snapshot", {"snapshot_id": last}))
    await job_of(lab, started["job_id"])
    denied = await command(lab, "deny", started["approval_id"])
    assert (denied.returncode, denied.stdout) == (1, "")
    assert f"Approval {started['approval_id']} is already used and can no longer be taken back." in denied.stderr
    assert f"It was started as job {started['job_id']}: it ended successfully." in denied.stderr
    assert [one["status"] for one in records(lab, "ended")] == ["successful"]
    assert (await command(lab, "deny", started["approval_id"])).stderr.count("it ended successfully") == 1


def guard_with_zone(bench: Bench) -> Guard:
    return bench.guard(open_zone=lambda name: bench.provider)


async def test_a_zone_that_cannot_cancel_says_so(bench: Bench, zone_folder: Path) -> None:
    """“A provider without CANCEL: say that it cannot be called back there.”"""
    await bench.back_up(await bench.add_disk("warm"))
    guard = guard_with_zone(bench)
    with hung_worker(zone_folder):
        approval_id = await spent(bench, guard)
        bench.provider.without = frozenset({Feature.CANCEL})
        with pytest.raises(NotDecidable, match="Zone local cannot cancel a job") as refused:
            await guard.deny(approval_id)
    assert "end not known yet" in refused.value.hint
    assert (await guard.get_approval(approval_id)).state == "spent"


async def spent(bench: Bench, guard: Guard) -> str:
    """A deletion of what is there already, which a hung worker does not carry out."""
    snapshot = (await bench.snapshots())[0]
    outcome = await guard.delete_snapshot(bench.zone, snapshot.snapshot_id, Person([agrees]))
    assert outcome.status == "started"
    return outcome.approval_id


async def no_answer(job_id: str) -> Job:
    """A zone that is frozen."""
    await anyio.sleep_forever()
    raise AssertionError


async def test_an_unreachable_zone_leaves_it_open_what_becomes_of_it(
    bench: Bench, zone_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never “nothing was done” for what is submitted, and never a wait that leaves no time to deny it again."""
    await bench.back_up(await bench.add_disk("warm"))
    guard = guard_with_zone(bench)

    async def cancel_job(job_id: str) -> Job:
        raise Unavailable("The zone does not answer.")

    with hung_worker(zone_folder):
        approval_id = await spent(bench, guard)
        bench.provider.cancel_job = cancel_job
        with pytest.raises(Unavailable, match="was not cancelled: The zone does not answer") as refused:
            await guard.deny(approval_id)
        assert "The act may still be carried out. Deny it again at once" in refused.value.hint
        bench.provider.cancel_job = bench.provider.get_job = no_answer
        monkeypatch.setattr(withdrawal, "ANSWER_SECONDS", 0.05)
        with pytest.raises(
            OutcomeUnknown, match=r"it is not known whether job .* was cancelled: The zone did not answer"
        ):
            await guard.deny(approval_id)
    with pytest.raises(NotDecidable, match="cannot reach its zone"):
        await bench.guard().deny(approval_id)


@pytest.mark.long
async def test_a_shell_that_does_not_reach_the_zone_says_what_may_happen_and_what_to_do(lab: Lab) -> None:
    """One without the variables of the server's zone, and one with them when the zone is down. The latter contradicted
    itself: “the change was not carried out”, which was the cancel, and “It may still be carried out”."""
    disk = await lab.add_disk("web")
    async with lab.connect() as client:
        snapshot_id = await back_up(client, "web", "full")
    Path(disk.path or "").write_bytes(b"written since" * 1000)
    zone = app.open_local_zone(lab.settings)
    with hung_worker(zone.folder):
        async with served_over_rest(zone) as face:
            variables = {
                "SNAPSHOT_MCP_API_URL": face.url,
                "SNAPSHOT_MCP_API_CLIENT_ID": KEY_PAIR.client_id,
                "SNAPSHOT_MCP_API_CLIENT_SECRET": KEY_PAIR.client_secret.get_secret_value(),
                "SNAPSHOT_MCP_ZONE": ZONE_ID,
            }
            server = Lab(lab.folder, variables)
            async with server.connect(elicitation_callback=yes) as client:
                call = {"snapshot_ids": [snapshot_id], "safety_snapshot": False}
                started = data_of(await client.call_tool("rollback_to_snapshots", call))
            without = await command(lab, "deny", started["approval_id"])
        unreached = await command(server, "deny", started["approval_id"])
    await zone.aclose()
    assert (without.returncode, unreached.returncode) == (1, 1)
    assert "cannot be taken back from here: Unknown zone 'ac1'." in without.stderr
    assert f"Its zone is {face.url}/v2/zone/ac1." in without.stderr
    for way in ("with the settings of the server", *variables, "approval page", "`cancel_job`"):
        assert way in without.stderr
    assert f"job {started['job_id']} was not cancelled:" in unreached.stderr
    assert "The cancel was not sent.\n  The act may still be carried out. Deny it again at once" in unreached.stderr
    assert "not carried out" not in unreached.stderr


async def test_the_page_takes_back_too(bench: Bench, zone_folder: Path) -> None:
    """“used by CLI `deny`, the page's deny and the approver's deny over HTTP”; it needs no PIN, as every no."""
    await bench.back_up(await bench.add_disk("warm"))
    guard = guard_with_zone(bench)
    async with served(guard) as browser:
        with hung_worker(zone_folder):
            approval_id = await spent(bench, guard)
            link = (await guard.link(approval_id)).url
            page = await browser.get(link)
            assert "As long as it has had no effect, you can still take it back" in page.text
            form = fields_of(page) | {"decision": "deny"}
            done = await browser.post(link, data=form, headers=origin_of(link), follow_redirects=True)
        assert "taken back before it had an effect" in done.text
        late = await browser.post(link, data=form, headers=origin_of(link))
        assert (late.status_code, "is already denied" in late.text) == (409, True)
    assert [one.status for one in await bench.snapshots()] == ["available"]


async def test_what_a_killed_call_had_submitted_is_found_and_taken_back(
    bench: Bench, zone_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ended between the zone's acceptance and the record of it: the job is in the zone all the same."""
    await bench.back_up(await bench.add_disk("warm"))
    guard = guard_with_zone(bench)

    def killed(*args: Any) -> None:
        raise KeyboardInterrupt

    with hung_worker(zone_folder):
        pending = await guard.delete_snapshot(bench.zone, (await bench.snapshots())[0].snapshot_id, nobody())
        await guard.approve(pending.approval_id, None)
        with monkeypatch.context() as patch:
            patch.setattr(Approvals, "settle", killed)
            with pytest.raises(KeyboardInterrupt):
                await guard.delete_snapshot(bench.zone, (await bench.snapshots())[0].snapshot_id, nobody())
        assert (await guard.get_approval(pending.approval_id)).job_id == ""
        denied = await guard.deny(pending.approval_id, door=Door.APPROVER, by="anna")
    assert (denied.state, denied.decided_by, bool(denied.job_id)) == ("denied", "anna", True)
    job = await finish(bench.provider, await bench.provider.get_job(denied.job_id))
    assert (job.status, job.error and job.error.code) == ("failed", "cancelled")
    assert [one.status for one in await bench.snapshots()] == ["available"]


async def test_a_deny_reaches_a_zone_over_rest_that_this_process_has_not_spoken_to(
    bench: Bench, zone_folder: Path
) -> None:
    """A person's shell is a new process: what the zone can do it learns by asking."""
    one = await bench.back_up(await bench.add_disk(), "one")
    async with served_over_rest(bench.provider._provider) as face, Zones({"remote": face.client}) as zones:
        guard = Guard(bench.home, Policy(), clock=bench.clock, open_zone=lambda name: face.client())
        asked = await guard.rollback_to_snapshots(zones.get(), [one.snapshot_id], nobody())
        await guard.approve(asked.approval_id, None)
        with hung_worker(zone_folder):
            started = await guard.rollback_to_snapshots(zones.get(), [one.snapshot_id], nobody())
            assert started.status == "started"
            denied = await guard.deny(asked.approval_id)
    assert (denied.state, denied.job_id) == ("denied", started.job_id)
    job = await bench.provider.get_job(started.job_id)
    assert job.error.code == "cancelled"
