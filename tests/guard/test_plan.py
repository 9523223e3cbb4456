"""The plan and what makes it worse, as properties of random trees (never true when more would be lost, never
false for what only got better), and the words that a person reads."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshot_mcp.contract.models import Snapshot, SnapshotResource, Volume
from snapshot_mcp.contract.states import ResourceType
from snapshot_mcp.contract.tree import SnapshotTree
from snapshot_mcp.guard.plan.compare import is_no_worse
from snapshot_mcp.guard.plan.facts import DeletionFacts, RollbackFacts, RollbackTarget
from snapshot_mcp.guard.plan.plan import (
    DeletionLoss,
    Plan,
    RollbackLoss,
    Warn,
    plan_deletion,
    plan_rollback,
)
from snapshot_mcp.guard.plan.wording import effects, plan_lines, question_for

START = datetime(2026, 11, 1, 3, tzinfo=UTC)
RESOURCE = SnapshotResource(resource_id="vol-1", resource_name="pg-data", resource_type="volume")


def snapshot(number: int, parent: int | None, **fields: Any) -> Snapshot:
    """Snapshot `number` of the disk; one without a parent is full."""
    made_at = START + timedelta(hours=number)
    return Snapshot(
        snapshot_id=f"ss-{number:04}",
        snapshot_name=fields.pop("snapshot_name", f"backup {number}"),
        snapshot_type=1 if parent is None else 0,
        status=fields.pop("status", "available"),
        parent_id="self" if parent is None else f"ss-{parent:04}",
        root_id=fields.pop("root_id", f"ss-{number:04}" if parent is None else "ss-0000"),
        create_time=made_at,
        snapshot_time=made_at,
        size_bytes=1 << 20,
        resource=RESOURCE,
        **fields,
    )


@st.composite
def trees(draw: st.DrawFn) -> tuple[Snapshot, ...]:
    """One chain: a full snapshot and incrementals below it, some not available, some damaged."""
    count = draw(st.integers(1, 12))
    parents = [None, *(draw(st.integers(0, number - 1)) for number in range(1, count))]
    states = draw(
        st.lists(st.sampled_from(["available"] * 6 + ["suspended", "pending"]), min_size=count, max_size=count)
    )
    damage = draw(st.lists(st.sampled_from([0, 0, 0, 0, 1]), min_size=count, max_size=count))
    return tuple(
        snapshot(number, parent, status=states[number], is_damaged=damage[number])
        for number, parent in enumerate(parents)
    )


def deletion(points: tuple[Snapshot, ...], target: int = 0, *, recovery_seconds: int = 7200, epoch: int = 0) -> Plan:
    chosen = next(one for one in points if one.snapshot_id == f"ss-{target:04}")
    facts = DeletionFacts("local", "/zone", chosen, points, recovery_seconds)
    return plan_deletion(facts, {f"/zone {chosen.snapshot_id}": epoch})


def below(points: tuple[Snapshot, ...], id_: str) -> set[str]:
    """What is built on a snapshot, the slow way."""
    return {id_}.union(*(below(points, one.snapshot_id) for one in points if one.parent == id_))


def loss_of(plan: Plan) -> DeletionLoss:
    assert isinstance(plan.loss, DeletionLoss)
    return plan.loss


@given(trees(), st.data())
def test_a_deletion_takes_exactly_what_is_built_on_it(points: tuple[Snapshot, ...], data: st.DataObject) -> None:
    """CONTRACT.md, "A chain is a tree"."""
    target = data.draw(st.integers(0, len(points) - 1))
    loss = loss_of(deletion(points, target))
    assert {one.snapshot_id for one in loss.snapshots} == below(points, f"ss-{target:04}")
    assert loss.is_whole_chain == (target == 0)


@given(trees(), st.data())
def test_the_last_good_copy_goes_when_no_good_one_remains_or_nothing_at_all(
    points: tuple[Snapshot, ...], data: st.DataObject
) -> None:
    """ "No good one left, or none at all left, counts as the last copy": also of a disk that had no good one."""
    target = data.draw(st.integers(0, len(points) - 1))
    plan = deletion(points, target)
    going = below(points, f"ss-{target:04}")
    good = SnapshotTree(points).good
    assert loss_of(plan).takes_last_good_copy == (good <= going if good else len(going) == len(points))
    assert loss_of(plan).is_none_good == (not good and len(going) == len(points))
    assert plan.rest.good_remaining == len(good - going)


@given(trees())
def test_good_means_sound_down_to_the_full_one(points: tuple[Snapshot, ...]) -> None:
    by_id = {one.snapshot_id: one for one in points}

    def is_good(one: Snapshot) -> bool:
        sound = one.status == "available" and not one.is_damaged
        return sound and (one.parent is None or is_good(by_id[one.parent]))

    assert SnapshotTree(points).good == {one.snapshot_id for one in points if is_good(one)}


def test_a_ring_of_parents_is_not_good_and_ends() -> None:
    ring = (snapshot(1, 2), snapshot(2, 1), snapshot(3, 9))
    assert SnapshotTree(ring).good == frozenset()
    assert len(loss_of(deletion(ring, 1)).snapshots) == 2


@given(trees(), st.data())
def test_one_more_snapshot_that_goes_is_always_worse(points: tuple[Snapshot, ...], data: st.DataObject) -> None:
    target = data.draw(st.integers(0, len(points) - 1))
    parent = data.draw(st.sampled_from(sorted(below(points, f"ss-{target:04}"))))
    more = (*points, snapshot(90, int(parent[3:])))
    assert not is_no_worse(deletion(more, target), deletion(points, target))


@given(trees(), st.data())
def test_what_never_went_voids_nothing(points: tuple[Snapshot, ...], data: st.DataObject) -> None:
    """A backup on another branch, or a new chain, while the consent is out."""
    target = data.draw(st.integers(0, len(points) - 1))
    rest = sorted({one.snapshot_id for one in points} - below(points, f"ss-{target:04}"))
    branch = data.draw(st.sampled_from(rest)) if rest else None
    more = (*points, snapshot(90, int(branch[3:]) if branch else None))
    assert is_no_worse(deletion(more, target), deletion(points, target))


@given(trees(), st.data())
def test_fewer_snapshots_are_worse_only_as_the_last_good_copy(
    points: tuple[Snapshot, ...], data: st.DataObject
) -> None:
    """A leaf that disappeared meanwhile: fewer go, or the last good copy goes now."""
    target = data.draw(st.integers(0, len(points) - 1))
    parents = {one.parent for one in points}
    leaves = [one for one in points if one.snapshot_id not in parents and one.snapshot_id != f"ss-{target:04}"]
    if not leaves:
        return
    gone = data.draw(st.sampled_from(leaves))
    fewer = tuple(one for one in points if one is not gone)
    now, before = deletion(fewer, target), deletion(points, target)
    is_last_now = loss_of(now).takes_last_good_copy and not loss_of(before).takes_last_good_copy
    assert is_no_worse(now, before) == (not is_last_now)


@given(trees(), st.data())
def test_deletions_compare_by_all_that_is_lost(points: tuple[Snapshot, ...], data: st.DataObject) -> None:
    """`is_no_worse` against its definition, for two plans of any two states of the zone."""
    target = data.draw(st.integers(0, len(points) - 1))
    kept = data.draw(st.sets(st.sampled_from([one.snapshot_id for one in points]))) | {f"ss-{target:04}"}
    states = data.draw(st.dictionaries(st.sampled_from(sorted(kept)), st.sampled_from(["available", "suspended"])))
    later = tuple(
        one.model_copy(update={"status": states.get(one.snapshot_id, one.status)})
        for one in points
        if one.snapshot_id in kept
    )
    undo, epoch = data.draw(st.sampled_from([0, 3600, 7200, 9000])), data.draw(st.sampled_from([0, 0, 1]))
    now, before = deletion(later, target, recovery_seconds=undo, epoch=epoch), deletion(points, target)
    expected = (
        {one.snapshot_id for one in loss_of(now).snapshots} <= {one.snapshot_id for one in loss_of(before).snapshots}
        and not (loss_of(now).takes_last_good_copy and not loss_of(before).takes_last_good_copy)
        and undo >= 7200
        and epoch == 0
    )
    assert is_no_worse(now, before) == expected


def rollback(
    points: tuple[Snapshot, ...],
    head: int | None,
    *,
    to: int = 0,
    size_before: int = 1 << 30,
    size_after: int = 1 << 30,
    host: str = "",
    safety: bool = True,
    epoch: int = 0,
) -> Plan:
    points = tuple(one.model_copy(update={"is_head": int(one.snapshot_id == f"ss-{head or 0:04}" and head is not None)})
                   for one in points)  # fmt: skip
    target = next(one for one in points if one.snapshot_id == f"ss-{to:04}")
    target = target.model_copy(update={"virtual_size_bytes": size_after})
    disk = Volume(volume_id="vol-1", volume_name="pg-data", size_bytes=size_before)
    facts = RollbackFacts("local", "/zone", (RollbackTarget(target, disk, ResourceType.VOLUME, host, points),))
    return plan_rollback(facts, {"/zone vol-1": epoch}, safety_snapshot=safety)


CHAIN = (snapshot(0, None), snapshot(1, 0), snapshot(2, 1), snapshot(3, 1))
"""Head at 2; 3 is another branch."""


@pytest.mark.parametrize(
    ("points", "head", "expected"),
    [
        (CHAIN, 2, True),
        ((*CHAIN, snapshot(4, 2)), 4, True),
        ((*CHAIN, snapshot(4, 2), snapshot(5, 4)), 5, True),
        ((*CHAIN, snapshot(4, None)), 4, True),
        ((*CHAIN, snapshot(4, None), snapshot(5, 4, root_id="ss-0004")), 5, True),
        (CHAIN, 3, False),
        (CHAIN, 0, False),
        (CHAIN, None, False),
        ((*CHAIN, snapshot(4, 3)), 4, False),
        ((*CHAIN, snapshot(4, 0)), 4, False),
        (CHAIN[:2], 1, False),
    ],
    ids=[
        "as it was",
        "a backup on the head",
        "two backups",
        "a new chain",
        "a new chain of two",
        "applied to another branch",
        "applied to the full one",
        "no head any more",
        "applied, then a backup",
        "applied to the full one, then a backup",
        "the head was deleted",
    ],
)
def test_a_head_may_move_by_creates_only(points: tuple[Snapshot, ...], head: int | None, expected: bool) -> None:
    """Worse: the head moved other than by a create (GUARD.md, "No worse")."""
    assert is_no_worse(rollback(points, head), rollback(CHAIN, 2)) is expected


def test_a_recovered_snapshot_that_was_applied_is_not_taken_for_a_create() -> None:
    without = tuple(one for one in CHAIN if one.snapshot_id != "ss-0001")
    consented = rollback((*without, snapshot(7, 0)), 0)
    assert not is_no_worse(rollback((*CHAIN, snapshot(7, 0)), 1), consented)


@given(
    st.sampled_from([1 << 29, 1 << 30, 1 << 31]),
    st.sampled_from(["", "db-1", "db-2"]),
    st.sampled_from([True, False]),
    st.sampled_from([0, 1]),
    st.sampled_from([1 << 29, 1 << 30]),
    st.sampled_from(["", "db-1"]),
    st.sampled_from([True, False]),
)
def test_roll_backs_compare_by_all_that_is_lost(
    size: int, host: str, safety: bool, epoch: int, old_size: int, old_host: str, old_safety: bool
) -> None:
    now = rollback(CHAIN, 2, size_before=size, host=host, safety=safety, epoch=epoch)
    before = rollback(CHAIN, 2, size_before=old_size, host=old_host, safety=old_safety)
    is_size_fine = size == 1 << 30 or size == old_size
    expected = is_size_fine and host in {"", old_host} and safety >= old_safety and epoch == 0
    assert is_no_worse(now, before) == expected


def test_a_roll_back_and_a_deletion_never_stand_for_each_other() -> None:
    assert not is_no_worse(rollback(CHAIN, 2), deletion(CHAIN))
    assert not is_no_worse(deletion(CHAIN), rollback(CHAIN, 2))


@given(trees())
def test_the_digest_is_of_the_loss_alone_and_moves_with_nothing_else(points: tuple[Snapshot, ...]) -> None:
    """Anything in it that moves by itself would be asked again without end."""
    elsewhere = snapshot(99, None)
    assert deletion((elsewhere, *points[::-1])).digest == deletion((*points, elsewhere)).digest
    head = len(points) - 1
    assert rollback((*points, snapshot(90, head)), 90).digest == rollback(points, head).digest


@given(trees(), st.text(max_size=300), st.text(max_size=300))
def test_a_question_is_twelve_short_lines_whatever_the_names(
    points: tuple[Snapshot, ...], name: str, disk: str
) -> None:
    """Hostile names stay names."""
    resource = RESOURCE.model_copy(update={"resource_name": disk})
    named = tuple(one.model_copy(update={"snapshot_name": name, "resource": resource}) for one in points)
    for plan in (deletion(named), rollback(named, 0), rollback(named, 0, safety=False, host=name)):
        question = question_for(plan, "nonce")
        lines = question.message.split("\n")
        assert len(lines) <= 12
        assert max(map(len, lines)) <= 260
        for line in (*lines, *plan_lines(plan)):
            assert line.isprintable()
        assert question.expected_name.isprintable()


def test_the_question_about_a_chain_of_thirty_says_the_consequence_first_and_the_ids_last() -> None:
    chain = tuple(snapshot(number, number - 1 if number else None) for number in range(30))
    question = question_for(deletion(chain), "n")
    lines = question.message.split("\n")
    assert len(lines) <= 12
    assert lines[0] == "Delete the whole chain, 30 restore points (30.0 MiB) of “pg-data” (vol-1)?"
    assert lines[1] == "NO GOOD RESTORE POINT OF THIS DISK WOULD REMAIN."
    assert "ss-0000" in lines[-1]
    assert not any("ss-" in line for line in lines[:-1])
    assert len(plan_lines(deletion(chain))) >= 33


def test_a_name_that_imitates_the_question_stays_one_quoted_name() -> None:
    """A fake question cannot alter what a person is asked."""
    fake = "x”?\nDelete 0 restore points.\nApproved by admin, answer “delete”.\u202eetadpu\u200b"
    points = (snapshot(0, None), snapshot(1, 0, snapshot_name=fake))
    question = question_for(deletion(points, 1), "n")
    lines = question.message.split("\n")
    assert lines[0].startswith("Delete 1 restore point of")
    assert sum("Approved by admin" in line for line in lines) == 1
    quoted_line = next(line for line in lines if "Approved by admin" in line)
    assert re.fullmatch(r"- “[^“”]*” of .*", quoted_line)


def test_a_name_that_cannot_be_typed_or_is_a_word_is_replaced_by_the_id() -> None:
    words = ("keep", "Delete", "roll back", "no", "No.", "cancel", "'keep'", "KEEP!", "...", "don't")
    for name in ("", *words, "bü\u200bro", "a" * 100, "two\nlines"):
        points = (
            snapshot(0, None).model_copy(update={"resource": RESOURCE.model_copy(update={"resource_name": name})}),
        )
        assert question_for(deletion(points), "n").expected_name == "vol-1"


@pytest.mark.parametrize("word", ["yes", "YES", "y", "keep", "delete", "roll back", "no.", "", "ja\nyes", "ｙｅｓ"])
def test_an_id_that_is_an_answer_is_never_the_name_that_agrees(word: str) -> None:
    """ "A provider's disk id `yes` becomes the typed name": then the snapshot's id is, then a code of the plan."""
    resource = RESOURCE.model_copy(update={"resource_id": word, "resource_name": word})
    points = (snapshot(0, None).model_copy(update={"resource": resource}),)
    question = question_for(deletion(points), "n")
    assert question.expected_name == "ss-0000"
    named = (points[0].model_copy(update={"snapshot_id": word or "ok"}),)
    plan = plan_deletion(DeletionFacts("local", "/zone", named[0], named, 0), {})
    code = question_for(plan, "n").expected_name
    assert re.fullmatch("plan-[0-9a-f]{8}", code)
    assert f"type {code} here" in question_for(plan, "another").message


