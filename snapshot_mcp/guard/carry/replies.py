"""What was decided about a guarded call, in words for the model that reads them: what is so, and what comes next. Pure. A
refusal says who can do something about it and never how to get round it.
"""

from snapshot_mcp.contract.errors import Cancelled, Expired, TermsChanged
from snapshot_mcp.contract.models import Job
from snapshot_mcp.contract.text import MESSAGE_CHARACTERS, clean_text
from snapshot_mcp.ground.clock import Moment
from snapshot_mcp.guard.carry.outcome import GuardedOutcome
from snapshot_mcp.guard.carry.steps import Decided, Ending, SafetyState
from snapshot_mcp.guard.plan.plan import DeletionLoss, Plan
from snapshot_mcp.guard.plan.wording import plan_lines

WITHOUT_EFFECT = frozenset(error.code for error in (Cancelled, Expired, TermsChanged))
"""Codes of jobs that mostly ended before they had an effect."""

THEIRS = "Tell them what the plan says and how they approve; it is theirs to do, not yours. Then repeat this same call."


def worded(decided: Decided, now: Moment, link: str, how: str) -> GuardedOutcome:
    """Return the answer. `link` and `how` say what a person does, where an approval waits for one."""
    approval, safety, waiting = decided.approval, decided.safety, decided.waiting
    message = _message(decided, now)
    job_id = decided.job.job_id if decided.job else approval.job_id if approval else ""
    ids = safety.snapshot_ids if safety else approval.safety.snapshot_ids if approval and job_id else ()
    return GuardedOutcome(
        status=decided.ending.status,
        message=f"{message}\n{how}" if waiting else message,
        plan=plan_lines(decided.plan) if decided.plan else (),
        job_id=job_id,
        approval_id=approval.id if approval else "",
        approval_link=link,
        how_to_approve=how,
        approval_expires_at=waiting.expires_at if waiting else None,
        safety_job_id=safety.job_id if safety else "",
        safety_snapshot_ids=ids,
    )


def stray(plan: Plan, job: Job) -> str:
    """What to add where the zone's own answer speaks of something else than what a person agreed to; else ""."""
    if not job.resource_ids or plan.ids & set(job.resource_ids):
        return ""
    about = clean_text(", ".join(job.resource_ids), MESSAGE_CHARACTERS)
    return f"But the zone says that this job is about {about}, which was not asked for: tell the person at once."


def _message(decided: Decided, now: Moment) -> str:
    match decided.ending:
        case Ending.STARTED:
            return _started(decided)
        case Ending.WAITS:
            return f"{_earlier(decided.earlier)}Nothing was done yet: a person has to agree. {THEIRS}"
        case Ending.DECLINED:
            return "A person said no to this. Nothing was done, and they will not be asked again for ten minutes."
        case Ending.FORBIDDEN:
            return decided.refusal.message if decided.refusal else ""
        case Ending.UNDER_WAY:
            return _under_way(decided)
        case Ending.NOT_SPENT:
            return f"Nothing was done: {decided.reason}"
        case Ending.CHANGED:
            next_step = THEIRS if decided.waiting else "Repeat the call to put the new plan to the person."
            return f"Nothing was done: {decided.reason}, so the earlier yes does not hold. {next_step}"
        case Ending.SAFETY_RUNNING:
            return _safety_running(decided)
        case Ending.NO_SAFETY:
            kept = decided.approval.kept(now) if decided.approval else ""
            return f"Nothing was overwritten: {decided.safety.problem if decided.safety else ''} {kept}"


def _started(decided: Decided) -> str:
    plan, job = decided.plan, decided.job
    assert plan
    assert job
    act = "deletion" if isinstance(plan.loss, DeletionLoss) else "roll-back"
    parts = [
        f"The {act} is submitted as job {clean_text(job.job_id)}, not done yet. Follow it with wait_for_job.",
        _way_back(decided.safety) if decided.safety else "",
        stray(plan, job),
        f"That it was started could not be recorded: {decided.reason}" if decided.reason else "",
    ]
    return " ".join(filter(None, parts))


def _way_back(safety: SafetyState) -> str:
    ids = ", ".join(map(clean_text, safety.snapshot_ids))
    what = "snapshot" if len(safety.snapshot_ids) == 1 else "snapshots"
    if safety.job_id:
        return f"The way back is to roll back to the safety {what} {ids}."
    if not ids:
        return "But the zone does not name the safety snapshot that the job was to take: tell the person at once."
    return (
        f"The same job first takes the safety {what} {ids}: to roll back to that is the way back. If the job fails before it"
        " overwrites anything, there is none and nothing was changed."
    )


def _earlier(job: Job | None) -> str:
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


def _under_way(decided: Decided) -> str:
    """Its consent is spent already; the call that spent it may not have heard from the zone yet."""
    if decided.approval and decided.approval.job_id:
        return (
            f"This was started before under the same approval, as job {clean_text(decided.approval.job_id)}; follow it with"
            " wait_for_job. It was not started a second time."
        )
    return (
        "Another call is carrying this out under the same approval, or was stopped while it did. It was not started a"
        " second time. Look with list_jobs; if nothing came of it, repeat the call in two minutes."
    )


def _safety_running(decided: Decided) -> str:
    has_job = decided.safety and decided.safety.job_id
    wait = "Wait for its job with wait_for_job" if has_job else "Wait a moment"
    return (
        f"The safety snapshot is still being taken; nothing is overwritten yet. {wait}, then repeat this same call: it goes"
        " on under the same approval."
    )
