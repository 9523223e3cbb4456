"""The way of a guarded call: planned, held against policy, matched with what people have decided about it already, put to a
person if nobody has, planned again, and only then carried out.

Each call is a straight coroutine that may be run again from its start: until the question is answered it changes nothing that
a second run would not find.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Literal

import anyio

from snapshot_mcp.contract.errors import (
    BadRequest,
    Forbidden,
    NotFound,
    NotUsable,
    QuotaExceeded,
    ResourceBusy,
    StorageFull,
    TooManyRequests,
    Unauthorized,
    Unavailable,
    UnknownZone,
    Unsupported,
    WrongResourceType,
    ZoneError,
)
from snapshot_mcp.contract.models import Job
from snapshot_mcp.contract.text import MESSAGE_CHARACTERS, clean_text
from snapshot_mcp.guard import replies
from snapshot_mcp.guard.acts import Act, Deletion, Look, Planner, Rollback, Rules
from snapshot_mcp.guard.approval import Approval
from snapshot_mcp.guard.approvals import HELD_SECONDS, Approvals, SpendRefusal
from snapshot_mcp.guard.client import Client
from snapshot_mcp.guard.clock import Clock
from snapshot_mcp.guard.errors import GuardBroken
from snapshot_mcp.guard.outcome import GuardedOutcome
from snapshot_mcp.guard.pin import Pin
from snapshot_mcp.guard.plan import Plan, is_no_worse
from snapshot_mcp.guard.questions import Questions
from snapshot_mcp.guard.rules import Refusal
from snapshot_mcp.guard.safety import OnProgress, SafetyState
from snapshot_mcp.guard.states import PROVEN, State
from snapshot_mcp.guard.threads import in_thread
from snapshot_mcp.guard.wording import is_yes, plan_lines, question_for
from snapshot_mcp.jobs import Zone

if TYPE_CHECKING:
    from snapshot_mcp.guard.guard import ApprovalLinks

DEFINITE_REFUSALS = (
    BadRequest,
    Forbidden,
    NotFound,
    NotUsable,
    QuotaExceeded,
    ResourceBusy,
    StorageFull,
    TooManyRequests,
    Unauthorized,
    Unavailable,
    UnknownZone,
    Unsupported,
    WrongResourceType,
)
"""Answers after which a change has not begun. All others leave it open, and the consent stays spent."""


LOOK_SECONDS = HELD_SECONDS / 4
"""The last look must be over, and the zone asked, while the disk is held."""
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
        links: "Callable[[], Awaitable[ApprovalLinks | None]]",
        how_to_approve: Callable[[Approval, str], Awaitable[str]],
    ) -> None:
        self._rules = rules
        self._approvals = approvals
        self._questions = questions
        self._pin = pin
        self._clock = clock
        self._links = links
        self._how_to_approve = how_to_approve
        self._planner = Planner(rules, approvals, clock, safety_wait_seconds)

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
            return await self._refused(act, Refusal("read_only", "this server only reads."))
        over = ""
        while True:
            look = await act.look()
            if look.refusal:
                return await self._refused(act, look.refusal, look.plan)
            found = await in_thread(self._approvals.look, act.call, look.plan)
            match found:
                case Approval(state=State.DENIED):
                    return replies.declined(look.plan)
                case Approval(state=State.SPENT) if found.id != over:
                    if self._is_being_spent(found) or await act.is_under_way(found):
                        return replies.under_way(look.plan, found)
                    over = found.id  # what it did may have come after this look
                    continue
                case _ if client.said_no:
                    await in_thread(self._questions.refuse, act.call, look.plan)
                    return replies.declined(look.plan)
                case Approval(state=State.GRANTED):
                    return await self._carry_out(act, found, look)
                case Approval(state=State.PENDING):
                    return await self._wait_outside(act, look.plan, client, found)
            if act.call.is_strict or not client.can_ask:
                opened = await in_thread(self._approvals.open, act.call, look.plan)
                return await self._wait_outside(act, look.plan, client, opened)
            decided = await self._ask(act, look.plan, client)
            match decided:
                case Approval(state=State.GRANTED):
                    return await self._carry_out(act, decided, await act.look())
                case Approval(state=State.PENDING):
                    return await self._needs_approval(act, look.plan, decided)
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

    async def _carry_out(self, act: Act, approval: Approval, look: Look) -> GuardedOutcome:
        """Act under a granted approval, if it covers the plan as it is now."""
        stale = await self._stale(act, approval, look)
        if stale:
            return stale
        safety: SafetyState | None = None
        if act.safety is not None:
            safety = await act.safety.ensure(approval)
            if not safety.is_there:
                return replies.without_safety(look.plan, approval, safety, self._clock.read())
            look = await act.look()
            stale = await self._stale(act, approval, look)
            if stale:
                return stale
        return await self._spend(act, approval, look, safety)

    async def _spend(self, act: Act, approval: Approval, look: Look, safety: SafetyState | None) -> GuardedOutcome:
        plan = look.plan
        with anyio.CancelScope(shield=True):
            refusal = await in_thread(
                lambda: self._approvals.spend(approval.id, plan, deletions_per_hour=look.policy.deletions_per_hour)
            )
            if refusal:
                return await self._not_spent(act, approval, plan, refusal)
            changed = await self._changed_meanwhile(act, approval, plan, safety)
            if changed:
                return changed
            job = await self._start(act, approval)
            stray = replies.stray(plan, job)
            message = act.started_message(job, safety) + stray
            try:
                await in_thread(self._approvals.settle, approval.id, job.job_id, stray.strip())
            except GuardBroken as error:
                message += f" That it was started could not be recorded: {error}"
        return GuardedOutcome(
            status="started",
            message=message,
            plan=plan_lines(plan),
            job_id=job.job_id,
            approval_id=approval.id,
            safety_job_id=safety.job_id if safety else "",
            safety_snapshot_ids=safety.snapshot_ids if safety else (),
        )

    async def _start(self, act: Act, approval: Approval) -> Job:
        """Ask the zone. The consent comes back only if the zone refuses for certain."""
        try:
            return await act.start()
        except DEFINITE_REFUSALS as error:
            await self._give_back(act, approval, error)
            raise
        except BaseException as error:
            await in_thread(self._approvals.leave_unknown, approval.id, _reason(error))
            raise

    async def _changed_meanwhile(
        self, act: Act, approval: Approval, plan: Plan, safety: SafetyState | None
    ) -> GuardedOutcome | None:
        """The last look, when the consent is spent and nothing begun: the outcome if it does not hold, and it is given back."""
        try:
            with anyio.fail_after(LOOK_SECONDS):
                look = await self._look_again(act, plan)
        except TimeoutError:
            slow = Unavailable("The zone took too long to say what would be lost now.", hint="Nothing was done.")
            await self._give_back(act, approval, slow)
            raise slow from None
        except BaseException as error:
            await self._give_back(act, approval, error)
            raise
        if not _covers(act, approval, look):
            granted = await in_thread(self._approvals.give_back, approval.id, "the plan changed meanwhile")
            stale = await self._stale(act, granted, look)
            assert stale is not None
            return stale
        if safety and not look.good.issuperset(safety.snapshot_ids):
            problem = "the safety snapshot, the way back, is gone or not sound any more."
            await in_thread(self._approvals.give_back, approval.id, problem)
            granted = await in_thread(self._approvals.drop_safety, approval.id, problem)
            lost = SafetyState(job_id=safety.job_id, problem=problem)
            return replies.without_safety(plan, granted, lost, self._clock.read())
        return None

    async def _give_back(self, act: Act, approval: Approval, error: BaseException) -> None:
        """Nothing was begun; an error that a caller reads says what became of the consent.

        Whoever stops what was in the way may write to the disk meanwhile: the next try takes a safety snapshot of its own.
        """
        granted = await in_thread(self._approvals.give_back, approval.id, _reason(error))
        if act.safety is not None:
            granted = await in_thread(self._approvals.drop_safety, approval.id, "the roll-back did not follow it")
        if isinstance(error, ZoneError):
            error.hint = f"{error.hint} {granted.kept(self._clock.read())}".strip()

    async def _look_again(self, act: Act, plan: Plan) -> Look:
        """The plan once no other call can change these disks. What others have begun on them must be over first: a job
        that ends after this look would make it untrue."""
        begun = await in_thread(self._approvals.jobs_on, plan.disks)
        if begun:
            for job in await act.zone.list_unfinished_jobs(begun):
                if job.job_id in begun:
                    raise ResourceBusy(
                        f"Job {clean_text(job.job_id)}, which a person agreed to before, still changes the same disk.",
                        hint="Nothing was done. Wait for it with wait_for_job.",
                        job_id=job.job_id,
                    )
        return await act.look(plan)

    def _is_being_spent(self, approval: Approval) -> bool:
        """Whether a call is just asking the zone, which may refuse; a call that died counts as one for a while."""
        if approval.job_id or approval.reason or approval.ended is None:
            return False
        return approval.ended.is_within(self._clock.read(), HELD_SECONDS)

    async def _not_spent(self, act: Act, approval: Approval, plan: Plan, refusal: SpendRefusal) -> GuardedOutcome:
        if refusal is SpendRefusal.MOVED:
            return await self._plan_changed(act, approval, plan, refusal.value)
        if refusal is SpendRefusal.TOO_MANY:
            return await self._refused(act, Refusal("deletions_per_hour", f"{refusal.value}."), plan)
        current = await in_thread(self._approvals.get, approval.id)
        if refusal is SpendRefusal.NOT_GRANTED and current.state is State.SPENT:
            return replies.under_way(plan, current)
        if refusal is SpendRefusal.HELD:
            wait = "The approval is kept; repeat the call in a moment, in two minutes at the latest."
            return replies.not_spent(plan, approval, f"{refusal.value}. {wait}")
        return replies.not_spent(plan, approval, f"the approval is {current.state} now.")

    async def _stale(self, act: Act, approval: Approval, look: Look) -> GuardedOutcome | None:
        """The outcome of a call whose approval does not cover what would happen now; None if it does."""
        if look.refusal:
            return await self._refused(act, look.refusal, look.plan)
        if _covers(act, approval, look):
            return None
        if act.call.is_strict and approval.door not in PROVEN:
            return await self._plan_changed(
                act, approval, look.plan, "the operator asks for a stronger approval by now"
            )
        return await self._plan_changed(act, approval, look.plan, "what was agreed to is not what would be lost now")

    # Outcomes

    async def _plan_changed(self, act: Act, approval: Approval, plan: Plan, reason: str) -> GuardedOutcome:
        await in_thread(self._approvals.void, approval.id, reason)
        message = f"Nothing was done: {reason}, so the earlier yes does not hold."
        if not act.call.is_strict and act.client.can_ask:
            return GuardedOutcome(
                "plan_changed", f"{message} Repeat the call to put the new plan to the person.", plan_lines(plan)
            )
        opened = await in_thread(self._approvals.open, act.call, plan)
        return await self._pending("plan_changed", message, plan, opened)

    async def _wait_outside(self, act: Act, plan: Plan, client: Client, approval: Approval) -> GuardedOutcome:
        """Offer the page to a client that can open it, and see for a while whether the person decides there."""
        approval = await in_thread(self._approvals.refresh, approval, act.call, plan)
        link = await self._link(approval)
        if link and client.can_open_url and await in_thread(self._pin.is_set):
            answer = await client.open_url(approval.id, f"{approval.title}? Please decide on the approval page.", link)
            if answer.outcome == "accepted":
                approval = await self._decided(approval, min(PAGE_WAIT_SECONDS, client.seconds_left))
        if approval.state is State.PENDING:
            return await self._needs_approval(act, plan, approval)
        return await self._run(act, client)

    async def _decided(self, approval: Approval, seconds: float) -> Approval:
        """The approval as it stands once the person decided, or when the wait is over."""
        approval = await in_thread(self._approvals.get, approval.id)
        with anyio.move_on_after(seconds):
            while approval.state is State.PENDING:
                await anyio.sleep(PAGE_POLL_SECONDS)
                approval = await in_thread(self._approvals.get, approval.id)
        return approval

    async def _needs_approval(self, act: Act, plan: Plan, approval: Approval) -> GuardedOutcome:
        return await self._pending("needs_approval", "Nothing was done yet: a person has to agree.", plan, approval)

    async def _pending(
        self, status: Literal["needs_approval", "plan_changed"], message: str, plan: Plan, approval: Approval
    ) -> GuardedOutcome:
        link = await self._link(approval)
        how = await self._how_to_approve(approval, link)
        return replies.pending(status, message, plan, approval, link, how)

    async def _refused(self, act: Act, refusal: Refusal, plan: Plan | None = None) -> GuardedOutcome:
        await in_thread(self._approvals.record_refusal, act.call, refusal.rule)
        return replies.refused(refusal, plan)

    async def _link(self, approval: Approval) -> str:
        links = await self._links()
        return await links.link(approval.id) if links else ""


def _covers(act: Act, approval: Approval, look: Look) -> bool:
    """Whether the consent holds for what would happen now, under the rules as they are now."""
    is_enough = approval.door in PROVEN or not act.call.is_strict
    return look.refusal is None and is_enough and is_no_worse(look.plan, approval.plan)


def _reason(error: BaseException) -> str:
    if isinstance(error, ZoneError):
        return clean_text(f"{error.code}: {error.message}", MESSAGE_CHARACTERS)
    return type(error).__name__
