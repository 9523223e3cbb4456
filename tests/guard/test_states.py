"""The approvals' states under every sequence of calls: no sequence carries a plan out more than once,
or without consent."""

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from snapshot_mcp.contract.errors import TooManyRequests, ZoneError
from snapshot_mcp.ground.clock import Moment
from snapshot_mcp.guard.consent.approval import GRANTED_SECONDS, PENDING_SECONDS, Approval, Call, JobEnd
from snapshot_mcp.guard.consent.approvals import DENIED_SECONDS, Approvals, SpendRefusal
from snapshot_mcp.guard.consent.audit import Audit
from snapshot_mcp.guard.consent.database import Database
from snapshot_mcp.guard.consent.errors import NotDecidable
from snapshot_mcp.guard.consent.questions import QUESTION_SECONDS, Asked, Questions
from snapshot_mcp.guard.consent.register import MAX_PENDING, Register
from snapshot_mcp.guard.consent.states import OPEN, TRANSITIONS, Door, State
from snapshot_mcp.guard.plan.plan import Plan
from tests.guard.test_plan import CHAIN, deletion

CALLS = tuple(
    Call("delete", (("snapshot_id", "ss-0002"),), "local", "/zone", principal) for principal in ("alice", "bob")
)


CANCELLED = JobEnd("failed", "cancelled")


class HandClock:
    """A wall clock and an uptime that a test moves; only the wall clock can go back."""

    def __init__(self) -> None:
        self.wall = 1_000_000.0
        self.uptime = 0.0

    def read(self) -> Moment:
        return Moment(self.wall, "boot", self.uptime)


