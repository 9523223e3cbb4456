"""How a job ends, in one transaction with the release of what it holds."""

import json
from typing import Any

from snapshot_mcp.catalogue.database import Catalogue
from snapshot_mcp.catalogue.store import Row
from snapshot_mcp.contract.errors import Cancelled, ZoneError
from snapshot_mcp.contract.states import JobStatus


def succeed(catalogue: Catalogue, job: Row, extra: dict[str, Any] | None = None) -> None:
    """End a job well, within a transaction of the caller's; `extra` is merged into the job's. Raises Cancelled."""
    refuse_cancelled(catalogue, job)
    merged = json.loads(job["extra"]) | (extra or {})
    catalogue.set_job(job["job_id"], status=JobStatus.SUCCESSFUL, finished_at=catalogue.now(), extra=json.dumps(merged))
    _release(catalogue, job)


def fail(catalogue: Catalogue, job: Row, error: ZoneError) -> None:
    """End a job with its reason, within a transaction of the caller's."""
    catalogue.set_job(
        job["job_id"], status=JobStatus.FAILED, finished_at=catalogue.now(), error_code=error.code, info=str(error)
    )
    _release(catalogue, job)


def refuse_cancelled(catalogue: Catalogue, job: Row) -> None:
    """Raise Cancelled where the job was called off since."""
    present = catalogue.row("SELECT is_cancelled FROM jobs WHERE job_id = ?", job["job_id"])
    if present and present["is_cancelled"]:
        raise cancelled(job)


def cancelled(job: Row) -> Cancelled:
    """Return the error of a job that was cancelled."""
    return Cancelled(f"Job {job['job_id']} ({job['action']}) was cancelled.", hint="It has left nothing behind.")


def _release(catalogue: Catalogue, job: Row) -> None:
    catalogue.db.execute("DELETE FROM claims WHERE job_id = ?", (job["job_id"],))
