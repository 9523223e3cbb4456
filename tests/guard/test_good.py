"""What counts as good and how it is told: a mixture never does, and every text says which restore points are one state.

CONTRACT.md, "Good".
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp import Client

from snapshot_mcp.contract.models import Snapshot
from snapshot_mcp.guard.plan.compare import is_no_worse
from snapshot_mcp.guard.plan.facts import DeletionFacts
from snapshot_mcp.guard.plan.plan import DeletionLoss, Plan, RollbackLoss, plan_deletion
from snapshot_mcp.guard.plan.wording import plan_lines, question_for
from snapshot_mcp.server import chain
from tests.contract.test_tree import forests, left_out
from tests.guard.test_plan import CHAIN, START, deletion, rollback, snapshot
from tests.server.conftest import lab as lab
from tests.server.lab import Lab, data_of, finish, text_of

CRASH = "consistent as after a power cut"
MIXTURE = "may be a mixture of states: the disk was in use (fuzzy)"


def loss_of(plan: Plan) -> DeletionLoss:
    assert isinstance(plan.loss, DeletionLoss)
    return plan.loss


def text_of_plan(plan: Plan) -> str:
    return "\n".join(plan_lines(plan))


def test_a_mixture_does_not_count_as_the_good_copy_that_remains() -> None:
    """ "With `allow_fuzzy` and the disk open for writing, every text, the plan and the question call the copy `good`"."""
    points = (snapshot(0, None, consistency="instant"), snapshot(1, None, consistency="fuzzy"))
    plan = deletion(points, 0)
    assert loss_of(plan).takes_last_good_copy
    assert "Good restore points that remain: 0." in text_of_plan(plan)
    assert "Not counted as good: 1 fuzzy, may be a mixture of states: the disk was in use." in text_of_plan(plan)
    assert "NO GOOD RESTORE POINT OF THIS DISK WOULD REMAIN." in question_for(plan, "n").message
    assert not loss_of(deletion(points, 1)).takes_last_good_copy


def test_a_sound_incremental_on_a_mixture_is_good() -> None:
    """All of the disk is compared when it is taken."""
    points = (snapshot(0, None, consistency="fuzzy"), snapshot(1, 0, consistency="unchanged"), snapshot(2, None))
    assert deletion(points, 2).rest.newest_good_id == "ss-0001"


def test_the_last_restore_points_of_a_disk_are_the_last_copy_though_none_is_good() -> None:
    """ "No good one left, or none at all left, counts as the last copy"."""
    points = (snapshot(0, None, consistency="fuzzy"), snapshot(1, 0, is_damaged=1))
    plan = deletion(points, 0)
    assert (loss_of(plan).takes_last_good_copy, plan.loss.is_grave) == (True, True)
    assert "This deletes the last restore points of this disk; none of them counts as good." in text_of_plan(plan)
    assert "NO RESTORE POINT OF THIS DISK WOULD REMAIN." in question_for(plan, "n").message
    assert not loss_of(deletion(points, 1)).takes_last_good_copy, "the fuzzy one remains, and none was good before"


def test_when_the_last_of_the_others_went_meanwhile_the_consent_does_not_hold() -> None:
    points = (snapshot(0, None, consistency="fuzzy"), snapshot(1, None, consistency="fuzzy"))
    assert not is_no_worse(deletion(points[:1], 0), deletion(points, 0))


def test_plan_and_question_say_of_each_restore_point_how_far_it_is_one_state() -> None:
    points = (snapshot(0, None, consistency="instant"), snapshot(1, 0, consistency="fuzzy"), snapshot(2, 0))
    going = deletion((*points, snapshot(3, None, consistency="held")), 0)
    for text in (text_of_plan(going), question_for(going, "n").message):
        assert f"{CRASH} (instant)" in text
        assert MIXTURE in text
    assert f"{CRASH} (held)" in text_of_plan(going), "of the newest that remains"
    back = rollback(points, 0, to=1)
    for text in (text_of_plan(back), question_for(back, "n").message):
        assert MIXTURE in text
    assert "Not counted as good: 1 fuzzy" in text_of_plan(back)


@given(forests(), st.data())
def test_the_picture_shows_below_a_snapshot_exactly_what_the_plan_takes_with_it(
    points: list[Snapshot], data: st.DataObject
) -> None:
    """ "Where a provider leaves `parent_id` out, the plan takes two snapshots and `show_chain` draws the second as a chain of
    its own": what a person looks at is the plan in the question."""
    shown = left_out(points) if data.draw(st.booleans()) else points
    targets = [one for one in shown if one.is_full or shown is points]
    target = data.draw(st.sampled_from(targets))
    plan = loss_of(deletion_of(shown, target))
    nodes = chain.layout(shown)
    at = next(number for number, node in enumerate(nodes) if node.snapshot_id == target.snapshot_id)
    drawn = [nodes[at].snapshot_id]
    for node in nodes[at + 1 :]:
        if node.depth <= nodes[at].depth:
            break
        drawn.append(node.snapshot_id)
    assert set(drawn) == {one.snapshot_id for one in plan.snapshots}


