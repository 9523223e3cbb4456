"""Two agreed deletions of one disk, raced from two homes or past the hold of one: each leaves the other's snapshot as the last
good one, so that only one of them is what was agreed to. What must stay is compared in the transaction that admits the job."""

import random
import signal
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from snapshot_mcp.contract.errors import ResourceBusy
from snapshot_mcp.guard import Guard
from snapshot_mcp.guard.consent.approvals import HELD_SECONDS
from snapshot_mcp.providers.local import LocalZone
from snapshot_mcp.zones import Zones
from tests.guard.conftest import nobody
from tests.patience import PATIENCE_SECONDS
from tests.whole_way.scene import Scene
from tests.whole_way.workers import until

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]
HOMES = ("home", "home of another person")

FROZEN = """
import os, signal, sys
from pathlib import Path
import anyio
from snapshot_mcp.contract.errors import ZoneError
from snapshot_mcp.guard import Guard, Policy
from snapshot_mcp.zones import Zones
from snapshot_mcp.providers.local import LocalZone
from tests.guard.conftest import Wrapped, nobody

home, zone, operation, snapshot_id = Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:]

async def freeze():
    provider.on_change = None
    os.kill(os.getpid(), signal.SIGSTOP)

async def main():
    async with Zones({"local": lambda: provider}) as zones:
        guard = Guard(home, Policy())
        call = guard.delete_snapshot if operation == "delete" else guard.rollback_to_snapshots
        target = snapshot_id if operation == "delete" else [snapshot_id]
        try:
            print((await call(zones.get(), target, nobody())).status)
        except ZoneError as error:
            print(error.code)

provider = Wrapped(LocalZone(zone))
provider.on_change = freeze
anyio.run(main)
"""


async def agree_to_delete(scene: Scene, guard: Guard, snapshot_id: str) -> None:
    pending = await guard.delete_snapshot(scene.zone, snapshot_id, nobody())
    assert pending.status == "needs_approval", pending
    await guard.approve(pending.approval_id, None)


async def stay_good(scene: Scene, *ids: str) -> None:
    """These are what can be restored from afterwards, each to the byte."""
    await scene.settle()
    assert {one.snapshot_id for one in await scene.snapshots()} == set(ids)
    for one in ids:
        scene.content_of(one)


async def delete_once(scene: Scene, guard: Guard, snapshot_id: str, delay_seconds: float) -> str:
    """Make the agreed call once, over a connection of its own; how it ended."""
    provider = LocalZone(scene.zone_folder)
    async with Zones({"local": lambda: provider}) as zones:
        await anyio.sleep(delay_seconds)
        try:
            outcome = await guard.delete_snapshot(zones.get(), snapshot_id, nobody())
        except ResourceBusy:
            return "busy"
        if outcome.status != "started":
            return outcome.status
        job = await scene.finish(outcome.job_id)
        return "carried out" if job.is_successful else job.error.code if job.error else job.status


async def race(scene: Scene, rounds: int) -> dict[str, int]:
    """Race two agreed deletions so often; how the one that was not carried out ended."""
    chance = random.Random(7)
    refused: dict[str, int] = {}
    guards = [scene.guard(home) for home in HOMES]
    for number in range(rounds):
        copies = [one.snapshot_id for one in await scene.snapshots()]
        while len(copies) < 2:
            copies.append(await scene.back_up(f"{number}", is_full=True))
        for guard, one in zip(guards, copies, strict=True):
            await agree_to_delete(scene, guard, one)
        ends: dict[str, str] = {}

        async def run(guard: Guard, one: str, delay_seconds: float, ends: dict[str, str] = ends) -> None:
            ends[one] = await delete_once(scene, guard, one, delay_seconds)

        async with anyio.create_task_group() as tasks:
            for guard, one in zip(guards, copies, strict=True):
                tasks.start_soon(run, guard, one, chance.uniform(0, 0.05))
        assert list(ends.values()).count("carried out") == 1, ends
        (left,) = [one for one, end in ends.items() if end != "carried out"]
        await stay_good(scene, left)
        refused[ends[left]] = refused.get(ends[left], 0) + 1
        for approval in await guards[copies.index(left)].list_approvals():
            if approval.expires_at:
                await guards[copies.index(left)].deny(approval.id)
        scene.clock.turn(3601)  # past the no, and the deletions of the last hour
    await scene.verify(*guards)
    assert refused.keys() <= {"plan_changed", "terms_changed", "busy"}, refused
    return refused


@pytest.mark.long
async def test_of_two_deletions_that_each_leave_the_other_one_is_refused(scene: Scene) -> None:
    """Two agreed deletions raced from two homes on one zone, each leaving the other's snapshot as the last good one."""
    await race(scene, 6)


