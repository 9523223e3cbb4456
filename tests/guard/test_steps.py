"""What a guarded call does next: every situation, each in exactly one row (GUARD.md, "A call")."""

from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from snapshot_mcp.contract.errors import ResourceBusy
from snapshot_mcp.ground.clock import Moment
from snapshot_mcp.guard import State
from snapshot_mcp.guard.carry.steps import Found, Look, NextStep, next_step
from snapshot_mcp.guard.consent.approval import Approval, Call
from snapshot_mcp.guard.plan.rules import READS_ONLY
from tests.guard.conftest import Person
from tests.guard.test_plan import CHAIN, deletion

CALL = Call("delete", (("snapshot_id", "ss-0002"),), "local", "/zone", "local")
LOOK = Look(CALL, deletion(CHAIN, 2))

NOTHING, PENDING, GRANTED, DENIED, SPENT, ENDED = "nothing", "pending", "granted", "denied", "spent", "spent and over"
UNDECIDED = {NOTHING, ENDED}

TABLE: list[tuple[dict[str, Any], NextStep]] = [
    ({"forbidden": True}, NextStep.REFUSE),
    ({"forbidden": False, "found": {DENIED}}, NextStep.DECLINE),
    ({"forbidden": False, "found": {SPENT}}, NextStep.FOLLOW_SPENT),
    ({"forbidden": False, "found": {*UNDECIDED, PENDING, GRANTED}, "said_no": True}, NextStep.RECORD_NO),
    ({"forbidden": False, "found": {GRANTED}, "said_no": False}, NextStep.CARRY_OUT),
    (
        {"forbidden": False, "found": {*UNDECIDED, PENDING}, "said_no": False, "in_the_way": True},
        NextStep.REPORT_OBSTACLE,
    ),
    ({"forbidden": False, "found": {PENDING}, "said_no": False, "in_the_way": False}, NextStep.WAIT_OUTSIDE),
    (
        {"forbidden": False, "found": UNDECIDED, "said_no": False, "in_the_way": False, "by_client": False},
        NextStep.OPEN_APPROVAL,
    ),
    ({"forbidden": False, "found": UNDECIDED, "said_no": False, "in_the_way": False, "by_client": True}, NextStep.ASK),
]
"""What holds → the step. No two rows fit one situation, so their order says nothing."""


def found(kind: str) -> Found:
    if kind == NOTHING:
        return Found()
    state = State.SPENT if kind == ENDED else State(kind)
    approval = Approval("ap-1", CALL, state, LOOK.plan, Moment(0.0))
    return Found(approval, ended_id="ap-1" if kind == ENDED else "ap-0")


SITUATIONS = [
    {
        "forbidden": forbidden,
        "found": kind,
        "said_no": said_no,
        "in_the_way": in_the_way,
        "can_ask": can_ask,
        "is_strict": is_strict,
        "by_client": can_ask and not is_strict,
    }
    for forbidden, kind, said_no, in_the_way, can_ask, is_strict in product(
        (False, True),
        (NOTHING, PENDING, GRANTED, DENIED, SPENT, ENDED),
        (False, True),
        (False, True),
        (False, True),
        (False, True),
    )
]


def is_met(expected: Any, value: Any) -> bool:
    return value in expected if isinstance(expected, set) else bool(value == expected)


@pytest.mark.parametrize("kind", [NOTHING, PENDING, GRANTED, DENIED, SPENT, ENDED])
def test_each_situation_has_one_step(kind: str) -> None:
    for situation in (one for one in SITUATIONS if one["found"] == kind):
        steps = [step for row, step in TABLE if all(is_met(row[name], situation[name]) for name in row)]
        look = replace(
            LOOK,
            call=replace(CALL, is_strict=bool(situation["is_strict"])),
            refusal=READS_ONLY if situation["forbidden"] else None,
            obstacles=(ResourceBusy("A backup runs."),) if situation["in_the_way"] else (),
        )
        client = Person(can_ask=bool(situation["can_ask"]), said_no=bool(situation["said_no"]))
        assert [next_step(found(kind), client, look)] == steps, situation


def test_every_step_is_taken_in_some_situation() -> None:
    assert {step for _, step in TABLE} == set(NextStep)
