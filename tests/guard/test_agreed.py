"""From the yes to the zone's own decision: what was agreed to travels with the change, and the zone's word is final.

CONTRACT.md, "Terms": "The zone compares them in the transaction that admits the job (mismatch: `terms_changed`, 409, a definite
refusal)"; "an entered job is never reported as refused".
"""

import json
import os
import random
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from snapshot_mcp.contract.errors import ERRORS_BY_CODE, NotUsable, OutcomeUnknown, TermsChanged, ZoneError
from snapshot_mcp.contract.models import Job, Snapshot
from snapshot_mcp.contract.terms import Terms
from snapshot_mcp.guard import Guard, Policy
from snapshot_mcp.guard.consent.errors import NotDecidable
from snapshot_mcp.providers.local import LocalZone
from snapshot_mcp.providers.local.folder import FolderCatalogue
from tests.disks import worker_pid
from tests.guard.conftest import DISK_BYTES, OLD_ZONE, Bench, Person, agrees, nobody, scribble
from tests.marks import few

pytestmark = pytest.mark.anyio


async def approved(guard: Guard, call: Callable[[], Any]) -> str:
    """Let a person agree to a call on a terminal; return the approval's id."""
    approval_id = (await call()).approval_id
    await guard.approve(approval_id, None)
    return str(approval_id)


def once(bench: Bench, happen: Callable[[], Any]) -> None:
    """Let something happen after the last look, right before the zone decides: a process that is frozen there."""

    async def stall() -> None:
        bench.provider.on_change = None
        await happen()

    bench.provider.on_change = stall


async def delete_past_the_guard(bench: Bench, snapshot: Snapshot) -> None:
    await bench.finish(await bench.provider._provider.delete_snapshot(snapshot.snapshot_id))


# A. An accepted job is accepted


@pytest.mark.parametrize("error", few(ERRORS_BY_CODE.values(), 6), ids=list(ERRORS_BY_CODE))
async def test_the_consent_comes_back_exactly_where_nothing_was_begun_for_certain(
    bench: Bench, error: type[ZoneError]
) -> None:
    """ "Whether nothing was begun for certain is a property of the error class, once"."""
    disk = await bench.add_disk()
    await bench.back_up(disk)
    last = await bench.back_up(disk)
    guard = bench.guard()
    approval_id = await approved(guard, lambda: guard.delete_snapshot(bench.zone, last.snapshot_id, nobody()))

    async def refuse() -> None:
        raise error("No.")

    bench.provider.on_change = refuse
    with pytest.raises(error) as raised:
        await guard.delete_snapshot(bench.zone, last.snapshot_id, nobody())
    assert (await guard.get_approval(approval_id)).state == ("granted" if error.is_definite else "spent")
    assert ("The approval is valid until" in raised.value.hint) == error.is_definite
    assert bench.destroyed == []


# B. Terms travel with the change


async def test_a_deletion_carries_what_may_go_what_must_stay_and_the_promised_grace(bench: Bench) -> None:
    disk = await bench.add_disk()
    full = await bench.back_up(disk, "full")
    monday, tuesday = await bench.back_up(disk, "monday"), await bench.back_up(disk, "tuesday")
    outcome = await bench.guard().delete_snapshot(bench.zone, monday.snapshot_id, Person([agrees]))
    assert outcome.status == "started"
    (asked,) = bench.provider.asked
    terms = asked["terms"]
    assert terms.model_copy(update={"agreement": "", "not_after": None}) == Terms(
        may_go=(monday.snapshot_id, tuesday.snapshot_id), must_stay=(full.snapshot_id,), recovery_seconds=7200
    )
    assert terms.agreement == outcome.approval_id
    assert asked["terms"].begin_within_seconds == 60


async def test_where_the_last_good_copy_goes_nothing_must_stay(bench: Bench) -> None:
    only = await bench.back_up(await bench.add_disk())
    await bench.guard().delete_snapshot(bench.zone, only.snapshot_id, Person([agrees]))
    assert bench.provider.asked[0]["terms"].must_stay == ()


