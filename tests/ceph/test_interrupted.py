"""A roll-back whose worker dies anywhere: what was written since is not overwritten, and what is saved is what was there."""

import pytest

from snapshot_mcp.contract.models import Job
from snapshot_mcp.contract.states import JobStatus
from snapshot_mcp.providers.ceph import worker
from snapshot_mcp.providers.ceph.cluster import Cluster
from snapshot_mcp.providers.ceph.names import snapshot_name
from snapshot_mcp.providers.ceph.worker import _PoolWorker
from tests.ceph.bench import Bench
from tests.ceph.subject import POOL
from tests.disks import MIB, succeed

pytestmark = pytest.mark.anyio

ROLL_BACK = "snapshot_mcp.providers.ceph.work.apply:RollBack"
LATE = b"\x77" * 65536


def use(bench: Bench, data: bytes = b"", name: str = "db") -> None:
    """A machine starts with the disk, writes, and stops."""
    with (
        Cluster(bench.site.conf, "admin", None) as client,
        client.pool(POOL, bench.namespace) as pool,
        pool.open_by_name(name) as image,
    ):
        if data:
            image.write(0, data)
            image.flush()


async def interrupted(
    bench: Bench, method: str, when: str, number: int = 1, safety: str = ""
) -> tuple[Job, str, bytes]:
    """A roll-back whose worker died there, its disk, and the content that it is rolled back to."""
    await bench.hold(f"{ROLL_BACK}.{method}", when, number)
    disk = bench.disk(size=8 * MIB)
    first = await bench.back_up(disk, "first")
    was = bench.content()
    bench.write()
    job = await bench.zone().apply_snapshots([first], safety_snapshot_name=safety)
    await bench.paused()
    bench.bury("db")
    await bench.until(lambda: bench.worker() is None)
    bench.go_on()
    return job, disk, was


async def test_a_safety_snapshot_is_of_what_is_overwritten(bench: Bench) -> None:
    """The worker dies between it and the mark; a machine writes; the next worker runs the job again."""
    job, disk, was = await interrupted(bench, "_take_safety", "after", safety="safety")
    use(bench, LATE)
    overwritten = bench.content()
    await bench.hold()
    ended = await bench.end_of(job)
    assert ended.is_successful, ended.info
    assert bench.content() == was
    name = snapshot_name(ended.details["safety_snapshots"][disk])
    with bench.site.pool.open_image(disk.partition("-")[2], snapshot=name) as image:
        assert image.read(0, image.size) == overwritten


@pytest.mark.parametrize("safety", ["", pytest.param("safety", marks=pytest.mark.long)])
async def test_what_was_written_since_a_roll_back_was_interrupted_waits_for_a_person(bench: Bench, safety: str) -> None:
    """All is rolled back but not noted; a machine starts, writes and stops."""
    job, _, was = await interrupted(bench, "_note", "before", 2, safety)
    assert bench.content() == was
    use(bench, LATE)
    written = bench.content()
    await bench.hold()
    ended = await bench.end_of(job)
    assert ended.error
    assert ended.error.code == "terms_changed"
    assert "may have been written to" in ended.error.message
    bench.kill()
    await bench.until(lambda: bench.worker() is None)
    await bench.back_up(bench.disk("other", MIB), "by another worker")
    assert bench.content() == written
    assert await bench.zone().list_unfinished_jobs() == ()
    (target,) = (one.snapshot_id for one in await bench.points() if one.snapshot_name == "first")
    await succeed(bench.zone(), await bench.zone().apply_snapshots([target]))
    assert bench.content() == was, "a person may roll it back again"


@pytest.mark.parametrize(("when", "number"), [pytest.param("after", 1, marks=pytest.mark.long), ("before", 2)])
async def test_a_roll_back_that_nobody_disturbed_is_ended_by_the_next_worker(
    bench: Bench, when: str, number: int
) -> None:
    """It died after the mark: before a byte was written, and after the last one. Who only looks is no disturbance."""
    job, _, was = await interrupted(bench, "_note", when, number)
    use(bench)
    await bench.hold()
    ended = await bench.end_of(job)
    assert ended.is_successful, ended.info
    assert bench.content() == was


