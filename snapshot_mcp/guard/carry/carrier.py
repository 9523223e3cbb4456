"""Carrying out what was consented to: the safety snapshot, the last look, the consent spent, the zone asked.

The consent is spent before the zone is asked, and given back only where nothing was begun for certain. What may change between
the last look and the zone's own decision goes with the change as its terms; where the zone finds them changed, it is
looked at again: what the consent still covers is tried again, all else is `plan_changed`.
"""

import anyio
from anyio.to_thread import run_sync as in_thread

from snapshot_mcp.contract.errors import ResourceBusy, TermsChanged, Unavailable, ZoneError
from snapshot_mcp.contract.models import Job
from snapshot_mcp.contract.text import MESSAGE_CHARACTERS, clean_text
from snapshot_mcp.guard.carry import replies
from snapshot_mcp.guard.carry.acts import Act, Look
from snapshot_mcp.guard.carry.endings import Endings
from snapshot_mcp.guard.carry.outcome import GuardedOutcome
from snapshot_mcp.guard.carry.safety import SafetyState
from snapshot_mcp.guard.consent.approval import Approval, Safety
from snapshot_mcp.guard.consent.approvals import HELD_SECONDS, Approvals
from snapshot_mcp.guard.consent.clock import Clock, Moment
from snapshot_mcp.guard.consent.errors import GuardBroken
from snapshot_mcp.guard.consent.states import PROVEN, State
from snapshot_mcp.guard.plan.plan import Plan, is_no_worse
from snapshot_mcp.guard.plan.wording import plan_lines, what_changed

LOOK_SECONDS = HELD_SECONDS / 4
"""The last look must be over, and the zone asked, while the disk is held."""

TERMS_TRIES = 3
"""So often a change is asked for under one call: a backup that ends right between the look and the request moves the head."""


