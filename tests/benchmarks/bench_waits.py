"""How late a wait is told of its job's end: 1,000 waits, real backups that end over 20 s, one upstream.

    python -m tests.benchmarks.bench_waits [--waits N] [--seconds S]

Measured twice: over the embedded zone directly, and over a `zone serve` process through its stream. All waits stand before the
first job begins (the worker is stopped meanwhile, and afterwards now and then, so that the ends spread over the time). A process
of its own watches the catalogue and notes when each end can first be seen; the clock is the machine's. The bar: at most 100 ms at
the 99th percentile, and one stream or one poller upstream.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, cast

import anyio
import anyio.to_thread
from pydantic import SecretStr

from snapshot_mcp.contract.models import Job
from snapshot_mcp.contract.provider import Provider
from snapshot_mcp.providers.anchcloud.settings import AnchCloudZoneSettings
from snapshot_mcp.providers.anchcloud.zone import AnchCloudZone
from snapshot_mcp.providers.local import LocalZone
from snapshot_mcp.providers.local.folder import FILE_NAME
from snapshot_mcp.zones import Zones
from tests.conftest import end_worker
from tests.disks import back_up, make_image, worker_pid

BAR_MS = 100.0

WITNESS = """
import sqlite3, sys, time
database = sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True, isolation_level=None)
seen, version, ended = 0, -1, set()
print("ready", flush=True)
while True:
    (now,) = database.execute("PRAGMA data_version").fetchone()
    if now == version:
        time.sleep(0.001)
        continue
    version = now
    rows = database.execute("SELECT job_id, change, finished_at FROM jobs WHERE change > ? ORDER BY change", (seen,)).fetchall()
    moment = time.monotonic()
    for job_id, change, finished_at in rows:
        seen = change
        if finished_at is not None and job_id not in ended:
            ended.add(job_id)
            print(job_id, moment, flush=True)
"""


class Counting:
    """A provider that counts what is asked of it upstream."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self.calls: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        if name in {"watch_jobs", "get_job", "list_unfinished_jobs"}:
            self.calls[name] += 1
        return getattr(self._provider, name)


@contextmanager
def witness(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-c", WITNESS, str(folder / FILE_NAME)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@asynccontextmanager
async def served(home: Path) -> AsyncIterator[AnchCloudZone]:
    """A `zone serve` process over this home's zone, and a client of it."""
    environment = {**os.environ, "SNAPSHOT_MCP_HOME": str(home), "SNAPSHOT_MCP_CONFIG": ""}
    command = [sys.executable, "-m", "snapshot_mcp", "zone", "serve", "--http", "127.0.0.1:0"]
    face = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert face.stderr is not None
    try:
        url = face.stderr.readline().split()[-1].removesuffix("/v2/zone/local")
        face.stderr.readline()
        pair = json.loads((home / "zone-serve.json").read_text())[0]
        secret = SecretStr(pair["client_secret"])
        yield AnchCloudZone("local", AnchCloudZoneSettings(url=url, client_id=pair["client_id"], client_secret=secret))
    finally:
        face.send_signal(signal.SIGTERM)
        face.wait(10)
        face.stderr.close()


async def _paced(worker: int, process: "subprocess.Popen[str]", jobs: list[str], seconds: float) -> dict[str, float]:
    """Let the worker work, never ahead of the pace; return when each job's end could first be seen."""
    assert process.stdout is not None
    ends: dict[str, float] = {}
    wanted = set(jobs)
    started = time.monotonic()
    os.kill(worker, signal.SIGCONT)
    while wanted - ends.keys():
        job_id, moment = (await anyio.to_thread.run_sync(process.stdout.readline)).split()
        ends[job_id] = float(moment)
        ahead = started + seconds * len(ends) / len(jobs) - time.monotonic()
        if ahead > 0.05:
            os.kill(worker, signal.SIGSTOP)
            await anyio.sleep(ahead)
            os.kill(worker, signal.SIGCONT)
    return {job_id: ends[job_id] for job_id in jobs}


async def prepare(folder: Path, disks: Path, count: int) -> tuple[list[str], int]:
    """Enter a backup of each of `count` small disks, with the worker stopped; return the jobs and the worker's process."""
    zone = LocalZone(folder)
    volumes = [(await zone.add_resource(make_image(disks / str(one), 1 << 14, seed=one))).id for one in range(count)]
    await back_up(zone, volumes[0], "so that a worker is there")
    worker = worker_pid(folder)
    assert worker is not None
    os.kill(worker, signal.SIGSTOP)
    jobs = [(await zone.create_snapshots([volume], "waited for")).job_id for volume in volumes]
    await zone.aclose()
    return jobs, worker


async def measure(folder: Path, provider: Provider, jobs: list[str], worker: int, seconds: float) -> dict[str, float]:
    """Return how late the waits were told (ms), over what time the jobs ended (s), and what was asked upstream."""
    counting = Counting(provider)
    told: dict[str, float] = {}
    known: set[str] = set()
    all_wait = anyio.Event()

    async def wait(zones: Zones, job_id: str) -> None:
        async def note(states: tuple[Job, ...]) -> None:
            known.add(job_id)
            if len(known) == len(jobs):
                all_wait.set()

        (job,) = await zones.get().watcher.wait([job_id], 600, note)
        told[job_id] = time.monotonic()
        assert job.is_successful, job

    with witness(folder) as process:
        async with Zones({"local": lambda: cast(Provider, counting)}) as zones, anyio.create_task_group() as tasks:
            for job_id in jobs:
                tasks.start_soon(wait, zones, job_id)
            await all_wait.wait()
            ends = await _paced(worker, process, jobs, seconds)
    late = sorted((told[job_id] - ends[job_id]) * 1000 for job_id in jobs)
    return {
        "p50 ms": round(statistics.median(late), 1),
        "p99 ms": round(late[int(len(late) * 0.99)], 1),
        "max ms": round(late[-1], 1),
        "ended over s": round(max(ends.values()) - min(ends.values()), 1),
        "streams": counting.calls["watch_jobs"],
        "lists": counting.calls["list_unfinished_jobs"],
        "single reads": counting.calls["get_job"],
    }


async def run(way: str, count: int, seconds: float) -> dict[str, float]:
    """Measure one way: `local`, or `rest`."""
    home = Path(tempfile.mkdtemp(prefix="bench-waits-"))
    folder = home / "zones" / "local"
    try:
        jobs, worker = await prepare(folder, home, count)
        if way == "local":
            return await measure(folder, LocalZone(folder), jobs, worker, seconds)
        async with served(home) as zone:
            return await measure(folder, zone, jobs, worker, seconds)
    finally:
        if (worker_left := worker_pid(folder)) is not None:
            os.kill(worker_left, signal.SIGCONT)
        end_worker(folder)
        shutil.rmtree(home, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--waits", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=20.0)
    args = parser.parse_args()
    is_reached = True
    for way in ("local", "rest"):
        found = anyio.run(run, way, args.waits, args.seconds)
        is_reached = is_reached and found["p99 ms"] <= BAR_MS and found["streams"] == 1
        print(f"{way}: {json.dumps(found)}")
    print(f"{'reached' if is_reached else 'MISSED'}: at most {BAR_MS:.0f} ms at the 99th percentile, over one stream")
    return 0 if is_reached else 1


if __name__ == "__main__":
    sys.exit(main())
