"""`SnapshotTree` against slow definitions, for every forest of restore points and also for what no zone should send."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshot_mcp.contract.models import Snapshot
from snapshot_mcp.contract.tree import Links, SnapshotTree, is_fuzzy

START = datetime(2026, 11, 23, 10, tzinfo=UTC)


def snapshot(number: int, parent: int | None, **fields: Any) -> Snapshot:
    """Snapshot `number` of a disk, taken in the minute `number`; one without a parent is full."""
    values: dict[str, Any] = {
        "snapshot_id": f"ss-{number}",
        "snapshot_type": int(parent is None),
        "status": "available",
        "snapshot_time": START + timedelta(minutes=number),
        "root_id": f"ss-{number}" if parent is None else "ss-0",
        "parent_id": "self" if parent is None else f"ss-{parent}",
    }
    return Snapshot.model_validate(values | fields)


@st.composite
def forests(draw: st.DrawFn) -> list[Snapshot]:
    """Chains whose snapshots build on earlier ones, some not available, damaged or fuzzy, in any order."""
    made: list[Snapshot] = []
    for number in range(draw(st.integers(1, 20))):
        parent = draw(st.none() | st.integers(0, number - 1)) if number else None
        made.append(
            snapshot(
                number,
                parent,
                root_id=f"ss-{number}" if parent is None else made[parent].root_id,
                status=draw(st.sampled_from(["available"] * 5 + ["suspended", "pending"])),
                is_damaged=draw(st.sampled_from([0] * 5 + [1])),
                consistency=draw(st.sampled_from(["instant"] * 3 + [None, "fuzzy", "fuzzy, each disk for itself"])),
            )
        )
    return draw(st.permutations(made))


@st.composite
def nonsense(draw: st.DrawFn) -> list[Snapshot]:
    """Parents and roots as a broken zone may name them: themselves, each other in a ring, what is not there, nothing."""
    count = draw(st.integers(1, 8))
    ids = st.sampled_from([f"ss-{number}" for number in range(count + 1)] + ["", "self"])
    return [
        snapshot(number, None, snapshot_type=draw(st.integers(0, 1)), parent_id=draw(ids), root_id=draw(ids))
        for number in range(count)
    ]


def left_out(points: list[Snapshot]) -> list[Snapshot]:
    """The same snapshots of a zone that does not say what an incremental builds on."""
    return [one if one.is_full else one.model_copy(update={"parent_id": ""}) for one in points]


def below(points: list[Snapshot], id_: str) -> set[str]:
    """What was built on a snapshot, the slow way."""
    children = [one.snapshot_id for one in points if one.parent == id_]
    return set(children).union(*(below(points, child) for child in children))


@given(forests())
def test_descendants_ancestors_and_depth_are_what_the_parents_say(points: list[Snapshot]) -> None:
    """CONTRACT.md, "A chain is a tree"."""
    tree = SnapshotTree(points)
    for one in points:
        assert tree.descendants(one.snapshot_id) == below(points, one.snapshot_id)
        above = {other.snapshot_id for other in points if one.snapshot_id in below(points, other.snapshot_id)}
        assert {other.snapshot_id for other in tree.ancestors(one.snapshot_id)} == above
        assert tree.depths[one.snapshot_id] == len(above)
        assert {other.snapshot_id for other in tree.chain_of(one.snapshot_id)} == {
            other.snapshot_id for other in points if other.root_id == one.root_id
        }


@given(forests())
def test_good_is_available_and_undamaged_down_to_the_full_one_and_not_itself_fuzzy(points: list[Snapshot]) -> None:
    """CONTRACT.md, "Good"."""
    by_id = {one.snapshot_id: one for one in points}

    def is_sound(one: Snapshot) -> bool:
        return one.status == "available" and not one.is_damaged and (not one.parent or is_sound(by_id[one.parent]))

    tree = SnapshotTree(points)
    assert tree.sound == {one.snapshot_id for one in points if is_sound(one)}
    assert tree.good == {id_ for id_ in tree.sound if not is_fuzzy(by_id[id_])}


@given(forests())
def test_a_zone_that_leaves_parents_out_has_every_chain_below_its_full_one(points: list[Snapshot]) -> None:
    """CONTRACT.md, "A chain is a tree"; what a snapshot builds on then stays unknown."""
    tree, told = SnapshotTree(left_out(points)), SnapshotTree(points)
    for one in points:
        id_ = one.snapshot_id
        assert tree.descendants(id_) == (told.descendants(id_) if one.is_full else frozenset())
        assert tree.depths[id_] == (0 if one.is_full else 1)
        assert tree.is_placed(id_) == one.is_full
        assert (id_ in tree.good) == (id_ in told.good and one.is_full)


@given(st.one_of(forests(), nonsense()))
def test_order_and_tree_end_and_lose_nothing_whatever_a_zone_says(points: list[Snapshot]) -> None:
    tree = SnapshotTree(points)
    ids = {one.snapshot_id for one in points}
    assert {one.snapshot_id for one in tree.points} == ids == set(tree.depths)
    times = [one.snapshot_time for one in tree.points]
    assert times == sorted(times)
    for one in points:
        drawn_below = {id_ for id_ in ids if one in tree.ancestors(id_)}
        assert drawn_below <= tree.descendants(one.snapshot_id), "the picture shows nothing below that would stay"
        assert tree.in_order(tree.descendants(one.snapshot_id)) == tuple(
            other for other in tree.points if other.snapshot_id in tree.descendants(one.snapshot_id)
        )


def test_in_a_ring_all_of_it_goes_and_none_is_good() -> None:
    ring = [snapshot(number, (number + 1) % 3, root_id="") for number in range(3)]
    tree = SnapshotTree(ring)
    assert {len(tree.descendants(one.snapshot_id)) for one in ring} == {2}
    assert tree.good == frozenset()
    assert [one.snapshot_id for one in tree.roots] == ["ss-0"]


def test_of_one_second_what_builds_on_another_comes_after_it() -> None:
    """Times have whole seconds; an id says nothing about age."""
    chain = [snapshot(9, None), snapshot(5, 9), snapshot(7, 5)]
    tree = SnapshotTree(one.model_copy(update={"snapshot_time": START}) for one in chain)
    assert [one.snapshot_id for one in tree.points] == ["ss-9", "ss-5", "ss-7"]


def test_bare_ids_are_walked_parents_first() -> None:
    links = Links({"c": "b", "a": None, "b": "a", "d": "a", "e": "not there"})
    assert list(links.depth_first()) == [("a", 0), ("b", 1), ("c", 2), ("d", 1), ("e", 0)]
    assert (links.parent("e"), links.children(""), links.roots) == (None, (), ("a", "e"))


@pytest.mark.parametrize("told", ["fuzzy", "Fuzzy", " FUZZY\n", "fuzzy, each disk for itself", "fuzzy; Yes is safe"])
def test_what_says_that_it_is_fuzzy_never_counts_as_good(told: str) -> None:
    """A foreign zone may spell it otherwise than ours."""
    assert is_fuzzy(Snapshot(snapshot_id="ss-1", consistency=told))
