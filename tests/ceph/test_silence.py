"""A cluster that hangs, a pool that is full, a machine whose clock is wrong: as promised, and nothing is lost."""

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from snapshot_mcp.contract.errors import StorageFull, Unavailable, ZoneError
from snapshot_mcp.contract.models import ResourceFilter, SnapshotFilter
from snapshot_mcp.providers.ceph.clock import ClusterClock
from snapshot_mcp.providers.ceph.zone import CephZone
from tests.ceph.bench import Bench
from tests.ceph.cluster import ceph
from tests.ceph.subject import Site, open_site
from tests.disks import MIB, finish, succeed

pytestmark = [pytest.mark.anyio, pytest.mark.long]

CALL_SECONDS = 20.0


@pytest.fixture
def own_site(request: pytest.FixtureRequest) -> Iterator[Site]:
    """A cluster of its own, whose daemons a test may stop; with a manager for a test that needs quotas."""
    with open_site(has_manager="quota" in request.node.name) as opened:
        yield opened


@pytest.fixture
async def lone(own_site: Site, tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(replace(own_site, home=tmp_path / "home"), "")
    try:
        yield made
    finally:
        await made.aclose()


def daemons(conf: Path, name: str) -> list[int]:
    """The processes of a cluster's daemon, by their environment."""
    found = []
    for one in Path("/proc").glob("[0-9]*"):
        try:
            is_it = (one / "comm").read_text().strip() == name
            if is_it and f"CEPH_CONF={conf}".encode() in (one / "environ").read_bytes().split(b"\0"):
                found.append(int(one.name))
        except OSError:
            continue
    return found


@contextmanager
def stopped(conf: Path, name: str) -> Iterator[None]:
    """The daemon stands still, as on a machine that hangs."""
    pids = daemons(conf, name)
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


async def within_limits(call: Any) -> ZoneError | None:
    """Carry a call out; return the error that it ended with. It takes at most 20 s."""
    began = time.monotonic()
    try:
        await call
    except ZoneError as error:
        return error
    finally:
        assert time.monotonic() - began < CALL_SECONDS
    return None


@pytest.mark.parametrize("daemon", ["ceph-osd", "ceph-mon"])
@pytest.mark.parametrize("kind", ["create", "apply", "export", "verify", "delete"])
async def test_a_job_waits_for_a_daemon_and_goes_on(lone: Bench, daemon: str, kind: str) -> None:
    disk = lone.disk(size=128 * MIB)
    zone = lone.zone()
    snapshot = await lone.back_up(disk, "first")
    was = lone.content()
    lone.write(size=MIB)
    start: dict[str, Any] = {
        "create": lambda: zone.create_snapshots([disk], "second"),
        "apply": lambda: zone.apply_snapshots([snapshot], safety_snapshot_name="safety"),
        "export": lambda: zone.create_volume(snapshot, "copy"),
        "verify": lambda: zone.verify_snapshots([snapshot]),
        "delete": lambda: zone.delete_snapshot(snapshot),
    }
    job = await start[kind]()
    await anyio.sleep(0.05)
    with stopped(lone.site.conf, daemon):
        for call in (
            lambda: zone.list_volumes(ResourceFilter(verbose=1)),
            lambda: zone.list_snapshots(SnapshotFilter()),
            lambda: zone.get_job(job.job_id),
        ):
            error = await within_limits(call())
            assert error is None or isinstance(error, Unavailable), error
        await anyio.sleep(2)
    with anyio.fail_after(90):
        while True:
            try:
                ended = await finish(zone, job)
                break
            except Unavailable:
                await anyio.sleep(0.5)
    if not ended.is_successful:
        assert ended.error
        assert (kind, ended.error.code) in {("delete", "expired"), ("apply", "expired")}, ended.info
        return
    if kind == "apply":
        assert lone.content() == was
    if kind == "export":
        assert lone.content("copy") == was


CALLS: dict[str, Callable[[CephZone, list[str]], Awaitable[Any]]] = {
    "volumes": lambda zone, disks: zone.list_volumes(ResourceFilter(verbose=1, limit=100)),
    "snapshots": lambda zone, disks: zone.list_snapshots(SnapshotFilter(verbose=1)),
    "create": lambda zone, disks: zone.create_snapshots(disks, "n"),
    "jobs": lambda zone, disks: zone.list_unfinished_jobs(),
    "instances": lambda zone, disks: zone.list_instances(ResourceFilter(verbose=1)),
    "purge": lambda zone, disks: zone.purge(()),
}


@pytest.mark.parametrize("daemon", ["ceph-osd", "ceph-mon"])
async def test_calls_at_once_of_a_server_that_starts_during_a_silence_are_each_within_the_limit(
    lone: Bench, daemon: str
) -> None:
    disks = [lone.disk(f"d{number}", MIB) for number in range(3)]
    fresh = lone.zone("fresh")
    errors: list[ZoneError | None] = []

    async def ask(call: Callable[[CephZone, list[str]], Awaitable[Any]]) -> None:
        errors.append(await within_limits(call(fresh, disks)))

    with stopped(lone.site.conf, daemon):
        async with anyio.create_task_group() as tasks:
            for call in CALLS.values():
                tasks.start_soon(ask, call)
    assert {type(one) for one in errors} == {Unavailable}


async def test_calls_at_once_of_a_slow_cluster_are_each_within_the_limit(lone: Bench) -> None:
    """An OSD that answers every three seconds: no single operation runs into its limit."""
    disks = [lone.disk(f"d{number}", MIB) for number in range(12)]
    zone = lone.zone()
    await lone.back_up(disks[0])
    pids, is_over = daemons(lone.site.conf, "ceph-osd"), threading.Event()

    def slow_down() -> None:
        while not is_over.is_set():
            for sign, seconds in ((signal.SIGSTOP, 3.0), (signal.SIGCONT, 0.02)):
                for pid in pids:
                    os.kill(pid, sign)
                time.sleep(seconds)

    async def ask(call: Callable[[CephZone, list[str]], Awaitable[Any]]) -> None:
        error = await within_limits(call(zone, disks))
        assert error is None or isinstance(error, Unavailable)

    thread = threading.Thread(target=slow_down)
    thread.start()
    try:
        async with anyio.create_task_group() as tasks:
            for call in CALLS.values():
                tasks.start_soon(ask, call)
    finally:
        is_over.set()
        await anyio.to_thread.run_sync(thread.join)
    with anyio.fail_after(60):
        while any(not one.is_finished for one in await lone.zone("later").list_unfinished_jobs()):
            await anyio.sleep(0.5)


async def test_a_pool_that_reaches_its_quota_is_full_at_once_and_deleting_works(lone: Bench) -> None:
    disk = lone.disk(size=64 * MIB)
    zone = lone.zone()
    snapshot = await lone.back_up(disk, "first")
    ceph(lone.site.conf, "ceph", "osd", "pool", "set-quota", "rbd", "max_objects", "30")
    copies = 0
    with anyio.fail_after(120):
        while True:
            job = await finish(zone, await zone.create_volume(snapshot, f"copy {copies}"))
            if not job.is_successful:
                break
            copies += 1
            await anyio.sleep(1)
    assert job.error
    assert job.error.code == StorageFull.code, job.info
    assert f"copy {copies}" not in lone.site.pool.list_images().values()
    assert not [name for name in lone.site.pool.list_images().values() if name.startswith("snapshot-mcp.")]
    await succeed(zone, await zone.delete_snapshot(snapshot))
    assert await zone.purge([snapshot]) == (snapshot,)


async def test_a_machine_whose_clock_is_an_hour_off_ends_no_grace_period(
    lone: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its worker's too: the process is started under a false time."""
    library = shutil.which("faketime")
    if not library:
        pytest.skip("faketime is not installed")
    disk = lone.disk()
    zone = lone.zone(recovery_hours=0.5)
    snapshot = await lone.back_up(disk, "first")
    await succeed(zone, await zone.delete_snapshot(snapshot))
    said = subprocess.run(["faketime", "-f", "+1h", "env"], capture_output=True, text=True, check=True).stdout
    ahead = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
    for name in ("LD_PRELOAD", "FAKETIME", "FAKETIME_SHARED"):
        if name in ahead:
            monkeypatch.setenv(name, ahead[name])
    monkeypatch.setenv("FAKETIME_DONT_FAKE_MONOTONIC", "1")
    other = lone.zone("ahead", recovery_hours=0.5)
    made = await lone.back_up(disk, "by the machine that is ahead", "ahead")
    monkeypatch.undo()
    await anyio.sleep(12)  # its worker has been idle and has purged what it believes to be over
    assert (await lone.points("ahead", snapshots=(snapshot,), status=("deleted",)))[0].snapshot_id == snapshot
    (point,) = await lone.points(snapshots=(made,))
    assert point.snapshot_time
    assert abs(point.snapshot_time.timestamp() - ClusterClock(lone.site.pool).read().wall) < 120
    await succeed(other, await other.recover_snapshots([snapshot]))
