"""The way of a guarded call: planned, held against policy, matched with what people have decided about it already, put to a
person if nobody has, and then carried out (`carry.py`).

Each call is a straight coroutine that may be run again from its start: until the question is answered it changes nothing that
a second run would not find.
"""

from collections.abc import Awaitable, Callable, Sequence

import anyio
from anyio.to_thread import run_sync as in_thread

from snapshot_mcp.guard.carry import replies
from snapshot_mcp.guard.carry.acts import Act, Deletion, Planner, RenamesOf, Rollback, Rules, no_renames
from snapshot_mcp.guard.carry.carrier import Carrier
from snapshot_mcp.guard.carry.endings import Endings
from snapshot_mcp.guard.carry.outcome import GuardedOutcome
from snapshot_mcp.guard.carry.safety import OnProgress
from snapshot_mcp.guard.consent.approval import Approval
from snapshot_mcp.guard.consent.approvals import HELD_SECONDS, Approvals
from snapshot_mcp.guard.consent.client import ApprovalLinks, Client
from snapshot_mcp.guard.consent.clock import Clock
from snapshot_mcp.guard.consent.pin import Pin
from snapshot_mcp.guard.consent.questions import Questions
from snapshot_mcp.guard.consent.states import State
from snapshot_mcp.guard.plan.plan import Plan
from snapshot_mcp.guard.plan.rules import Refusal
from snapshot_mcp.guard.plan.wording import is_yes, question_for
from snapshot_mcp.jobs import Zone

PAGE_WAIT_SECONDS = 25.0
"""A call waits so long for a person on the page that it opened; hosts give up after 30 to 60 s."""
PAGE_POLL_SECONDS = 0.5


class GuardedCalls:
    """The calls of one guard. `links` gives the approval page, None while there is none."""

    def __init__(
        self,
        rules: Rules,
        approvals: Approvals,
        questions: Questions,
        pin: Pin,
        clock: Clock,
        safety_wait_seconds: float,
        links: Callable[[], Awaitable[ApprovalLinks | None]],
        how_to_approve: Callable[[Approval, str], Awaitable[str]],
        renames: RenamesOf = no_renames,
    ) -> None:
        self._rules = rules
        self._approvals = approvals
        self._questions = questions
        self._pin = pin
        self._clock = clock
        self._planner = Planner(rules, approvals, clock, safety_wait_seconds, renames)
        self._endings = Endings(approvals, links, how_to_approve)
        self._carrier = Carrier(approvals, self._endings, clock)

    async def delete(self, zone: Zone, snapshot_id: str, client: Client) -> GuardedOutcome:
        return await self._run(Deletion(self._planner, zone, snapshot_id, client), client)

    async def roll_back(
        self,
        zone: Zone,
        snapshot_ids: Sequence[str],
        client: Client,
        safety_snapshot: bool,
        on_progress: OnProgress | None,
    ) -> GuardedOutcome:
        return await self._run(
            Rollback(self._planner, zone, snapshot_ids, client, safety_snapshot, on_progress), client
        )

    async def _run(self, act: Act, client: Client) -> GuardedOutcome:
        if (await self._rules(act.zone.name)).read_only:
            return await self._endings.refused(act, Refusal("read_only", "this server only reads."))
        over = ""
        while True:
            look = await act.look()
            if look.refusal:
                return await self._endings.refused(act, look.refusal, look.plan)
            found = await in_thread(self._approvals.look, act.call, look.plan)
            match found:
                case Approval(state=State.DENIED):
                    return replies.declined(look.plan)
                case Approval(state=State.SPENT) if found.id != over:
                    act.earlier = await act.job_of(found)
                    if self._is_being_spent(found) or (act.earlier and not act.earlier.is_finished):
                        return replies.under_way(look.plan, found)
                    over = found.id  # what it did may have come after this look
                    continue
                case _ if client.said_no:
                    await in_thread(self._questions.refuse, act.call, look.plan)
                    return replies.declined(look.plan)
                case Approval(state=State.GRANTED):
                    return await self._carrier.carry_out(act, found, look)
            self._carrier.refuse_obstacle(look)
            if found is not None and found.state is State.PENDING:
                return await self._wait_outside(act, look.plan, client, found)
            if act.call.is_strict or not client.can_ask:
                opened = await in_thread(self._approvals.open, act.call, look.plan)
                return await self._wait_outside(act, look.plan, client, opened)
            decided = await self._ask(act, look.plan, client)
            match decided:
                case Approval(state=State.GRANTED):
                    return await self._carrier.carry_out(act, decided, await act.look())
                case Approval(state=State.PENDING):
                    return await self._endings.needs_approval(act, look.plan, decided)
                case Approval():
                    return replies.declined(look.plan)

    async def _ask(self, act: Act, plan: Plan, client: Client) -> Approval | None:
        """Put the question; None when its answer was used up by another call."""
        asked = await in_thread(self._questions.ask, act.call, plan)
        question = question_for(plan, asked.nonce)
        answer = await client.ask(question)
        if is_yes(question, answer):
            state, said = State.GRANTED, "yes"
        elif answer.is_no:
            state, said = State.DENIED, "no"
        else:
            state, said = State.PENDING, "neither yes nor no" if answer.outcome == "answered" else answer.outcome
        return await in_thread(self._questions.answer, act.call, asked, state, said)

    def _is_being_spent(self, approval: Approval) -> bool:
        """Whether a call is just asking the zone, which may refuse; a call that died counts as one for a while."""
        if approval.job_id or approval.reason or approval.ended is None:
            return False
        return approval.ended.is_within(self._clock.read(), HELD_SECONDS)

    async def _wait_outside(self, act: Act, plan: Plan, client: Client, approval: Approval) -> GuardedOutcome:
        """Offer the page to a client that can open it, and see for a while whether the person decides there."""
        approval = await in_thread(self._approvals.refresh, approval, act.call, plan)
        link = await self._endings.link(approval)
        if link and client.can_open_url and await in_thread(self._pin.is_set):
            answer = await client.open_url(approval.id, f"{approval.title}? Please decide on the approval page.", link)
            if answer.outcome == "accepted":
                approval = await self._decided(approval, min(PAGE_WAIT_SECONDS, client.seconds_left))
        if approval.state is State.PENDING:
            return await self._endings.needs_approval(act, plan, approval)
        return await self._run(act, client)

    async def _decided(self, approval: Approval, seconds: float) -> Approval:
        """The approval as it stands once the person decided, or when the wait is over."""
        approval = await in_thread(self._approvals.get, approval.id)
        with anyio.move_on_after(seconds):
            while approval.state is State.PENDING:
                await anyio.sleep(PAGE_POLL_SECONDS)
                approval = await in_thread(self._approvals.get, approval.id)
        return approval
