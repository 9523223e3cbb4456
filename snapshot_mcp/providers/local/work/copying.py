"""Bring a copy elsewhere up to date, with the `Copier` that the worker's process was given; and enter such jobs after others."""

import json
import logging
import sqlite3
from typing import Any, Final

from snapshot_mcp.catalogue.copied import CatalogueLedger, enter_copy, set_names
from snapshot_mcp.catalogue.outcome import succeed
from snapshot_mcp.catalogue.progress import JobProgress
from snapshot_mcp.catalogue.store import Row
from snapshot_mcp.contract.errors import Cancelled, NotUsable, ZoneError
from snapshot_mcp.contract.parts import Copier
from snapshot_mcp.contract.states import JobAction, JobStatus
from snapshot_mcp.providers.local.folder import FolderCatalogue
from snapshot_mcp.providers.local.parts import LocalParts

log = logging.getLogger(__name__)

FOLLOWED: Final = frozenset({JobAction.CREATE, JobAction.APPLY, JobAction.DELETE, JobAction.LEASE})
"""Jobs after which there may be something to copy, or to note of what was deleted."""


def carry_out(
    catalogue: FolderCatalogue,
    job: Row,
    request: dict[str, Any],
    progress: JobProgress,
    *,
    copier: Copier | None,
) -> None:
    """Run a copy. Raises what the copier raises, recorded as the copy's problem."""
    if copier is None:
        raise NotUsable("This worker was started by a program without settings for copies.", hint="Use snapshot-mcp.")
    copy = str(request["copy"])
    parts, ledger = LocalParts(catalogue, catalogue.folder.name), CatalogueLedger(catalogue)
    try:
        done = copier.carry_out(copy, parts, ledger, progress.start, progress.advance)
    except Cancelled as error:
        raise error.add(hint="What was sent stays there, and the next run goes on from it.") from None
    except Exception as error:
        ledger.note_trouble(
            copy, str(error) if isinstance(error, ZoneError) else f"It failed unexpectedly: {error!r}"[:300]
        )
        raise
    progress.finish()
    with catalogue.transaction():
        present = catalogue.job(job["job_id"])
        assert present is not None
        catalogue.set_job(job["job_id"], resource_ids=json.dumps(done.get("sent", [])))
        succeed(catalogue, present, done)


def enter_after(catalogue: FolderCatalogue, job_id: str, copier: Copier | None) -> None:
    """Enter a run of each copy of the zone after a job that made or deleted restore points."""
    job = catalogue.job(job_id)
    if copier is None or job is None or job["action"] not in FOLLOWED or job["status"] != JobStatus.SUCCESSFUL:
        return
    try:
        names = copier.names()
        set_names(catalogue, names)
        for name in names:
            enter_copy(catalogue, name)
    except (ZoneError, sqlite3.OperationalError) as error:
        log.warning("no copy was entered after job %s: %s", job_id, error)
