"""What was agreed to is what happens: the zone's own comparison of terms, files, times and holds, at every point of a job."""

import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from snapshot_mcp.catalogue import rollback
from snapshot_mcp.catalogue.jobs import end_failed
from snapshot_mcp.contract.errors import Expired, NotUsable, ResourceBusy, TermsChanged, Unavailable, ZoneError
from snapshot_mcp.contract.models import Job, ResourceFilter, SnapshotUpdate, Volume
from snapshot_mcp.contract.terms import ResourceTerms, Terms, Uptime
from snapshot_mcp.ground import detached
from snapshot_mcp.ground.clock import SystemClock
from snapshot_mcp.providers.local import LocalZone, identity, restore
from snapshot_mcp.providers.local.folder import FolderCatalogue
from snapshot_mcp.providers.local.snapshot_file.reader import Chain
from snapshot_mcp.providers.local.source import Target
from snapshot_mcp.providers.local.store import FileStore
from snapshot_mcp.providers.local.work import apply, carry_out, overwriting, resumption
from tests.disks import MIB, back_up, change, finish, get, ids, make_image, succeed, worker_pid
from tests.marks import long
from tests.patience import PATIENCE_SECONDS

pytestmark = pytest.mark.anyio


@contextmanager
def standing_still(zone: LocalZone) -> Iterator[None]:
    """The zone's worker is frozen: jobs are admitted and not begun."""
    pid = worker_pid(zone.folder)
    assert pid
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        if worker_pid(zone.folder) == pid:
            os.kill(pid, signal.SIGCONT)


async def kill_worker(folder: Path) -> None:
    """SIGKILL the worker, and wait until the kernel has its lock back."""
    pid = worker_pid(folder)
    assert pid
    os.kill(pid, signal.SIGKILL)
    with anyio.fail_after(PATIENCE_SECONDS):
        while worker_pid(folder) == pid:
            await anyio.sleep(0.005)


async def volume_of(zone: LocalZone, resource_id: str) -> Volume:
    (found,) = (await zone.list_volumes(ResourceFilter(ids=(resource_id,), verbose=1))).items
    return found


async def terms_for(zone: LocalZone, resource_id: str, head_id: str) -> Terms:
    disk = await volume_of(zone, resource_id)
    return Terms(resources={resource_id: ResourceTerms(identity=disk.identity, head_id=head_id)})


def pass_time(zone: LocalZone, job: Job, *, is_rebooted: bool = False) -> None:
    """Days go by for a job that waits, or the system is started anew."""
    with FolderCatalogue(zone.folder) as catalogue, catalogue.transaction() as db:
        if is_rebooted:
            db.execute("UPDATE jobs SET begin_boot = 'an earlier run' WHERE job_id = ?", (job.job_id,))
        else:
            db.execute("UPDATE jobs SET begin_until = begin_until - 3 * 86400 WHERE job_id = ?", (job.job_id,))


def replaced_by_another_file(path: Path) -> None:
    path.rename(path.with_suffix(".moved"))
    make_image(path, seed=9)


def removed_and_made_again(path: Path) -> None:
    """A new file with the old one's inode, which ext4 gives out again."""
    inode, size = path.stat().st_ino, path.stat().st_size
    path.unlink()
    fillers = [path.with_name(f"filler-{number}") for number in range(20_000)]
    for filler in fillers:  # the first one, mostly
        filler.touch()
        if filler.stat().st_ino == inode:
            filler.rename(path)
            make_image(path, size, seed=9)
            for other in fillers:
                other.unlink(missing_ok=True)
            return
    pytest.fail("this filesystem gave the inode to nobody: run the tests on ext4")


def replaced_by_a_symbolic_link(path: Path) -> None:
    other = make_image(path.with_suffix(".other"), seed=9)
    path.unlink()
    path.symlink_to(other)


def replaced_by_a_hard_link(path: Path) -> None:
    other = make_image(path.with_suffix(".other"), seed=9)
    path.unlink()
    os.link(other, path)


def given_another_name(path: Path) -> None:
    os.link(path, path.with_suffix(".too"))


CHANGES = [
    replaced_by_another_file,
    removed_and_made_again,
    replaced_by_a_symbolic_link,
    replaced_by_a_hard_link,
    given_another_name,
]


