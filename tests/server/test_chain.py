"""The picture of a chain: pure, so it is held to its properties for any tree."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from snapshot_mcp.contract.models import Snapshot
from snapshot_mcp.server import chain

START = datetime(2026, 11, 23, 10, tzinfo=UTC)


def snapshot(number: int, parent: int | None, **fields: object) -> Snapshot:
    return Snapshot.model_validate(
        {
            "snapshot_id": f"ss-{number}",
            "snapshot_name": f"n{number}",
            "snapshot_type": 1 if parent is None else 0,
            "status": "available",
            "snapshot_time": START + timedelta(minutes=number),
            "root_id": "ss-0",
            "parent_id": "self" if parent is None else f"ss-{parent}",
            "size": 1,
            **fields,
        }
    )


@st.composite
def forests(draw: st.DrawFn) -> list[Snapshot]:
    """Snapshots that build on earlier ones, in any order, one of them perhaps the head."""
    count = draw(st.integers(0, 40))
    parents = [draw(st.none() | st.integers(0, number - 1)) if number else None for number in range(count)]
    head = draw(st.none() | st.integers(0, max(0, count - 1)))
    made = [snapshot(number, parent, is_head=int(number == head)) for number, parent in enumerate(parents)]
    return draw(st.permutations(made))


@given(forests())
def test_every_snapshot_is_laid_out_once_below_its_parent(snapshots: list[Snapshot]) -> None:
    nodes = chain.layout(snapshots)
    assert sorted(node.snapshot_id for node in nodes) == sorted(one.snapshot_id for one in snapshots)
    depth: dict[str, int] = {}
    for node in nodes:
        assert node.depth == (depth[node.parent_id] + 1 if node.parent_id else 0)
        depth[node.snapshot_id] = node.depth
    assert len(chain.draw(snapshots)) == len(snapshots)


@given(forests())
def test_the_way_to_the_head_is_drawn_straight(snapshots: list[Snapshot]) -> None:
    head = next((one for one in snapshots if one.is_head), None)
    for line in chain.draw(snapshots):
        if head and "◀ head" in line:
            assert line.startswith(("◉", "●"))


def test_a_straight_chain_does_not_march_to_the_right() -> None:
    lines = chain.draw([snapshot(number, number - 1 if number else None) for number in range(30)])
    assert {line[0] for line in lines[1:]} == {"●"}


def test_a_branch_stands_beside_the_way_to_the_head() -> None:
    snapshots = [
        snapshot(0, None),
        snapshot(1, 0),
        snapshot(2, 1),
        snapshot(3, 0, is_head=1),
        snapshot(4, 1, is_damaged=1),
    ]
    art = [line.split("  ")[0].rstrip() for line in chain.draw(snapshots)]
    assert art == ["◉ ss-0", "├─● ss-1", "│ ├─● ss-2", "│ ● ss-4", "● ss-3"]
    assert "DAMAGED" in chain.draw(snapshots)[3]


def test_a_loop_and_a_missing_parent_end_nothing() -> None:
    looped = [snapshot(0, 1), snapshot(1, 0), snapshot(2, 9)]
    assert len(chain.draw(looped)) == 3
