"""Jobs carried out: what the worker does for each action, and what it makes of a job whose worker died.

Each action has its module. They run in a thread of the worker with a connection of their own. Errors of the contract
end the job as `failed` with their code; anything else is a bug: the job fails as `internal_error` and the traceback goes
to the log. After an interruption (engine_notes.md, invariant 4): what destroys goes on if it had begun, an export starts again, a
create fails truthfully, since its instant is gone, unless its files were complete.
"""

import json
import logging
import sqlite3
import time
from collections.abc import Callable
from typing import Any, Final

from snapshot_mcp.contract.errors import InternalError, ZoneError
from snapshot_mcp.contract.states import JobAction
from snapshot_mcp.providers.local.catalogue import Catalogue, Row
from snapshot_mcp.providers.local.snapshot_file.format import DamagedFile
from snapshot_mcp.providers.local.work import apply, create, delete, export
from snapshot_mcp.providers.local.work.outcome import fail, from_os_error, from_sqlite_error, refuse_cancelled
from snapshot_mcp.providers.local.work.progress import Progress

log = logging.getLogger(__name__)

RETRY_SECONDS: Final = 1.0
"""Until the next try to write to a catalogue that could not be written."""

Action = Callable[[Catalogue, Row, dict[str, Any], Progress], None]

ACTIONS: dict[JobAction, Action] = {
    JobAction.CREATE: create.carry_out,
    JobAction.DELETE: delete.carry_out,
    JobAction.LEASE: delete.recover,
    JobAction.APPLY: apply.carry_out,
    JobAction.CAPTURE_INSTANCE: export.carry_out,
    JobAction.CREATE_VOLUME: export.carry_out,
}

CLEAN_UP: dict[JobAction, Callable[[Catalogue, dict[str, Any], ZoneError], None]] = {
    JobAction.CREATE: create.clean_up,
    JobAction.APPLY: apply.clean_up,
    JobAction.CAPTURE_INSTANCE: export.clean_up,
    JobAction.CREATE_VOLUME: export.clean_up,
}
"""What a failed job leaves behind; run in the transaction that ends it."""


def carry_out(catalogue: Catalogue, job_id: str) -> None:
    """Carry out a job that is `working`, from the start or from where its last worker left it, to its end."""
    job = catalogue.job(job_id)
    assert job is not None
    request: dict[str, Any] = json.loads(job["request"])
    action = JobAction(job["action"])
    try:
        if not job["has_effect"]:
            refuse_cancelled(catalogue, job)
        ACTIONS[action](catalogue, job, request, Progress(catalogue, job))
        return
    except ZoneError as error:
        reason = error
    except OSError as error:
        reason = from_os_error(error)
    except Exception as error:
        known = from_sqlite_error(error) if isinstance(error, sqlite3.Error) else None
        if known is None:
            log.exception("job %s (%s) met a bug", job_id, action)
        reason = known or InternalError(
            "The worker met an error that it does not know.", hint="See worker.log in the zone's folder."
        )
    while not _has_ended(catalogue, job, reason):
        time.sleep(RETRY_SECONDS)


def end_failed(catalogue: Catalogue, job: Row, reason: ZoneError) -> None:
    """End a job with its reason, and take back what it has prepared; within a transaction of the caller's."""
    action = JobAction(job["action"])
    if action in CLEAN_UP:
        CLEAN_UP[action](catalogue, json.loads(job["request"]), reason)
    fail(catalogue, job, reason)


def _has_ended(catalogue: Catalogue, job: Row, reason: ZoneError) -> bool:
    """End the job with its reason; False where the catalogue has no room for that yet: nobody else would end it."""
    try:
        with catalogue.transaction():
            if isinstance(reason, DamagedFile):
                catalogue.mark_damaged(reason.snapshot_id, is_damaged=True)
            end_failed(catalogue, job, reason)
    except sqlite3.OperationalError as error:
        log.warning("cannot end job %s yet: %s", job["job_id"], error)
        return False
    return True
