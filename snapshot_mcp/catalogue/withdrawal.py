"""Jobs that end before they have had an effect: called off, without a worker to carry them out, or too late to begin."""

from snapshot_mcp.catalogue.agreement import DESTRUCTIVE, expired, is_overdue
from snapshot_mcp.catalogue.database import IS_UNFINISHED, Catalogue
from snapshot_mcp.catalogue.jobs import end_failed
from snapshot_mcp.catalogue.outcome import cancelled
from snapshot_mcp.catalogue.store import Row
from snapshot_mcp.contract.errors import NotFound, NotUsable, ZoneError
from snapshot_mcp.contract.states import JobStatus
from snapshot_mcp.contract.text import clean_text


def cancel(catalogue: Catalogue, job_id: str) -> Row:
    """Call a job off: one that waits ends at once, one that runs as soon as its worker sees it.

    Raises NotFound, and NotUsable for one that has ended or has had an effect. A job that was cancelled before stays so.
    """
    with catalogue.transaction():
        job = find_job(catalogue, job_id)
        if job["is_cancelled"]:
            return job
        if job["status"] not in (JobStatus.PENDING, JobStatus.WORKING):
            raise NotUsable(f"Job {job_id} has ended: it is {job['status']}.", hint="There is nothing to cancel.")
        if job["has_effect"]:
            raise NotUsable(
                f"Job {job_id} ({job['action']}) is overwriting the disk already, so it cannot be cancelled.",
                hint="Wait until it has ended. Its safety snapshot, if it took one, is the way back.",
            )
        catalogue.set_job(job_id, is_cancelled=1)
        if job["status"] == JobStatus.PENDING:
            end_failed(catalogue, job, cancelled(job))
        return find_job(catalogue, job_id)


def withdraw(catalogue: Catalogue, job_id: str, reason: ZoneError) -> bool:
    """End a job that nobody can carry out; False where a worker has taken it after all."""
    with catalogue.transaction():
        job = find_job(catalogue, job_id)
        if job["status"] != JobStatus.PENDING:
            return False
        end_failed(catalogue, job, reason)
        return True


def expire(catalogue: Catalogue) -> None:
    """End the jobs that still wait although their time to begin is over, so that no look starts them later."""
    if not _overdue(catalogue):
        return
    with catalogue.transaction():
        for job in _overdue(catalogue):
            end_failed(catalogue, job, expired(job))


def find_job(catalogue: Catalogue, job_id: str) -> Row:
    """Raises NotFound."""
    job = catalogue.job(job_id)
    if job is None:
        raise NotFound(f"There is no job {clean_text(job_id)!r}.", hint="List the unfinished jobs.")
    return job


def _overdue(catalogue: Catalogue) -> list[Row]:
    """The waiting jobs that had to begin by now."""
    rows = catalogue.rows(f"SELECT * FROM jobs WHERE {IS_UNFINISHED} AND status = 'pending'")
    return [row for row in rows if row["action"] in DESTRUCTIVE and is_overdue(catalogue, row)]