async def test_the_newest_twenty_that_remain_are_named(bench: Bench) -> None:
    disk = await bench.add_disk()
    copies = [await bench.back_up(disk, f"copy {number}", is_full=number == 0) for number in range(22)]
    gone = await bench.back_up(disk, "the one to go", is_full=True)
    await bench.guard().delete_snapshot(bench.zone, gone.snapshot_id, Person([agrees]))
    assert bench.provider.asked[0]["terms"].must_stay == tuple(one.snapshot_id for one in copies[-20:])


async def test_a_roll_back_carries_which_disk_it_is_and_its_head(bench: Bench) -> None:
    disk = await bench.add_disk()
    full = await bench.back_up(disk, "full")
    head = await bench.back_up(disk, "monday")
    await bench.guard().rollback_to_snapshots(bench.zone, [full.snapshot_id], Person([agrees]))
    (terms,) = (asked["terms"] for asked in bench.provider.asked)
    assert terms.resources[disk.id].head_id == head.snapshot_id
    assert terms.resources[disk.id].identity
    assert terms.begin_within_seconds == 60


async def test_a_zone_without_terms_gets_none(bench: Bench) -> None:
    """ "Both sent only where the face declares them (an older one forbids unknown fields)"."""
    bench.provider.without = OLD_ZONE
    disk = await bench.add_disk()
    full = await bench.back_up(disk, "full")
    last = await bench.back_up(disk, "monday")
    rolled = await bench.guard().rollback_to_snapshots(bench.zone, [full.snapshot_id], Person([agrees]))
    await bench.finish(rolled.job_id)
    deleted = await bench.guard().delete_snapshot(bench.zone, last.snapshot_id, Person([agrees]))
    assert (rolled.status, deleted.status) == ("started", "started")
    assert bench.provider.asked == [{}, {}]


# A stall between the last look and the zone's admission


async def test_a_snapshot_made_in_a_stall_does_not_go_with_the_deletion(bench: Bench) -> None:
    """ "A deletion took a snapshot that nobody agreed to, without a word"."""
    disk = await bench.add_disk()
    await bench.back_up(disk, "full")
    monday = await bench.back_up(disk, "monday")
    guard = bench.guard()
    call = lambda: guard.delete_snapshot(bench.zone, monday.snapshot_id, nobody())  # noqa: E731
    first = await approved(guard, call)
    once(bench, lambda: bench.back_up(disk, "tuesday"))
    outcome = await call()
    assert outcome.status == "plan_changed"
    assert any("tuesday" in line for line in outcome.plan)
    assert outcome.approval_id not in {"", first}
    assert (await guard.get_approval(first)).state == "expired"
    assert bench.destroyed == []
    assert guard.audit.verify().problem == ""


@pytest.mark.parametrize(("homes", "stall_seconds"), [(2, 0), (2, 122), (1, 122)])
async def test_of_two_agreed_deletions_that_race_the_one_that_would_take_the_last_good_copy_is_refused(
    bench: Bench, homes: int, stall_seconds: int
) -> None:
    """Each leaves the other's snapshot as the last good one; from two homes on one zone, or when the hold has lapsed."""
    disk = await bench.add_disk()
    one, two = [await bench.back_up(disk, name, is_full=True) for name in ("one", "two")]
    guard = bench.guard()
    other = guard if homes == 1 else Guard(bench.folder / "other", Policy(), clock=bench.clock)
    await approved(guard, lambda: guard.delete_snapshot(bench.zone, one.snapshot_id, nobody()))
    await approved(other, lambda: other.delete_snapshot(bench.zone, two.snapshot_id, nobody()))

    async def the_other_goes() -> None:
        bench.clock.turn(stall_seconds)
        outcome = await other.delete_snapshot(bench.zone, two.snapshot_id, nobody())
        await bench.finish(outcome.job_id)

    once(bench, the_other_goes)
    outcome = await guard.delete_snapshot(bench.zone, one.snapshot_id, nobody())
    assert outcome.status == "plan_changed"
    assert any("last good restore point" in line for line in outcome.plan)
    assert [left.snapshot_name for left in await bench.snapshots()] == ["one"]


