"""Workers that die, stand still and come back: each job is run once, ended right, and bytes are compared."""

import random
import signal
import time
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from snapshot_mcp.contract.errors import ResourceBusy, Unavailable
from snapshot_mcp.contract.models import Job, ResourceFilter
from snapshot_mcp.contract.states import JobAction
from tests.ceph.bench import Bench
from tests.disks import MIB, succeed

pytestmark = [pytest.mark.anyio, pytest.mark.long]

KINDS = ("create", "apply", "safety", "export", "verify", "delete", "recover")


@pytest.mark.parametrize("round_", range(60))
async def test_a_worker_that_is_killed_at_any_moment_is_taken_over(bench: Bench, round_: int) -> None:
    """60 moments, each kind of job at least eight times."""
    kind, chance = KINDS[round_ % len(KINDS)], random.Random(round_)
    size = 256 * MIB if kind in {"apply", "safety", "export", "verify"} else 16 * MIB
    disk = bench.disk(size=size)
    zone = bench.zone()
    snapshot = await bench.back_up(disk, "first")
    was = bench.content()
    bench.write(size=MIB)
    changed = bench.content()
    if kind == "recover":
        await succeed(zone, await zone.delete_snapshot(snapshot))
    start: dict[str, Any] = {
        "create": lambda: zone.create_snapshots([disk], "second"),
        "apply": lambda: zone.apply_snapshots([snapshot]),
        "safety": lambda: zone.apply_snapshots([snapshot], safety_snapshot_name="safety"),
        "export": lambda: zone.create_volume(snapshot, "copy"),
        "verify": lambda: zone.verify_snapshots([snapshot]),
        "delete": lambda: zone.delete_snapshot(snapshot),
        "recover": lambda: zone.recover_snapshots([snapshot]),
    }
    other = bench.zone("other")
    await other.list_volumes(ResourceFilter())
    job: Job = await start[kind]()
    await anyio.sleep(chance.uniform(0, 0.8 if size > 16 * MIB else 0.12))
    if bench.worker():
        bench.kill()
    ended = await bench.end_of(job, chance.choice(["one", "other"]), 150)
    if not ended.is_successful:
        assert kind in {"apply", "safety", "delete"}, ended
        assert ended.error
        assert ended.error.code in {"expired", "resource_busy"}, ended.error
        assert bench.content() in {was, changed}
        return
    if kind in {"apply", "safety"}:
        assert bench.content() == was
    if kind == "safety":
        safety = ended.details["safety_snapshots"][disk]
        with bench.site.pool.open_image(disk.partition("-")[2], snapshot=f"snapshot-mcp.{safety}") as image:
            assert image.read(0, image.size) == changed
    if kind == "export":
        assert bench.content("copy") == was
    points = {one.snapshot_id: one for one in await bench.points(status=("available", "deleted", "pending", "ceased"))}
    assert points[snapshot].status == ("deleted" if kind == "delete" else "available")
    assert not [one for one in points.values() if one.status == "pending"]
    left = [name for name in bench.site.pool.list_images().values() if name.startswith("snapshot-mcp.")]
    assert left == []


async def test_three_machines_run_200_jobs_each_once(bench: Bench) -> None:
    machines = ("one", "two", "three")
    disks = [bench.disk(f"disk {number}", MIB) for number in range(20)]
    chance = random.Random(7)
    done: list[Job] = []

    async def work(machine: str, mine: list[str], count: int) -> None:
        zone = bench.zone(machine)
        made = 0
        while made < count:
            disk = chance.choice(mine)
            try:
                job = await zone.create_snapshots([disk], f"{machine} {made}")
            except (ResourceBusy, Unavailable):
                await anyio.sleep(0.02)
                continue
            made += 1
            done.append(await bench.end_of(job, machine))

    async with anyio.create_task_group() as tasks:
        for at, machine in enumerate(machines):
            for lane in range(3):
                tasks.start_soon(work, machine, disks[(at * 3 + lane) * 2 : (at * 3 + lane) * 2 + 2] or disks, 23)
    assert len(done) == 207
    assert all(one.is_successful for one in done), [one.info for one in done if not one.is_successful][:3]
    ids = [one.resource_ids[0] for one in done]
    assert len(set(ids)) == len(ids)
    taken: set[str] = set()
    for image_id in bench.site.pool.list_images():
        with bench.site.pool.open_image(image_id) as image:
            taken |= {name.removeprefix("snapshot-mcp.") for name in image.snapshots()}
    assert taken == set(ids), "each job took one snapshot, once"


async def test_a_worker_that_stood_still_and_comes_back_overwrites_nothing(bench: Bench) -> None:
    """It is stopped amid a roll-back, taken over; a person writes; it goes on."""
    disk = bench.disk("big", 512 * MIB)
    zone, other = bench.zone(), bench.zone("other")
    first = await bench.back_up(disk, "first")
    with bench.site.pool.open_by_name("big") as image:
        for offset in range(0, image.size, 4 * MIB):
            image.write(offset, b"\x01" * 4096)
    await other.list_volumes(ResourceFilter())
    job = await zone.apply_snapshots([first])
    while ((now := await zone.get_job(job.job_id)).details.get("resources") or {}).get(disk) != "incomplete":
        assert not now.is_finished, now
        await anyio.lowlevel.checkpoint()
    bench.kill(sign=signal.SIGSTOP)
    began = time.monotonic()
    ended = await bench.end_of(job, "other", 150)
    assert ended.is_successful, ended.info
    assert time.monotonic() - began < 120
    late = b"\x02" * 65536
    with bench.site.pool.open_by_name("big") as image:
        for offset in range(0, image.size, 16 * MIB):
            image.write(offset, late)
    bench.kill(sign=signal.SIGCONT)
    await anyio.sleep(3)
    with bench.site.pool.open_by_name("big") as image:
        for offset in range(0, image.size, 16 * MIB):
            assert image.read(offset, len(late)) == late
    assert (await other.get_job(job.job_id)).is_successful


async def test_what_was_agreed_on_a_machine_that_is_gone_is_not_begun_elsewhere(bench: Bench) -> None:
    disk = bench.disk()
    first = await bench.back_up(disk)
    other = bench.zone("other")
    bench.kill(sign=signal.SIGSTOP)
    job = await bench.zone().delete_snapshot(first)
    await bench.back_up(bench.disk("another"), "keeps the other's worker awake", "other")
    await anyio.sleep(3)
    assert (await other.get_job(job.job_id)).status == "pending"
    assert JobAction(job.action) == JobAction.DELETE
    bench.kill(sign=signal.SIGKILL)
    ended = await bench.end_of(job, "other", 200)
    assert ended.error
    assert ended.error.code == "expired"
    assert (await bench.points("other", snapshots=(first,)))[0].is_available
