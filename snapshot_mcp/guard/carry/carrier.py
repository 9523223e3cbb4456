"""Carries out approved acts: safety snapshot, spending the consent, last look, request (GUARD.md, "Order of spending")."""

import anyio
from anyio.to_thread import run_sync as in_thread

from snapshot_mcp.contract.errors import ResourceBusy, TermsChanged, Unavailable, ZoneError
from snapshot_mcp.contract.models import Job
from snapshot_mcp.contract.text import MESSAGE_CHARACTERS, clean_text
from snapshot_mcp.ground.clock import Moment
from snapshot_mcp.guard.carry.acts import AnyAct
from snapshot_mcp.guard.carry.replies import stray
from snapshot_mcp.guard.carry.steps import Decided, Ending, Look, SafetyState
from snapshot_mcp.guard.carry.surroundings import Surroundings
from snapshot_mcp.guard.consent.approval import ANEW, Approval, Safety
from snapshot_mcp.guard.consent.approvals import HELD_SECONDS, SpendRefusal
from snapshot_mcp.guard.consent.errors import GuardBroken
from snapshot_mcp.guard.consent.states import PROVEN, State
from snapshot_mcp.guard.plan.compare import is_no_worse
from snapshot_mcp.guard.plan.plan import Plan
from snapshot_mcp.guard.plan.rules import Refusal
from snapshot_mcp.guard.plan.wording import what_changed

LOOK_SECONDS = HELD_SECONDS / 4
"""Time limit for the last look: the request must follow while the disk is held."""

TERMS_TRIES = 3
"""Requests per call: a backup that ends between the look and the request moves the head."""


