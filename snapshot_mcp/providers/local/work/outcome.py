"""How a job ends, in one transaction with the release of what it holds."""

import errno
import json
import sqlite3
from typing import Any

from snapshot_mcp.contract.errors import Cancelled, Damaged, InternalError, StorageFull, Unavailable, ZoneError
from snapshot_mcp.contract.states import JobStatus
from snapshot_mcp.contract.text import clean_text
from snapshot_mcp.providers.local.catalogue import Catalogue, Row, now


def succeed(catalogue: Catalogue, job: Row, extra: dict[str, Any] | None = None) -> None:
    """End a job well, within a transaction of the caller's; `extra` is merged into the job's. Raises Cancelled."""
    refuse_cancelled(catalogue, job)
    merged = json.loads(job["extra"]) | (extra or {})
    catalogue.set_job(job["job_id"], status=JobStatus.SUCCESSFUL, finished_at=now(), extra=json.dumps(merged))
    _release(catalogue, job)


def fail(catalogue: Catalogue, job: Row, error: ZoneError) -> None:
    """End a job with its reason, within a transaction of the caller's."""
    catalogue.set_job(job["job_id"], status=JobStatus.FAILED, finished_at=now(), error_code=error.code, info=str(error))
    _release(catalogue, job)


def refuse_cancelled(catalogue: Catalogue, job: Row) -> None:
    """Raise Cancelled where the job was called off since."""
    present = catalogue.row("SELECT is_cancelled FROM jobs WHERE job_id = ?", job["job_id"])
    if present and present["is_cancelled"]:
        raise cancelled(job)


def cancelled(job: Row) -> Cancelled:
    return Cancelled(f"Job {job['job_id']} ({job['action']}) was cancelled.", hint="It has left nothing behind.")


def _release(catalogue: Catalogue, job: Row) -> None:
    catalogue.db.execute("DELETE FROM claims WHERE job_id = ?", (job["job_id"],))


def from_os_error(error: OSError) -> ZoneError:
    """What the disk's error means to a person."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return StorageFull(
            "There is no room left on the disk.", hint="Free some space and try again; nothing was lost."
        )
    if error.errno in {errno.EMFILE, errno.ENFILE}:
        return InternalError(
            f"More files are open than the system allows: {clean_text(error, 400)}.",
            hint="Raise the limit (`ulimit -n`), or name fewer disks at once.",
        )
    return InternalError(
        f"The disk failed: {clean_text(error, 400)}.", hint="Check the disk and the file's permissions."
    )


def from_sqlite_error(error: sqlite3.Error) -> ZoneError | None:
    """What an error of the catalogue means to a person; None for a bug of ours."""
    match getattr(error, "sqlite_errorcode", 0) & 0xFF:  # the primary code; the rest of it says which call
        case sqlite3.SQLITE_FULL:
            return StorageFull("There is no room left in the zone's folder.", hint="Free some space and try again.")
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return Damaged(
                f"The zone's catalogue is damaged: {error}.",
                hint="Put a copy of catalogue.sqlite back. Keep the folder: its snapshots' files hold their data still.",
            )
        case sqlite3.SQLITE_IOERR | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
            return InternalError(
                f"The zone's catalogue cannot be used: {error}.",
                hint="Check the disk (its health, room and quota) and the permissions of the zone's folder.",
            )
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return Unavailable(f"Another process keeps the zone's catalogue: {error}.", hint="Try again in a moment.")
    return None