async def test_a_backup_in_a_stall_moves_the_head_and_the_roll_back_goes_on(bench: Bench) -> None:
    """Still covered: tried again with new terms, and nobody is asked twice."""
    disk = await bench.add_disk()
    full = await bench.back_up(disk, "full")
    once(bench, lambda: bench.back_up(disk, "scheduled"))
    person = Person([agrees])
    outcome = await bench.guard().rollback_to_snapshots(bench.zone, [full.snapshot_id], person)
    assert (outcome.status, len(person.questions)) == ("started", 1)
    heads = [asked["terms"].resources[disk.id].head_id for asked in bench.provider.asked]
    assert len(set(heads)) == 2
    assert bench.destroyed == [("apply", full.snapshot_id)]


async def test_a_head_that_moves_all_the_time_ends_the_call_and_keeps_the_consent(bench: Bench) -> None:
    disk = await bench.add_disk()
    full = await bench.back_up(disk, "full")

    async def back_up_again() -> None:
        await bench.back_up(disk, "scheduled")

    bench.provider.on_change = back_up_again
    guard = bench.guard()
    with pytest.raises(TermsChanged, match="The approval is valid until"):
        await guard.rollback_to_snapshots(bench.zone, [full.snapshot_id], Person([agrees]))
    assert len(bench.provider.asked) == 3
    assert bench.destroyed == []
    bench.provider.on_change = None
    assert (await guard.rollback_to_snapshots(bench.zone, [full.snapshot_id], nobody())).status == "started"


async def test_a_shorter_grace_than_was_promised_is_not_taken(bench: Bench) -> None:
    """ "The least grace that was promised": the zone's own setting may be changed in a stall."""
    disk = await bench.add_disk()
    await bench.back_up(disk)
    last = await bench.back_up(disk)
    zone = bench.provider._provider

    async def shorten() -> None:
        zone.recovery_seconds = 60
        zone._rules = type(zone._rules)(recovery_seconds=60)

    once(bench, shorten)
    outcome = await bench.guard().delete_snapshot(bench.zone, last.snapshot_id, Person([agrees]))
    assert outcome.status == "plan_changed"
    assert any("undone for 1 min" in line for line in outcome.plan)
    assert bench.destroyed == []


# Which file the disk is


def by_another_file(path: Path) -> None:
    other = path.with_suffix(".other")
    other.write_bytes(os.urandom(DISK_BYTES))
    other.rename(path)


def by_rm_and_a_new_file(path: Path) -> None:
    path.unlink()
    path.write_bytes(os.urandom(DISK_BYTES))


def by_a_symlink(path: Path) -> None:
    moved = path.rename(path.with_suffix(".moved"))
    path.symlink_to(moved)


def by_a_hard_link(path: Path) -> None:
    path.with_suffix(".link").hardlink_to(path)


REPLACEMENTS = [by_another_file, by_rm_and_a_new_file, by_a_symlink, by_a_hard_link]


@pytest.mark.parametrize("replace", REPLACEMENTS)
@pytest.mark.parametrize("moment", ["after the yes", "in a stall"])
async def test_another_file_at_the_path_is_not_overwritten(
    bench: Bench, replace: Callable[[Path], None], moment: str
) -> None:
    """ "Another file of the same size at the path after the yes is overwritten; a hard link takes the other name's content
    along"."""
    disk = await bench.add_disk()
    path = Path(disk.path or "")
    full = await bench.back_up(disk, "full")
    scribble(path)
    guard = bench.guard()
    call = lambda: guard.rollback_to_snapshots(bench.zone, [full.snapshot_id], nobody())  # noqa: E731
    await approved(guard, call)

    async def happen() -> None:
        replace(path)

    if moment == "in a stall":
        once(bench, happen)
    else:
        await happen()
    before = path.read_bytes() if moment == "after the yes" else None
    if replace is by_a_symlink:
        with pytest.raises(NotUsable, match="The approval is valid until"):
            await call()
    else:
        outcome = await call()
        assert outcome.status == "plan_changed", outcome
        assert "no longer the file or device" in outcome.message
    assert bench.destroyed == []
    assert before is None or path.read_bytes() == before