class Carrier:
    """Carries out approved acts."""

    def __init__(self, surroundings: Surroundings) -> None:
        self._rules = surroundings.rules
        self._approvals = surroundings.records.approvals
        self._clock = surroundings.clock

    async def carry_out(self, act: AnyAct, approval: Approval, look: Look, tries: int = TERMS_TRIES) -> Decided:
        """Act under a granted approval if it covers both the plan of `look` and that of the last look.

        Raises an obstacle before anybody is asked again: a consent to a plan whose disk is missing would cover any file that
        is put at its path.
        """
        if look.refusal:
            return Decided(Ending.FORBIDDEN, look.plan, refusal=look.refusal)
        refuse_obstacle(look, approval, self._clock.read())
        if objection := await self._objection(approval, look):
            return await self._void(act, approval, look, objection)
        safety: SafetyState | None = None
        if act.safety is not None:
            safety = await act.safety.ensure(approval)
            if not safety.is_there:
                ending = Ending.SAFETY_RUNNING if safety.is_running else Ending.NO_SAFETY
                return Decided(ending, look.plan, safety.approval or approval, safety=safety)
        with anyio.CancelScope(shield=True):
            done = await self._spend(act, approval, look, safety, is_last=tries == 1)
        if done is not None:
            return done
        granted = await in_thread(self._approvals.get, approval.id)
        return await self.carry_out(act, granted, await act.look(), tries - 1)

    async def _spend(
        self, act: AnyAct, approval: Approval, look: Look, safety: SafetyState | None, *, is_last: bool
    ) -> Decided | None:
        """Spend the consent and send the request; return None if the terms had changed and a new look is needed."""
        spent = self._clock.read()
        limit = (await self._rules(act.zone.name)).deletions_per_hour
        refusal = await in_thread(lambda: self._approvals.spend(approval.id, look.plan, deletions_per_hour=limit))
        if refusal:
            return await self._not_spent(act, approval, look, refusal)
        last = await self._last_look(act, approval, look.plan, safety)
        if isinstance(last, Decided):
            return last
        job = await self._start(act, approval, last, safety, spent, is_last=is_last)
        return await self._started(act, approval, last.plan, job, safety) if job else None

    async def _last_look(
        self, act: AnyAct, approval: Approval, plan: Plan, safety: SafetyState | None
    ) -> Look | Decided:
        """Look once the consent is spent; if it no longer covers the plan, give it back and return how the call ends."""
        try:
            with anyio.fail_after(LOOK_SECONDS):
                look = await self._look_held(act, plan)
            refuse_obstacle(look)
        except TimeoutError:
            slow = Unavailable("The zone took too long to report what would be lost now.", hint="Nothing was done.")
            await self._give_back(act, approval, slow)
            raise slow from None
        except BaseException as error:
            await self._give_back(act, approval, error)
            raise
        if objection := await self._objection(approval, look):
            why = objection if isinstance(objection, str) else objection.reason
            granted = await in_thread(self._approvals.give_back, approval.id, why)
            return await self._void(act, granted, look, objection)
        if safety and not look.good.issuperset(safety.snapshot_ids):
            problem = "the safety snapshot no longer exists or is no longer sound."
            await in_thread(self._approvals.give_back, approval.id, problem)
            granted = await in_thread(self._approvals.drop_safety, approval.id, problem)
            lost = SafetyState(job_id=safety.job_id, problem=problem)
            return Decided(Ending.NO_SAFETY, look.plan, granted, safety=lost)
        return look

    async def _look_held(self, act: AnyAct, plan: Plan) -> Look:
        """Look while the disks are held. Raise ResourceBusy if an approved job is still changing them, which would make the plan
        outdated."""
        begun = await in_thread(self._approvals.jobs_on, plan.disks)
        if begun:
            for job in await act.zone.list_unfinished_jobs(begun):
                if job.job_id in begun:
                    raise ResourceBusy(
                        f"Job {clean_text(job.job_id)}, approved earlier, is still changing the same disk.",
                        hint="Nothing was done. Wait for the job with wait_for_job.",
                        job_id=job.job_id,
                    )
        return await act.look(plan)

    async def _start(
        self, act: AnyAct, approval: Approval, look: Look, safety: SafetyState | None, spent: Moment, *, is_last: bool
    ) -> Job | None:
        """Send the request; return None if it can be retried. The consent is given back only if the zone refused for certain."""
        try:
            return await act.start(approval, look, safety, spent)
        except BaseException as error:
            if isinstance(error, TermsChanged) and not is_last:
                granted = await in_thread(self._approvals.give_back, approval.id, _reason(error))
                if granted.state is State.GRANTED:
                    return None
            elif isinstance(error, ZoneError) and error.is_definite:
                await self._give_back(act, approval, error)
            else:
                await in_thread(self._approvals.leave_unknown, approval.id, _reason(error))
            raise

    async def _started(
        self, act: AnyAct, approval: Approval, plan: Plan, job: Job, safety: SafetyState | None
    ) -> Decided:
        way_back = act.way_back(job, safety)
        ids = way_back.snapshot_ids if way_back else ()
        unrecorded = ""
        try:
            await in_thread(self._approvals.settle, approval.id, job.job_id, stray(plan, job), ids)
        except GuardBroken as error:
            unrecorded = str(error)
        return Decided(Ending.STARTED, plan, approval, job=job, safety=way_back, reason=unrecorded)

    async def _give_back(self, act: AnyAct, approval: Approval, error: BaseException) -> None:
        """Give the consent back, since nothing was begun, and let the error's hint say so.

        Drop the safety snapshot: the disk may be written to before the call is repeated.
        """
        granted = await in_thread(self._approvals.give_back, approval.id, _reason(error))
        if act.safety is not None:
            granted = await in_thread(self._approvals.drop_safety, approval.id, "the roll-back was not started")
        if isinstance(error, ZoneError):
            error.add(hint=granted.validity(self._clock.read()))

    async def _objection(self, approval: Approval, look: Look) -> Refusal | str:
        """Return why the consent does not cover what would happen now, under the current rules; "" if it does."""
        if look.refusal:
            return look.refusal
        if objection := await in_thread(self._approvals.objection, approval):
            return objection
        if look.call.is_strict and approval.door not in PROVEN:
            return "the operator now requires a stronger approval"
        return "" if is_no_worse(look.plan, approval.plan) else what_changed(look.plan.loss, approval.plan.loss)

    async def _void(self, act: AnyAct, approval: Approval, look: Look, objection: Refusal | str) -> Decided:
        """Void the approval, and ask a person again unless a rule forbids it; return how the call ends."""
        if isinstance(objection, Refusal):
            return Decided(Ending.FORBIDDEN, look.plan, refusal=objection)
        await in_thread(self._approvals.void, approval.id, objection)
        if look.call.process or (act.client.can_ask and not look.call.is_strict):
            return Decided(Ending.CHANGED, look.plan, reason=objection)
        opened = await in_thread(self._approvals.open, look.call, look.plan)
        return Decided(Ending.CHANGED, look.plan, opened, reason=objection)

    async def _not_spent(self, act: AnyAct, approval: Approval, look: Look, refusal: SpendRefusal) -> Decided:
        """Return how a call ends whose consent could not be spent."""
        if refusal is SpendRefusal.TOO_MANY:
            rule = Refusal("deletions_per_hour", f"{refusal.value}.")
            return Decided(Ending.FORBIDDEN, look.plan, refusal=rule)
        if refusal is SpendRefusal.HELD:
            kept = "The approval is kept; repeat the call in a moment, or in two minutes at the latest."
            wait = ANEW if look.call.process else kept
            return Decided(Ending.NOT_SPENT, look.plan, approval, reason=f"{refusal.value}. {wait}")
        current = await in_thread(self._approvals.get, approval.id)
        if refusal is SpendRefusal.NOT_GRANTED and current.state is State.SPENT:
            return Decided(Ending.UNDER_WAY, look.plan, current)
        if refusal is SpendRefusal.MOVED or current.state is State.EXPIRED:
            fresh, why = await act.look(), refusal.value if refusal is SpendRefusal.MOVED else current.reason
            if not fresh.refusal:
                refuse_obstacle(fresh)
            return await self._void(act, approval, fresh, fresh.refusal or why)
        return Decided(Ending.NOT_SPENT, look.plan, approval, reason=f"the approval is now {current.state}.")


def refuse_obstacle(look: Look, approval: Approval | None = None, now: Moment | None = None) -> None:
    """Raise the error that the zone would answer now, before a consent is spent or a safety snapshot taken in vain.

    For a granted approval the hint says how long it is kept; its own safety snapshot is not an obstacle.
    """
    for obstacle in look.obstacles:
        if approval and now:
            if _is_own(obstacle, approval.safety):
                continue
            obstacle.add(hint=approval.validity(now))
        raise obstacle


def _is_own(obstacle: ZoneError, safety: Safety) -> bool:
    """Whether the obstacle is probably the safety snapshot that is being taken for the act itself."""
    if not isinstance(obstacle, ResourceBusy) or safety.claimed is None:
        return False
    is_just_begun = not safety.is_started
    return is_just_begun or bool(safety.job_id and safety.job_id in f"{obstacle.job_id} {obstacle.message}")


def _reason(error: BaseException) -> str:
    if isinstance(error, ZoneError):
        return clean_text(f"{error.code}: {error.message}", MESSAGE_CHARACTERS)
    return type(error).__name__
