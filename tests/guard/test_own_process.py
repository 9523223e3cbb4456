"""A consent that a person gives to the call of their own process, with the PIN (GUARD.md, "The shell")."""

from pathlib import Path
from typing import Any

import pytest

from snapshot_mcp.contract.errors import ResourceBusy, Unavailable, ZoneError
from snapshot_mcp.guard import Policy, Question, QuestionAnswer
from snapshot_mcp.guard.consent.questions import Questions
from tests.guard.conftest import OLD_ZONE, Bench, Person, agrees, nobody

pytestmark = pytest.mark.anyio

PIN = "483920"


def at_terminal(pin: str = PIN, process: str = "p1", before: Any = None) -> Person:
    """A person who agrees in a process of their own."""

    def answer(question: Question) -> QuestionAnswer:
        return QuestionAnswer("answered", agrees(question), pin)

    return Person([answer, answer], process=process, before_reply=before)


async def point(bench: Bench) -> str:
    disk = await bench.add_disk()
    await bench.back_up(disk, "full")
    return (await bench.back_up(disk, "monday")).snapshot_id


async def open_approvals(bench: Bench) -> list[str]:
    return [one.id for one in await bench.guard().list_approvals() if one.expires_at]


@pytest.mark.parametrize("policy", [Policy(), Policy(consent="human")])
async def test_the_pin_proves_the_person(bench: Bench, policy: Policy) -> None:
    snapshot_id = await point(bench)
    await bench.guard().set_pin(PIN)
    outcome = await bench.guard(policy).delete_snapshot(bench.zone, snapshot_id, at_terminal())
    assert outcome.status == "started", outcome
    approval = await bench.guard().get_approval(outcome.approval_id)
    assert (approval.door, approval.state, approval.job_id) == ("terminal", "spent", outcome.job_id)


@pytest.mark.parametrize(("pin_there", "pin"), [("", PIN), ("", ""), (PIN, "111222"), (PIN, "")])
async def test_without_the_right_pin_nothing_is_destroyed_or_left(bench: Bench, pin_there: str, pin: str) -> None:
    """What a program can do that drives the shell through a pseudo-terminal."""
    snapshot_id = await point(bench)
    if pin_there:
        await bench.guard().set_pin(pin_there)
    for act in (
        bench.guard().delete_snapshot(bench.zone, snapshot_id, at_terminal(pin)),
        bench.guard().rollback_to_snapshots(bench.zone, [snapshot_id], at_terminal(pin)),
    ):
        with pytest.raises(ZoneError):
            await act
    assert not bench.destroyed
    assert not await open_approvals(bench)


@pytest.mark.parametrize("error", [ResourceBusy("busy"), Unavailable("gone")])
async def test_a_consent_that_was_not_used_is_closed_with_its_call(bench: Bench, error: ZoneError) -> None:
    """The zone refuses for certain: for a host the consent would be kept for a quarter of an hour."""
    snapshot_id = await point(bench)
    await bench.guard().set_pin(PIN)

    async def refuse() -> None:
        raise error

    bench.provider.on_change = refuse
    with pytest.raises(ZoneError) as raised:
        await bench.guard().delete_snapshot(bench.zone, snapshot_id, at_terminal())
    bench.provider.on_change = None
    assert "valid until" not in raised.value.hint
    assert not await open_approvals(bench)
    for other in (nobody(), Person(can_ask=False, process="")):
        assert (await bench.guard().delete_snapshot(bench.zone, snapshot_id, other)).status == "needs_approval"
    assert not bench.destroyed


async def test_what_a_kill_leaves_is_of_use_to_nobody(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process is killed between the yes and the end of its call, so nothing closes the consent."""
    snapshot_id = await point(bench)
    guard = bench.guard()
    await guard.set_pin(PIN)

    async def refuse() -> None:
        raise ResourceBusy("busy")

    bench.provider.on_change = refuse
    monkeypatch.setattr(Questions, "close", lambda self, call: None)
    with pytest.raises(ResourceBusy):
        await guard.delete_snapshot(bench.zone, snapshot_id, at_terminal())
    bench.provider.on_change = None
    (left,) = await open_approvals(bench)
    assert (await guard.get_approval(left)).state == "granted"
    assert (await guard.delete_snapshot(bench.zone, snapshot_id, nobody())).status == "needs_approval"
    with pytest.raises(ZoneError, match="PIN is missing"):
        await guard.delete_snapshot(bench.zone, snapshot_id, at_terminal("", "p2"))
    assert not bench.destroyed
    assert (await guard.deny(left)).state == "denied"


async def test_neither_uses_what_was_given_to_the_other(bench: Bench) -> None:
    snapshot_id = await point(bench)
    guard = bench.guard()
    await guard.set_pin(PIN)
    asked = await guard.delete_snapshot(bench.zone, snapshot_id, nobody())
    await guard.approve(asked.approval_id, PIN)
    mine = at_terminal("111222")
    with pytest.raises(ZoneError, match="not the PIN"):
        await guard.delete_snapshot(bench.zone, snapshot_id, mine)
    assert len(mine.questions) == 1
    assert (await guard.get_approval(asked.approval_id)).state == "granted"

    async def meanwhile() -> None:
        """Another process makes the same call while the person types."""
        assert (await guard.delete_snapshot(bench.zone, snapshot_id, at_terminal("", "p2"))).status == "never"

    await guard.deny(asked.approval_id)
    with pytest.raises(ZoneError, match="PIN is missing"):
        await guard.delete_snapshot(bench.zone, snapshot_id, at_terminal(before=meanwhile))
    assert not bench.destroyed


async def test_a_no_in_a_terminal_binds_that_call_alone(bench: Bench) -> None:
    snapshot_id = await point(bench)
    guard = bench.guard()
    await guard.set_pin(PIN)
    no = Person(["keep"], process="p1")
    assert (await guard.delete_snapshot(bench.zone, snapshot_id, no)).status == "declined"
    assert (await guard.delete_snapshot(bench.zone, snapshot_id, at_terminal(process="p2"))).status == "started"


async def test_a_rule_comes_before_the_pin(bench: Bench) -> None:
    snapshot_id = await point(bench)
    await bench.guard().set_pin(PIN)
    person = at_terminal()
    outcome = await bench.guard(Policy(read_only=True)).delete_snapshot(bench.zone, snapshot_id, person)
    assert (outcome.status, person.questions) == ("refused", [])


async def test_the_call_waits_for_its_safety_snapshot_itself(bench: Bench) -> None:
    """A zone that takes it as a job of its own: a host would have to call again, and the consent to stay open."""
    snapshot_id = await point(bench)
    bench.provider.without = OLD_ZONE
    guard = bench.guard(safety_wait_seconds=0.0)
    await guard.set_pin(PIN)
    outcome = await guard.rollback_to_snapshots(bench.zone, [snapshot_id], at_terminal())
    assert outcome.status == "started", outcome
    assert outcome.safety_snapshot_ids
    assert not await open_approvals(bench)


async def test_the_secret_of_the_process_is_shown_nowhere(bench: Bench, tmp_path: Path) -> None:
    snapshot_id = await point(bench)
    guard = bench.guard()
    await guard.set_pin(PIN)
    outcome = await guard.delete_snapshot(bench.zone, snapshot_id, at_terminal(process="a-secret-of-mine"))
    approval = await guard.get_approval(outcome.approval_id)
    assert "a-secret-of-mine" not in f"{approval!r} {approval.to_json()} {outcome!r}"
    assert not [one for one in guard.audit.records() if "a-secret-of-mine" in str(one)]
