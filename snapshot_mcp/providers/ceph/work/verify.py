"""Read snapshots back whole: Ceph compares what it stores with its own checksums."""

import errno
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from snapshot_mcp.catalogue.outcome import succeed
from snapshot_mcp.catalogue.progress import JobProgress
from snapshot_mcp.catalogue.store import DamagedSnapshot, Row
from snapshot_mcp.contract.errors import Damaged
from snapshot_mcp.providers.ceph.catalogue import PoolCatalogue
from snapshot_mcp.providers.ceph.clib import CephError
from snapshot_mcp.providers.ceph.work.blocks import BLOCK, COPIERS, content_of, in_turn


def carry_out(catalogue: PoolCatalogue, job: Row, request: dict[str, Any], progress: JobProgress) -> None:
    """Read snapshots back whole: Ceph compares what it stores with its own checksums."""
    rows = {row["snapshot_id"]: row for one in request["verify_ids"] for row in catalogue.ancestors(one)}
    progress.start("verifying", sum(row["virtual_bytes"] for row in rows.values()))
    damaged: dict[str, str] = {}
    for snapshot_id, row in rows.items():
        try:
            _read_whole(catalogue, row, progress.advance)
        except DamagedSnapshot as error:
            damaged[snapshot_id] = error.message
        except CephError as error:
            if error.errno != errno.EIO:
                raise
            damaged[snapshot_id] = f"Snapshot {snapshot_id} is damaged: Ceph cannot read all of it."
    progress.finish()
    with catalogue.transaction():
        for one in rows:
            catalogue.mark_damaged(one, is_damaged=one in damaged)
        whole = [one for one in rows if not {row["snapshot_id"] for row in catalogue.ancestors(one)} & damaged.keys()]
        verified = [one for one in request["verify_ids"] if one in whole]
        catalogue.mark_verified(whole)
        outcome = {"verified": verified, "damaged": sorted(damaged)}
        if not damaged:
            succeed(catalogue, job, outcome)
            return
        catalogue.set_job(job["job_id"], extra=json.dumps(json.loads(job["extra"]) | outcome))
    lost = [one for one in request["verify_ids"] if one not in verified]
    raise Damaged(
        f"{' '.join(damaged.values())} So these cannot be restored: {', '.join(lost)}.",
        hint="Take a new full snapshot of the disk; the damaged ones are marked and no longer count as good.",
    )


def _read_whole(catalogue: PoolCatalogue, snapshot: Row, advance: Callable[[int], None]) -> None:
    with content_of(catalogue, snapshot) as image, ThreadPoolExecutor(COPIERS) as pool:
        size = image.size
        for length in in_turn(
            pool, lambda offset: len(image.read(offset, min(BLOCK, size - offset))), range(0, size, BLOCK)
        ):
            advance(length)