@pytest.mark.long
async def test_of_two_deletions_that_each_leave_the_other_one_is_refused_every_time(scene: Scene) -> None:
    print(await race(scene, 200))


def frozen_call(scene: Scene, home: str, operation: str, snapshot_id: str) -> subprocess.Popen[str]:
    """A process that makes an agreed call and stops between the guard's last look and the zone's admission."""
    command = [sys.executable, "-c", FROZEN, str(scene.folder / home), str(scene.zone_folder), operation, snapshot_id]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    stat = Path(f"/proc/{process.pid}/stat")
    until(lambda: process.poll() is not None or stat.read_text().rpartition(")")[2].split()[0] == "T")
    assert process.poll() is None, process.communicate()
    return process


def thawed(process: subprocess.Popen[str]) -> str:
    """What the call answers when its process goes on."""
    process.send_signal(signal.SIGCONT)
    said, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, errors
    return said.strip()


@pytest.mark.parametrize("homes", [1, 2])
async def test_a_process_frozen_after_its_last_look_does_not_take_the_last_good_copy(scene: Scene, homes: int) -> None:
    """A stall of more than the hold of two minutes between the last look and the admission: both plans said that one
    remains, and one does."""
    copies = [await scene.back_up(name, is_full=True) for name in ("one", "two")]
    guards = [scene.guard(HOMES[0]), scene.guard(HOMES[homes - 1])]
    for guard, one in zip(guards, copies, strict=True):
        await agree_to_delete(scene, guard, one)
    process = frozen_call(scene, HOMES[0], "delete", copies[0])
    scene.clock.turn(HELD_SECONDS + 5)
    assert await delete_once(scene, guards[1], copies[1], 0) == "carried out"
    assert thawed(process) == "plan_changed"
    await stay_good(scene, copies[0])
    assert [one["resource_ids"] for one in scene.effects()] == [f'["{copies[1]}"]']
    await scene.verify(*guards)


@pytest.mark.long
async def test_a_process_frozen_after_its_last_look_does_not_take_what_was_made_since(scene: Scene) -> None:
    """A deletion took a snapshot that nobody agreed to, without a word."""
    full = await scene.back_up("full", is_full=True)
    monday = await scene.back_up("monday")
    guard = scene.guard()
    await agree_to_delete(scene, guard, monday)
    process = frozen_call(scene, HOMES[0], "delete", monday)
    tuesday = await scene.back_up("tuesday")
    assert thawed(process) == "plan_changed"
    await stay_good(scene, full, monday, tuesday)
    assert scene.effects() == []
    await scene.verify(guard)


@pytest.mark.long
async def test_a_process_frozen_after_its_last_look_does_not_overwrite_another_file(scene: Scene) -> None:
    """Another file of the same size at the path after the yes is overwritten."""
    from tests.whole_way.paths import REPLACED, elsewhere

    full = await scene.back_up("full", is_full=True)
    own = scene.scribble(2)
    guard = scene.guard()
    pending = await guard.rollback_to_snapshots(scene.zone, [full], nobody())
    await guard.approve(pending.approval_id, None)
    process = frozen_call(scene, HOMES[0], "rollback", full)
    REPLACED["another file"](scene.path)
    present = scene.path.read_bytes()
    assert thawed(process) == "plan_changed"
    await scene.settle()
    assert (scene.path.read_bytes(), elsewhere(scene.path).read_bytes()) == (present, own)
    assert scene.effects() == []
    await scene.verify(guard)


@pytest.mark.long
async def test_a_stall_of_the_call_alone_costs_nothing(scene: Scene) -> None:
    """Where nothing has changed meanwhile, the yes still covers it, and it is carried out once."""
    copies = [await scene.back_up(name, is_full=True) for name in ("one", "two")]
    guard = scene.guard()
    await agree_to_delete(scene, guard, copies[0])
    process = frozen_call(scene, HOMES[0], "delete", copies[0])
    assert thawed(process) == "started"
    await stay_good(scene, copies[1])
    assert len(scene.effects()) == 1


@pytest.mark.long
async def test_the_hold_of_a_frozen_call_keeps_others_of_its_home_out_for_a_while(scene: Scene) -> None:
    """Within the two minutes the second call of the same home is told to wait, and its consent is kept."""
    copies = [await scene.back_up(name, is_full=True) for name in ("one", "two")]
    guard = scene.guard()
    for one in copies:
        await agree_to_delete(scene, guard, one)
    process = frozen_call(scene, HOMES[0], "delete", copies[0])
    assert await delete_once(scene, guard, copies[1], 0) == "refused"
    assert thawed(process) == "started"
    await scene.settle()
    assert await delete_once(scene, guard, copies[1], 0) == "plan_changed"
    await stay_good(scene, copies[1])