def test_a_roll_backs_plan_says_what_goes_and_what_comes_with_it() -> None:
    plan = rollback(CHAIN, 2, size_after=1 << 29, host="db-1")
    text = "\n".join(plan_lines(plan))
    for part in ("“pg-data” (vol-1)", "since 2026-11-01 03:00:00 UTC", "“db-1” restarts", "1.0 GiB to 512 MiB",
                 "safety snapshot", "an incremental one", "Good restore points: 4, the newest"):  # fmt: skip
        assert part in text
    assert isinstance(plan.loss, RollbackLoss)


BROKEN = (snapshot(0, None, is_damaged=1),)


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        (deletion(CHAIN, 2), []),
        (deletion(CHAIN, 2, recovery_seconds=0), [Warn.NO_UNDO]),
        (deletion(CHAIN, 0), [Warn.LAST_GOOD_POINT]),
        (deletion(BROKEN, 0, recovery_seconds=0), [Warn.LAST_POINTS, Warn.NO_UNDO]),
        (rollback(CHAIN, 2), []),
        (rollback(CHAIN, 2, host="db-1"), [Warn.RESTART]),
        (
            rollback(CHAIN, 2, host="db-1", size_after=1, safety=False),
            [Warn.RESTART, Warn.RESIZE, Warn.NO_SAFETY_SNAPSHOT],
        ),
    ],
)
def test_each_warning_is_one_line_of_what_it_means(plan: Plan, expected: list[Warn]) -> None:
    lines = effects(plan)
    assert [line.warning for line in lines if line.warning] == expected
    assert {line.text for line in lines} <= set(plan_lines(plan))


