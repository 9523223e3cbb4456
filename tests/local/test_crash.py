"""Processes killed at every point: no snapshot lost or wrong, no disk half rolled back and called whole, every job
finished or truthfully failed, each exactly once (ARCHITECTURE.md, "Targets")."""

import os
import random
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import anyio
import pytest

from snapshot_mcp.catalogue.database import Catalogue
from snapshot_mcp.contract.models import Job, ResourceFilter
from snapshot_mcp.providers.local import LocalZone
from snapshot_mcp.providers.local.folder import FolderCatalogue
from snapshot_mcp.providers.local.worker import _take_lock
from tests.disks import MIB, back_up, change, finish, get, make_image, succeed, worker_pid
from tests.patience import PATIENCE_SECONDS

pytestmark = pytest.mark.anyio


async def kill_worker(folder: Path) -> None:
    """SIGKILL the worker that this test's zone started, and wait until the kernel has its lock back."""
    if pid := worker_pid(folder):
        os.kill(pid, signal.SIGKILL)
        with anyio.fail_after(PATIENCE_SECONDS):
            while worker_pid(folder) == pid:
                await anyio.sleep(0.005)


async def until_working(zone: LocalZone, job: Job) -> None:
    """Wait until the job has begun to read or to write."""
    with anyio.fail_after(PATIENCE_SECONDS):
        while True:
            job = await zone.get_job(job.job_id)
            if job.is_finished or (job.progress):
                return
            await anyio.sleep(0.005)


async def test_the_backup_goes_on_when_the_server_that_asked_is_killed(local_zone: LocalZone, tmp_path: Path) -> None:
    """Closing the conversation never stops a backup."""
    image = make_image(tmp_path / "disk.img", 192 * MIB)
    volume = await local_zone.add_resource(image)
    script = textwrap.dedent("""
        import sys, time, anyio
        from pathlib import Path
        from snapshot_mcp.providers.local import LocalZone
        async def main():
            job = await LocalZone(Path(sys.argv[1])).create_snapshots([sys.argv[2]], "from another server")
            print(job.job_id, flush=True)
            await anyio.sleep(60)
        anyio.run(main)
    """)
    command = [sys.executable, "-c", script, str(local_zone.folder), volume.id]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as server:
        assert server.stdout is not None
        job_id = server.stdout.readline().strip()
        os.killpg(server.pid, signal.SIGKILL)
    job = await succeed(local_zone, await local_zone.get_job(job_id))
    await succeed(local_zone, await local_zone.apply_snapshots(job.resource_ids))
    assert (await local_zone.check()).is_clean


@pytest.mark.long
async def test_a_killed_workers_create_fails_truthfully_and_nothing_else_is_lost(
    local_zone: LocalZone, tmp_path: Path
) -> None:
    """The next worker takes over; the instant is gone; every earlier snapshot verifies."""
    image = make_image(tmp_path / "disk.img", 192 * MIB)
    volume = await local_zone.add_resource(image)
    first = await back_up(local_zone, volume.id)
    before = image.read_bytes()
    change(image, 64 * MIB)
    for attempt in range(20):
        job = await local_zone.create_snapshots([volume.id], f"interrupted {attempt}", is_full=True)
        await until_working(local_zone, job)
        await kill_worker(local_zone.folder)
        job = await finish(local_zone, job)
        if not job.is_successful:
            break
        await succeed(local_zone, await local_zone.delete_snapshot(job.resource_ids[0]))
        await local_zone.purge()
    assert job.status == "failed", "the worker was never caught at work"
    assert "interrupted before it finished" in job.info
    assert (await get(local_zone, job.resource_ids[0])).status == "ceased"
    assert [path.name for path in (local_zone.folder / "snapshots").iterdir()] == [f"{first}.snap"]
    assert (await local_zone.check()).is_clean
    await succeed(local_zone, await local_zone.apply_snapshots([first]))
    assert image.read_bytes() == before


