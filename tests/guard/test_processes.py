"""Several processes on one home, and processes that are killed."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from snapshot_mcp.guard import Guard
from tests.guard.conftest import OLD_ZONE, Bench, nobody
from tests.marks import long

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parent.parent.parent

CALLER = """
import os, signal, sys
from pathlib import Path
import anyio
from snapshot_mcp.guard import Guard, Policy
from snapshot_mcp.zones import Zones
from snapshot_mcp.providers.local import LocalZone
from tests.guard.conftest import OLD_ZONE, Wrapped, nobody

home, zone, operation, snapshot_id, kill = Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:]

class Killing(Wrapped):
    async def _change(self, change, *args, **terms):
        if kill == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        job = await change(*args, **terms)
        if kill == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return job

    async def delete_snapshot(self, snapshot_id, **terms):
        return await self._change(self._provider.delete_snapshot, snapshot_id, **terms)

    async def apply_snapshots(self, snapshot_ids, **terms):
        return await self._change(self._provider.apply_snapshots, snapshot_ids, **terms)

    async def create_snapshots(self, resource_ids, name, **options):
        if kill == "safety before":
            os.kill(os.getpid(), signal.SIGKILL)
        job = await self._provider.create_snapshots(resource_ids, name, **options)
        if kill == "safety after":
            os.kill(os.getpid(), signal.SIGKILL)
        return job

async def main():
    provider = Killing(LocalZone(zone))
    provider.without = OLD_ZONE if kill.startswith("safety") else frozenset()
    async with Zones({"local": lambda: provider}) as zones:
        guard = Guard(home, Policy())
        if operation == "delete":
            outcome = await guard.delete_snapshot(zones.get(), snapshot_id, nobody())
        else:
            outcome = await guard.rollback_to_snapshots(zones.get(), [snapshot_id], nobody())
        print(outcome.status)

anyio.run(main)
"""


def start(bench: Bench, operation: str, snapshot_id: str, kill: str = "") -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-c",
        CALLER,
        str(bench.home),
        bench.zone.provider.location,
        operation,
        snapshot_id,
        kill,
    ]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


async def granted(bench: Bench, operation: str) -> tuple[Any, str]:
    """An approved call: its approval's id and the snapshot's."""
    disk = await bench.add_disk()
    full = await bench.back_up(disk, "full")
    last = await bench.back_up(disk, "monday")
    guard = Guard(bench.home, bench.guard().policy)
    if operation == "delete":
        outcome = await guard.delete_snapshot(bench.zone, last.snapshot_id, nobody())
    else:
        outcome = await guard.rollback_to_snapshots(bench.zone, [full.snapshot_id], nobody())
    await guard.approve(outcome.approval_id, None)
    return outcome.approval_id, last.snapshot_id if operation == "delete" else full.snapshot_id


async def jobs_of(bench: Bench, action: str) -> int:
    """How many jobs of this kind this test's disks ever had."""
    ids = {disk.id for disk in bench.disks} | {one.snapshot_id for one in await bench.every_snapshot()}

    def read(catalogue: Any) -> int:
        rows = catalogue.rows("SELECT * FROM jobs WHERE action = ?", action)
        return sum(any(id_ in str(tuple(row)) for id_ in ids) for row in rows)

    count: int = await bench.provider._read(read, 0)
    return count


@pytest.mark.long
async def test_of_four_processes_that_race_for_one_approval_one_goes_through(bench: Bench) -> None:
    approval_id, snapshot_id = await granted(bench, "rollback")
    callers = [start(bench, "rollback", snapshot_id) for _ in range(4)]
    said = [caller.communicate()[0].strip() for caller in callers]
    assert said.count("started") == 1, said
    assert await jobs_of(bench, "ApplySnapshots") == 1
    assert (await Guard(bench.home, bench.guard().policy).get_approval(approval_id)).state == "spent"


@pytest.mark.parametrize(
    ("operation", "action", "kill", "jobs"),
    [
        ("delete", "DeleteSnapshots", "before", 0),
        long("rollback", "ApplySnapshots", "after", 1),
        long("delete", "DeleteSnapshots", "after", 1),
        long("rollback", "ApplySnapshots", "before", 0),
    ],
)
async def test_a_process_killed_at_the_change_runs_it_once_at_most(
    bench: Bench, operation: str, action: str, kill: str, jobs: int
) -> None:
    """Between approval and execution, and between execution and the record."""
    approval_id, snapshot_id = await granted(bench, operation)
    caller = start(bench, operation, snapshot_id, kill)
    _, errors = caller.communicate()
    assert caller.returncode == -signal.SIGKILL, errors
    assert await jobs_of(bench, action) == jobs
    guard = Guard(bench.home, bench.guard().policy)
    assert (await guard.get_approval(approval_id)).state == "spent"
    again = start(bench, operation, snapshot_id)
    said, _ = again.communicate()
    assert said.strip() != "started"
    assert await jobs_of(bench, action) == jobs
    verdict = guard.audit.verify()
    assert verdict.problem == ""
    assert sum(record["event"] == "spent" for record in guard.audit.records()) == 1


@pytest.mark.parametrize("kill", [long("safety before"), "safety after"])
@pytest.mark.long
async def test_a_process_killed_at_the_safety_snapshot_leaves_the_approval(bench: Bench, kill: str) -> None:
    """Killed at any point, it goes on under the same approval."""
    bench.provider.without = OLD_ZONE
    approval_id, snapshot_id = await granted(bench, "rollback")
    caller = start(bench, "rollback", snapshot_id, kill)
    caller.communicate()
    assert caller.returncode == -signal.SIGKILL
    bench.clock.turn(3 * 60)
    outcome = await bench.guard().rollback_to_snapshots(bench.zone, [snapshot_id], nobody())
    assert (outcome.status, outcome.approval_id) == ("started", approval_id)
    safeties = [one for one in await bench.snapshots() if one.snapshot_name.startswith("before roll-back")]
    assert outcome.safety_snapshot_ids[0] in {one.snapshot_id for one in safeties}
    assert len(safeties) <= 2, "the dead one's, and one of the present content"
    assert await jobs_of(bench, "ApplySnapshots") == 1
    assert bench.guard().audit.verify().problem == ""