class Carrier:
    """Carries out acts whose approval is granted."""

    def __init__(self, approvals: Approvals, endings: Endings, clock: Clock) -> None:
        self._approvals = approvals
        self._endings = endings
        self._clock = clock

    async def carry_out(self, act: Act, approval: Approval, look: Look, tries: int = TERMS_TRIES) -> GuardedOutcome:
        """Act under a granted approval, if it covers the plan as it is now."""
        stale = await self._stale(act, approval, look)
        if stale:
            return stale
        self.refuse_obstacle(look, approval)
        safety: SafetyState | None = None
        if act.safety is not None:
            safety = await act.safety.ensure(approval)
            if not safety.is_there:
                return replies.without_safety(look.plan, approval, safety, self._clock.read())
            look = await act.look()
            stale = await self._stale(act, approval, look)
            if stale:
                return stale
        with anyio.CancelScope(shield=True):
            done = await self._spend(act, approval, look, safety, tries)
        if done is not None:
            return done
        granted = await in_thread(self._approvals.get, approval.id)
        return await self.carry_out(act, granted, await act.look(), tries - 1)

    def refuse_obstacle(self, look: Look, approval: Approval | None = None) -> None:
        """Raise what the zone would answer now, before a person is asked or a safety snapshot taken in vain."""
        for obstacle in look.obstacles:
            if approval and _is_own(obstacle, approval.safety):
                continue
            if approval:
                obstacle.hint = f"{obstacle.hint} {approval.kept(self._clock.read())}".strip()
            raise obstacle

    async def _spend(
        self, act: Act, approval: Approval, look: Look, safety: SafetyState | None, tries: int
    ) -> GuardedOutcome | None:
        """Spend the consent and ask the zone; None where its terms had changed and it should be looked at again."""
        plan, spent = look.plan, self._clock.read()
        refusal = await in_thread(
            lambda: self._approvals.spend(approval.id, plan, deletions_per_hour=look.policy.deletions_per_hour)
        )
        if refusal:
            return await self._endings.not_spent(act, approval, plan, refusal)
        last = await self._last_look(act, approval, plan, safety)
        if isinstance(last, GuardedOutcome):
            return last
        job = await self._start(act, approval, last, safety, spent, tries)
        return await self._started(act, approval, plan, job, safety) if job else None

    async def _started(
        self, act: Act, approval: Approval, plan: Plan, job: Job, safety: SafetyState | None
    ) -> GuardedOutcome:
        way_back = act.way_back(job, safety)
        ids = way_back.snapshot_ids if way_back else ()
        stray = replies.stray(plan, job)
        message = act.started_message(job, way_back) + stray
        try:
            await in_thread(self._approvals.settle, approval.id, job.job_id, stray.strip(), ids)
        except GuardBroken as error:
            message += f" That it was started could not be recorded: {error}"
        return GuardedOutcome(
            status="started",
            message=message,
            plan=plan_lines(plan),
            job_id=job.job_id,
            approval_id=approval.id,
            safety_job_id=way_back.job_id if way_back else "",
            safety_snapshot_ids=ids,
        )

    async def _start(
        self, act: Act, approval: Approval, look: Look, safety: SafetyState | None, spent: Moment, tries: int
    ) -> Job | None:
        """Ask the zone. The consent comes back only if the zone refuses for certain; None where it can be tried again."""
        try:
            return await act.start(approval, look, safety, spent)
        except TermsChanged as error:
            if tries > 1:
                granted = await in_thread(self._approvals.give_back, approval.id, _reason(error))
                if granted.state is State.GRANTED:
                    return None
            else:
                await self._give_back(act, approval, error)
            raise
        except ZoneError as error:
            if error.is_definite:
                await self._give_back(act, approval, error)
            else:
                await in_thread(self._approvals.leave_unknown, approval.id, _reason(error))
            raise
        except BaseException as error:
            await in_thread(self._approvals.leave_unknown, approval.id, _reason(error))
            raise

    async def _last_look(
        self, act: Act, approval: Approval, plan: Plan, safety: SafetyState | None
    ) -> Look | GuardedOutcome:
        """Look when the consent is spent and nothing begun; the outcome if it does not hold any more, and it is given back."""
        try:
            with anyio.fail_after(LOOK_SECONDS):
                look = await self._look_again(act, plan)
            self.refuse_obstacle(look)
        except TimeoutError:
            slow = Unavailable("The zone took too long to say what would be lost now.", hint="Nothing was done.")
            await self._give_back(act, approval, slow)
            raise slow from None
        except BaseException as error:
            await self._give_back(act, approval, error)
            raise
        if fallen := await in_thread(self._approvals.objection, approval):
            granted = await in_thread(self._approvals.give_back, approval.id, fallen)
            return await self._endings.plan_changed(act, granted, look.plan, fallen)
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
        return look

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

    async def _stale(self, act: Act, approval: Approval, look: Look) -> GuardedOutcome | None:
        """The outcome of a call whose approval does not cover what would happen now; None if it does."""
        if look.refusal:
            return await self._endings.refused(act, look.refusal, look.plan)
        if fallen := await in_thread(self._approvals.objection, approval):
            return await self._endings.plan_changed(act, approval, look.plan, fallen)
        if _covers(act, approval, look):
            return None
        reason = what_changed(look.plan.loss, approval.plan.loss)
        if act.call.is_strict and approval.door not in PROVEN:
            reason = "the operator asks for a stronger approval by now"
        return await self._endings.plan_changed(act, approval, look.plan, reason)


def _is_own(obstacle: ZoneError, safety: Safety) -> bool:
    """Whether what is in the way is the safety snapshot that is being taken for the act itself, as far as that is known."""
    if not isinstance(obstacle, ResourceBusy) or safety.claimed is None:
        return False
    is_just_begun = not safety.is_started
    return is_just_begun or bool(safety.job_id and safety.job_id in f"{obstacle.job_id} {obstacle.message}")


def _covers(act: Act, approval: Approval, look: Look) -> bool:
    """Whether the consent holds for what would happen now, under the rules as they are now."""
    is_enough = approval.door in PROVEN or not act.call.is_strict
    return look.refusal is None and is_enough and is_no_worse(look.plan, approval.plan)


def _reason(error: BaseException) -> str:
    if isinstance(error, ZoneError):
        return clean_text(f"{error.code}: {error.message}", MESSAGE_CHARACTERS)
    return type(error).__name__
