"""Words what was decided about a guarded call, for a model: the facts, then the next step. Pure.

A refusal says who can act on it, never how to get around it.
"""

from datetime import datetime, timedelta

from snapshot_mcp.contract.errors import Cancelled, Expired, TermsChanged
from snapshot_mcp.contract.models import Job, format_time
from snapshot_mcp.contract.text import MESSAGE_CHARACTERS, age_in_words, clean_text
from snapshot_mcp.ground.clock import Moment
from snapshot_mcp.guard.carry.outcome import NOT_DONE, GuardedOutcome
from snapshot_mcp.guard.carry.steps import Decided, Ending, Look, SafetyState
from snapshot_mcp.guard.consent.approvals import DENIED_SECONDS
from snapshot_mcp.guard.plan.plan import DeletionLoss, Plan
from snapshot_mcp.guard.plan.wording import plan_lines

WITHOUT_EFFECT = frozenset(error.code for error in (Cancelled, Expired, TermsChanged))
"""Codes of jobs that usually ended before they had an effect."""

FOR_THE_PERSON = "Show the person the plan and how to approve it; only they can approve. Then repeat this same call."


def worded(decided: Decided, now: Moment, link: str, how: str) -> GuardedOutcome:
    """Return the outcome in words. `link` and `how` tell a person how to approve, if an approval waits for one."""
    approval, safety, waiting = decided.approval, decided.safety, decided.waiting
    message, said = _message(decided, now), _said_no(decided)
    job_id = decided.job.job_id if decided.job else approval.job_id if approval and not said else ""
    ids = safety.snapshot_ids if safety else approval.safety.snapshot_ids if approval and job_id else ()
    return GuardedOutcome(
        status=decided.ending.status,
        message=f"{message}\n{how}" if waiting else message,
        plan=plan_lines(decided.plan) if decided.plan else (),
        job_id=job_id,
        approval_id=approval.id if approval and not said else "",
        approval_link=link,
        how_to_approve=how,
        approval_expires_at=waiting.expires_at if waiting else None,
        declined_at=said,
        ask_again_at=said + timedelta(seconds=DENIED_SECONDS) if said else None,
        safety_job_id=safety.job_id if safety else "",
        safety_snapshot_ids=ids,
    )


def previewed(look: Look) -> GuardedOutcome:
    """Return a plan that was only asked for, with what forbids it now, in words."""
    parts = ["This is only the plan: nothing was done and nobody was asked."]
    parts += [f"The call itself would be refused. {look.refusal.message}"] if look.refusal else []
    parts += [f"It could not be done now: {one}" for one in look.obstacles]
    return GuardedOutcome(
        "plan", " ".join(parts), plan=plan_lines(look.plan), frees_bytes=look.plan.rest.frees_bytes or None
    )


def stray(plan: Plan, job: Job) -> str:
    """Return a warning if the zone's job concerns something other than what a person agreed to, else ""."""
    if not job.resource_ids or plan.ids & set(job.resource_ids):
        return ""
    about = clean_text(", ".join(job.resource_ids), MESSAGE_CHARACTERS)
    return f"But the zone reports that this job concerns {about}, which was not requested: tell the person at once."


def _message(decided: Decided, now: Moment) -> str:
    match decided.ending:
        case Ending.STARTED:
            return _started(decided)
        case Ending.WAITS:
            return f"{_earlier(decided.earlier)}Nothing was done yet: a person has to approve it. {FOR_THE_PERSON}"
        case Ending.DECLINED:
            return _declined(decided, now)
        case Ending.FORBIDDEN:
            return decided.refusal.message if decided.refusal else ""
        case Ending.UNDER_WAY:
            return _under_way(decided)
        case Ending.NOT_SPENT:
            return f"Nothing was done: {decided.reason}"
        case Ending.CHANGED:
            next_step = FOR_THE_PERSON if decided.waiting else "Repeat the call to ask the person about the new plan."
            return f"Nothing was done: {decided.reason}, so the earlier approval no longer applies. {next_step}"
        case Ending.SAFETY_RUNNING:
            return _safety_running(decided)
        case Ending.NO_SAFETY:
            kept = decided.approval.validity(now) if decided.approval else ""
            return f"Nothing was overwritten: {decided.safety.problem if decided.safety else ''} {kept}"


def _declined(decided: Decided, now: Moment) -> str:
    said = _said_no(decided)
    if said is None:
        return "A person said no to this. Nothing was done, and they will not be asked again for ten minutes."
    when = f"{format_time(said)} ({age_in_words(said, now.time)})"
    again = format_time(said + timedelta(seconds=DENIED_SECONDS))
    return f"A person said no to this at {when}. Nothing was done, and they can be asked again from {again} on, not before."


def _said_no(decided: Decided) -> datetime | None:
    """Return when the person said no, None if nobody did."""
    approval = decided.approval if decided.ending is Ending.DECLINED else None
    return approval.decided.time if approval and approval.decided else None


def _started(decided: Decided) -> str:
    plan, job = decided.plan, decided.job
    assert plan
    assert job
    act = "deletion" if isinstance(plan.loss, DeletionLoss) else "roll-back"
    parts = [
        f"The {act} was submitted as job {clean_text(job.job_id)} {NOT_DONE}",
        _way_back(decided.safety) if decided.safety else "",
        stray(plan, job),
        f"Its start could not be recorded: {decided.reason}" if decided.reason else "",
    ]
    return " ".join(filter(None, parts))


def _way_back(safety: SafetyState) -> str:
    ids = ", ".join(map(clean_text, safety.snapshot_ids))
    what = "snapshot" if len(safety.snapshot_ids) == 1 else "snapshots"
    if safety.job_id:
        return f"To undo it, roll back to the safety {what} {ids}."
    if not ids:
        return "But the zone did not name the safety snapshot that the job should take: tell the person at once."
    return (
        f"The same job first takes the safety {what} {ids}; to undo the roll-back, roll back to that. If the job fails before it"
        " overwrites anything, there is no safety snapshot and nothing was changed."
    )


def _earlier(job: Job | None) -> str:
    """Return what to say first if the same call was approved before and its job failed, else ""."""
    if job is None or not job.is_finished or job.is_successful:
        return ""
    why = clean_text(job.reason, MESSAGE_CHARACTERS) or "the zone gives no reason"
    is_early = job.error is not None and job.error.code in WITHOUT_EFFECT
    nothing = " and changed nothing" if is_early and not _has_changed_something(job) else ""
    return f"Job {clean_text(job.job_id)}, approved earlier, failed{nothing} ({why}). "


def _has_changed_something(job: Job) -> bool:
    """Whether a roll-back reports that it wrote to a disk."""
    outcomes = job.details.get("resources")
    return isinstance(outcomes, dict) and any(outcome != "unchanged" for outcome in outcomes.values())


def _under_way(decided: Decided) -> str:
    """Word a call whose consent is already spent, possibly by a call that has no answer from the zone yet."""
    if decided.approval and decided.approval.job_id:
        return (
            f"This was already started under the same approval, as job {clean_text(decided.approval.job_id)}; follow it with"
            " wait_for_job. It was not started a second time."
        )
    return (
        "Another call is carrying this out under the same approval, or was interrupted while doing so. It was not started a"
        " second time. Check list_jobs; if there is no such job, repeat the call in two minutes."
    )


def _safety_running(decided: Decided) -> str:
    has_job = decided.safety and decided.safety.job_id
    wait = "Wait for its job with wait_for_job" if has_job else "Wait a moment"
    return (
        f"The safety snapshot is still being taken; nothing is overwritten yet. {wait}, then repeat this same call; it"
        " continues under the same approval."
    )