async def test_a_yes_that_finds_no_file_at_the_path_is_not_turned_into_one_for_any_file(bench: Bench) -> None:
    """A yes to an unknown disk would cover whatever lies at its path later."""
    disk = await bench.add_disk()
    full = await bench.back_up(disk, "full")
    guard, path = bench.guard(), Path(disk.path or "")

    async def call() -> Any:
        return await guard.rollback_to_snapshots(bench.zone, [full.snapshot_id], nobody())

    await approved(guard, call)
    path.unlink()
    with pytest.raises(NotUsable, match="The approval is valid until"):
        await call()
    assert len(await guard.list_approvals()) == 1, "nobody is asked anew"
    path.write_bytes(random.randbytes(DISK_BYTES))
    assert (await call()).status == "plan_changed"
    assert bench.destroyed == []


async def test_further_names_of_a_disk_are_told_in_the_loss(bench: Bench) -> None:
    """ "More than one hard link is told in the loss"."""
    disk = await bench.add_disk()
    full = await bench.back_up(disk, "full")
    by_a_hard_link(Path(disk.path or ""))
    person = Person([agrees])
    outcome = await bench.guard().rollback_to_snapshots(bench.zone, [full.snapshot_id], person)
    assert outcome.status == "started"
    told = "Its file has 2 names (hard links); all of them are overwritten."
    assert told in outcome.plan
    assert told in person.questions[0].message


# Approvals of older versions


ADDED = {"identity", "hard_links", "consistency", "renamed_from", "renamed_at", "is_none_good", "fuzzy_remaining",
         "newest_good_consistency"}  # fmt: skip


def without_added(value: Any) -> Any:
    if isinstance(value, list):
        return [without_added(one) for one in value]
    return (
        {key: without_added(one) for key, one in value.items() if key not in ADDED}
        if isinstance(value, dict)
        else value
    )


@pytest.mark.parametrize("operation", ["delete", "roll back"])
async def test_an_approval_from_before_these_fields_still_holds(bench: Bench, operation: str) -> None:
    disk = await bench.add_disk()
    full = await bench.back_up(disk, "full")
    last = await bench.back_up(disk, "monday")
    guard = bench.guard()

    async def call() -> Any:
        if operation == "delete":
            return await guard.delete_snapshot(bench.zone, last.snapshot_id, nobody())
        return await guard.rollback_to_snapshots(bench.zone, [full.snapshot_id], nobody())

    await approved(guard, call)
    with closing(sqlite3.connect(bench.home / "guard.sqlite")) as db, db:
        for id_, plan in db.execute("SELECT id, plan FROM approvals").fetchall():
            old = json.dumps(without_added(json.loads(plan)))
            db.execute("UPDATE approvals SET plan = ? WHERE id = ?", (old, id_))
    assert (await call()).status == "started"


# Jobs that ended without effect


@pytest.mark.parametrize("code", ["cancelled", "expired", "terms_changed"])
async def test_a_call_whose_job_came_to_nothing_says_so_and_asks_anew(bench: Bench, code: str) -> None:
    """ "A mismatch there is a failed job: consent spent, nothing changed"; a repeated call is neither started nor under way."""
    disk = await bench.add_disk()
    full = await bench.back_up(disk, "full")
    guard = bench.guard()
    call = lambda: guard.rollback_to_snapshots(bench.zone, [full.snapshot_id], nobody())  # noqa: E731
    ended = Job.model_validate(
        {"job_id": "j-1", "status": "failed", "info": "too late", "error": {"code": code, "message": "too late"}}
    )

    async def apply(*_: Any, **__: Any) -> Job:
        return ended.model_copy(update={"status": "pending"})

    async def get_job(job_id: str) -> Job:
        return ended

    first = await approved(guard, call)
    bench.provider.apply_snapshots, bench.provider.get_job = apply, get_job
    assert (await call()).status == "started"
    again = await call()
    assert (again.status, again.job_id) == ("needs_approval", "")
    assert "Job j-1, approved earlier, failed and changed nothing (too late)" in again.message
    assert again.approval_id != first
    assert (await guard.get_approval(first)).state == "spent"


