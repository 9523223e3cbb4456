"""How often a call looks at the zone, and that what changes between its looks counts (GUARD.md, "Order of spending")."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from snapshot_mcp.contract.models import Snapshot, SnapshotFilter
from snapshot_mcp.guard import Guard, GuardedOutcome, Policy
from tests.guard.conftest import OLD_ZONE, Bench, Person, agrees

pytestmark = pytest.mark.anyio

Call = Callable[[Guard, Bench, Snapshot, Person], Awaitable[GuardedOutcome]]


async def delete(guard: Guard, bench: Bench, target: Snapshot, person: Person) -> GuardedOutcome:
    return await guard.delete_snapshot(bench.zone, target.snapshot_id, person)


async def roll_back(guard: Guard, bench: Bench, target: Snapshot, person: Person) -> GuardedOutcome:
    return await guard.rollback_to_snapshots(bench.zone, [target.snapshot_id], person)


@pytest.mark.parametrize(
    ("act", "is_old", "expected"),
    [(delete, False, 2), (delete, True, 2), (roll_back, False, 2), (roll_back, True, 3)],
    ids=["deletion", "deletion without terms", "roll-back in one hold", "roll-back with a safety snapshot of its own"],
)
async def test_a_call_looks_at_the_zone_before_the_question_and_under_the_hold(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, act: Call, is_old: bool, expected: int
) -> None:
    """A safety snapshot of its own is taken for nothing that is no longer so: that takes one look more."""
    disk = await bench.add_disk()
    full = await bench.back_up(disk, "full")
    await bench.back_up(disk, "monday")
    bench.provider.without = OLD_ZONE if is_old else frozenset()
    list_snapshots, looks = bench.provider.list_snapshots, 0

    async def counted(query: SnapshotFilter) -> Any:
        nonlocal looks
        looks += query.snapshots == (full.snapshot_id,)
        return await list_snapshots(query)

    monkeypatch.setattr(bench.provider, "list_snapshots", counted, raising=False)
    outcome = await act(bench.guard(), bench, full, Person([agrees]))
    assert (outcome.status, looks) == ("started", expected)


TIGHTER = {
    "read_only": (Policy(read_only=True), "refused"),
    "deletions_per_hour": (Policy(deletions_per_hour=1), "refused"),
    "minimum_age_hours": (Policy(minimum_age_hours=24), "refused"),
    "consent": (Policy(consent="human"), "plan_changed"),
}


@pytest.mark.parametrize("rule", TIGHTER)
async def test_a_rule_that_is_tightened_while_a_person_thinks_holds_for_their_yes(bench: Bench, rule: str) -> None:
    disk = await bench.add_disk()
    await bench.back_up(disk, "full")
    monday, tuesday = await bench.back_up(disk, "monday"), await bench.back_up(disk, "tuesday")
    rules = [Policy()]

    async def tighten() -> None:
        rules[0], _ = TIGHTER[rule]

    guard = bench.guard(rules=lambda zone: rules[0])
    first = await guard.delete_snapshot(bench.zone, tuesday.snapshot_id, Person([agrees]))
    await bench.finish(first.job_id)
    outcome = await guard.delete_snapshot(bench.zone, monday.snapshot_id, Person([agrees], before_reply=tighten))
    assert outcome.status == TIGHTER[rule][1]
    assert (bench.destroyed, guard.audit.verify().problem) == ([("delete", tuesday.snapshot_id)], "")
    spent = [one.id for one in await guard.list_approvals() if one.state == "spent"]
    assert spent == [first.approval_id]
