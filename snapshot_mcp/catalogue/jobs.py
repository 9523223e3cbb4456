"""Carry a job out to its end, and clean up after a failed one.

An error of the contract ends a job as `failed` with its code. An error that the store cannot translate is a bug: the job
fails as `internal_error` and the traceback is logged. CATALOGUE.md, "Interruption", says what resumes after a worker died.
"""

import json
import logging
import sqlite3
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from snapshot_mcp.catalogue.database import Catalogue
from snapshot_mcp.catalogue.outcome import refuse_cancelled, release_claims
from snapshot_mcp.catalogue.progress import JobProgress
from snapshot_mcp.catalogue.snapshots import discard
from snapshot_mcp.catalogue.store import DamagedSnapshot, Row
from snapshot_mcp.contract.errors import InternalError, ZoneError
from snapshot_mcp.contract.states import JobAction, JobStatus, SnapshotStatus

log = logging.getLogger(__name__)

REMEMBERED_SECONDS: Final = 90 * 86_400
ALWAYS_REMEMBERED: Final = 100
"""How long a finished job is kept."""

RETRY_SECONDS: Final = 1.0
"""Delay before retrying a write to the catalogue that failed."""

C = TypeVar("C", bound=Catalogue)

Action = Callable[[C, Row, dict[str, Any], JobProgress], None]
"""Carries out a job, from its start or from where its last worker stopped, and ends it as successful."""

Translate = Callable[[Exception], ZoneError | None]
"""Translates an error of the store or of its catalogue into one of the contract; None for a bug."""


def carry_out(catalogue: C, job_id: str, actions: Mapping[JobAction, Action[C]], translate: Translate) -> None:
    """Carry out a job that is `working` to its end."""
    job = catalogue.job(job_id)
    assert job is not None
    action = JobAction(job["action"])
    try:
        if not job["has_effect"]:
            refuse_cancelled(catalogue, job)
        actions[action](catalogue, job, json.loads(job["request"]), JobProgress(catalogue, job))
        return
    except ZoneError as error:
        reason = error
    except Exception as error:
        known = translate(error)
        if known is None:
            log.exception("job %s (%s) failed unexpectedly", job_id, action)
        reason = known or InternalError(
            "Unexpected error in the zone's worker.", hint="See worker.log in the zone's folder for details."
        )
    while not _try_to_end(catalogue, job, reason):
        time.sleep(RETRY_SECONDS)


def forget_old(catalogue: Catalogue) -> None:
    """Remove what ended long ago, except the latest changes: watchers count on from them, and a clock may jump ahead."""
    with catalogue.transaction() as db:
        db.execute(
            """DELETE FROM jobs WHERE finished_at < ? AND change <=
            (SELECT change FROM jobs ORDER BY change DESC LIMIT 1 OFFSET ?)""",
            (catalogue.now() - REMEMBERED_SECONDS, ALWAYS_REMEMBERED),
        )


def end_failed(catalogue: Catalogue, job: Row, reason: ZoneError) -> None:
    """End a job as failed and discard what it prepared, within the caller's transaction.

    Its pending snapshots become `ceased` (the safety snapshots of a roll-back that has had an effect are available by then),
    and half overwritten disks record what stopped the job.
    """
    request = json.loads(job["request"])
    planned = [*request.get("snapshot_ids", ()), *(request.get("safety") or {}).values()]
    snapshots = map(catalogue.snapshot, planned)
    discard(catalogue, [row["snapshot_id"] for row in snapshots if row and row["status"] == SnapshotStatus.PENDING])
    for resource_id in request.get("targets", ()):
        catalogue.db.execute(
            "UPDATE resources SET problem = ? WHERE resource_id = ? AND applying_id IS NOT NULL AND problem = ''",
            (reason.message, resource_id),
        )
    resources = map(catalogue.resource, request.get("targets", ()))
    catalogue.store.clean_up(request, [row["resource_id"] for row in resources if row and row["applying_id"] is None])
    end = {"status": JobStatus.FAILED, "finished_at": catalogue.now(), "error_code": reason.code, "info": str(reason)}
    catalogue.set_job(job["job_id"], **end)
    release_claims(catalogue, job)


def _try_to_end(catalogue: Catalogue, job: Row, reason: ZoneError) -> bool:
    """End the job as failed; return False if the catalogue cannot be written now, since nobody else would end it."""
    try:
        with catalogue.transaction():
            if isinstance(reason, DamagedSnapshot):
                catalogue.mark_damaged(reason.snapshot_id, is_damaged=True)
            end_failed(catalogue, job, reason)
    except sqlite3.OperationalError as error:
        log.warning("cannot end job %s yet: %s", job["job_id"], error)
        return False
    return True