async def test_two_deletions_never_take_the_last_copies_where_none_of_them_is_good(
    bench: Bench, zone_folder: Path
) -> None:
    """“No good one left, or none at all left” counts as the last copy, also between two homes."""
    disk = await bench.add_disk()
    one, two = [await bench.back_up(disk, name, is_full=True) for name in ("one", "two")]
    with FolderCatalogue(zone_folder) as catalogue, catalogue.transaction() as db:
        db.execute("UPDATE snapshots SET consistency = 'fuzzy' WHERE resource_id = ?", (disk.id,))
    guard, other = bench.guard(), Guard(bench.folder / "other", Policy(), clock=bench.clock)
    await approved(guard, lambda: guard.delete_snapshot(bench.zone, one.snapshot_id, nobody()))
    await approved(other, lambda: other.delete_snapshot(bench.zone, two.snapshot_id, nobody()))

    async def the_other_goes() -> None:
        outcome = await other.delete_snapshot(bench.zone, two.snapshot_id, nobody())
        await bench.finish(outcome.job_id)

    once(bench, the_other_goes)
    outcome = await guard.delete_snapshot(bench.zone, one.snapshot_id, nobody())
    assert outcome.status == "plan_changed"
    assert [left.snapshot_name for left in await bench.snapshots()] == ["one"]


async def test_deny_calls_back_its_own_job_alone(bench: Bench, zone_folder: Path) -> None:
    """A job of the same kind on the same disk may be what somebody agreed to in another home."""
    one = await bench.back_up(await bench.add_disk(), "one")
    guard = bench.guard(open_zone=lambda name: LocalZone(zone_folder))
    other = Guard(bench.folder / "other", Policy(), clock=bench.clock)
    mine = await approved(guard, lambda: guard.rollback_to_snapshots(bench.zone, [one.snapshot_id], nobody()))

    async def is_lost() -> None:
        raise OutcomeUnknown("The answer was lost.")

    once(bench, is_lost)
    with pytest.raises(OutcomeUnknown):
        await guard.rollback_to_snapshots(bench.zone, [one.snapshot_id], nobody())
    await approved(other, lambda: other.rollback_to_snapshots(bench.zone, [one.snapshot_id], nobody()))
    worker = worker_pid(zone_folder)
    assert worker
    os.kill(worker, signal.SIGSTOP)
    try:
        theirs = await other.rollback_to_snapshots(bench.zone, [one.snapshot_id], nobody())
        with pytest.raises(NotDecidable):
            await guard.deny(mine)
    finally:
        os.kill(worker, signal.SIGCONT)
    assert (await bench.finish(theirs.job_id)).is_successful


@pytest.mark.parametrize("has_safety", [True, False])
async def test_nobody_is_asked_about_a_disk_whose_path_is_a_symbolic_link_by_now(
    bench: Bench, has_safety: bool
) -> None:
    """The plan must know which file the disk is: a yes to an unknown one would cover any."""
    disk = await bench.add_disk()
    one = await bench.back_up(disk, "one")
    assert disk.path
    path = Path(disk.path)
    path.rename(path.with_suffix(".aside"))
    path.symlink_to(path.with_suffix(".aside"))
    with pytest.raises(NotUsable, match="no longer leads to a regular file"):
        await bench.guard().rollback_to_snapshots(bench.zone, [one.snapshot_id], nobody(), safety_snapshot=has_safety)
