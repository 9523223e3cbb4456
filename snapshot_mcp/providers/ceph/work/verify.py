"""Read snapshots back whole: Ceph compares what it stores with its own checksums."""

import errno
import json
from collections.abc import Callable, Iterable, Mapping
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
    """Verify snapshots and all that they build on. Raises Damaged, which names what is."""
    rows = {row["snapshot_id"]: row for one in request["verify_ids"] for row in catalogue.ancestors(one)}
    progress.start("verifying", sum(row["virtual_bytes"] for row in rows.values()))
    damaged = read_back(catalogue, rows.values(), progress.advance)
    progress.finish()
    with catalogue.transaction():
        sound = record(catalogue, rows, damaged)
        verified = [one for one in request["verify_ids"] if one in sound]
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


def read_back(catalogue: PoolCatalogue, rows: Iterable[Row], advance: Callable[[int], None]) -> dict[str, str]:
    """Read snapshots whole; return what is wrong with each that is damaged."""
    damaged: dict[str, str] = {}
    for row in rows:
        try:
            _read_whole(catalogue, row, advance)
        except DamagedSnapshot as error:
            damaged[row["snapshot_id"]] = error.message
        except CephError as error:
            if error.errno != errno.EIO:
                raise
            damaged[row["snapshot_id"]] = f"Snapshot {row['snapshot_id']} is damaged: Ceph cannot read all of it."
    return damaged


def record(catalogue: PoolCatalogue, ids: Iterable[str], damaged: Mapping[str, str]) -> list[str]:
    """Record what was found, within the caller's transaction; return which are sound with all that they build on."""
    looked_at = list(ids)
    for one in looked_at:
        catalogue.mark_damaged(one, is_damaged=one in damaged)
    sound = [one for one in looked_at if not {row["snapshot_id"] for row in catalogue.ancestors(one)} & damaged.keys()]
    catalogue.mark_verified(sound)
    return sound


def _read_whole(catalogue: PoolCatalogue, snapshot: Row, advance: Callable[[int], None]) -> None:
    with content_of(catalogue, snapshot) as image, ThreadPoolExecutor(COPIERS) as pool:
        size = image.size
        for length in in_turn(
            pool, lambda offset: len(image.read(offset, min(BLOCK, size - offset))), range(0, size, BLOCK)
        ):
            advance(length)
