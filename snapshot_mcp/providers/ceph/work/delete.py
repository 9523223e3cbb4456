"""Delete restore points: those that the agreement says will stay must still have their RBD snapshots."""

from typing import Any

from snapshot_mcp.catalogue import deletion
from snapshot_mcp.catalogue.agreement import terms_changed
from snapshot_mcp.catalogue.lookup import find_snapshot, owner_of
from snapshot_mcp.catalogue.progress import JobProgress
from snapshot_mcp.catalogue.store import Row
from snapshot_mcp.providers.ceph.catalogue import PoolCatalogue


def carry_out(catalogue: PoolCatalogue, job: Row, request: dict[str, Any], progress: JobProgress) -> None:
    """Mark restore points as deleted (`deletion.carry_out`), once it is seen which of the disk's are there."""
    resource = owner_of(catalogue, find_snapshot(catalogue, request["snapshot_id"]))
    if request.get("must_stay") or request.get("must_exist"):
        with catalogue.store.open(resource) as image:
            names = image.snapshots()
        with catalogue.transaction():
            missing = catalogue.store.record_missing(resource, names)
        agreed = set(request.get("must_exist") or ())
        if agreed and agreed <= missing:
            raise terms_changed("The RBD snapshots of the restore points that were to remain are gone.")
        request = request | {"must_exist": sorted(agreed - missing)}
    deletion.carry_out(catalogue, job, request, progress)
