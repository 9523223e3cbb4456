"""What a zone on Ceph costs beside Ceph's own command, begin to finish on both sides, in one run on one small cluster.

    python -m tests.benchmarks.bench_ceph [--rounds N] [--size MIB] [--large N] [--json]

A command of Ceph starts a process and connects; a job of ours is entered, taken by the worker, carried out and seen to have
ended. The bars: a create 1.3 times `rbd snap create`, a roll-back 1.2 times `rbd snap rollback`, an export 1.1 times `rbd cp`; a
page of a warm zone of 20,000 restore points 3 times one of 200.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import anyio

from snapshot_mcp.contract.models import Job, ResourceFilter, SnapshotFilter
from snapshot_mcp.providers.ceph.catalogue import PoolCatalogue
from snapshot_mcp.providers.ceph.store import PoolStore
from snapshot_mcp.providers.ceph.zone import CephZone
from tests.ceph.subject import Site, open_site

BARS = {"create": 1.3, "roll-back": 1.2, "export": 1.1, "page": 3.0}
MIB = 1 << 20


async def end(zone: CephZone, job: Job) -> Job:
    while not (job := await zone.get_job(job.job_id)).is_finished:
        await anyio.sleep(0.005)
    assert job.is_successful, job.info
    return job


async def seconds(act: Callable[[], Awaitable[Any]]) -> float:
    began = time.perf_counter()
    await act()
    return time.perf_counter() - began


async def measure(site: Site, rounds: int, size: int) -> dict[str, float]:
    zone = CephZone("ceph", site.settings, site.home)
    site.pool.create_image("disk", size)
    with site.pool.open_by_name("disk") as image:
        for offset in range(0, size, 4 * MIB):
            image.write(offset, bytes([offset // MIB % 251 + 1]) * (4 * MIB))
        volume = f"vol-{image.id}"

    async def rbd(*words: str) -> None:
        await anyio.run_process(["rbd", "--conf", str(site.conf), "--no-progress", *words])

    def touch() -> None:
        with site.pool.open_by_name("disk") as image:
            for offset in range(0, size, 64 * MIB):
                image.write(offset, b"changed")

    first = (await end(zone, await zone.create_snapshots([volume], "first"))).resource_ids[0]
    await rbd("snap", "create", "rbd/disk@first")
    ratios: dict[str, list[float]] = {"create": [], "roll-back": [], "export": []}
    for one in range(rounds):
        theirs = await seconds(partial(rbd, "snap", "create", f"rbd/disk@round{one}"))
        mine = await seconds(partial(_whole, zone, partial(zone.create_snapshots, [volume], f"round {one}")))
        ratios["create"].append(mine / theirs)
        touch()
        theirs = await seconds(partial(rbd, "snap", "rollback", "rbd/disk@first"))
        touch()
        mine = await seconds(partial(_whole, zone, partial(zone.apply_snapshots, [first])))
        ratios["roll-back"].append(mine / theirs)
        theirs = await seconds(partial(rbd, "cp", "rbd/disk@first", f"rbd/theirs{one}"))
        mine = await seconds(partial(_whole, zone, partial(zone.create_volume, first, f"ours {one}")))
        ratios["export"].append(mine / theirs)
        for name in (f"theirs{one}", f"ours {one}"):  # the cluster is small, and a full one hangs
            await rbd("rm", f"rbd/{name}")
    await zone.aclose()
    return {name: statistics.median(some) for name, some in ratios.items()}


async def _whole(zone: CephZone, act: Callable[[], Awaitable[Job]]) -> None:
    await end(zone, await act())


async def page_of(site: Site, count: int, namespace: str) -> float:
    """Seconds of a warm page of a zone with so many restore points; the median of 50."""
    subprocess.run(["rbd", "--conf", site.conf, "namespace", "create", f"rbd/{namespace}"], check=True)
    with site.client.pool("rbd", namespace) as pool, PoolCatalogue(pool, PoolStore(pool, pool), "bench") as catalogue:
        pool.create_image("disk", MIB)
        catalogue.discover()
        (disk,) = catalogue.rows("SELECT * FROM resources")
        for start in range(0, count, 5000):
            with catalogue.transaction() as db:
                db.execute("UPDATE resources SET status_at = status_at + 1")
                rows = [
                    (f"ss-{at:08}", f"night {at}", disk["resource_id"], int(at % 30 == 0), at, at, at, f"ss-{at - at % 30:08}",
                     f"ss-{at - 1:08}" if at % 30 else None, at % 30)
                    for at in range(start, min(start + 5000, count))
                ]  # fmt: skip
                db.executemany(
                    "INSERT INTO snapshots (snapshot_id, name, resource_id, is_full, status, transition, created_at, status_at,"
                    " snapshot_at, root_id, parent_id, depth) VALUES (?, ?, ?, ?, 'available', '', ?, ?, ?, ?, ?, ?)",
                    rows,
                )
    zone = CephZone("ceph", site.settings.model_copy(update={"namespace": namespace}), site.home / namespace)
    await zone.list_volumes(ResourceFilter())
    taken = []
    for _ in range(50):
        taken.append(await seconds(lambda: zone.list_snapshots(SnapshotFilter(limit=20, verbose=1))))
    await zone.aclose()
    return statistics.median(taken)


async def run(rounds: int, size: int, large: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(), open_site() as site:
        found = await measure(site, rounds, size)
        small = await page_of(site, 200, "small")
        found["page"] = await page_of(site, large, "large") / small
        return found


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--size", type=int, default=512, metavar="MIB")
    parser.add_argument("--large", type=int, default=20_000)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(arguments)
    found = anyio.run(run, args.rounds, args.size * MIB, args.large)
    if args.json:
        print(json.dumps(found))
    else:
        for name, ratio in found.items():
            print(f"{name:10} {ratio:5.2f}   (bar {BARS[name]})")
    return int(any(found[name] > bar for name, bar in BARS.items()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
