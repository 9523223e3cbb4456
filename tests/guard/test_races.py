"""Calls that race: what is agreed to must be true when it happens, not only when it was looked at (GUARD.md, "Order of
spending")."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from snapshot_mcp.contract.errors import ResourceBusy, Unavailable
from snapshot_mcp.contract.models import Snapshot
from snapshot_mcp.contract.states import ResourceType
from snapshot_mcp.guard import Guard, Policy
from snapshot_mcp.guard.consent.approvals import Approvals
from tests.guard.conftest import OLD_ZONE, Bench, Person, agrees, nobody, resize

pytestmark = pytest.mark.anyio


async def approved(bench: Bench, snapshot: Snapshot, guard: Guard) -> None:
    pending = await guard.delete_snapshot(bench.zone, snapshot.snapshot_id, nobody())
    await guard.approve(pending.approval_id, None)


def before_spending(monkeypatch: pytest.MonkeyPatch, act: Callable[[], Any]) -> None:
    """Do something once, after a call has looked and before its consent is spent."""
    spend = Approvals.spend
    left = [act]

    def spend_late(*args: Any, **options: Any) -> Any:
        if left:
            anyio.from_thread.run(left.pop())
        return spend(*args, **options)

    monkeypatch.setattr(Approvals, "spend", spend_late)


@pytest.mark.parametrize("policy", [Policy(), Policy(last_good_copy="refuse")], ids=["human", "refuse"])
async def test_two_agreed_deletions_together_do_not_take_the_last_good_copy(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, policy: Policy
) -> None:
    """Each was agreed to while the other copy was there; sent at once, the second looked before the first was done."""
    disk = await bench.add_disk()
    copies = [await bench.back_up(disk, name, is_full=True) for name in ("one", "two")]
    guard = bench.guard(policy)
    for one in copies:
        await approved(bench, one, guard)

    async def delete_the_other() -> None:
        outcome = await guard.delete_snapshot(bench.zone, copies[1].snapshot_id, nobody())
        assert outcome.status == "started"
        await bench.finish(outcome.job_id)

    before_spending(monkeypatch, delete_the_other)
    outcome = await guard.delete_snapshot(bench.zone, copies[0].snapshot_id, nobody())
    assert outcome.status == ("plan_changed" if policy == Policy() else "refused")
    assert bench.destroyed == [("delete", copies[1].snapshot_id)]
    assert [one.snapshot_name for one in await bench.snapshots()] == ["one"]
    assert guard.audit.verify().problem == ""


async def test_a_backup_made_after_the_look_does_not_go_with_the_deletion(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = await bench.add_disk()
    await bench.back_up(disk, "full")
    last = await bench.back_up(disk, "monday")
    guard = bench.guard()
    await approved(bench, last, guard)
    before_spending(monkeypatch, lambda: bench.back_up(disk, "tuesday"))
    outcome = await guard.delete_snapshot(bench.zone, last.snapshot_id, nobody())
    assert outcome.status == "plan_changed"
    assert any("tuesday" in line for line in outcome.plan)
    assert bench.destroyed == []


async def test_a_disk_rolled_back_after_the_look_by_another_program_is_not_overwritten(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = await bench.add_disk()
    full = await bench.back_up(disk, "full")
    await bench.back_up(disk, "monday")
    guard = bench.guard()
    call = {"safety_snapshot": False}
    pending = await guard.rollback_to_snapshots(bench.zone, [full.snapshot_id], nobody(), **call)  # type: ignore[arg-type]
    await guard.approve(pending.approval_id, None)

    async def roll_back() -> None:
        await bench.finish(await bench.provider._provider.apply_snapshots([full.snapshot_id]))

    before_spending(monkeypatch, roll_back)
    outcome = await guard.rollback_to_snapshots(bench.zone, [full.snapshot_id], nobody(), **call)  # type: ignore[arg-type]
    assert outcome.status == "plan_changed"
    assert bench.destroyed == []


WORSE = {"the host starts": True, "the disk is resized": True, "a backup is taken": False, "the host stops": False}


@pytest.mark.parametrize("event", WORSE)
async def test_the_last_look_of_a_roll_back_lets_through_what_is_no_worse_and_nothing_else(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, event: str
) -> None:
    """At the last possible moment: the consent is about to be spent."""
    disk = await bench.add_disk("db-1", ResourceType.INSTANCE)
    full = await bench.back_up(disk, "full")
    if event == "the host stops":
        bench.provider.running.add(disk.id)

    async def happen() -> None:
        if event == "the host starts":
            bench.provider.running.add(disk.id)
        elif event == "the host stops":
            bench.provider.running.clear()
        elif event == "the disk is resized":
            resize(Path(disk.path or ""), 2)
        else:
            await bench.back_up(disk, "scheduled")

    before_spending(monkeypatch, happen)
    person = Person([agrees])
    outcome = await bench.guard().rollback_to_snapshots(bench.zone, [full.snapshot_id], person)
    assert outcome.status == ("plan_changed" if WORSE[event] else "started")
    assert len(bench.destroyed) == (0 if WORSE[event] else 1)
    assert len(person.questions) == 1


async def test_the_last_look_of_a_deletion_lets_fewer_snapshots_through(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = await bench.add_disk()
    await bench.back_up(disk, "full")
    monday, tuesday = await bench.back_up(disk, "monday"), await bench.back_up(disk, "tuesday")

    async def another_deletes_tuesday() -> None:
        await bench.finish(await bench.provider._provider.delete_snapshot(tuesday.snapshot_id))

    before_spending(monkeypatch, another_deletes_tuesday)
    outcome = await bench.guard().delete_snapshot(bench.zone, monday.snapshot_id, Person([agrees]))
    assert outcome.status == "started"


async def test_a_way_back_that_goes_after_it_was_verified_stops_the_roll_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program deletes the safety snapshot at the last moment; the next call takes a new one under the same yes."""
    bench.provider.without = OLD_ZONE
    disk = await bench.add_disk()
    full = await bench.back_up(disk, "full")
    await bench.back_up(disk, "monday")
    guard = bench.guard()

    async def safety() -> Snapshot:
        (found,) = [one for one in await bench.snapshots() if one.snapshot_name.startswith("before roll-back")]
        return found

    async def delete_the_way_back() -> None:
        await bench.finish(await bench.provider._provider.delete_snapshot((await safety()).snapshot_id))

    before_spending(monkeypatch, delete_the_way_back)
    person = Person([agrees])
    outcome = await guard.rollback_to_snapshots(bench.zone, [full.snapshot_id], person)
    assert (outcome.status, "no longer exists or is no longer sound" in outcome.message) == ("refused", True)
    assert "The approval is valid until" in outcome.message
    assert bench.destroyed == []
    again = await guard.rollback_to_snapshots(bench.zone, [full.snapshot_id], person)
    assert (again.status, again.safety_snapshot_ids) == ("started", ((await safety()).snapshot_id,))
    assert len(person.questions) == 1
    assert guard.audit.verify().problem == ""