@pytest.mark.long
async def test_a_disk_that_holds_what_the_roll_back_writes_and_what_was_saved_is_rolled_back(bench: Bench) -> None:
    """Somebody had the disk locked since, so all of it is compared: it is what it was."""
    job, _, was = await interrupted(bench, "_note", "after", 1, "safety")
    use(bench, bench.content()[:4096])
    await bench.hold()
    ended = await bench.end_of(job)
    assert ended.is_successful, ended.info
    assert bench.content() == was


@pytest.mark.long
async def test_a_second_disk_that_was_written_to_since_is_not_overwritten(bench: Bench) -> None:
    """The worker dies once the first of two disks is done; the second one's safety snapshot does not have what is there now."""
    await bench.hold(f"{ROLL_BACK}._note", "before", 3)
    disks = [bench.disk("db", 8 * MIB), bench.disk("log", 8 * MIB)]
    zone = bench.zone()
    made = await succeed(zone, await zone.create_snapshots(disks, "first"))
    was = bench.content()
    for name in ("db", "log"):
        bench.write(name)
    job = await zone.apply_snapshots(made.resource_ids, safety_snapshot_name="safety")
    await bench.paused()
    bench.bury("log")
    await bench.until(lambda: bench.worker() is None)
    bench.go_on()
    use(bench, LATE, "log")
    written = bench.content("log")
    await bench.hold()
    ended = await bench.end_of(job)
    assert ended.error
    assert ended.error.code == "terms_changed"
    assert ended.details["resources"][disks[0]] == "applied"
    assert (bench.content(), bench.content("log")) == (was, written)


@pytest.mark.long
async def test_a_roll_back_before_its_mark_waits_for_ceph_to_let_go_of_the_dead_worker(bench: Bench) -> None:
    await bench.hold(f"{ROLL_BACK}._check", "after")
    disk = bench.disk(size=8 * MIB)
    first = await bench.back_up(disk, "first")
    was = bench.content()
    bench.write()
    job = await bench.zone().apply_snapshots([first])
    await bench.paused()
    bench.kill()
    await bench.until(lambda: bench.worker() is None)
    bench.go_on()
    await bench.hold()
    ended = await bench.end_of(job)
    assert ended.is_successful, ended.info
    assert bench.content() == was


async def test_a_job_that_has_ended_is_not_taken_over(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy that still shows it as being worked on is not enough: its owner is gone with it."""
    disk = bench.disk(size=MIB)
    zone = bench.zone()
    job = await succeed(zone, await zone.create_snapshots([disk], "first"))
    monkeypatch.setattr(worker, "TAKE_OVER_SECONDS", -1.0)
    monkeypatch.setattr(worker, "LOOK_SECONDS", -1.0)
    taken: list[str] = []
    with zone._connected() as copy:
        watcher = _PoolWorker(copy, bench.home("other"), 1.0)
        monkeypatch.setattr(watcher, "start", taken.append)
        copy.db.execute("UPDATE jobs SET status = 'working', finished_at = NULL")
        for _ in range(3):
            watcher.look_around()
    assert taken == []
    assert (await zone.get_job(job.job_id)).status == JobStatus.SUCCESSFUL


@pytest.mark.long
async def test_a_worker_that_waits_for_the_catalogue_still_gives_its_sign_of_life(bench: Bench) -> None:
    """A client that died keeps the catalogue locked; a healthy job is not taken over because of that."""
    await bench.hold(f"{ROLL_BACK}._note", "before", 2)
    await bench.hold(machine="other")
    disk = bench.disk(size=MIB)
    first = await bench.back_up(disk, "first")
    job = await bench.zone().apply_snapshots([first])
    await bench.paused()
    assert bench.site.pool.lock("snapshot-mcp.catalogue", "catalogue", "dead", 3)
    bench.go_on()
    ended = await bench.end_of(job)
    assert ended.is_successful, ended.info
    assert "stands still" not in (bench.home("other") / "zones" / "ceph" / "worker.log").read_text()