class ApprovalStates(RuleBasedStateMachine):
    """Two principals want the same deletion; a person decides; the clock goes where it wants; processes come and go."""

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp())
        self.clock = HandClock()
        self.yeses: dict[str, float] = {}
        self.spent: list[str] = []
        self.asked: list[tuple[Call, Asked]] = []
        self.answered: set[str] = set()
        self.before: dict[str, State] = {}
        self.ids: list[str] = []
        self._start()

    def _known(self, approval: Approval) -> None:
        if approval.id not in self.ids:
            self.ids.append(approval.id)

    def _start(self) -> None:
        database = Database(self.home)
        register = Register(database, Audit(database), self.clock)
        self.store, self.questions = Approvals(register), Questions(register)

    def teardown(self) -> None:
        shutil.rmtree(self.home)

    @rule()
    def restart(self) -> None:
        self._start()

    def plan(self) -> Plan:
        (epoch,) = (
            self.store.history("/zone", ["/zone ss-0002"]).epochs.values() if Database(self.home).exists else (0,)
        )
        return deletion(CHAIN, 2, epoch=epoch)

    @rule(seconds=st.sampled_from([1.0, 60.0, GRANTED_SECONDS, DENIED_SECONDS, PENDING_SECONDS, 3600.0]))
    def pass_time(self, seconds: float) -> None:
        self.clock.wall += seconds
        self.clock.uptime += seconds

    @rule(seconds=st.sampled_from([1.0, 60.0, GRANTED_SECONDS, PENDING_SECONDS, 10 * PENDING_SECONDS]))
    def set_clock_back(self, seconds: float) -> None:
        self.clock.wall -= seconds

    @rule(call=st.sampled_from(CALLS))
    def open_one(self, call: Call) -> None:
        opened = self.store.open(call, self.plan())
        assert opened.state in OPEN
        self._known(opened)

    @rule(call=st.sampled_from(CALLS))
    def ask(self, call: Call) -> None:
        self.asked.append((call, self.questions.ask(call, self.plan())))

    @precondition(lambda self: self.asked)
    @rule(data=st.data(), state=st.sampled_from([State.GRANTED, State.DENIED, State.PENDING]))
    def answer(self, data: st.DataObject, state: State) -> None:
        """Any answer to any question that was ever asked, as often as one likes; only a no may count again."""
        call, asked = self.asked[data.draw(st.integers(0, len(self.asked) - 1))]
        approval = self.questions.answer(call, asked, state, "test")
        if approval is None:
            return
        assert approval.state is state
        assert asked.nonce not in self.answered or state is State.DENIED, "an answer counted twice"
        self.answered.add(asked.nonce)
        self._known(approval)
        self.yeses.pop(approval.id, None)
        if state is State.GRANTED:
            self.yeses[approval.id] = self.clock.uptime

    @rule(call=st.sampled_from(CALLS))
    def refuse(self, call: Call) -> None:
        """A person says no to a call, whatever was said before."""
        refused = self.questions.refuse(call, self.plan())
        assert refused.state is State.DENIED
        self._known(refused)
        self.yeses.pop(refused.id, None)

    @precondition(lambda self: self.ids)
    @rule(data=st.data(), yes=st.booleans())
    def decide(self, data: st.DataObject, yes: bool) -> None:
        one = self._draw(data)
        try:
            if yes:
                self.store.grant(one.id, digest=one.plan.digest, door=Door.TERMINAL, by="operator")
                self.yeses[one.id] = self.clock.uptime
            else:
                self.store.deny(one.id, door=Door.TERMINAL, by="operator")
                self.yeses.pop(one.id, None)
        except NotDecidable:
            assert one.state is not State.PENDING or not yes

    def _draw(self, data: st.DataObject) -> Approval:
        return self.store.get(self.ids[data.draw(st.integers(0, len(self.ids) - 1))])

    @precondition(lambda self: self.ids)
    @rule(data=st.data(), outcome=st.sampled_from(["started", "refused", "unknown"]))
    def spend(self, data: st.DataObject, outcome: str) -> None:
        """Try to carry out under any approval there ever was."""
        one = self._draw(data)
        refusal = self.store.spend(one.id, self.plan(), deletions_per_hour=1000)
        if refusal:
            return
        assert one.id in self.yeses, "carried out without consent"
        assert self.clock.uptime - self.yeses[one.id] < GRANTED_SECONDS, "carried out after its time"
        assert one.id not in self.spent, "carried out twice"
        if outcome == "refused":
            self.store.give_back(one.id, "busy")
        else:
            self.spent.append(one.id)
            if outcome == "started":
                self.store.settle(one.id, "j-1")
            else:
                self.store.leave_unknown(one.id, "lost")

    @precondition(lambda self: self.ids)
    @rule(data=st.data())
    def take_back(self, data: st.DataObject) -> None:
        """A person takes back what was used, and the zone has cancelled its job."""
        one = self._draw(data)
        try:
            taken = self.store.take_back(one.id, CANCELLED, door=Door.PAGE, by="operator")
        except NotDecidable:
            assert one.state is not State.SPENT
            return
        assert (one.state, taken.state, taken.job_end) == (State.SPENT, State.DENIED, CANCELLED)
        self.yeses.pop(one.id, None)

    @invariant()
    def a_call_has_one_open_approval_at_most(self) -> None:
        open_ones = [one.call.key for one in self.store.list_all() if one.state in OPEN]
        assert len(open_ones) == len(set(open_ones))

    @invariant()
    def states_move_as_the_table_says(self) -> None:
        def reachable(state: State) -> set[State]:
            found, waiting = {state}, [state]
            while waiting:
                for following in TRANSITIONS[waiting.pop()] - found:
                    found.add(following)
                    waiting.append(following)
            return found

        for one in self.store.list_all():
            assert one.state in reachable(self.before.get(one.id, one.state))
            self.before[one.id] = one.state

    @invariant()
    def the_audit_verifies_and_tells_of_every_act(self) -> None:
        audit = Audit(Database(self.home))
        assert audit.verify().problem == ""
        spent = sum(record["event"] == "spent" for record in audit.records())
        given_back = sum(record["event"] == "given back" for record in audit.records())
        assert spent - given_back == len(self.spent)


TestApprovalStates = ApprovalStates.TestCase
TestApprovalStates.settings = settings(max_examples=8, stateful_step_count=25, deadline=None)


