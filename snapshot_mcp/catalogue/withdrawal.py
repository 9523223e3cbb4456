"""End jobs that have had no effect: cancelled, expired, or without a worker to carry them out."""

from snapshot_mcp.catalogue.agreement import DESTRUCTIVE, expired, is_overdue
from snapshot_mcp.catalogue.database import IS_UNFINISHED, Catalogue
from snapshot_mcp.catalogue.jobs import end_failed
from snapshot_mcp.catalogue.lookup import find_job
from snapshot_mcp.catalogue.outcome import cancelled
from snapshot_mcp.catalogue.store import Row
from snapshot_mcp.contract.errors import NotUsable, ZoneError
from snapshot_mcp.contract.states import JobStatus


def cancel(catalogue: Catalogue, job_id: str) -> Row:
    """Cancel a job: a waiting one ends at once, a running one as soon as its worker notices. Cancelling twice is allowed.

    Raises NotFound, and NotUsable if the job has finished or has had an effect.
    """
    with catalogue.transaction():
        job = find_job(catalogue, job_id)
        if job["is_cancelled"]:
            return job
        if job["status"] not in (JobStatus.PENDING, JobStatus.WORKING):
            raise NotUsable(f"Job {job_id} has already finished ({job['status']}).", hint="There is nothing to cancel.")
        if job["has_effect"]:
            raise NotUsable(
                f"Job {job_id} ({job['action']}) is already overwriting the disk, so it can no longer be cancelled.",
                hint="Wait until it has finished. If it took a safety snapshot, roll back to that to undo it.",
            )
        catalogue.set_job(job_id, is_cancelled=1)
        if job["status"] == JobStatus.PENDING:
            end_failed(catalogue, job, cancelled(job))
        return find_job(catalogue, job_id)


def withdraw(catalogue: Catalogue, job_id: str, reason: ZoneError) -> bool:
    """End a job that no worker can carry out; return False if a worker has taken it after all."""
    with catalogue.transaction():
        job = find_job(catalogue, job_id)
        if job["status"] != JobStatus.PENDING:
            return False
        end_failed(catalogue, job, reason)
        return True


def expire(catalogue: Catalogue) -> None:
    """End the waiting jobs whose time to start has passed."""
    if not _overdue(catalogue):
        return
    with catalogue.transaction():
        for job in _overdue(catalogue):
            end_failed(catalogue, job, expired(job))


def _overdue(catalogue: Catalogue) -> list[Row]:
    rows = catalogue.rows(f"SELECT * FROM jobs WHERE {IS_UNFINISHED} AND status = 'pending'")
    late = [row for row in rows if row["action"] in DESTRUCTIVE and is_overdue(catalogue, row)]
    return [row for row in late if catalogue.may_expire(row)]
