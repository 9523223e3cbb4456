"""Runs a guarded call: `steps.py` decides each step, this module performs it, `replies.py` words the outcome.

A call is a plain coroutine that can be run again from its start: until the question is answered, it changes nothing that a
second run would not find.
"""

from collections.abc import Awaitable, Callable
from dataclasses import replace

import anyio
from anyio.to_thread import run_sync as in_thread

from snapshot_mcp.guard.carry import replies
from snapshot_mcp.guard.carry.acts import AnyAct
from snapshot_mcp.guard.carry.carrier import Carrier
from snapshot_mcp.guard.carry.outcome import GuardedOutcome
from snapshot_mcp.guard.carry.steps import Decided, Ending, Found, Look, NextStep, next_step
from snapshot_mcp.guard.carry.surroundings import Surroundings
from snapshot_mcp.guard.consent.approval import Approval
from snapshot_mcp.guard.consent.approvals import HELD_SECONDS
from snapshot_mcp.guard.consent.doors import PageLink
from snapshot_mcp.guard.consent.states import Door, State
from snapshot_mcp.guard.plan.question import Question, QuestionAnswer
from snapshot_mcp.guard.plan.rules import READS_ONLY
from snapshot_mcp.guard.plan.wording import is_yes, question_for

PAGE_WAIT_SECONDS = 25.0
"""How long a call waits for a decision on the page that it opened; hosts give up after 30 to 60 s."""
PAGE_POLL_SECONDS = 0.5
SAFETY_PAUSE_SECONDS = 0.5
"""Between two looks at a safety snapshot for which the person's own process waits."""


