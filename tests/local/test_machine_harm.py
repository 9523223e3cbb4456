"""A backup never harms the machine that it is taken of: whatever fails, its writes go on, and nothing is left behind."""

import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from snapshot_mcp.contract.keep_free import NOTHING_FREE
from snapshot_mcp.providers.local import LocalZone
from snapshot_mcp.providers.local.machine import filters
from snapshot_mcp.providers.local.machine.disk import InstantContent
from snapshot_mcp.providers.local.worker import run as run_worker
from tests.disks import MIB, back_up, finish, worker_pid
from tests.local.test_machine import add, content, disk_of, exported, noting, once, wait_until
from tests.machines import BareMachine, Monitor, needs_machines
from tests.marks import long
from tests.patience import PATIENCE_SECONDS

pytestmark = [pytest.mark.anyio, pytest.mark.long, needs_machines]


async def is_right(zone: LocalZone, disk: str, machine: BareMachine, path: Path, form: str = "raw") -> None:
    """Take the next backup and compare it; nothing is left in the machine."""
    machine.flush()
    before = content(path, form)
    snapshot_id = await back_up(zone, disk)
    assert machine.left == []
    assert await exported(zone, snapshot_id) == before


@pytest.mark.parametrize("form", ["raw", long("qcow2")])
@pytest.mark.parametrize("count", [2, long(50)])
async def test_a_worker_that_is_killed_at_any_moment_leaves_nothing_after_the_next_start(
    count: int, form: str, local_zone: LocalZone, tmp_path: Path
) -> None:
    """The guest goes on, or QEMU is gone; nothing is left behind after the next start."""
    chance = random.Random(7)
    path = disk_of(tmp_path / "disk", form)
    with BareMachine(tmp_path / "machine", (path, form), boots=True) as machine:
        machine.write("write -P 1 0 16M")
        disk = await add(local_zone, path, machine, form)
        began = time.monotonic()
        await back_up(local_zone, disk)
        usual = time.monotonic() - began
        for number in range(count):
            machine.write(f"write -P {number + 2} {number % 16}M 1M")
            job = await local_zone.create_snapshots([disk], "", is_full=number % 2 == 0)
            await wait_until(lambda: worker_pid(local_zone.folder) is not None)
            pid = worker_pid(local_zone.folder)
            assert pid
            await anyio.sleep(chance.random() * usual)
            os.kill(pid, signal.SIGKILL)
            machine.write(f"write -P {number + 3} {(number + 5) % 16}M 512k")
            await wait_until(lambda: worker_pid(local_zone.folder) is None)
            await finish(local_zone, job)  # the next worker says what came of it
            await is_right(local_zone, disk, machine, path, form)


