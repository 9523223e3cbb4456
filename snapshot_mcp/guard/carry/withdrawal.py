"""Taking back a consent that is spent: the zone is asked to cancel the job, and it counts only if the job had no effect yet
(GUARD.md, "Taking back"). Whatever comes of it, a person hears what is so.
"""

from collections.abc import Awaitable
from contextlib import suppress
from typing import TypeVar

import anyio
from anyio.to_thread import run_sync as in_thread

from snapshot_mcp.contract.errors import (
    Cancelled,
    Forbidden,
    NotFound,
    NotUsable,
    OutcomeUnknown,
    UnknownZone,
    Unsupported,
    ZoneError,
)
from snapshot_mcp.contract.models import Job
from snapshot_mcp.contract.provider import Provider
from snapshot_mcp.contract.text import clean_text
from snapshot_mcp.guard.carry.ends import FORGOTTEN, Ends, end_of, look_up_end
from snapshot_mcp.guard.consent.approval import Approval
from snapshot_mcp.guard.consent.approvals import Approvals
from snapshot_mcp.guard.consent.doors import Doors
from snapshot_mcp.guard.consent.errors import NotDecidable
from snapshot_mcp.guard.consent.states import Door

Found = TypeVar("Found")

ANSWER_SECONDS = 8.0
"""The zone must answer within this time, so that a deny can be repeated within the 60 s in which the job has to begin."""
STOP_SECONDS = 10.0
"""A job that was told to stop does so at its next step."""
POLL_SECONDS = 0.1


class Withdrawal:
    """Takes approvals back in one zone."""

    def __init__(self, approvals: Approvals, ends: Ends, provider: Provider) -> None:
        self._approvals = approvals
        self._ends = ends
        self._provider = provider

    async def take_back(self, approval: Approval, door: Door, by: str) -> Approval:
        """Cancel the job of a spent approval. Raises NotDecidable where it is too late, and what the zone answers.

        UnknownZone: this is not the zone that has the job.
        """
        if self._provider.location != approval.call.location:
            raise UnknownZone(f"Zone {approval.call.zone!r} is a different zone in the settings here.")
        approval = await self._with_job(approval)
        job = await self._stopped(await self._cancel(approval))
        if not job.is_finished:
            raise NotDecidable(
                f"Job {clean_text(job.job_id)} of approval {approval.id} was told to stop and has not stopped yet.",
                hint="It may still have its effect. Deny it again to learn how it ended.",
            )
        end = end_of(job)
        if job.is_successful or end.code != Cancelled.code:
            await in_thread(self._ends.record, approval.id, end)
            raise await self._too_late(approval)
        return await in_thread(lambda: self._approvals.take_back(approval.id, end, door=door, by=by))

    async def _with_job(self, approval: Approval) -> Approval:
        """The approval with its job, looked for in the zone where the call that started it was cut off before it was told.

        Only a job that names the approval is its job: another one on the same disk may be what somebody else agreed to.
        """
        if approval.job_id:
            return approval
        try:
            jobs = await _answer(self._provider.list_unfinished_jobs())
        except (Unsupported, Forbidden):
            jobs = ()
        except ZoneError as error:
            raise _not_taken_back(approval, error, "its job could not be looked for") from None
        for job in jobs:
            if job.details.get("agreement") == approval.id:
                await in_thread(self._approvals.settle, approval.id, job.job_id, "found in the zone")
                return await in_thread(self._approvals.get, approval.id)
        raise NotDecidable(
            f"Approval {approval.id} is used already. {approval.course}",
            hint="It is not among the unfinished jobs of the zone; look there whether it was carried out.",
        )

    async def _cancel(self, approval: Approval) -> Job:
        try:
            return await _answer(self._provider.cancel_job(approval.job_id))
        except NotFound:
            await in_thread(self._ends.record, approval.id, FORGOTTEN)
            raise await self._too_late(approval) from None
        except Unsupported:  # asked, not read from `features`: a zone that was not spoken to yet has not said them
            raise await self._too_late(approval, f"Zone {approval.call.zone} cannot cancel a job.") from None
        except NotUsable as error:
            raise await self._too_late(approval, error.message) from None
        except ZoneError as error:
            job = f"job {clean_text(approval.job_id)}"
            failure = (
                f"{job} was not cancelled" if error.is_definite else f"it is not known whether {job} was cancelled"
            )
            raise _not_taken_back(approval, error, failure) from None

    async def _stopped(self, job: Job) -> Job:
        """The job once it has ended, or as it is when the wait is over."""
        with anyio.move_on_after(STOP_SECONDS), suppress(ZoneError):
            while not job.is_finished:
                await anyio.sleep(POLL_SECONDS)
                job = await self._provider.get_job(job.job_id)
        return job

    async def _too_late(self, approval: Approval, why: str = "") -> NotDecidable:
        """The error that says how it stands; its end is recorded on the way."""
        end = None
        with suppress(ZoneError):
            end = await _answer(look_up_end(self._provider, approval.job_id))
        if end:
            await in_thread(self._ends.record, approval.id, end)
        current = await in_thread(self._approvals.get, approval.id)
        message = f"Approval {approval.id} is used already; it cannot be taken back any more."
        return NotDecidable(" ".join(part for part in (message, "" if end else why) if part), hint=current.course)


async def _answer(question: Awaitable[Found]) -> Found:
    """Return what the zone answers. Raises OutcomeUnknown where it takes too long."""
    try:
        with anyio.fail_after(ANSWER_SECONDS):
            return await question
    except TimeoutError:
        raise OutcomeUnknown(f"The zone did not answer within {ANSWER_SECONDS:g} s.") from None


def _not_taken_back(approval: Approval, error: ZoneError, failure: str) -> ZoneError:
    """Return the zone's error with what it means for the approval, and what to do about it."""
    error.message = f"Approval {approval.id} is used already, and {failure}: {error.message}"
    error.hint = (
        "The act may still be carried out. Deny it again at once, cancel the job in the conversation (`cancel_job`),"
        f" or stop the zone. {error.hint}"
    ).strip()
    return error


def unreachable(approval: Approval, why: str, doors: Doors) -> NotDecidable:
    """Return the error for a zone that cannot be asked from here, with the places that can ask it."""
    variables = f" (for a zone from its environment: {', '.join(doors.zone_variables)})" if doors.zone_variables else ""
    return NotDecidable(
        f"Approval {approval.id} is used already, and it cannot be taken back from here: {why}.",
        hint=f"{approval.course} It may still be carried out. Its zone is {clean_text(approval.call.location, 400)}. Deny it"
        f" with the settings of the server that asked{variables} or on that server's approval page, or cancel the job in"
        " the conversation (`cancel_job`).",
    )
