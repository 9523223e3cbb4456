"""A job carried out to its end, by whatever worker took it, and what a failed one leaves.

Errors of the contract end a job as `failed` with their code; anything that the store does not know is a bug: the job fails as
`internal_error` and the traceback goes to the log (CATALOGUE.md, "Interruption", says what goes on after a worker died).
"""

import json
import logging
import sqlite3
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from snapshot_mcp.catalogue.database import Catalogue
from snapshot_mcp.catalogue.outcome import fail, refuse_cancelled
from snapshot_mcp.catalogue.progress import JobProgress
from snapshot_mcp.catalogue.snapshots import discard
from snapshot_mcp.catalogue.store import DamagedSnapshot, Row
from snapshot_mcp.contract.errors import InternalError, ZoneError
from snapshot_mcp.contract.states import JobAction, SnapshotStatus

log = logging.getLogger(__name__)

RETRY_SECONDS: Final = 1.0
"""Until the next try to write to a catalogue that could not be written."""

C = TypeVar("C", bound=Catalogue)

Action = Callable[[C, Row, dict[str, Any], JobProgress], None]
"""Carries out a job, from the start or from where its last worker left it, and ends it as successful."""

Translate = Callable[[Exception], ZoneError | None]
"""What an error of the store or of its catalogue means to a person; None for a bug."""


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
            log.exception("job %s (%s) met a bug", job_id, action)
        reason = known or InternalError(
            "The worker met an error that it does not know.", hint="See worker.log in the zone's folder."
        )
    while not _has_ended(catalogue, job, reason):
        time.sleep(RETRY_SECONDS)


def end_failed(catalogue: Catalogue, job: Row, reason: ZoneError) -> None:
    """End a job with its reason, and take back what it has prepared; within a transaction of the caller's.

    Its snapshots that were to be taken cease (those of a roll-back that has had an effect are there by now), and half
    overwritten disks keep what stopped them.
    """
    request = json.loads(job["request"])
    planned = [*request.get("snapshot_ids", ()), *(request.get("safety") or {}).values()]
    discard(catalogue, [one for one in planned if _is_pending(catalogue, one)])
    for resource_id in request.get("targets", ()):
        catalogue.db.execute(
            "UPDATE resources SET problem = ? WHERE resource_id = ? AND applying_id IS NOT NULL AND problem = ''",
            (reason.message, resource_id),
        )
    resources = map(catalogue.resource, request.get("targets", ()))
    catalogue.store.clean_up(request, [row["resource_id"] for row in resources if row and row["applying_id"] is None])
    fail(catalogue, job, reason)


def _is_pending(catalogue: Catalogue, snapshot_id: str) -> bool:
    snapshot = catalogue.snapshot(snapshot_id)
    return snapshot is not None and snapshot["status"] == SnapshotStatus.PENDING


def _has_ended(catalogue: Catalogue, job: Row, reason: ZoneError) -> bool:
    """End the job with its reason; False where the catalogue has no room for that yet: nobody else would end it."""
    try:
        with catalogue.transaction():
            if isinstance(reason, DamagedSnapshot):
                catalogue.mark_damaged(reason.snapshot_id, is_damaged=True)
            end_failed(catalogue, job, reason)
    except sqlite3.OperationalError as error:
        log.warning("cannot end job %s yet: %s", job["job_id"], error)
        return False
    return True