async def test_a_call_repeated_while_the_zone_thinks_does_not_cost_the_approval(bench: Bench) -> None:
    """The zone is busy and says so late; meanwhile the same call came again and found the consent spent."""
    disk = await bench.add_disk()
    await bench.back_up(disk, "full")
    last = await bench.back_up(disk, "monday")
    guard = bench.guard()
    await approved(bench, last, guard)
    repeated: list[str] = []

    async def busy_at_first() -> None:
        bench.provider.on_change = None
        repeated.append((await guard.delete_snapshot(bench.zone, last.snapshot_id, nobody())).status)
        raise ResourceBusy("A backup runs.", job_id="job-1")

    bench.provider.on_change = busy_at_first
    with pytest.raises(ResourceBusy, match="A backup runs"):
        await guard.delete_snapshot(bench.zone, last.snapshot_id, nobody())
    assert repeated == ["refused"]
    assert [one.state for one in await guard.list_approvals()] == ["granted"]
    assert (await guard.delete_snapshot(bench.zone, last.snapshot_id, nobody())).status == "started"
    assert len(bench.destroyed) == 1


async def test_a_zone_too_slow_for_the_last_look_costs_neither_disk_nor_approval(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hold on the disk runs out, so what is looked at under it must not take as long."""
    disk = await bench.add_disk()
    await bench.back_up(disk, "full")
    last = await bench.back_up(disk, "monday")
    guard = bench.guard()
    await approved(bench, last, guard)

    async def stall(*_: Any) -> Any:
        await anyio.sleep_forever()

    async def stalled() -> None:
        monkeypatch.setattr(bench.provider, "list_snapshots", stall, raising=False)

    before_spending(monkeypatch, stalled)
    with monkeypatch.context() as patch:
        patch.setattr("snapshot_mcp.guard.carry.carrier.LOOK_SECONDS", 0.05)
        with pytest.raises(Unavailable, match="too long"):
            await guard.delete_snapshot(bench.zone, last.snapshot_id, nobody())
    monkeypatch.delattr(bench.provider, "list_snapshots")
    assert bench.destroyed == []
    assert (await guard.delete_snapshot(bench.zone, last.snapshot_id, nobody())).status == "started"