@pytest.mark.parametrize("form", ["raw", "qcow2"])
async def test_a_machine_that_ends_in_mid_backup_fails_the_backup_and_no_other(
    form: str, here: LocalZone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = disk_of(tmp_path / "disk", form)
    with BareMachine(tmp_path / "machine", (path, form), boots=True) as machine:
        disk = await add(here, path, machine, form)
        machine.write("write -P 3 1M 64k")
        await is_right(here, disk, machine, path, form)
        machine.write("write -P 4 1M 32k")
        with monkeypatch.context() as patch:
            patch.setattr(InstantContent, "read", noting(InstantContent.read, once(machine.end)))
            job = await finish(here, await here.create_snapshots([disk], ""))
        assert job.error
        assert "The machine of" in job.error.message
        assert "ended during its backup" in job.error.message
    with BareMachine(tmp_path / "machine", (path, form), boots=True) as machine:
        machine.write("write -P 5 2M 64k")
        await is_right(here, disk, machine, path, form)


async def test_a_backup_that_is_cancelled_leaves_nothing_in_the_machine(
    here: LocalZone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = disk_of(tmp_path / "disk")
    is_read, may_go = threading.Event(), threading.Event()

    def wait() -> None:
        is_read.set()
        may_go.wait(PATIENCE_SECONDS)

    with BareMachine(tmp_path / "machine", (path, "raw"), boots=True) as machine:
        disk = await add(here, path, machine)
        with monkeypatch.context() as patch:
            patch.setattr(InstantContent, "read", noting(InstantContent.read, once(wait)))
            job = await here.create_snapshots([disk], "")
            await wait_until(is_read.is_set)
            await here.cancel_job(job.job_id)
            may_go.set()
            job = await finish(here, job)
        assert job.error
        assert job.error.code == "cancelled"
        assert machine.left == []
        await is_right(here, disk, machine, path)
        assert len(machine.bitmaps) == 1


@pytest.mark.long
async def test_another_client_at_the_monitor_is_waited_out(local_zone: LocalZone, tmp_path: Path) -> None:
    """The worker is killed, and somebody else has the monitor when the next one starts."""
    path = disk_of(tmp_path / "disk")
    with BareMachine(tmp_path / "machine", (path, "raw"), boots=True) as machine:
        disk = await add(local_zone, path, machine)
        await back_up(local_zone, disk)
        job = await local_zone.create_snapshots([disk], "")
        await wait_until(lambda: "snapshot-mcp-cbw-0" in machine.nodes or job.is_finished)
        if pid := worker_pid(local_zone.folder):
            os.kill(pid, signal.SIGKILL)
        other = Monitor(machine.socket)
        machine.write("write -P 4 2M 64k")
        await finish(local_zone, job)
        refused = await finish(local_zone, await local_zone.create_snapshots([disk], ""))
        assert refused.error
        assert "another program is connected to" in refused.error.message
        machine.write("write -P 5 3M 64k")
        other.close()
        await is_right(local_zone, disk, machine, path)


@asynccontextmanager
async def in_this_process(folder: Path) -> AsyncIterator[LocalZone]:
    """A zone that leaves nothing free, whose worker is a thread of this process."""
    folder.mkdir()
    worker = threading.Thread(target=run_worker, args=(folder, 3600.0), daemon=True)
    worker.start()
    zone = LocalZone(folder, keep_free=NOTHING_FREE)
    try:
        yield zone
    finally:
        await zone.aclose()
        shutil.rmtree(folder)
        await anyio.to_thread.run_sync(worker.join, PATIENCE_SECONDS)


async def test_a_full_scratch_disk_fails_the_backup_and_not_the_guest(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"a line of what it was\n" * (32 * MIB // 22))
    os.truncate(path, 32 * MIB)
    async with in_this_process(small_disk / "zone") as zone:
        with BareMachine(tmp_path / "machine", (path, "raw"), boots=True) as machine:
            disk = await add(zone, path, machine)
            with monkeypatch.context() as patch:
                overwriting = once(lambda: machine.write("write -P 6 0 16M", "write -P 7 16M 16M"))
                patch.setattr(InstantContent, "read", noting(InstantContent.read, overwriting))
                job = await finish(zone, await zone.create_snapshots([disk], ""))
            assert job.error
            assert "gave up the backup" in job.error.message or job.error.code == "storage_full"
            assert path.read_bytes() == b"\6" * (16 * MIB) + b"\7" * (16 * MIB)
            await is_right(zone, disk, machine, path)


@pytest.fixture
def ext4(tmp_path: Path) -> Iterator[Path]:
    """A filesystem that can be made to stand still."""
    if os.geteuid() != 0:
        pytest.skip("mounting a filesystem needs root")
    backing, mount_point = tmp_path / "backing", tmp_path / "mounted"
    with backing.open("wb") as file:
        file.truncate(256 * MIB)
    mount_point.mkdir()
    subprocess.run(["mkfs.ext4", "-q", str(backing)], check=True)
    subprocess.run(["mount", "-o", "loop", str(backing), str(mount_point)], check=True)
    yield mount_point
    subprocess.run(["fsfreeze", "-u", str(mount_point)], check=False, stderr=subprocess.DEVNULL)
    subprocess.run(["umount", "--lazy", str(mount_point)], check=True)


@pytest.mark.long
async def test_a_scratch_disk_that_stands_still_holds_a_write_up_for_the_timeout_and_no_longer(
    ext4: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And QEMU is not put back before that disk answers, since it would wait for it."""
    monkeypatch.setattr(filters, "CBW_SECONDS", 2)
    path = disk_of(tmp_path / "disk")
    took: list[float] = []
    async with in_this_process(ext4 / "zone") as zone:
        with BareMachine(tmp_path / "machine", (path, "raw"), boots=True) as machine:
            disk = await add(zone, path, machine)

            def stand_still() -> None:
                subprocess.run(["fsfreeze", "-f", str(ext4)], check=True)
                began = time.monotonic()
                machine.write("write -P 8 0 64k")
                took.append(time.monotonic() - began)
                machine.write("write -P 8 1M 64k")

            with monkeypatch.context() as patch:
                patch.setattr(InstantContent, "read", noting(InstantContent.read, once(stand_still)))
                job = await zone.create_snapshots([disk], "")
                await wait_until(lambda: bool(took))
                machine.write("write -P 9 2M 64k")
                subprocess.run(["fsfreeze", "-u", str(ext4)], check=True)
                job = await finish(zone, job)
            assert job.error
            assert 1.5 < took[0] < 10
            await is_right(zone, disk, machine, path)
