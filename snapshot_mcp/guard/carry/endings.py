"""How a guarded call ends when nothing was started: recorded, and answered in the words of `replies`."""

from collections.abc import Awaitable, Callable
from typing import Literal

from anyio.to_thread import run_sync as in_thread

from snapshot_mcp.guard.carry import replies
from snapshot_mcp.guard.carry.acts import Act
from snapshot_mcp.guard.carry.outcome import GuardedOutcome
from snapshot_mcp.guard.consent.approval import Approval
from snapshot_mcp.guard.consent.approvals import Approvals, SpendRefusal
from snapshot_mcp.guard.consent.client import ApprovalLinks
from snapshot_mcp.guard.consent.states import State
from snapshot_mcp.guard.plan.plan import Plan
from snapshot_mcp.guard.plan.rules import Refusal
from snapshot_mcp.guard.plan.wording import plan_lines


class Endings:
    """`links` gives the approval page, None while it is no door; `how_to_approve` what a person does, with the page's link."""

    def __init__(
        self,
        approvals: Approvals,
        links: Callable[[], Awaitable[ApprovalLinks | None]],
        how_to_approve: Callable[[Approval, str], Awaitable[str]],
    ) -> None:
        self._approvals = approvals
        self._links = links
        self._how_to_approve = how_to_approve

    async def refused(self, act: Act, refusal: Refusal, plan: Plan | None = None) -> GuardedOutcome:
        """A rule forbids it."""
        await in_thread(self._approvals.record_refusal, act.call, refusal.rule)
        return replies.refused(refusal, plan)

    async def plan_changed(self, act: Act, approval: Approval, plan: Plan, reason: str) -> GuardedOutcome:
        """The consent does not cover what would happen now: it is void, and a person can be asked anew."""
        await in_thread(self._approvals.void, approval.id, reason)
        message = f"Nothing was done: {reason}, so the earlier yes does not hold."
        if not act.call.is_strict and act.client.can_ask:
            return GuardedOutcome(
                "plan_changed", f"{message} Repeat the call to put the new plan to the person.", plan_lines(plan)
            )
        opened = await in_thread(self._approvals.open, act.call, plan)
        return await self._pending("plan_changed", message, plan, opened)

    async def needs_approval(self, act: Act, plan: Plan, approval: Approval) -> GuardedOutcome:
        """A person has to decide outside of the conversation."""
        message = f"{replies.earlier(act.earlier)}Nothing was done yet: a person has to agree."
        return await self._pending("needs_approval", message, plan, approval)

    async def not_spent(self, act: Act, approval: Approval, plan: Plan, refusal: SpendRefusal) -> GuardedOutcome:
        """The consent could not be used just now."""
        if refusal is SpendRefusal.MOVED:
            return await self.plan_changed(act, approval, plan, refusal.value)
        if refusal is SpendRefusal.TOO_MANY:
            return await self.refused(act, Refusal("deletions_per_hour", f"{refusal.value}."), plan)
        current = await in_thread(self._approvals.get, approval.id)
        if refusal is SpendRefusal.NOT_GRANTED and current.state is State.SPENT:
            return replies.under_way(plan, current)
        if refusal is SpendRefusal.HELD:
            wait = "The approval is kept; repeat the call in a moment, in two minutes at the latest."
            return replies.not_spent(plan, approval, f"{refusal.value}. {wait}")
        if current.state is State.EXPIRED:
            return await self.plan_changed(act, approval, plan, current.reason)
        return replies.not_spent(plan, approval, f"the approval is {current.state} now.")

    async def _pending(
        self, status: Literal["needs_approval", "plan_changed"], message: str, plan: Plan, approval: Approval
    ) -> GuardedOutcome:
        link = await self.link(approval)
        return replies.pending(status, message, plan, approval, link, await self._how_to_approve(approval, link))

    async def link(self, approval: Approval) -> str:
        links = await self._links()
        return await links.link(approval.id) if links else ""
