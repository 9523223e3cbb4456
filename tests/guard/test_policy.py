"""Policy: what it refuses, no consent allows; variables only tighten; a refusal names the rule (GUARD.md, "Policy")."""

from datetime import UTC, datetime, timedelta
from functools import reduce
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshot_mcp.contract.errors import BadRequest
from snapshot_mcp.contract.models import SnapshotUpdate
from snapshot_mcp.guard import Policy, Protect, tighten_policy
from snapshot_mcp.guard.plan.facts import DeletionFacts
from snapshot_mcp.guard.plan.policy import VARIABLES
from snapshot_mcp.guard.plan.rules import refuse, refuse_protected
from tests.guard.conftest import Bench, Person, agrees
from tests.guard.test_plan import CHAIN, RESOURCE, START, deletion, snapshot

NOW = START + timedelta(hours=100)


def rule(policy: Policy, *, target: int = 1, now: datetime = NOW, recent: int = 0, points: Any = CHAIN) -> str:
    chosen = next(one for one in points if one.snapshot_id == f"ss-{target:04}")
    facts = DeletionFacts("local", "/zone", chosen, points, 0)
    refusal = refuse(policy, deletion(points, target), facts, now, recent)
    return refusal.rule if refusal else ""


@pytest.mark.parametrize(
    ("policy", "options", "expected"),
    [
        (Policy(), {}, ""),
        (Policy(read_only=True), {}, "read_only"),
        (Policy(protect=Protect(ids=frozenset({"ss-0001"}))), {}, "protect"),
        (Policy(protect=Protect(ids=frozenset({"ss-0003"}))), {}, "protect"),
        (Policy(protect=Protect(ids=frozenset({"ss-0000"}))), {}, "protect"),
        (Policy(protect=Protect(ids=frozenset({"vol-1"}))), {}, "protect"),
        (Policy(protect=Protect(ids=frozenset({"vol-2"}))), {}, ""),
        (Policy(protect=Protect(names=frozenset({"PG-*"}))), {}, "protect"),
        (Policy(protect=Protect(names=frozenset({"backup 3"}))), {}, "protect"),
        (Policy(protect=Protect(names=frozenset({"back"}))), {}, ""),
        (Policy(last_good_copy="refuse"), {}, ""),
        (Policy(last_good_copy="refuse"), {"target": 0}, "last_good_copy"),
        (Policy(minimum_age_hours=98), {}, "minimum_age_hours"),
        (Policy(minimum_age_hours=97), {}, ""),
        (Policy(minimum_age_hours=1), {"now": START - timedelta(days=365)}, "minimum_age_hours"),
        (Policy(snapshots_per_approval=2), {}, "snapshots_per_approval"),
        (Policy(snapshots_per_approval=3), {}, ""),
        (Policy(deletions_per_hour=3), {"recent": 3}, "deletions_per_hour"),
        (Policy(deletions_per_hour=3), {"recent": 2}, ""),
        (Policy(deletions_per_hour=0), {}, "deletions_per_hour"),
    ],
)
def test_rules_of_a_deletion(policy: Policy, options: dict[str, Any], expected: str) -> None:
    """Snapshot 1 goes with 2 and 3, which are built on it."""
    assert rule(policy, **options) == expected


def test_tags_and_names_protect_as_a_person_reads_them() -> None:
    points = (*CHAIN[:3], snapshot(3, 1, tags=("Legal-Hold",), snapshot_name="ｇold\u200b"))
    assert rule(Policy(protect=Protect(tags=frozenset({"legal-hold"}))), points=points) == "protect"
    assert rule(Policy(protect=Protect(names=frozenset({"gold"}))), points=points) == "protect"


def test_a_protected_snapshot_keeps_its_name() -> None:
    """Else a rename, which nobody is asked about, would end the protection."""
    policy = Policy(protect=Protect(names=frozenset({"gold*"})))
    assert refuse_protected(policy, snapshot(1, 0, snapshot_name="gold 1"))
    assert not refuse_protected(policy, snapshot(1, 0, snapshot_name="silver"))


def test_a_refusal_says_which_rule_and_who_can_change_it_and_not_how() -> None:
    facts = DeletionFacts("local", "/zone", CHAIN[1], CHAIN, 0)
    refusal = refuse(Policy(deletions_per_hour=0), deletion(CHAIN, 1), facts, NOW, 0)
    assert refusal is not None
    assert "deletions_per_hour" in refusal.message
    assert "the operator of this server can change it" in refusal.message
    for way_round in ("config.toml", "SNAPSHOT_MCP", "[guard]", "environment"):
        assert way_round not in refusal.message


@pytest.mark.anyio
async def test_what_policy_refuses_no_consent_allows(bench: Bench) -> None:
    disk = await bench.add_disk("pg-data")
    only = await bench.back_up(disk, "full")
    person = Person([agrees] * 9)
    for policy in (
        Policy(read_only=True),
        Policy(protect=Protect(names=frozenset({"pg-*"}))),
        Policy(last_good_copy="refuse"),
        Policy(minimum_age_hours=1),
        Policy(deletions_per_hour=0),
        Policy(snapshots_per_approval=0),
    ):
        outcome = await bench.guard(policy).delete_snapshot(bench.zone, only.snapshot_id, person)
        assert outcome.status == "refused"
    for policy in (
        Policy(read_only=True),
        Policy(protect=Protect(ids=frozenset({disk.id}))),
        Policy(safety_snapshot="required"),
        Policy(snapshots_per_approval=0),
    ):
        outcome = await bench.guard(policy).rollback_to_snapshots(
            bench.zone, [only.snapshot_id], person, safety_snapshot=False
        )
        assert outcome.status == "refused"
    assert (person.questions, bench.destroyed) == ([], [])


