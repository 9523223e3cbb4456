"""How fast our REST client is, as a ratio to bare httpx that sends the same requests, in one run.

    python -m tests.benchmarks.bench_rest [--lists N] [--creates N] [--concurrency N] [--rounds N]

A real `zone serve` process answers on loopback. Both sides send the same requests: a list call is one GET; a
create-and-wait is the look before it (two GETs at once), the POST, and a GET of the job at each poll until it has ended.
Bare httpx decodes the JSON and nothing else. Rounds alternate; the ratio is of the medians. The bar is 0.8.
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
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import httpx
from pydantic import SecretStr

from snapshot_mcp.contract.models import SnapshotFilter
from snapshot_mcp.providers.anchcloud.settings import AnchCloudZoneSettings
from snapshot_mcp.providers.anchcloud.zone import AnchCloudZone
from snapshot_mcp.providers.local import LocalZone
from tests.conftest import end_worker
from tests.disks import back_up, make_image

BAR = 0.8
POLL_SECONDS = 0.05
ALL = "&".join(f"status={status}" for status in ("pending", "available", "suspended", "deleted", "ceased"))


@dataclass
class Side:
    """One of the two: how it lists, how it creates and waits, and how many requests it has sent."""

    name: str
    list_once: Callable[[], Awaitable[None]]
    create_once: Callable[[str, str], Awaitable[None]]
    requests: int = 0


def bare(client: httpx.AsyncClient, zone_url: str) -> Side:
    async def get(path: str) -> Any:
        side.requests += 1
        return (await client.get(zone_url + path)).raise_for_status().json()

    async def list_once() -> None:
        answer = await get("/volume_snapshots?offset=0&limit=10")
        assert answer["snapshots"]

    async def create_once(volume: str, name: str) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(get, "/unfinished_jobs")
            tasks.start_soon(get, f"/volume_snapshots?resource_id={volume}&{ALL}&offset=0&limit=100")
        side.requests += 1
        body = {"resources": [volume], "snapshot_name": name, "is_full": 0}
        job = (await client.post(f"{zone_url}/volume_snapshots", json=body)).raise_for_status().json()
        while job["status"] in {"pending", "working"}:
            await anyio.sleep(POLL_SECONDS)
            job = await get(f"/job/{job['job_id']}")
        assert job["status"] == "successful", job

    side = Side("bare httpx", list_once, create_once)
    return side


def ours(zone: AnchCloudZone) -> Side:
    async def list_once() -> None:
        side.requests += 1
        assert (await zone.list_snapshots(SnapshotFilter())).items

    async def create_once(volume: str, name: str) -> None:
        side.requests += 3
        job = await zone.create_snapshots([volume], name)
        while not job.is_finished:
            await anyio.sleep(POLL_SECONDS)
            side.requests += 1
            job = await zone.get_job(job.job_id)
        assert job.is_successful, job

    side = Side("snapshot-mcp", list_once, create_once)
    return side


async def rate(side: Side, count: int, concurrency: int, work: Callable[[int, int], Awaitable[None]]) -> float:
    """Requests per second while `count` pieces of work are done, `concurrency` at once."""
    numbers = iter(range(count))
    before = side.requests

    async def worker(lane: int) -> None:
        for number in numbers:
            await work(lane, number)

    started = time.perf_counter()
    async with anyio.create_task_group() as tasks:
        for lane in range(concurrency):
            tasks.start_soon(worker, lane)
    return (side.requests - before) / (time.perf_counter() - started)


async def measure(
    sides: list[Side], volumes: list[str], lists: int, creates: int, rounds: int
) -> dict[str, dict[str, float]]:
    rates: dict[str, dict[str, list[float]]] = {"list": {}, "create and wait": {}}
    concurrency = len(volumes)
    for number in range(rounds):
        for side in sides if number % 2 else reversed(sides):  # neither is always first

            async def listing(lane: int, step: int, side: Side = side) -> None:
                await side.list_once()

            async def creating(lane: int, step: int, side: Side = side, number: int = number) -> None:
                await side.create_once(volumes[lane], f"{side.name} {number} {step}")

            one = await rate(side, max(1, lists // rounds), concurrency, listing)
            rates["list"].setdefault(side.name, []).append(one)
            one = await rate(side, max(1, creates // rounds), concurrency, creating)
            rates["create and wait"].setdefault(side.name, []).append(one)
    return {
        what: {name: statistics.median(values) for name, values in by_side.items()} for what, by_side in rates.items()
    }


async def prepare(folder: Path, disks: Path, count: int) -> list[str]:
    """As many small disks as there are callers, each with a snapshot."""
    zone = LocalZone(folder)
    volumes = []
    for number in range(count):
        volumes.append((await zone.add_resource(make_image(disks / str(number), 1 << 16, seed=number))).id)
        await back_up(zone, volumes[-1], "first")
    await zone.aclose()
    return volumes


async def run(lists: int, creates: int, concurrency: int, rounds: int) -> dict[str, dict[str, float]]:
    """Return requests per second of each side, by kind of work."""
    home = Path(tempfile.mkdtemp(prefix="bench-rest-"))
    folder = home / "zones" / "local"
    environment = {**os.environ, "SNAPSHOT_MCP_HOME": str(home), "SNAPSHOT_MCP_CONFIG": ""}
    volumes = await prepare(folder, home, concurrency)
    command = [sys.executable, "-m", "snapshot_mcp", "zone", "serve", "--http", "127.0.0.1:0"]
    face = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        assert face.stderr is not None
        zone_url = face.stderr.readline().split()[-1]
        face.stderr.readline()
        url = zone_url.removesuffix("/v2/zone/local")
        pair = json.loads((home / "zone-serve.json").read_text())[0]
        secret = SecretStr(pair["client_secret"])
        zone = AnchCloudZone("local", AnchCloudZoneSettings(url=url, client_id=pair["client_id"], client_secret=secret))
        limits = httpx.Limits(max_connections=100, max_keepalive_connections=50)
        async with httpx.AsyncClient(timeout=30, limits=limits) as client:
            answer = await client.post(
                f"{url}/v2/oauth2/token",
                auth=(pair["client_id"], pair["client_secret"]),
                data={"grant_type": "client_credentials"},
            )
            client.headers["authorization"] = f"Bearer {answer.json()['access_token']}"
            sides = [bare(client, zone_url), ours(zone)]
            for side in sides:
                await side.list_once()
            result = await measure(sides, volumes, lists, creates, rounds)
        await zone.aclose()
        return result
    finally:
        face.send_signal(signal.SIGTERM)
        face.wait(10)
        if face.stderr:
            face.stderr.close()
        end_worker(folder)
        shutil.rmtree(home, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lists", type=int, default=10_000)
    parser.add_argument("--creates", type=int, default=1_000)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=4)
    args = parser.parse_args()
    result = anyio.run(run, args.lists, args.creates, args.concurrency, args.rounds)
    is_reached = True
    for what, rates in result.items():
        ratio = rates["snapshot-mcp"] / rates["bare httpx"]
        is_reached = is_reached and ratio >= BAR
        both = ", ".join(f"{name} {value:.0f} requests/s" for name, value in rates.items())
        print(f"{what}: {both}, ratio {ratio:.2f} (bar {BAR})")
    return 0 if is_reached else 1


if __name__ == "__main__":
    raise SystemExit(main())
