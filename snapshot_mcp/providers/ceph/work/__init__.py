"""Carry out the worker's jobs over RBD images (CEPH.md, "Jobs"); each action that touches images has its module here."""

from typing import Any, Final

from snapshot_mcp.catalogue import deletion, jobs
from snapshot_mcp.catalogue.progress import JobProgress
from snapshot_mcp.catalogue.store import Row
from snapshot_mcp.contract.errors import InternalError, ZoneError
from snapshot_mcp.contract.states import JobAction
from snapshot_mcp.providers.ceph.catalogue import PoolCatalogue
from snapshot_mcp.providers.ceph.clib import CephError
from snapshot_mcp.providers.ceph.errors import GONE, CommittedFirst, translate
from snapshot_mcp.providers.ceph.work import apply, create, delete, export, verify

ACTIONS: Final[dict[JobAction, jobs.Action[PoolCatalogue]]] = {
    JobAction.CREATE: create.carry_out,
    JobAction.DELETE: delete.carry_out,
    JobAction.LEASE: deletion.recover,
    JobAction.APPLY: apply.carry_out,
    JobAction.CAPTURE_INSTANCE: export.carry_out,
    JobAction.CREATE_VOLUME: export.carry_out,
    JobAction.VERIFY: verify.carry_out,
}


MAX_RUNS: Final = 3
"""Workers that may carry a job out one after the other: what has ended so many of them would end the next one too."""


def carry_out(catalogue: PoolCatalogue, job_id: str) -> None:
    """Carry out a job that is `working`, in its own thread."""
    gone = "SELECT 1 FROM claims JOIN resources ON id = resource_id WHERE job_id = ? AND removed_at IS NOT NULL"
    if catalogue.row(gone, job_id):
        catalogue.discover()  # it may be out of the trash again
    job = catalogue.job(job_id)
    is_deadly = job is not None and job["run_count"] > MAX_RUNS
    jobs.carry_out(catalogue, job_id, dict.fromkeys(ACTIONS, _refuse_deadly) if is_deadly else ACTIONS, _translate)


def _refuse_deadly(catalogue: PoolCatalogue, job: Row, request: dict[str, Any], progress: JobProgress) -> None:
    raise InternalError(
        f"The zone's worker ended {MAX_RUNS} times while it carried out job {job['job_id']} ({job['action']}).",
        hint="See worker.log in the zone's folder on the machines of the zone.",
    )


def _translate(error: Exception) -> ZoneError | None:
    if isinstance(error, CephError) and error.errno in GONE:
        raise error  # this client is locked out: the worker ends, and another goes on
    if isinstance(error, CommittedFirst):
        raise Again
    return translate(error)


class Again(BaseException):
    """A job's commit was refused because another one came first: it is to be carried out again from where it is."""