@pytest.mark.anyio
async def test_a_rule_that_came_after_the_approval_holds(bench: Bench) -> None:
    disk = await bench.add_disk("pg-data")
    await bench.back_up(disk, "full")
    last = await bench.back_up(disk, "monday")
    pending = await bench.guard().delete_snapshot(bench.zone, last.snapshot_id, Person(can_ask=False))
    await bench.guard().approve(pending.approval_id, None)
    await bench.provider.update_snapshot(last.snapshot_id, SnapshotUpdate(tags=("keep",)))
    policy = Policy(protect=Protect(tags=frozenset({"keep"})))
    outcome = await bench.guard(policy).delete_snapshot(bench.zone, last.snapshot_id, Person(can_ask=False))
    assert (outcome.status, bench.destroyed) == ("refused", [])


@pytest.mark.anyio
async def test_ten_deletions_an_hour_and_no_more(bench: Bench) -> None:
    """Deletions per hour; here 2, counted over all processes."""
    disk = await bench.add_disk()
    await bench.back_up(disk)
    policy = Policy(deletions_per_hour=2)
    statuses = []
    for _ in range(3):
        last = await bench.back_up(disk)
        outcome = await bench.guard(policy).delete_snapshot(bench.zone, last.snapshot_id, Person([agrees]))
        statuses.append(outcome.status)
        if outcome.job_id:
            await bench.finish(outcome.job_id)
    assert statuses == ["started", "started", "refused"]
    bench.clock.turn(3601)
    outcome = await bench.guard(policy).delete_snapshot(bench.zone, last.snapshot_id, Person([agrees]))
    assert outcome.status == "started"


VALUES: dict[str, list[Any]] = {
    "read_only": [False, True],
    "consent": ["ask", "human"],
    "protect.ids": [frozenset(), frozenset({"vol-1"}), frozenset({"vol-1", "ss-1"})],
    "protect.names": [frozenset(), frozenset({"prod-*"}), frozenset({"prod-*", "gold"})],
    "protect.tags": [frozenset(), frozenset({"keep"}), frozenset({"keep", "legal-hold"})],
    "last_good_copy": ["human", "refuse"],
    "minimum_age_hours": [0.0, 0.5, 1.0, 48.0],
    "deletions_per_hour": [10000, 100, 10, 1, 0],
    "snapshots_per_approval": [10000, 100, 5, 1, 0],
    "safety_snapshot": ["default", "required"],
}
"""Values of each rule, the stricter later; written by hand, so that a wrong declaration is noticed."""

RULES = {".".join(path): (variable, path) for variable, path in VARIABLES.items()}


def read(policy: Policy, name: str) -> Any:
    return reduce(getattr, RULES[name][1], policy)


def policy_with(name: str, value: Any) -> Policy:
    return Policy.model_validate(reduce(lambda inner, part: {part: inner}, reversed(RULES[name][1]), value))


@pytest.mark.parametrize("name", RULES)
@given(data=st.data())
def test_each_rule_merges_to_the_stricter_value_and_leaves_the_others_alone(name: str, data: st.DataObject) -> None:
    values = st.sampled_from(range(len(VALUES[name])))
    one, other = data.draw(values), data.draw(values)
    first, second = (policy_with(name, VALUES[name][index]) for index in (one, other))
    assert read(first.merged(second), name) == VALUES[name][max(one, other)]
    assert first.merged(second) == policy_with(name, VALUES[name][max(one, other)])


@pytest.mark.parametrize("name", RULES)
@given(data=st.data())
def test_the_variable_of_each_rule_tightens_it_and_never_loosens_it(name: str, data: st.DataObject) -> None:
    values = st.sampled_from(range(len(VALUES[name])))
    one, other = data.draw(values), data.draw(values)
    value = VALUES[name][other]
    text = ", ".join(sorted(value)) if isinstance(value, frozenset) else str(value)
    before = policy_with(name, VALUES[name][one])
    tight = tighten_policy(before, {RULES[name][0]: text})
    assert tight == policy_with(name, VALUES[name][max(one, other)])
    assert tighten_policy(tight, {RULES[name][0]: text}) == tight


def test_every_rule_has_a_variable_of_its_own() -> None:
    rules = [(name,) for name in Policy.model_fields if name != "protect"]
    rules += [("protect", name) for name in Protect.model_fields]
    assert sorted(VARIABLES.values()) == sorted(rules)


def test_a_rule_that_does_not_say_how_it_tightens_cannot_be_defined() -> None:
    """A rule that nobody merges would go back to its default at every guarded call."""
    with pytest.raises(TypeError, match="freeze_hours"):

        class Forgetful(Policy):
            freeze_hours: int = 0


def test_a_value_that_a_rule_cannot_have_names_the_variable() -> None:
    for variable, value in (("SNAPSHOT_MCP_CONSENT", "none"), ("SNAPSHOT_MCP_DELETIONS_PER_HOUR", "-1")):
        with pytest.raises(BadRequest, match=variable):
            tighten_policy(Policy(), {variable: value})


def test_a_time_of_unknown_age_counts_as_young() -> None:
    timeless = tuple(one.model_copy(update={"create_time": None, "snapshot_time": None}) for one in CHAIN)
    assert rule(Policy(minimum_age_hours=1), points=timeless) == "minimum_age_hours"
    two_stories = tuple(one.model_copy(update={"snapshot_time": NOW}) for one in CHAIN)
    assert rule(Policy(minimum_age_hours=1), points=two_stories) == "minimum_age_hours"
    assert RESOURCE.resource_id == "vol-1"
    assert NOW.tzinfo is UTC