async def test_a_create_whose_files_were_complete_ends_well(local_zone: LocalZone, tmp_path: Path) -> None:
    """FORMAT.md, "Invariants": a file that was renamed is durable and whole; only the catalogue had not said so yet."""
    image = make_image(tmp_path / "disk.img")
    volume = await local_zone.add_resource(image)
    snapshot_id = await back_up(local_zone, volume.id)
    with FolderCatalogue(local_zone.folder) as catalogue, catalogue.transaction() as db:
        db.execute("UPDATE snapshots SET status = 'pending', transition = 'creating', size_bytes = 0")
        db.execute("UPDATE resources SET head_id = NULL")
        db.execute("UPDATE jobs SET status = 'working', finished_at = NULL")
    await kill_worker(local_zone.folder)
    (job,) = await local_zone.list_unfinished_jobs()
    await succeed(local_zone, job)
    snapshot = await get(local_zone, snapshot_id)
    assert (snapshot.status, snapshot.is_head) == ("available", 1)
    assert (await local_zone.check()).is_clean


async def _roll_back_with_kills(zone: LocalZone, image: Path, kill_after: list[float]) -> Job:
    """Roll back, killing the worker so often, each so many seconds after it was seen to work."""
    job = await zone.apply_snapshots([await _oldest(zone)])
    for delay in kill_after:
        await until_working(zone, job)
        await anyio.sleep(delay)
        await kill_worker(zone.folder)
    return await finish(zone, job)


async def _oldest(zone: LocalZone) -> str:
    with FolderCatalogue(zone.folder) as catalogue:
        row = catalogue.row("SELECT snapshot_id FROM snapshots WHERE parent_id IS NULL")
    assert row is not None
    return str(row["snapshot_id"])


@pytest.mark.long
async def test_a_roll_back_whose_worker_is_killed_is_brought_to_its_end(local_zone: LocalZone, tmp_path: Path) -> None:
    """Killed at any point: no disk is half rolled back and called whole, the job is resumed (ARCHITECTURE.md, "Targets")."""
    chance = random.Random(7)
    image = make_image(tmp_path / "disk.img", 64 * MIB)
    volume = await local_zone.add_resource(image)
    before = image.read_bytes()
    await back_up(local_zone, volume.id)
    for round_number in range(4):
        change(image, 32 * MIB, seed=round_number)
        job = await _roll_back_with_kills(local_zone, image, [chance.uniform(0, 0.15) for _ in range(2)])
        assert job.is_successful, job.info
        assert image.read_bytes() == before
        (found,) = (await local_zone.list_volumes(ResourceFilter())).items
        assert (found.status, found.problem) == ("available", None)