@pytest.fixture(scope="module")
def ext4(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A filesystem where nobody else takes the inode that a test has just freed; mounting it needs root."""
    folder = tmp_path_factory.mktemp("ext4")
    if os.geteuid() != 0:
        yield folder
        return
    backing, mount_point = folder / "backing", folder / "mounted"
    with backing.open("wb") as file:
        file.truncate(256 * MIB)
    mount_point.mkdir()
    subprocess.run(["mkfs.ext4", "-q", "-F", str(backing)], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["mount", "-o", "loop", str(backing), str(mount_point)], check=True)
    yield mount_point
    subprocess.run(["umount", "--lazy", str(mount_point)], check=True)
    backing.unlink()


@pytest.fixture
async def rolled(local_zone: LocalZone, ext4: Path) -> tuple[LocalZone, Path, str, str, bytes]:
    """A zone, its disk, the ids of disk and snapshot, and what the disk holds beyond the snapshot."""
    image = make_image(Path(tempfile.mkdtemp(dir=ext4)) / "disk.img")
    volume = await local_zone.add_resource(image)
    snapshot_id = await back_up(local_zone, volume.id)
    change(image, MIB)
    return local_zone, image, volume.id, snapshot_id, image.read_bytes()


Rolled = tuple[LocalZone, Path, str, str, bytes]


@pytest.mark.parametrize("is_changed", [*CHANGES[:2], *(long(one) for one in CHANGES[2:])])
async def test_another_file_at_the_path_is_not_overwritten_when_it_was_agreed_before(
    rolled: Rolled, is_changed: Callable[[Path], None]
) -> None:
    """“Another file of the same size at the path after the yes is overwritten; a hard link takes the other name's content
    along": refused at admission, and nothing was begun."""
    zone, image, volume_id, snapshot_id, _ = rolled
    terms = await terms_for(zone, volume_id, snapshot_id)
    is_changed(image)
    content = image.read_bytes()
    with pytest.raises((TermsChanged, NotUsable)) as refusal:
        await zone.apply_snapshots([snapshot_id], terms=terms)
    assert refusal.value.is_definite
    assert image.read_bytes() == content
    assert await zone.list_unfinished_jobs() == ()


@pytest.mark.parametrize("has_safety", [pytest.param(False, marks=pytest.mark.long), True])
@pytest.mark.parametrize("is_changed", [*CHANGES[:2], *(long(one) for one in CHANGES[2:])])
async def test_another_file_at_the_path_is_not_overwritten_by_a_job_that_waited(
    rolled: Rolled, is_changed: Callable[[Path], None], has_safety: bool
) -> None:
    """The worker compares again before the first byte, with or without terms; no safety snapshot is left behind."""
    zone, image, volume_id, snapshot_id, _ = rolled
    with standing_still(zone):
        job = await zone.apply_snapshots([snapshot_id], safety_snapshot_name="before" if has_safety else "")
        is_changed(image)
        content = image.read_bytes()
    job = await finish(zone, job)
    assert job.status == "failed"
    assert job.error
    assert job.error.code in {"terms_changed", "not_usable"}
    assert image.read_bytes() == content
    assert await ids(zone, resource_id=volume_id) == {snapshot_id}
    findings = (await zone.check()).findings
    assert [one.text for one in findings if "is now a symbolic link" not in one.text] == []


@pytest.mark.parametrize("is_rebooted", [False, True])
@pytest.mark.parametrize("operation", ["delete", "apply"])
async def test_what_waited_too_long_is_not_begun_by_a_look(rolled: Rolled, operation: str, is_rebooted: bool) -> None:
    """“A read days later carries it out over the new content": it ends as expired instead, also after a reboot."""
    zone, image, volume_id, snapshot_id, content = rolled
    with standing_still(zone):
        job = await (
            zone.delete_snapshot(snapshot_id) if operation == "delete" else zone.apply_snapshots([snapshot_id])
        )
        pass_time(zone, job, is_rebooted=is_rebooted)
        (looked,) = [await zone.get_job(job.job_id)]
        assert (looked.status, looked.error and looked.error.code) == ("failed", "expired")
        assert await zone.list_unfinished_jobs() == ()
    await back_up(zone, volume_id)
    assert image.read_bytes() == content
    assert (await get(zone, snapshot_id)).status == "available"


@pytest.mark.parametrize("operation", ["delete", "apply"])
async def test_a_worker_that_comes_too_late_begins_nothing(rolled: Rolled, operation: str) -> None:
    """The worker itself looks at the time, once it holds the disk or marks the snapshots."""
    zone, image, _, snapshot_id, content = rolled
    with standing_still(zone):
        job = await (
            zone.delete_snapshot(snapshot_id) if operation == "delete" else zone.apply_snapshots([snapshot_id])
        )
        pass_time(zone, job)
    job = await finish(zone, job)
    assert job.error
    assert job.error.code == "expired"
    assert image.read_bytes() == content


@pytest.mark.parametrize("operation", ["delete", "apply"])
async def test_time_that_runs_out_after_the_worker_has_taken_the_job_counts(rolled: Rolled, operation: str) -> None:
    """“Begun” is the hold on the disk, or the transaction that marks: not that a worker has picked the job up."""
    zone, image, _, snapshot_id, content = rolled
    with standing_still(zone):
        job = await (
            zone.delete_snapshot(snapshot_id) if operation == "delete" else zone.apply_snapshots([snapshot_id])
        )
        await kill_worker(zone.folder)
    pass_time(zone, job)
    with FolderCatalogue(zone.folder) as catalogue:
        with catalogue.transaction():
            catalogue.set_job(job.job_id, status="working", run_count=1)
        carry_out(catalogue, job.job_id)
    job = await zone.get_job(job.job_id)
    assert job.error
    assert job.error.code == "expired"
    assert image.read_bytes() == content
    assert (await get(zone, snapshot_id)).status == "available"


async def test_a_roll_back_does_not_wait_for_exports(
    here: LocalZone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """“Queued behind 24 exports it waited 5.4 s without holding the disk"."""
    image = make_image(tmp_path / "disk.img")
    volume = await here.add_resource(image)
    snapshot_id = await back_up(here, volume.id)
    before = image.read_bytes()
    change(image, MIB)
    is_over = anyio.Event()
    export = restore.export

    def slow(*arguments: Any) -> None:
        while not is_over.is_set():
            time.sleep(0.01)
        export(*arguments)

    monkeypatch.setattr(restore, "export", slow)
    exports = [await here.create_volume(snapshot_id, f"copy {number}") for number in range(24)]
    await succeed(here, await here.apply_snapshots([snapshot_id]))
    assert image.read_bytes() == before
    assert len(await here.list_unfinished_jobs()) == 24
    is_over.set()
    for one in exports:
        await succeed(here, one)


async def test_a_deletion_takes_no_more_than_was_agreed_to(rolled: Rolled) -> None:
    """“A deletion took a snapshot that which the approval does not cover, without a word"."""
    zone, _, volume_id, full, _ = rolled
    terms = Terms(may_go=(full,))
    later = await back_up(zone, volume_id, "made since")
    with pytest.raises(TermsChanged, match=later) as refusal:
        await zone.delete_snapshot(full, terms=terms)
    assert refusal.value.is_definite
    await succeed(zone, await zone.delete_snapshot(full, terms=Terms(may_go=(full, later, "ss-another"))))


async def test_one_of_what_was_to_remain_must_still_be_good(rolled: Rolled) -> None:
    """“The last good copy went although both plans said that one remains"."""
    zone, _, volume_id, first, _ = rolled
    second = await back_up(zone, volume_id, is_full=True)
    keeps_second, keeps_first = Terms(must_stay=(second,)), Terms(must_stay=(first,))
    await succeed(zone, await zone.delete_snapshot(first, terms=keeps_second))
    with pytest.raises(TermsChanged, match=first):
        await zone.delete_snapshot(second, terms=keeps_first)
    await succeed(zone, await zone.delete_snapshot(second))


async def test_what_was_to_remain_is_compared_again_when_it_is_marked(rolled: Rolled) -> None:
    zone, _, volume_id, first, _ = rolled
    second = await back_up(zone, volume_id, is_full=True)
    with standing_still(zone):
        job = await zone.delete_snapshot(second, terms=Terms(must_stay=(first,)))
        with FolderCatalogue(zone.folder) as catalogue, catalogue.transaction():
            catalogue.mark_damaged(first, is_damaged=True)
    job = await finish(zone, job)
    assert job.error
    assert job.error.code == "terms_changed"
    assert (await get(zone, second)).status == "available"


async def test_a_shorter_grace_than_was_promised_is_refused(rolled: Rolled) -> None:
    zone, _, _, snapshot_id, _ = rolled
    with pytest.raises(TermsChanged, match="7200 s"):
        await zone.delete_snapshot(snapshot_id, terms=Terms(recovery_seconds=7201))


async def test_another_head_or_another_disk_is_refused(rolled: Rolled) -> None:
    zone, image, volume_id, snapshot_id, content = rolled
    terms = await terms_for(zone, volume_id, snapshot_id)
    await back_up(zone, volume_id)
    with pytest.raises(TermsChanged, match="is now based on"):
        await zone.apply_snapshots([snapshot_id], terms=terms)
    with pytest.raises(TermsChanged, match="which the approval does not cover"):
        await zone.apply_snapshots([snapshot_id], terms=Terms(resources={}))
    assert image.read_bytes() == content


# One hold


async def test_the_safety_snapshot_is_what_was_overwritten(rolled: Rolled) -> None:
    """It is named from the start, there when the first byte changes, and brings the content back to the byte."""
    zone, image, volume_id, snapshot_id, content = rolled
    with standing_still(zone):
        job = await zone.apply_snapshots([snapshot_id], safety_snapshot_name="before the roll-back")
        safety_id = job.details["safety_snapshots"][volume_id]
        assert (await get(zone, safety_id)).status == "pending"
        with image.open("r+b") as file:
            file.write(b"written at the last moment")
        content = image.read_bytes()
    await succeed(zone, job)
    assert image.read_bytes() != content
    safety = await get(zone, safety_id)
    assert (safety.status, safety.consistency, safety.is_head) == ("available", "held", 0)
    assert (safety.snapshot_name, safety.parent_id) == ("before the roll-back", snapshot_id)
    assert (await get(zone, snapshot_id)).is_head
    await succeed(zone, await zone.apply_snapshots([safety_id]))
    assert image.read_bytes() == content
    assert (await zone.check()).is_clean


async def test_a_roll_back_that_fails_before_the_first_byte_leaves_no_safety_snapshot(
    here: LocalZone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """“Takes a safety snapshot, then refuses and leaves the snapshot behind"."""
    image = make_image(tmp_path / "disk.img")
    volume = await here.add_resource(image)
    snapshot_id = await back_up(here, volume.id)
    change(image, MIB)
    content = image.read_bytes()

    def fails(self: overwriting.Overwriting, disk: overwriting.Disk, *, is_first: bool) -> None:
        raise ResourceBusy("somebody came")

    monkeypatch.setattr(overwriting.Overwriting, "_look_once_more", fails)
    job = await finish(here, await here.apply_snapshots([snapshot_id], safety_snapshot_name="before"))
    assert job.error
    assert job.error.code == "resource_busy"
    assert (await get(here, job.details["safety_snapshots"][volume.id])).status == "ceased"
    assert [path.stem for path in (here.folder / "snapshots").iterdir()] == [snapshot_id]
    assert image.read_bytes() == content
    assert (await here.check()).is_clean


async def test_a_disk_that_is_open_elsewhere_gets_no_safety_snapshot_that_could_miss_something(rolled: Rolled) -> None:
    """A mere reader hinders no roll-back, but its safety snapshot could not be proven: refused, naming who."""
    zone, image, _, snapshot_id, content = rolled
    with image.open("rb") as file, subprocess.Popen(["sleep", "60"], stdin=file) as reader:
        with pytest.raises(ResourceBusy, match=rf"process {reader.pid} "):
            await zone.apply_snapshots([snapshot_id], safety_snapshot_name="before")
        reader.kill()
    assert image.read_bytes() == content


async def test_a_damaged_ancestor_makes_the_safety_snapshot_a_full_one(rolled: Rolled) -> None:
    """What it would build on cannot be read back, so it builds on nothing."""
    zone, image, volume_id, snapshot_id, content = rolled
    second = await back_up(zone, volume_id, is_full=True)
    folder = zone.folder / "snapshots"
    with Chain(folder, snapshot_id) as first, Chain(folder, second) as chain:
        both = zip(restore.unpack_places(first.places(0)), restore.unpack_places(chain.places(0)), strict=True)
        offset = next(new.offset for old, new in both if old.hash != new.hash)
    with (zone.folder / "snapshots" / f"{second}.snap").open("r+b") as file:
        file.seek(offset + 5)
        file.write(b"flipped")
    job = await succeed(zone, await zone.apply_snapshots([snapshot_id], safety_snapshot_name="before"))
    safety = await get(zone, job.details["safety_snapshots"][volume_id])
    assert safety.is_full
    await succeed(zone, await zone.apply_snapshots([safety.snapshot_id]))
    assert image.read_bytes() == content


# Interrupted roll-backs


async def interrupted(zone: LocalZone, image: Path, volume_id: str, snapshot_id: str, safety: str = "") -> Job:
    """A roll-back whose worker was killed while it wrote: half of the disk is as the snapshot has it."""
    with standing_still(zone):
        job = await zone.apply_snapshots([snapshot_id], safety_snapshot_name=safety)
        await kill_worker(zone.folder)
    write_half(zone, job)
    return job


def write_half(zone: LocalZone, job: Job) -> None:
    """Carry a roll-back out until half of the first disk is written, as a worker does that is killed then."""

    class Killed(BaseException):
        pass

    def half(target: Target, chain: Chain, *_: Any) -> None:
        target.write(restore.content_at(chain, 0, target.size_bytes // 2 + 700), 0)
        raise Killed

    with FolderCatalogue(zone.folder) as catalogue:
        with catalogue.transaction():
            catalogue.set_job(job.job_id, status="working", run_count=1)
        row = catalogue.job(job.job_id)
        assert row
        roll_back = apply.FirstAttempt(catalogue, row, json.loads(row["request"]), worker_progress(catalogue, row))
        was, restore.write_back = restore.write_back, half
        try:
            roll_back.run()
        except Killed:
            pass
        finally:
            restore.write_back = was


def worker_progress(catalogue: FolderCatalogue, row: Any) -> Any:
    from snapshot_mcp.catalogue.progress import JobProgress

    return JobProgress(catalogue, row)


@pytest.mark.parametrize("safety", ["", "before"])
async def test_an_interrupted_roll_back_is_resumed_onto_the_same_file(rolled: Rolled, safety: str) -> None:
    """Also after a reboot: it had begun."""
    zone, image, volume_id, snapshot_id, content = rolled
    before = None
    job = await interrupted(zone, image, volume_id, snapshot_id, safety)
    assert image.read_bytes() != content
    pass_time(zone, job, is_rebooted=True)
    job = await succeed(zone, await zone.get_job(job.job_id))
    with Chain(zone.folder / "snapshots", snapshot_id) as chain:
        before = restore.content_at(chain, 0, len(content))
    assert image.read_bytes() == before
    assert (await volume_of(zone, volume_id)).status == "available"
    if safety:
        await succeed(zone, await zone.apply_snapshots([job.details["safety_snapshots"][volume_id]]))
        assert image.read_bytes() == content


async def test_a_half_written_disk_that_is_not_at_its_path_is_said_as_it_is(rolled: Rolled) -> None:
    """With nothing at the path, “the file now at the path is another one and complete” was said."""
    zone, image, volume_id, snapshot_id, _ = rolled
    job = await interrupted(zone, image, volume_id, snapshot_id, "before")
    image.rename(image.with_name("elsewhere.img"))
    await finish(zone, await zone.get_job(job.job_id))
    problem = (await volume_of(zone, volume_id)).problem or ""
    assert "(the disk that it was overwriting is not at its path); its file cannot be read: No such file" in problem
    make_image(image)
    problem = (await volume_of(zone, volume_id)).problem or ""
    assert problem.endswith("(the disk that it was overwriting is not at its path; the one there now is complete)")


@pytest.mark.parametrize("safety", ["", "before"])
async def test_a_half_written_disk_is_resumed_where_it_was_moved_to(rolled: Rolled, safety: str) -> None:
    """It is the very file; what is at the old path by now is not touched, and a copy of the half is not taken for a whole."""
    zone, image, volume_id, snapshot_id, content = rolled
    job = await interrupted(zone, image, volume_id, snapshot_id, safety)
    with pytest.raises(ResourceBusy, match=job.job_id):
        await zone.plan_move(volume_id, image)
    moved = image.rename(image.with_name("moved.img"))
    assert (await finish(zone, await zone.get_job(job.job_id))).status == "failed"
    copy = image.with_name("copy.img")
    copy.write_bytes(moved.read_bytes())
    with pytest.raises(NotUsable, match="is unfinished, and the file"):
        await zone.plan_move(volume_id, copy)
    image.write_bytes(b"another file of its owner")
    await zone.move_resource(await zone.plan_move(volume_id, moved))
    assert (await volume_of(zone, volume_id)).status == "pending"
    with FolderCatalogue(zone.folder) as catalogue:
        rollback.resume(catalogue)
    for unfinished in await zone.list_unfinished_jobs():
        await succeed(zone, unfinished)
    with Chain(zone.folder / "snapshots", snapshot_id) as chain:
        assert moved.read_bytes() == restore.content_at(chain, 0, len(content))
    assert (await volume_of(zone, volume_id)).status == "available"
    assert image.read_bytes() == b"another file of its owner"


@pytest.mark.parametrize("is_changed", [CHANGES[0], *(long(one) for one in CHANGES[1:4])])
async def test_an_interrupted_roll_back_is_not_resumed_over_another_file(
    rolled: Rolled, is_changed: Callable[[Path], None]
) -> None:
    """“The person puts their own copy at the path, a read-only look resumes and overwrites it": left alone, and said."""
    zone, image, volume_id, snapshot_id, _ = rolled
    job = await interrupted(zone, image, volume_id, snapshot_id, "before")
    is_changed(image)
    own = image.read_bytes()
    job = await finish(zone, await zone.get_job(job.job_id))
    assert job.error
    assert job.error.code == "terms_changed"
    assert "was not the one that was being overwritten (inode " in job.reason
    assert image.read_bytes() == own
    shown = await volume_of(zone, volume_id)
    assert "was interrupted" in (shown.problem or "")
    if not image.is_symlink():
        assert shown.status == "available"
        await back_up(zone, volume_id)
    with FolderCatalogue(zone.folder) as catalogue:
        rollback.resume(catalogue)
    assert await zone.list_unfinished_jobs() == ()
    assert image.read_bytes() == own


@pytest.mark.long
async def test_what_was_written_to_a_half_restored_disk_is_not_overwritten(rolled: Rolled) -> None:
    """No safety snapshot holds it, so the roll-back stops and a person decides."""
    zone, image, volume_id, snapshot_id, _ = rolled
    job = await interrupted(zone, image, volume_id, snapshot_id, "before")
    with image.open("r+b") as file:
        file.seek(image.stat().st_size - 5000)
        file.write(b"an important line")
    own = image.read_bytes()
    job = await finish(zone, await zone.get_job(job.job_id))
    assert job.error
    assert job.error.code == "terms_changed"
    assert image.read_bytes() == own
    assert (await volume_of(zone, volume_id)).status == "pending"
    with FolderCatalogue(zone.folder) as catalogue:
        rollback.resume(catalogue)
    assert await zone.list_unfinished_jobs() == ()
    with pytest.raises(NotUsable, match="holds old and new content mixed"):
        await zone.apply_snapshots([snapshot_id], safety_snapshot_name="of a mixture")
    await succeed(zone, await zone.apply_snapshots([snapshot_id]))


async def test_what_was_copied_into_a_half_restored_disk_is_not_overwritten_without_a_safety_snapshot_either(
    rolled: Rolled,
) -> None:
    """“The person puts their own copy at the path", and `cp` keeps the inode."""
    zone, image, volume_id, snapshot_id, _ = rolled
    job = await interrupted(zone, image, volume_id, snapshot_id)
    own = make_image(image.with_suffix(".own"), seed=9)
    shutil.copyfile(own, image)
    job = await finish(zone, await zone.get_job(job.job_id))
    assert job.error
    assert job.error.code == "terms_changed"
    assert image.read_bytes() == own.read_bytes()


@pytest.mark.parametrize("is_told", [True, False])
async def test_without_a_birth_time_the_content_tells_which_file_it_is(
    rolled: Rolled, monkeypatch: pytest.MonkeyPatch, is_told: bool
) -> None:
    """“Where there is no birth time, the content: what the job has written so far must be there"."""
    zone, image, volume_id, snapshot_id, _ = rolled
    monkeypatch.setattr(identity, "HAS_BIRTH_TIME", False)
    job = await interrupted(zone, image, volume_id, snapshot_id)
    if not is_told:
        FileStore(zone.folder).former_path(volume_id).unlink()
    with FolderCatalogue(zone.folder) as catalogue, catalogue.transaction():
        assert catalogue.row("SELECT applying_identity LIKE '%.0.1' AS is_so FROM resources")["is_so"]  # type: ignore[index]
        row = catalogue.job(job.job_id)
    assert row
    with FolderCatalogue(zone.folder) as catalogue:
        again = resumption.Resumption(catalogue, row, json.loads(row["request"]), worker_progress(catalogue, row))
        if is_told:
            again.run()
        else:
            with pytest.raises(TermsChanged):
                again.run()


async def test_one_that_was_interrupted_before_the_first_byte_has_not_begun(rolled: Rolled) -> None:
    """The hold is gone with its worker, and so is what the safety snapshot would have held."""
    zone, image, _, snapshot_id, _ = rolled
    with standing_still(zone):
        job = await zone.apply_snapshots([snapshot_id], safety_snapshot_name="before")
        await kill_worker(zone.folder)
    with FolderCatalogue(zone.folder) as catalogue, catalogue.transaction():
        catalogue.set_job(job.job_id, status="working", run_count=1)
    pass_time(zone, job)
    with image.open("r+b") as file:
        file.write(b"written since")
    content = image.read_bytes()
    job = await finish(zone, await zone.get_job(job.job_id))
    assert job.error
    assert job.error.code == "expired"
    assert image.read_bytes() == content


# Entered, or not


@pytest.mark.parametrize("is_broken", ["interpreter", "log"])
async def test_a_job_whose_worker_cannot_start_is_withdrawn_in_the_same_breath(
    zone_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_broken: str
) -> None:
    """“The zone commits the job, then the worker cannot start …, the consent is given back, the job stays"."""
    zone = LocalZone(zone_folder)
    image = make_image(tmp_path / "disk.img")
    volume = await zone.add_resource(image)
    snapshot_id = await back_up(zone, volume.id)
    change(image, MIB)
    content = image.read_bytes()
    await kill_worker(zone_folder)
    with monkeypatch.context() as patch:
        if is_broken == "interpreter":
            patch.setattr(detached.sys, "executable", str(tmp_path / "upgraded away"))
        else:
            (zone_folder / "worker.log").rename(zone_folder / "old.log")
            (zone_folder / "worker.log").mkdir()
        for change_it in (
            lambda: zone.apply_snapshots([snapshot_id], safety_snapshot_name="before"),
            lambda: zone.delete_snapshot(snapshot_id),
            lambda: zone.create_snapshots([volume.id], "new"),
        ):
            with pytest.raises(Unavailable, match="worker could not be started") as refusal:
                await change_it()
            assert refusal.value.is_definite
    if is_broken == "log":
        (zone_folder / "worker.log").rmdir()
    assert await zone.list_unfinished_jobs() == ()
    await back_up(zone, volume.id, "works again")
    assert image.read_bytes() == content
    assert len(await ids(zone)) == 2
    await zone.aclose()


async def test_a_job_that_cannot_be_withdrawn_is_answered_as_a_job(
    zone_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """“It is never reported as refused": a worker had taken it after all."""
    from snapshot_mcp.providers.local import zone as zone_module

    zone = LocalZone(zone_folder)
    volume = await zone.add_resource(make_image(tmp_path / "disk.img"))
    ensure_worker = zone_module.ensure_worker

    def taken_then_lost(folder: Path, program: object) -> None:
        with FolderCatalogue(folder) as catalogue, catalogue.transaction() as db:
            db.execute("UPDATE jobs SET status = 'working', run_count = 1")
        raise Unavailable("it did not answer")

    with monkeypatch.context() as patch:
        patch.setattr(zone_module, "ensure_worker", taken_then_lost)
        job = await zone.create_snapshots([volume.id], "taken")
        assert "did not answer" in (await zone.get_job(job.job_id)).info
    assert zone_module.ensure_worker is ensure_worker
    assert (await finish(zone, job)).is_finished
    await zone.aclose()


# Cancelled


async def test_a_job_that_waits_is_cancelled_at_once_and_leaves_nothing(rolled: Rolled) -> None:
    zone, image, volume_id, snapshot_id, content = rolled
    for start in (
        lambda: zone.create_snapshots([volume_id], "new"),
        lambda: zone.apply_snapshots([snapshot_id], safety_snapshot_name="before"),
        lambda: zone.delete_snapshot(snapshot_id),
        lambda: zone.create_volume(snapshot_id, "copy"),
    ):
        with standing_still(zone):
            job = await zone.cancel_job((await start()).job_id)
            assert (job.status, job.error and job.error.code) == ("failed", "cancelled")
            assert await zone.cancel_job(job.job_id) == job
    assert await zone.list_unfinished_jobs() == ()
    await back_up(zone, volume_id)
    assert image.read_bytes() == content
    assert list((zone.folder / "volumes").iterdir()) == []
    assert (await zone.check()).is_clean


@pytest.mark.parametrize("operation", ["create", "export", "apply"])
async def test_a_running_job_is_cancelled_and_leaves_nothing(
    here: LocalZone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    """A create, an export, and a roll-back before its first byte."""
    from snapshot_mcp.catalogue import progress

    monkeypatch.setattr(progress, "PROGRESS_SECONDS", 0.0)
    image = make_image(tmp_path / "disk.img", 16 * MIB)
    volume = await here.add_resource(image)
    snapshot_id = await back_up(here, volume.id)
    change(image, MIB)
    content = image.read_bytes()
    is_cancelled, advance = anyio.Event(), progress.JobProgress.advance

    def wait_for_it(self: progress.JobProgress, amount: int) -> None:
        while not is_cancelled.is_set():
            time.sleep(0.005)
        advance(self, amount)

    monkeypatch.setattr(progress.JobProgress, "advance", wait_for_it)
    match operation:
        case "create":
            job = await here.create_snapshots([volume.id], "new", is_full=True)
        case "export":
            job = await here.create_volume(snapshot_id, "copy")
        case _:
            job = await here.apply_snapshots([snapshot_id], safety_snapshot_name="before")
    with anyio.fail_after(PATIENCE_SECONDS):
        while (await here.get_job(job.job_id)).progress is None:
            await anyio.sleep(0.005)
    assert (await here.cancel_job(job.job_id)).status == "working"
    is_cancelled.set()
    job = await finish(here, job)
    assert (job.status, job.error and job.error.code) == ("failed", "cancelled")
    assert image.read_bytes() == content
    assert await ids(here) == {snapshot_id}
    assert [path.name for path in (here.folder / "snapshots").iterdir()] == [f"{snapshot_id}.snap"]
    assert list((here.folder / "volumes").iterdir()) == []


async def test_what_has_ended_or_has_an_effect_cannot_be_cancelled(rolled: Rolled) -> None:
    zone, image, volume_id, snapshot_id, _ = rolled
    done = await succeed(zone, await zone.create_snapshots([volume_id], "done"))
    with pytest.raises(NotUsable, match="already finished"):
        await zone.cancel_job(done.job_id)
    job = await interrupted(zone, image, volume_id, snapshot_id)
    with pytest.raises(NotUsable, match="already overwriting the disk"):
        await zone.cancel_job(job.job_id)
    with pytest.raises(ZoneError, match="There is no job"):
        await zone.cancel_job("nonsense")
    await succeed(zone, await zone.get_job(job.job_id))


async def test_a_rename_changes_no_terms(rolled: Rolled) -> None:
    """What was agreed to is ids, not names."""
    zone, _, volume_id, snapshot_id, _ = rolled
    terms = await terms_for(zone, volume_id, snapshot_id)
    await zone.update_snapshot(snapshot_id, SnapshotUpdate(snapshot_name="another name"))
    await succeed(zone, await zone.apply_snapshots([snapshot_id], terms=terms))


# Several disks, smaller disks, company, and what an earlier version left


async def two_interrupted(
    zone: LocalZone, folder: Path, safety: str
) -> tuple[Job, list[Path], list[bytes], list[bytes]]:
    """A roll-back of two disks whose worker was killed in the middle of the first: job, disks, target, present content."""
    folder = Path(tempfile.mkdtemp(dir=folder))
    images = [make_image(folder / f"{number}.img", seed=number) for number in (1, 2)]
    volumes = [await zone.add_resource(image) for image in images]
    taken = (await succeed(zone, await zone.create_snapshots([one.id for one in volumes], "both"))).resource_ids
    target = [image.read_bytes() for image in images]
    for image in images:
        change(image, MIB)
    present = [image.read_bytes() for image in images]
    with standing_still(zone):
        job = await zone.apply_snapshots(taken, safety_snapshot_name=safety)
        await kill_worker(zone.folder)
    write_half(zone, job)
    return job, images, target, present


@pytest.mark.parametrize("safety", ["", "before"])
async def test_both_disks_are_brought_to_the_end_when_nobody_touched_them(
    local_zone: LocalZone, ext4: Path, safety: str
) -> None:
    """“No disk half rolled back and called whole, the job resumed or truthfully failed"."""
    job, images, target, _ = await two_interrupted(local_zone, ext4, safety)
    await succeed(local_zone, await local_zone.get_job(job.job_id))
    assert [image.read_bytes() for image in images] == target


@pytest.mark.parametrize("safety", ["", "before"])
async def test_a_disk_that_was_not_reached_keeps_what_was_written_since(
    local_zone: LocalZone, ext4: Path, safety: str
) -> None:
    """Only the other one, which is half overwritten, goes on."""
    job, images, target, _ = await two_interrupted(local_zone, ext4, safety)
    pass_time(local_zone, job, is_rebooted=True)
    with images[1].open("r+b") as file:
        file.write(b"days of work after the reboot")
    own = images[1].read_bytes()
    job = await finish(local_zone, await local_zone.get_job(job.job_id))
    assert job.error
    assert job.error.code == "terms_changed"
    assert sorted(job.details["resources"].values()) == ["applied", "unchanged"]
    assert [image.read_bytes() for image in images] == [target[0], own]


async def test_what_a_smaller_disk_has_no_room_for_is_read_back_too(local_zone: LocalZone, tmp_path: Path) -> None:
    """The safety snapshot must hold what is cut off: a parent that is damaged right there makes it a full one."""
    image = make_image(tmp_path / "disk.img")
    volume = await local_zone.add_resource(image)
    small = await back_up(local_zone, volume.id, "small")
    with image.open("ab") as file:
        file.write(random.Random(5).randbytes(4 * MIB))
    big = await back_up(local_zone, volume.id, "big")
    content = image.read_bytes()
    with (local_zone.folder / "snapshots" / f"{big}.snap").open("r+b") as file:
        file.seek(2 * MIB)
        file.write(b"flipped")
    job = await succeed(local_zone, await local_zone.apply_snapshots([small], safety_snapshot_name="before"))
    assert image.stat().st_size == 4 * MIB
    await succeed(local_zone, await local_zone.apply_snapshots([job.details["safety_snapshots"][volume.id]]))
    assert image.read_bytes() == content


async def test_an_interrupted_roll_back_waits_until_nobody_reads_the_disk(rolled: Rolled) -> None:
    """Beside a reader there is no lease, and a writer would be let in between the comparison and the write."""
    zone, image, volume_id, snapshot_id, _ = rolled
    job = await interrupted(zone, image, volume_id, snapshot_id, "before")
    half = image.read_bytes()
    with image.open("rb") as file, subprocess.Popen(["sleep", "60"], stdin=file) as reader:
        job = await finish(zone, await zone.get_job(job.job_id))
        reader.kill()
    assert job.error
    assert job.error.code == "resource_busy"
    assert image.read_bytes() == half
    with FolderCatalogue(zone.folder) as catalogue:
        rollback.resume(catalogue)
    for unfinished in await zone.list_unfinished_jobs():
        await succeed(zone, unfinished)
    assert (await volume_of(zone, volume_id)).status == "available"


@pytest.mark.long
async def test_a_way_back_that_is_interrupted_goes_on(rolled: Rolled) -> None:
    """A half overwritten disk goes back to its safety snapshot: what it holds is compared with what it held then."""
    zone, image, volume_id, snapshot_id, content = rolled
    job = await interrupted(zone, image, volume_id, snapshot_id, "before")
    with FolderCatalogue(zone.folder) as catalogue, catalogue.transaction() as db:
        row = catalogue.job(job.job_id)
        assert row
        end_failed(catalogue, row, ResourceBusy("somebody had it open"))
        db.execute("UPDATE resources SET is_stopped = 1")
    await back_up(zone, (await zone.add_resource(make_image(image.with_suffix(".other")))).id)
    job = await interrupted(zone, image, volume_id, job.details["safety_snapshots"][volume_id])
    await succeed(zone, await zone.get_job(job.job_id))
    assert image.read_bytes() == content


def as_an_earlier_version_left_it(zone: LocalZone) -> None:
    """The catalogue without what the migrations from the fourth on add."""
    with FolderCatalogue(zone.folder) as catalogue:
        for one in (
            "TRIGGER worth_came",
            "TRIGGER worth_went",
            "TRIGGER worth_changed",
            "TABLE snapshot_worth",
            "TABLE place",
        ):
            catalogue.db.execute(f"DROP {one}")
        for index in ("snapshots_by_worth", "snapshots_deleted", "jobs_by_end"):
            catalogue.db.execute(f"DROP INDEX {index}")
        for table, added in (
            ("snapshots", "worth is_affected verified_at boot uptime"),
            ("jobs", "begin_boot begin_until is_cancelled has_effect"),
            ("resources", "applying_identity applying_safety_id is_stopped other_halves"),
            ("resources", "made_identity made_from made_mtime_ns former_path layout"),
            ("images", "made_identity made_mtime_ns"),
        ):
            for column in added.split():
                catalogue.db.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
        for table in ("copies", "copied", "copied_pieces"):
            catalogue.db.execute(f"DROP TABLE {table}")
        catalogue.db.execute("PRAGMA user_version = 3")


@pytest.mark.parametrize("operation", ["delete", "apply"])
async def test_what_an_earlier_version_left_waiting_is_not_begun(rolled: Rolled, operation: str) -> None:
    """Nothing says until when it was agreed to."""
    zone, image, _, snapshot_id, content = rolled
    with standing_still(zone):
        job = await (
            zone.delete_snapshot(snapshot_id) if operation == "delete" else zone.apply_snapshots([snapshot_id])
        )
        await kill_worker(zone.folder)
    await zone.aclose()
    as_an_earlier_version_left_it(zone)
    job = await finish(zone, await zone.get_job(job.job_id))
    assert job.error
    assert job.error.code == "expired"
    assert image.read_bytes() == content
    assert (await get(zone, snapshot_id)).status == "available"


async def test_what_an_earlier_version_left_half_overwritten_waits_for_a_person(rolled: Rolled) -> None:
    """Nothing says which file it was."""
    zone, image, volume_id, snapshot_id, _ = rolled
    job = await interrupted(zone, image, volume_id, snapshot_id)
    half = image.read_bytes()
    await zone.aclose()
    as_an_earlier_version_left_it(zone)
    job = await finish(zone, await zone.get_job(job.job_id))
    assert job.error
    assert job.error.code == "terms_changed"
    assert image.read_bytes() == half
    assert (await volume_of(zone, volume_id)).status == "pending"
    await succeed(zone, await zone.apply_snapshots([snapshot_id]))


@pytest.mark.parametrize("operation", ["delete", "apply"])
async def test_who_stood_still_before_the_zone_was_asked_is_too_late(rolled: Rolled, operation: str) -> None:
    """“A stall between the last look and the zone's admission (a frozen process)": the machine's uptime tells."""
    zone, image, _, snapshot_id, content = rolled
    present = SystemClock().read()
    terms = Terms(not_after=Uptime(boot=present.boot, seconds=present.uptime - 1))
    with pytest.raises(Expired, match="had expired when the request arrived") as refusal:
        await (
            zone.delete_snapshot(snapshot_id, terms=terms)
            if operation == "delete"
            else zone.apply_snapshots([snapshot_id], terms=terms)
        )
    assert refusal.value.is_definite
    assert image.read_bytes() == content
    elsewhere = Terms(not_after=Uptime(boot="another machine", seconds=0))
    await succeed(zone, await zone.delete_snapshot(snapshot_id, terms=elsewhere))


async def test_what_a_half_restored_disk_needs_is_not_deleted(rolled: Rolled) -> None:
    """Its safety snapshot alone holds what was overwritten, and tells what may be overwritten still."""
    zone, image, volume_id, snapshot_id, _ = rolled
    job = await interrupted(zone, image, volume_id, snapshot_id, "before")
    with FolderCatalogue(zone.folder) as catalogue, catalogue.transaction() as db:
        row = catalogue.job(job.job_id)
        assert row
        end_failed(catalogue, row, ResourceBusy("somebody had it open"))
        db.execute("UPDATE resources SET is_stopped = 1")
    for one in (snapshot_id, job.details["safety_snapshots"][volume_id]):
        with pytest.raises(NotUsable, match="is needed"):
            await zone.delete_snapshot(one)


async def test_a_half_restored_file_that_comes_back_is_still_half_restored(rolled: Rolled) -> None:
    """“No disk half rolled back and called whole”, also after another file at its path was rolled back."""
    zone, image, volume_id, snapshot_id, _ = rolled
    job = await interrupted(zone, image, volume_id, snapshot_id, "before")
    half = image.with_suffix(".half")
    image.rename(half)
    make_image(image, seed=9)
    assert not (await finish(zone, await zone.get_job(job.job_id))).is_successful
    await succeed(zone, await zone.apply_snapshots([snapshot_id]))
    assert (await volume_of(zone, volume_id)).status == "available"
    image.unlink()
    half.rename(image)
    assert (await volume_of(zone, volume_id)).status == "pending"
    with pytest.raises(NotUsable, match="holds old and new content mixed"):
        await zone.create_snapshots([volume_id], "of a mixture")


async def test_an_identity_that_nobody_wrote_is_refused_in_words(rolled: Rolled) -> None:
    zone, _, volume_id, snapshot_id, _ = rolled
    for nonsense in ("", "x", "a.1.ffffffffffffffffffffff.1", "f." + "9" * 5000 + ".1.1", "é.1.1"):
        terms = Terms(resources={volume_id: ResourceTerms(identity=nonsense)})
        with pytest.raises(TermsChanged, match="expected an unknown file"):
            await zone.apply_snapshots([snapshot_id], terms=terms)
