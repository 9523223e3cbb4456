"""Records how approved jobs ended (GUARD.md, "Ends").

Every look at a zone first asks for the missing ends, without failing or waiting long for them; the next look asks for the rest.
"""

from collections.abc import Iterable

import anyio
from anyio.to_thread import run_sync as in_thread

from snapshot_mcp.contract.errors import NotFound, ZoneError
from snapshot_mcp.contract.models import Job, format_time
from snapshot_mcp.contract.provider import Provider
from snapshot_mcp.contract.text import MESSAGE_CHARACTERS, clean_text
from snapshot_mcp.guard.consent.approval import Approval, JobEnd
from snapshot_mcp.guard.consent.register import Register

ASK_SECONDS = 3.0
"""How long a look waits for missing ends; a zone answers within milliseconds."""
MAX_ASKED = 50
"""Ends requested per look."""

FORGOTTEN = JobEnd("unknown", reason="the zone no longer knows the job")


class Ends:
    """Finds missing ends and records them. Blocking, except for `ask`."""

    def __init__(self, register: Register) -> None:
        self._register = register

    def missing(self, location: str | None = None) -> tuple[Approval, ...]:
        """Return the approvals whose job has no recorded end, in one zone or all, oldest first."""
        if not self._register.exists:
            return ()
        with self._register.transaction() as rows:
            found = rows.find("state = 'spent' AND job_id != '' AND job_end = ''")
        wanted = [one for one in found if location in {None, one.call.location}]
        return tuple(sorted(wanted, key=lambda one: one.opened.wall))

    def record(self, approval_id: str, end: JobEnd) -> bool:
        """Record an end; return False if it was already recorded."""
        with self._register.transaction() as rows:
            for approval in rows.find("id = ? AND state = 'spent' AND job_end = ''", (approval_id,)):
                rows.end(approval, end)
                return True
        return False

    def note(self, location: str, jobs: Iterable[Job]) -> None:
        """Record the ends of approved jobs among `jobs`."""
        ended = {job.job_id: job for job in jobs if job.is_finished}
        if ended:
            for approval in self.missing(location):
                if approval.job_id in ended:
                    self.record(approval.id, end_of(ended[approval.job_id]))

    async def ask(self, provider: Provider) -> None:
        """Ask a zone for missing ends, for at most `ASK_SECONDS`."""
        missing = (await in_thread(self.missing, provider.location))[:MAX_ASKED]
        with anyio.move_on_after(ASK_SECONDS):
            for approval in missing:
                try:
                    end = await look_up_end(provider, approval.job_id)
                except ZoneError:
                    return
                if end:
                    await in_thread(self.record, approval.id, end)


async def look_up_end(provider: Provider, job_id: str) -> JobEnd | None:
    """Return how a job ended, None while it runs. Raises the zone's errors other than NotFound."""
    try:
        job = await provider.get_job(job_id)
    except NotFound:
        return FORGOTTEN
    return end_of(job) if job.is_finished else None


def end_of(job: Job) -> JobEnd:
    """Return how a finished job ended."""
    return JobEnd(
        status="successful" if job.is_successful else "failed",
        code=clean_text(job.error.code) if job.error else "",
        reason="" if job.is_successful else clean_text(job.reason, MESSAGE_CHARACTERS),
        at=format_time(job.finished_time),
    )