async def test_an_incomplete_disk_is_said_to_be_so_and_resumed(
    here: LocalZone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CONTRACT.md, "Apply of several": unchanged, incomplete; CATALOGUE.md, "Roll-back": pending meanwhile, creates refused."""
    from snapshot_mcp.catalogue import rollback
    from snapshot_mcp.contract.errors import NotUsable
    from snapshot_mcp.providers.local import source

    image, other = make_image(tmp_path / "disk.img"), make_image(tmp_path / "other.img", seed=5)
    before, other_before = image.read_bytes(), other.read_bytes()
    volumes = [await here.add_resource(one) for one in (image, other)]
    created = await succeed(here, await here.create_snapshots([one.id for one in volumes], "both"))
    change(image, MIB, count=1), change(other, MIB, count=1)
    other_changed = other.read_bytes()
    written = 0

    def fails_midway(fd: int, data: bytes, offset: int) -> None:
        nonlocal written
        written += 1
        if written > 3:
            raise OSError(28, "No space left on device")
        os.pwrite(fd, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(source, "write_at", fails_midway)
        job = await finish(here, await here.apply_snapshots(created.resource_ids))
    assert (job.status, job.error and job.error.code) == ("failed", "storage_full")
    assert job.details["resources"] == {volumes[0].id: "incomplete", volumes[1].id: "unchanged"}
    assert other.read_bytes() == other_changed
    found = {one.id: one for one in (await here.list_volumes(ResourceFilter())).items}
    assert (found[volumes[0].id].status, found[volumes[1].id].status) == ("pending", "available")
    assert not (await here.check()).is_clean
    with pytest.raises(NotUsable, match="holds old and new content mixed"):
        await here.create_snapshots([volumes[0].id], "of a mixture")

    with pytest.raises(NotUsable, match="holds old and new content mixed"):
        await here.remove_resource(volumes[0].id)

    with FolderCatalogue(here.folder) as catalogue:
        rollback.resume(catalogue)
    for unfinished in await here.list_unfinished_jobs():
        await succeed(here, unfinished)
    assert image.read_bytes() == before
    assert other_before != other.read_bytes()
    assert (await here.check()).is_clean


async def test_a_half_restored_disk_stays_so_when_a_later_roll_back_fails_before_it(
    here: LocalZone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk is "unchanged" by a job that never reached it; that does not make it whole."""
    from snapshot_mcp.providers.local import source

    image, other = make_image(tmp_path / "disk.img"), make_image(tmp_path / "other.img", seed=5)
    volumes = [await here.add_resource(one) for one in (image, other)]
    created = await succeed(here, await here.create_snapshots([one.id for one in volumes], "both"))
    of_image, of_other = created.resource_ids
    change(image, MIB, count=1), change(other, MIB, count=1)

    def fails(fd: int, data: bytes, offset: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(source, "write_at", fails)
        await finish(here, await here.apply_snapshots([of_other]))
        job = await finish(here, await here.apply_snapshots([of_image, of_other]))
    assert job.details["resources"] == {volumes[0].id: "incomplete", volumes[1].id: "incomplete"}
    found = {one.id: one.status for one in (await here.list_volumes(ResourceFilter())).items}
    assert found == {volumes[0].id: "pending", volumes[1].id: "pending"}


@pytest.mark.long
async def test_four_processes_on_one_home_run_every_job_once(local_zone: LocalZone, tmp_path: Path) -> None:
    """Several servers on one home, each creating and waiting at once."""
    script = textwrap.dedent("""
        import sys, anyio
        from pathlib import Path
        from snapshot_mcp.providers.local import LocalZone
        from tests.disks import back_up
        async def main():
            zone = LocalZone(Path(sys.argv[1]))
            for number in range(5):
                print(await back_up(zone, sys.argv[2], f"{sys.argv[2]} {number}"), flush=True)
            await zone.aclose()
        anyio.run(main)
    """)
    volumes = [await local_zone.add_resource(make_image(tmp_path / f"{n}.img", MIB, seed=n)) for n in range(4)]
    servers = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(local_zone.folder), volume.id],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        for volume in volumes
    ]
    created = [line for server in servers for line in server.communicate(timeout=PATIENCE_SECONDS)[0].splitlines()]
    assert all(server.returncode == 0 for server in servers)
    assert len(set(created)) == 20
    with FolderCatalogue(local_zone.folder) as catalogue:
        rows = catalogue.rows("SELECT status, run_count FROM jobs")
        assert [(row["status"], row["run_count"]) for row in rows] == [("successful", 1)] * 20
        assert catalogue.rows("SELECT * FROM claims") == []
    assert (await local_zone.check()).is_clean