class GuardedCalls:
    """The calls of one guard.

    `link` returns the link to an approval's page; `how_to_approve` what a person does, given that link.
    """

    def __init__(
        self,
        surroundings: Surroundings,
        link: Callable[[str], Awaitable[PageLink]],
        how_to_approve: Callable[[Approval, PageLink], Awaitable[str]],
    ) -> None:
        self.surroundings = surroundings
        self._approvals = surroundings.records.approvals
        self._questions = surroundings.records.questions
        self._pin = surroundings.records.pin
        self._link = link
        self._how_to_approve = how_to_approve
        self._carrier = Carrier(surroundings)

    async def run(self, act: AnyAct) -> GuardedOutcome:
        """Carry the act out as far as people have agreed to it, and return the outcome in words."""
        decided = await (self._decide_here(act) if act.call.process else self._decide(act))
        if decided.refusal:
            await in_thread(self._approvals.record_refusal, act.call, decided.refusal.rule)
        link, how = PageLink(), ""
        if decided.waiting:
            link = await self._link(decided.waiting.id)
            how = await self._how_to_approve(decided.waiting, link)
        return replies.worded(decided, self.surroundings.clock.read(), link.url, how)

    async def preview(self, act: AnyAct) -> GuardedOutcome:
        """Return what the act would do now and what forbids it. Opens, refreshes, extends and spends nothing; asks nobody."""
        look = await act.look()
        await in_thread(self._approvals.record_preview, look.call, look.plan)
        return replies.previewed(look)

    async def _decide_here(self, act: AnyAct) -> Decided:
        """Decide with the person at this process's terminal; their consent does not outlive the call."""
        try:
            while True:
                decided = await self._decide(act)
                if decided.ending is not Ending.SAFETY_RUNNING:
                    return decided
                await anyio.sleep(SAFETY_PAUSE_SECONDS)
        finally:
            with anyio.CancelScope(shield=True):
                await in_thread(self._questions.close, act.call)

    async def _decide(self, act: AnyAct) -> Decided:
        if (await self.surroundings.rules(act.zone.name)).read_only:
            return Decided(Ending.FORBIDDEN, refusal=READS_ONLY)
        found = Found()
        while True:
            look = await act.look()
            there = None if look.refusal else await in_thread(self._approvals.look, look.call, look.plan)
            found = replace(found, approval=there)
            done = await self._perform(next_step(found, act.client, look), act, look, found)
            if isinstance(done, Decided):
                return done
            found = done

    async def _perform(self, step: NextStep, act: AnyAct, look: Look, found: Found) -> Decided | Found:
        """Perform one step; return how the call ends, or what it continues with."""
        match step:
            case NextStep.REFUSE:
                return Decided(Ending.FORBIDDEN, look.plan, refusal=look.refusal)
            case NextStep.DECLINE:
                return Decided(Ending.DECLINED, look.plan, found.known)
            case NextStep.FOLLOW_SPENT:
                return await self._follow(act, look, found)
            case NextStep.RECORD_NO:
                refused = await in_thread(self._questions.refuse, look.call, look.plan)
                return Decided(Ending.DECLINED, look.plan, refused)
            case NextStep.CARRY_OUT:
                return await self._carrier.carry_out(act, found.known, look)
            case NextStep.REPORT_OBSTACLE:
                raise look.obstacles[0]
            case NextStep.WAIT_OUTSIDE:
                return await self._wait_outside(act, look, found, found.known)
            case NextStep.OPEN_APPROVAL:
                opened = await in_thread(self._approvals.open, look.call, look.plan)
                return await self._wait_outside(act, look, found, opened)
            case NextStep.ASK:
                return await self._ask(act, look, found)

    async def _follow(self, act: AnyAct, look: Look, found: Found) -> Decided | Found:
        approval = found.known
        job = await act.job_of(approval)
        if self._is_being_spent(approval) or (job and not job.is_finished):
            return Decided(Ending.UNDER_WAY, look.plan, approval)
        return replace(found, ended_id=approval.id, ended_job=job)

    def _is_being_spent(self, approval: Approval) -> bool:
        """Whether a call may still be waiting for the zone's answer; a call that died counts as one for a while."""
        if approval.job_id or approval.reason or approval.ended is None:
            return False
        return approval.ended.is_within(self.surroundings.clock.read(), HELD_SECONDS)

    async def _ask(self, act: AnyAct, look: Look, found: Found) -> Decided | Found:
        """Put the question. Where its answer was used up by another call, this one looks again."""
        asked = await in_thread(self._questions.ask, look.call, look.plan)
        question = question_for(look.plan, asked.nonce)
        answer = await act.client.ask(question)
        state, said = read_answer(question, answer)
        door = Door.CLIENT
        if look.call.process:
            door = Door.TERMINAL
            if state is State.GRANTED:  # raises unless the PIN is right: nothing else proves a person here
                about = {"question": asked.nonce, "by": look.call.principal}
                await in_thread(lambda: self._pin.check(answer.pin, door=door.value, about=about))
        decided = await in_thread(lambda: self._questions.answer(look.call, asked, state, said, door=door))
        match decided:
            case None:
                return found
            case Approval(state=State.GRANTED):
                # A separate safety snapshot takes time and space, so check the consent again before taking it.
                fresh = look if act.safety is None else await act.look()
                return await self._carrier.carry_out(act, decided, fresh)
            case Approval(state=State.PENDING):
                return Decided(Ending.WAITS, look.plan, decided, earlier=found.ended_job)
            case _:
                return Decided(Ending.DECLINED, look.plan, decided)

    async def _wait_outside(self, act: AnyAct, look: Look, found: Found, approval: Approval) -> Decided | Found:
        """Offer the page to a client that can open it, and wait briefly for a decision there."""
        client = act.client
        approval = await in_thread(self._approvals.refresh, approval, look.call, look.plan)
        link = (await self._link(approval.id)).url
        if link and client.can_open_url and await in_thread(self._pin.is_set):
            answer = await client.open_url(approval.id, f"{approval.title}? Please decide on the approval page.", link)
            if answer.outcome == "accepted":
                approval = await self._decided(approval, min(PAGE_WAIT_SECONDS, client.seconds_left))
        if approval.state is State.PENDING:
            return Decided(Ending.WAITS, look.plan, approval, earlier=found.ended_job)
        return found

    async def _decided(self, approval: Approval, seconds: float) -> Approval:
        """Return the approval once it is decided, or as it is when the wait ends."""
        approval = await in_thread(self._approvals.get, approval.id)
        with anyio.move_on_after(seconds):
            while approval.state is State.PENDING:
                await anyio.sleep(PAGE_POLL_SECONDS)
                approval = await in_thread(self._approvals.get, approval.id)
        return approval


def read_answer(question: Question, answer: QuestionAnswer) -> tuple[State, str]:
    """Return the approval state that an answer leads to, and the answer as it is recorded."""
    if is_yes(question, answer):
        return State.GRANTED, "yes"
    if answer.is_no:
        return State.DENIED, "no"
    return State.PENDING, "neither yes nor no" if answer.outcome == "answered" else answer.outcome
