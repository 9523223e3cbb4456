"""Carry out the worker's jobs over RBD images (CEPH.md, "Jobs"); each action that touches images has its module here."""

from typing import Final

from snapshot_mcp.catalogue import deletion, jobs
from snapshot_mcp.contract.errors import ZoneError
from snapshot_mcp.contract.states import JobAction
from snapshot_mcp.providers.ceph.catalogue import PoolCatalogue
from snapshot_mcp.providers.ceph.clib import CephError
from snapshot_mcp.providers.ceph.errors import GONE, translate
from snapshot_mcp.providers.ceph.work import apply, create, export, verify

ACTIONS: Final[dict[JobAction, jobs.Action[PoolCatalogue]]] = {
    JobAction.CREATE: create.carry_out,
    JobAction.DELETE: deletion.carry_out,
    JobAction.LEASE: deletion.recover,
    JobAction.APPLY: apply.carry_out,
    JobAction.CAPTURE_INSTANCE: export.carry_out,
    JobAction.CREATE_VOLUME: export.carry_out,
    JobAction.VERIFY: verify.carry_out,
}


def carry_out(catalogue: PoolCatalogue, job_id: str) -> None:
    """Carry out a job that is `working`, in its own thread."""
    jobs.carry_out(catalogue, job_id, ACTIONS, _translate)


def _translate(error: Exception) -> ZoneError | None:
    if isinstance(error, CephError) and error.errno in GONE:
        raise error  # this client is locked out: the worker ends, and another goes on
    return translate(error)
