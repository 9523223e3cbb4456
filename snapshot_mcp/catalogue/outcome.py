"""End a job and release its claims in one transaction, or stop it because it was cancelled."""

import json
from typing import Any

from snapshot_mcp.catalogue.database import Catalogue
from snapshot_mcp.catalogue.store import Row
from snapshot_mcp.contract.errors import Cancelled
from snapshot_mcp.contract.states import JobAction, JobStatus


def succeed(catalogue: Catalogue, job: Row, extra: dict[str, Any] | None = None) -> None:
    """End a job as successful, within the caller's transaction; `extra` is merged into the job's. Raises Cancelled."""
    refuse_cancelled(catalogue, job)
    merged = json.loads(job["extra"]) | (extra or {})
    catalogue.set_job(job["job_id"], status=JobStatus.SUCCESSFUL, finished_at=catalogue.now(), extra=json.dumps(merged))
    release_claims(catalogue, job)


def refuse_cancelled(catalogue: Catalogue, job: Row) -> None:
    """Raise Cancelled if the job was cancelled since it was read."""
    present = catalogue.row("SELECT is_cancelled FROM jobs WHERE job_id = ?", job["job_id"])
    if present and present["is_cancelled"]:
        raise cancelled(job)


def cancelled(job: Row) -> Cancelled:
    """Return the error of a cancelled job."""
    hint = "" if job["action"] == JobAction.COPY else "It left nothing behind."
    return Cancelled(f"Job {job['job_id']} ({job['action']}) was cancelled.", hint=hint)


def release_claims(catalogue: Catalogue, job: Row) -> None:
    """Release what a job that has ended holds."""
    catalogue.db.execute("DELETE FROM claims WHERE job_id = ?", (job["job_id"],))
