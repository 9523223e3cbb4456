"""Real guests on ext4 that are backed up while they work: every restore point boots, and every file that was synced is right."""

import itertools
import time
from pathlib import Path

import anyio.to_thread
import pytest

from snapshot_mcp.providers.local import LocalZone
from snapshot_mcp.providers.local.formats import Form, Machine
from tests import guest
from tests.disks import MIB, get, succeed
from tests.guest import Guest, is_marked_clean, make_disk, verdict
from tests.local.test_machine import add, disk_of
from tests.machines import BareMachine, needs_machines

pytestmark = [pytest.mark.anyio, pytest.mark.long, needs_machines]

COUNT = 5


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if why := guest.why_not():
        pytest.skip(f"not configured: {why}")
    folder = tmp_path_factory.mktemp("guest")
    guest.build(folder)
    return folder


@pytest.mark.parametrize(("form", "has_agent"), [("raw", False), ("qcow2", False), ("raw", True), ("qcow2", True)])
async def test_every_backup_of_a_working_guest_boots_and_every_file_is_right(
    form: str, has_agent: bool, built: Path, local_zone: LocalZone, tmp_path: Path
) -> None:
    """20 backups in all; rolled back after a shutdown, booted, right."""
    path = make_disk(tmp_path / "disk", form)
    taken: list[tuple[str, int]] = []
    with Guest(built, tmp_path / "vm", (path, form), has_agent=has_agent) as machine:
        await anyio.to_thread.run_sync(machine.wait_for, 5)
        sockets = Machine(str(machine.socket), str(machine.agent) if has_agent else "")
        disk = (await local_zone.add_resource(path, form=Form(form, (), sockets))).id
        for number in range(COUNT):
            await anyio.to_thread.run_sync(machine.wait_for, machine.synced_count + 7)
            synced = machine.synced_count
            job = await succeed(local_zone, await local_zone.create_snapshots([disk], "", is_full=number == 3))
            taken.append((job.resource_ids[0], synced))
        await anyio.to_thread.run_sync(machine.wait_for, machine.synced_count + 3)
        last = machine.synced_count
    image = tmp_path / "restored.img"
    for snapshot_id, synced in taken:
        with image.open("w+b") as file:
            await local_zone.read_out(snapshot_id, file.fileno())
        found = await get(local_zone, snapshot_id)
        assert found.consistency == ("frozen" if has_agent else "instant")
        assert is_marked_clean(image) or not has_agent
        right, wrong = await anyio.to_thread.run_sync(verdict, built, tmp_path / "vm", image)
        assert wrong == 0
        assert synced <= right <= last
    await succeed(local_zone, await local_zone.apply_snapshots([taken[2][0]], safety_snapshot_name="before"))
    right, wrong = await anyio.to_thread.run_sync(verdict, built, tmp_path / "vm", path, form)
    assert (wrong, right >= taken[2][1]) == (0, True)


async def test_the_latency_of_writes_during_a_backup(local_zone: LocalZone, tmp_path: Path) -> None:
    """Measured, as p99 and ratio; what is asserted is only that no write waits for the timeout."""
    size = 512 * MIB
    path = disk_of(tmp_path / "disk")
    with path.open("wb") as file, Path("/dev/urandom").open("rb") as chance:
        for _ in range(size // (16 * MIB)):
            file.write(chance.read(16 * MIB))
    found: dict[str, list[float]] = {"alone": [], "backup": []}
    with BareMachine(tmp_path / "machine", (path, "raw")) as machine:
        disk = await add(local_zone, path, machine)
        places = itertools.cycle(range(0, size // MIB, 3))

        def write_for(seconds: float, into: list[float]) -> None:
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                began = time.monotonic()
                machine.write(f"write -P 5 {next(places)}M 4k")
                into.append(time.monotonic() - began)

        await anyio.to_thread.run_sync(write_for, 3.0, found["alone"])
        for _ in range(3):
            job = await local_zone.create_snapshots([disk], "", is_full=True)
            while not (await local_zone.get_job(job.job_id)).is_finished:
                await anyio.to_thread.run_sync(write_for, 0.1, found["backup"])
        assert machine.left == []
    p99 = {name: sorted(times)[len(times) * 99 // 100] * 1000 for name, times in found.items()}
    print(
        f"write latency p99: {p99['alone']:.1f} ms alone, {p99['backup']:.1f} ms during backups"
        f" (ratio {p99['backup'] / p99['alone']:.1f}), most {max(found['backup']) * 1000:.0f} ms"
    )
    assert max(found["backup"]) < 5