@pytest.mark.long
def test_the_states_hold_for_long_sequences() -> None:
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        ApprovalStates, settings=settings(max_examples=150, stateful_step_count=60, deadline=None)
    )


def granted(store: Approvals, call: Call, epoch: int = 0) -> Approval:
    one = store.open(call, deletion(CHAIN, 2, epoch=epoch))
    return store.grant(one.id, digest=one.plan.digest, door=Door.TERMINAL, by="operator")


def fresh(tmp_path: Path) -> Approvals:
    database = Database(tmp_path / "home")
    return Approvals(Register(database, Audit(database), HandClock()))


def test_a_question_is_open_for_a_while_and_then_asked_anew(tmp_path: Path) -> None:
    database, clock = Database(tmp_path / "home"), HandClock()
    questions = Questions(Register(database, Audit(database), clock))
    call, plan = CALLS[0], deletion(CHAIN, 2)
    asked = questions.ask(call, plan)
    clock.wall += QUESTION_SECONDS - 1
    assert questions.ask(call, plan).nonce == asked.nonce
    clock.wall += 2
    assert questions.ask(call, plan).nonce != asked.nonce
    assert questions.answer(call, asked, State.GRANTED, "yes") is None


def test_two_consents_to_the_same_act_are_not_spent_one_after_the_other(tmp_path: Path) -> None:
    """The epoch is raised when a consent for the target is spent (GUARD.md, "Order of spending")."""
    store = fresh(tmp_path)
    first, second = granted(store, CALLS[0]), granted(store, CALLS[1])
    assert store.spend(first.id, first.plan, deletions_per_hour=10) is None
    assert store.spend(second.id, second.plan, deletions_per_hour=10) is SpendRefusal.HELD
    store.settle(first.id, "j-1")
    assert store.spend(second.id, second.plan, deletions_per_hour=10) is SpendRefusal.MOVED


def test_a_consent_that_was_given_back_leaves_the_other_ones_alone(tmp_path: Path) -> None:
    store = fresh(tmp_path)
    first, second = granted(store, CALLS[0]), granted(store, CALLS[1])
    store.spend(first.id, first.plan, deletions_per_hour=10)
    store.give_back(first.id, "busy")
    assert store.spend(second.id, second.plan, deletions_per_hour=10) is None


def test_what_a_person_took_back_is_not_given_back(tmp_path: Path) -> None:
    """The call that asks the zone hears late that it refused; the no holds."""
    store = fresh(tmp_path)
    one = granted(store, CALLS[0])
    store.spend(one.id, one.plan, deletions_per_hour=10)
    store.take_back(one.id, CANCELLED, door=Door.TERMINAL, by="operator")
    assert store.give_back(one.id, "busy").state is State.DENIED
    store.settle(one.id, "j-1")
    assert store.get(one.id).state is State.DENIED


def test_the_limit_of_deletions_holds_between_look_and_act(tmp_path: Path) -> None:
    store = fresh(tmp_path)
    first = granted(store, CALLS[0])
    assert store.spend(first.id, first.plan, deletions_per_hour=1) is None
    store.settle(first.id, "j-1")
    second = granted(store, CALLS[1], epoch=1)
    assert store.spend(second.id, second.plan, deletions_per_hour=1) is SpendRefusal.TOO_MANY


def test_a_person_is_not_buried_in_approvals(tmp_path: Path) -> None:
    """Another attempt: ask for so much that somebody approves without reading."""
    store = fresh(tmp_path)
    for number in range(MAX_PENDING):
        store.open(replace(CALLS[0], principal=f"agent {number}"), deletion(CHAIN, 2))
    with pytest.raises(TooManyRequests, match="Nothing was done"):
        store.open(CALLS[0], deletion(CHAIN, 2))
    first = store.list_all()[0]
    store.deny(first.id, door=Door.TERMINAL, by="operator")
    assert store.open(CALLS[0], deletion(CHAIN, 2)).state is State.PENDING


def test_a_broken_file_destroys_nothing_and_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "guard.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(ZoneError, match="Nothing is destroyed without them"):
        fresh(tmp_path).open(CALLS[0], deletion(CHAIN, 2))