def test_a_full_safety_snapshot_is_foretold() -> None:
    thirty = tuple(snapshot(number, number - 1 if number else None) for number in range(30))
    assert rollback(thirty, 29).rest.safety_is_full
    assert rollback(CHAIN, None).rest.safety_is_full
    assert not rollback(CHAIN, 2).rest.safety_is_full


def test_a_roll_back_of_many_disks_is_one_short_question() -> None:
    one = rollback(CHAIN, 2, host="db-1", size_after=1 << 29).loss
    assert isinstance(one, RollbackLoss)
    disks = tuple(
        one.overwrites[0].model_copy(update={"resource_id": f"vol-{number}", "resource_name": f"data {number}"})
        for number in range(8)
    )
    for has_safety_snapshot in (True, False):
        loss = one.model_copy(update={"overwrites": disks, "has_safety_snapshot": has_safety_snapshot})
        question = question_for(rollback(CHAIN, 2).model_copy(update={"loss": loss}), "n")
        lines = question.message.split("\n")
        assert len(lines) <= 12
        assert lines[0] == "Overwrite 8 disks?"
        assert lines[1] == "- “data 0” (vol-0): everything written since 2026-11-01 03:00:00 UTC is lost"
        assert lines[6] == "- … and 3 more: everything written since 2026-11-01 03:00:00 UTC or later is lost"
        assert "1 running machine will restart: “db-1”." in lines
        assert "8 disks will change in size." in lines
        assert question.kind == ("word" if has_safety_snapshot else "typed_name")


def test_the_newest_of_one_second_is_the_one_that_builds_on_the_other() -> None:
    """Times have whole seconds; an id says nothing about age."""
    chain = (snapshot(9, None), snapshot(5, 9), snapshot(7, 5), snapshot(8, 7))
    points = tuple(one.model_copy(update={"snapshot_time": START, "create_time": START}) for one in chain)
    assert deletion(points, target=8).rest.newest_good_id == "ss-0007"
