"""What a guarded call answers when nothing was started, in words for the model that reads them: what is so, and what comes
next. Pure. A refusal says who can do something about it and never how to get round it.
"""

from typing import Literal

from snapshot_mcp.contract.errors import Cancelled, Expired, TermsChanged
from snapshot_mcp.contract.models import Job
from snapshot_mcp.contract.text import MESSAGE_CHARACTERS, clean_text
from snapshot_mcp.guard.carry.outcome import GuardedOutcome
from snapshot_mcp.guard.carry.safety import SafetyState
from snapshot_mcp.guard.consent.approval import Approval
from snapshot_mcp.guard.consent.clock import Moment
from snapshot_mcp.guard.plan.plan import Plan
from snapshot_mcp.guard.plan.rules import Refusal
from snapshot_mcp.guard.plan.wording import plan_lines


def refused(refusal: Refusal, plan: Plan | None) -> GuardedOutcome:
    return GuardedOutcome("refused", refusal.message, plan_lines(plan) if plan else ())


def declined(plan: Plan) -> GuardedOutcome:
    message = "A person said no to this. Nothing was done, and they will not be asked again for ten minutes."
    return GuardedOutcome("declined", message, plan_lines(plan))


def not_spent(plan: Plan, approval: Approval, reason: str) -> GuardedOutcome:
    return GuardedOutcome("refused", f"Nothing was done: {reason}", plan_lines(plan), approval_id=approval.id)


def under_way(plan: Plan, approval: Approval) -> GuardedOutcome:
    """Its consent is spent already; the call that spent it may not have heard from the zone yet."""
    if approval.job_id:
        message = (
            f"This was started before under the same approval, as job {clean_text(approval.job_id)}; follow it with"
            " wait_for_job. It was not started a second time."
        )
    else:
        message = (
            "Another call is carrying this out under the same approval, or was stopped while it did. It was not started a"
            " second time. Look with list_jobs; if nothing came of it, repeat the call in two minutes."
        )
    return GuardedOutcome(
        "refused",
        message,
        plan_lines(plan),
        job_id=approval.job_id,
        approval_id=approval.id,
        safety_snapshot_ids=approval.safety.snapshot_ids,
    )


def earlier(job: Job | None) -> str:
    """What to say first where the same call was agreed to before and its job came to nothing; else ""."""
    if job is None or not job.is_finished or job.is_successful:
        return ""
    why = clean_text(job.reason, MESSAGE_CHARACTERS) or "the zone gives no reason"
    is_early = job.error is not None and job.error.code in WITHOUT_EFFECT
    nothing = " and changed nothing" if is_early and not _has_changed_something(job) else ""
    return f"What was agreed to before is over: job {clean_text(job.job_id)} failed{nothing} ({why}). "


def _has_changed_something(job: Job) -> bool:
    """Whether a roll-back says of a disk that it was written to."""
    outcomes = job.details.get("resources")
    return isinstance(outcomes, dict) and any(outcome != "unchanged" for outcome in outcomes.values())


WITHOUT_EFFECT = frozenset(error.code for error in (Cancelled, Expired, TermsChanged))
"""Codes of jobs that mostly ended before they had an effect."""


def stray(plan: Plan, job: Job) -> str:
    """What to add where the zone's own answer speaks of something else than what a person agreed to; else ""."""
    if not job.resource_ids or plan.ids & set(job.resource_ids):
        return ""
    about = clean_text(", ".join(job.resource_ids), MESSAGE_CHARACTERS)
    return f" But the zone says that this job is about {about}, which was not asked for: tell the person at once."


def without_safety(plan: Plan, approval: Approval, safety: SafetyState, now: Moment) -> GuardedOutcome:
    """Its safety snapshot is not there, or not yet."""
    if safety.is_running:
        wait = "Wait for its job with wait_for_job" if safety.job_id else "Wait a moment"
        message = (
            f"The safety snapshot is still being taken; nothing is overwritten yet. {wait}, then repeat this same call: it"
            " goes on under the same approval."
        )
    else:
        message = f"Nothing was overwritten: {safety.problem} {(safety.approval or approval).kept(now)}"
    return GuardedOutcome(
        "safety_running" if safety.is_running else "refused",
        message,
        plan_lines(plan),
        approval_id=approval.id,
        safety_job_id=safety.job_id,
    )


def pending(
    status: Literal["needs_approval", "plan_changed"], message: str, plan: Plan, approval: Approval, link: str, how: str
) -> GuardedOutcome:
    """A person has to decide outside of the conversation; `message` says why, `how` what they do (`doors.py`)."""
    theirs = (
        "Tell them what the plan says and how they approve; it is theirs to do, not yours. Then repeat this same call."
    )
    return GuardedOutcome(
        status,
        f"{message} {theirs}\n{how}",
        plan_lines(plan),
        approval_id=approval.id,
        approval_link=link,
        how_to_approve=how,
        approval_expires_at=approval.expires_at,
    )