@pytest.mark.long
async def test_kill_nine_at_a_hundred_random_moments(local_zone: LocalZone, tmp_path: Path) -> None:
    """No snapshot is lost or wrong, whatever job was under way when the worker was killed."""
    chance = random.Random(11)
    image = make_image(tmp_path / "disk.img", 24 * MIB)
    volume = await local_zone.add_resource(image)
    contents: dict[str, bytes] = {}
    outcomes: dict[str, int] = {}
    targets: list[str] = []
    for round_number in range(100):
        if chance.random() < 0.6 or not contents:
            change(image, MIB, seed=round_number)
            job = await local_zone.create_snapshots([volume.id], str(round_number), is_full=chance.random() < 0.2)
        elif chance.random() < 0.7:
            targets.append(chance.choice(list(contents)))
            job = await local_zone.apply_snapshots(targets[-1:])
        else:
            job = await local_zone.delete_snapshot(chance.choice(list(contents)))
        content = image.read_bytes() if job.action == "CreateSnapshots" else b""
        await anyio.sleep(chance.uniform(0, 0.25))
        await kill_worker(local_zone.folder)
        job = await finish(local_zone, job)
        outcomes[f"{job.action} {job.status}"] = outcomes.get(f"{job.action} {job.status}", 0) + 1
        if job.is_successful and job.action == "CreateSnapshots":
            contents[job.resource_ids[0]] = content
        elif job.action == "DeleteSnapshots":
            assert job.is_successful
            contents = {key: value for key, value in contents.items() if key not in job.resource_ids}
        elif job.action == "ApplySnapshots" and not job.is_successful:
            # A half-written chunk, which no hash can tell from a foreign write, waits for a person (FORMAT.md, "A roll-back").
            assert job.error is not None
            assert job.error.code == "terms_changed"
            await succeed(local_zone, await local_zone.apply_snapshots([targets[-1]]))
    assert outcomes.get("ApplySnapshots failed", 0) <= 5, outcomes
    assert (await local_zone.check()).is_clean
    for snapshot_id, content in contents.items():
        await succeed(local_zone, await local_zone.apply_snapshots([snapshot_id]))
        assert image.read_bytes() == content, outcomes


async def test_a_worker_that_meets_an_error_of_its_own_keeps_its_lock_to_the_end(zone_folder: Path) -> None:
    """Its jobs' threads may run for a while still; another worker beside them would run the same jobs twice."""
    script = textwrap.dedent("""
        import sys
        from concurrent.futures import ThreadPoolExecutor
        from pathlib import Path
        from snapshot_mcp.providers.local import worker
        def serve(self):
            ThreadPoolExecutor(1).submit(__import__("time").sleep, 3)
            raise RuntimeError("a bug")
        worker._Worker.serve = serve
        lock = worker._take_lock(Path(sys.argv[1]))
        print(flush=True)
        worker.main(sys.argv[1], str(lock))
    """)
    FolderCatalogue(zone_folder).close()
    command = [sys.executable, "-c", script, str(zone_folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as dying:
        assert dying.stdout is not None
        dying.stdout.readline()
        with anyio.fail_after(PATIENCE_SECONDS):
            while (lock := _take_lock(zone_folder)) is None:
                await anyio.sleep(0.005)
        os.close(lock)
        assert dying.wait(PATIENCE_SECONDS) == 1


async def test_a_full_catalogue_ends_no_job_that_runs(
    here: LocalZone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next job waits; the worker and what it carries out go on."""
    import sqlite3

    from snapshot_mcp.providers.local import worker

    failures = 3
    take = worker._Worker._take

    def full(self: worker._Worker, *, only_urgent: bool) -> str | None:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise sqlite3.OperationalError("database or disk is full")
        return take(self, only_urgent=only_urgent)

    monkeypatch.setattr(worker._Worker, "_take", full)
    monkeypatch.setattr("snapshot_mcp.catalogue.worker.RETRY_SECONDS", 0.01)
    volume = await here.add_resource(make_image(tmp_path / "disk.img"))
    await back_up(here, volume.id)
    await back_up(here, volume.id)
    await back_up(here, volume.id)
    assert failures < 0


async def test_an_export_that_the_catalogue_did_not_take_leaves_no_file(
    here: LocalZone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing names the file, so nothing would ever free its space."""
    import sqlite3

    volume = await here.add_resource(make_image(tmp_path / "disk.img"))
    snapshot_id = await back_up(here, volume.id)

    def fails(*arguments: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(Catalogue, "add_resource", fails)
    job = await finish(here, await here.create_volume(snapshot_id, "copy"))
    assert job.status == "failed"
    assert list((here.folder / "volumes").iterdir()) == []
