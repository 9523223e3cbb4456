"""What a list costs in a zone of a million snapshots, as ratios to a zone of a thousand in the same run.

    python tests/benchmarks/bench_large_zone.py [--large N] [--small N] [--rounds N] [--folder DIR] [--json]

ARCHITECTURE.md, "Targets": the first page by id, resource or root, and the counts by status and type, take at most
2 × as long as in a zone of a thousand; a search takes at most 500 ms. One disk has half of all snapshots.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import anyio

sys.path.insert(0, str(Path(__file__).parents[2]))

from snapshot_mcp.contract.models import ResourceFilter, SnapshotFilter
from snapshot_mcp.contract.states import SnapshotStatus
from snapshot_mcp.providers.local import LocalZone, worker
from snapshot_mcp.providers.local.folder import FolderCatalogue
from tests.large_zone import fill_zone, resource_id, snapshot_id

MIDDLE = 400
QUERIES = {
    "first page": SnapshotFilter(),
    "first page, 100 in full": SnapshotFilter(limit=100, verbose=1),
    "by id": SnapshotFilter(snapshots=(snapshot_id(MIDDLE),)),
    "by resource": SnapshotFilter(resource_id=resource_id(0)),
    "by root": SnapshotFilter(root_id=snapshot_id(MIDDLE)),
    **{f"status {one}": SnapshotFilter(status=(one,), limit=1) for one in ("available", "deleted", "ceased")},
    "status any": SnapshotFilter(status=tuple(SnapshotStatus), limit=1),
    "type full": SnapshotFilter(snapshot_type=1, limit=1),
    "type incremental": SnapshotFilter(snapshot_type=0, limit=1),
}
SEARCHES = {
    "search, one in 97": SnapshotFilter(search_word="night 96"),
    "search, found by id": SnapshotFilter(search_word=snapshot_id(MIDDLE)),
    "search, nothing": SnapshotFilter(search_word="not there"),
    "tag": SnapshotFilter(tags=("gold",)),
}


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


async def measure(folder: Path, rounds: int) -> dict[str, float]:
    """Median seconds of each query, of opening the catalogue, and of a worker that finds nothing to do."""
    zone = LocalZone(folder)
    seconds: dict[str, float] = {}
    for what, query in (QUERIES | SEARCHES).items():
        times = []
        for _ in range(rounds + 1):
            started = time.perf_counter()
            await zone.list_snapshots(query)
            times.append(time.perf_counter() - started)
        seconds[what] = statistics.median(times[1:])
    times = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        await zone.list_volumes(ResourceFilter(verbose=1, limit=20))
        times.append(time.perf_counter() - started)
    seconds["coverage of 20 disks"] = statistics.median(times[1:])
    await zone.aclose()
    seconds["open"] = statistics.median(timed(lambda: FolderCatalogue(folder).close()) for _ in range(rounds))
    seconds["worker, start and end"] = statistics.median(timed(lambda: worker.run(folder, 0)) for _ in range(rounds))
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--large", type=int, default=1_000_000, metavar="N")
    parser.add_argument("--small", type=int, default=1_000, metavar="N")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="bench-large-zone-") as name:
        seconds = {}
        for size, count in (("small", args.small), ("large", args.large)):
            fill_zone(Path(name) / size, count, resource_count=2)
            seconds[size] = anyio.run(measure, Path(name) / size, args.rounds)
    ratios = {what: value / seconds["small"][what] for what, value in seconds["large"].items() if what not in SEARCHES}
    if args.json:
        json.dump({"seconds": seconds, "ratios": ratios}, sys.stdout)
        return
    print(f"{args.large:,} snapshots against {args.small:,}, medians of {args.rounds}")
    for what, value in seconds["large"].items():
        ratio = f"{ratios[what]:5.2f} x" if what in ratios else ""
        print(f"  {what:<24} {seconds['small'][what] * 1000:8.2f} ms {value * 1000:8.2f} ms  {ratio}")


if __name__ == "__main__":
    main()
