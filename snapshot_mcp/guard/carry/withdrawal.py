"""Taking back a consent that is spent: the zone is asked to cancel the job, and it counts only if the job had no effect yet
(GUARD.md, "Taking back"). Whatever comes of it, a person hears what is so.
"""

from contextlib import suppress

import anyio
from anyio.to_thread import run_sync as in_thread

from snapshot_mcp.contract.errors import Cancelled, Forbidden, NotFound, NotUsable, Unsupported, ZoneError
from snapshot_mcp.contract.models import Job
from snapshot_mcp.contract.provider import Provider
from snapshot_mcp.contract.text import clean_text
from snapshot_mcp.guard.carry.ends import FORGOTTEN, Ends, end_of, look_up_end
from snapshot_mcp.guard.consent.approval import Approval
from snapshot_mcp.guard.consent.approvals import Approvals
from snapshot_mcp.guard.consent.errors import NotDecidable
from snapshot_mcp.guard.consent.states import Door

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
        """Cancel the job of a spent approval. Raises NotDecidable where it is too late, and what the zone answers."""
        if self._provider.location != approval.call.location:
            raise unreachable(approval, f"zone {approval.call.zone} is another one in the settings here")
        approval = await self._with_job(approval)
        job = await self._stopped(await self._cancel(approval))
        if not job.is_finished:
            raise NotDecidable(
                f"Job {clean_text(job.job_id)} of approval {approval.id} was told to stop and has not stopped yet.",
                hint="It may still have its effect; `snapshot-mcp approvals --all` says how it ended.",
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
            jobs = await self._provider.list_unfinished_jobs()
        except (Unsupported, Forbidden):
            jobs = ()
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
            return await self._provider.cancel_job(approval.job_id)
        except NotFound:
            await in_thread(self._ends.record, approval.id, FORGOTTEN)
            raise await self._too_late(approval) from None
        except Unsupported:  # asked, not read from `features`: a zone that was not spoken to yet has not said them
            raise await self._too_late(approval, f"Zone {approval.call.zone} cannot cancel a job.") from None
        except NotUsable as error:
            raise await self._too_late(approval, error.message) from None
        except ZoneError as error:
            job = f"job {clean_text(approval.job_id)}"
            before = f"Approval {approval.id} is used already, and {job} could not be cancelled:"
            error.add(before=before, hint="It may still be carried out.")
            raise

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
            end = await look_up_end(self._provider, approval.job_id)
        if end:
            await in_thread(self._ends.record, approval.id, end)
        current = await in_thread(self._approvals.get, approval.id)
        message = f"Approval {approval.id} is used already; it cannot be taken back any more."
        return NotDecidable(" ".join(part for part in (message, "" if end else why) if part), hint=current.course)


def unreachable(approval: Approval, why: str) -> NotDecidable:
    """The error for a zone that cannot be asked from here."""
    return NotDecidable(
        f"Approval {approval.id} is used already, and it cannot be taken back from here: {why}.",
        hint=f"{approval.course} It may still be carried out.",
    )