def deletion_of(points: list[Snapshot], target: Snapshot) -> Plan:
    return plan_deletion(DeletionFacts("local", "/zone", target, tuple(points), 0), {})


def test_a_chain_whose_links_are_not_told_is_drawn_as_one() -> None:
    lines = chain.draw(left_out([snapshot(0, None), snapshot(1, 0)]))
    assert [line[0] for line in lines] == ["◉", "●"]
    assert "(parent unknown)" in lines[1]


# A recent rename


def test_a_recent_rename_is_named_with_the_moment_and_moves_nothing() -> None:
    """ "The question names a recent rename": no clock, or it would be asked again without end."""
    facts = DeletionFacts("local", "/zone", CHAIN[1], CHAIN, 0)
    renames = {"ss-0002": ("before\nthe “release”", START)}
    plan = plan_deletion(facts, {}, renames)
    told = "renamed from “before the 'release'” at 2026-11-01 03:00 UTC"
    assert told in text_of_plan(plan)
    assert told in question_for(plan, "n").message
    assert plan.digest == plan_deletion(facts, {}, renames).digest
    assert is_no_worse(plan, plan_deletion(facts, {}))


def test_the_longest_names_leave_the_question_short() -> None:
    long = "ö" * 255
    one = rollback(CHAIN, 2, host=long, size_after=1 << 29).loss
    assert isinstance(one, RollbackLoss)
    overwrites = [
        one.overwrites[0].model_copy(
            update={
                "resource_id": f"vol-{number}",
                "resource_name": long,
                "snapshot_name": long,
                "consistency": "fuzzy",
                "hard_links": 3,
                "renamed_from": long,
                "renamed_at": START,
            }
        )
        for number in range(8)
    ]
    for count in (1, 2, 3, 8):
        plan = rollback(CHAIN, 2).model_copy(
            update={"loss": one.model_copy(update={"overwrites": tuple(overwrites[:count])})}
        )
        lines = question_for(plan, "n").message.split("\n")
        assert len(lines) <= 12
        assert max(map(len, lines)) <= 320


# Through a real client


@asynccontextmanager
async def fuzzy_copy(lab: Lab) -> AsyncIterator[tuple[Client, str]]:
    """A home whose zone allows mixtures, and one of a disk that another program has open for writing."""
    (lab.folder / "config.toml").write_text('[zones.local]\nprovider = "local"\nallow_fuzzy = true\n', encoding="utf-8")
    disk = await lab.add_disk("web")
    async with lab.connect() as client:
        holder = os.open(Path(disk.path or ""), os.O_RDWR)
        try:
            result = await client.call_tool("create_snapshots", {"resource_ids": ["web"], "name": "nightly"})
            assert (await finish(client, result))["status"] == "successful"
        finally:
            os.close(holder)
        rows = data_of(await client.call_tool("list_snapshots", {}))["snapshots"]
        yield client, rows[0]["snapshot_id"]


@pytest.mark.anyio
async def test_every_result_that_lists_or_counts_restore_points_says_what_is_a_mixture(lab: Lab) -> None:
    """ "Only structured content with `verbose` says `fuzzy`"; both text and structure must, without it."""
    async with fuzzy_copy(lab) as (client, snapshot_id):
        for tool, arguments in (
            ("list_snapshots", {}),
            ("show_chain", {"resource_id": "web"}),
            ("delete_snapshot", {"snapshot_id": snapshot_id}),
            ("rollback_to_snapshots", {"snapshot_ids": [snapshot_id]}),
        ):
            result: Any = await client.call_tool(tool, arguments)
            assert MIXTURE in text_of(result), tool
            assert MIXTURE in str(data_of(result)), tool
        assert data_of(result)["status"] == "needs_approval"
        assert any("Not counted as good: 1 fuzzy" in line for line in data_of(result)["plan"])
        sound = await client.call_tool("create_snapshots", {"resource_ids": ["web"], "name": "quiet", "full": True})
        await finish(client, sound)
        rows = data_of(await client.call_tool("list_snapshots", {"search": "quiet"}))["snapshots"]
        assert rows[0]["consistency"] == f"{CRASH} (unchanged)"
