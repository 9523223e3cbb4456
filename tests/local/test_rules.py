"""What the embedded zone refuses, and what its refusals say (CONTRACT.md, "The rules of our own zone")."""

import os
import re
import signal
import socket
import stat
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from snapshot_mcp.catalogue import admission, deletion
from snapshot_mcp.contract.errors import (
    BadRequest,
    NotFound,
    NotUsable,
    ResourceBusy,
    WrongResourceType,
    ZoneError,
)
from snapshot_mcp.contract.models import Job, ResourceFilter, SnapshotFilter, SnapshotUpdate
from snapshot_mcp.contract.states import ResourceType
from snapshot_mcp.ground.clock import Moment, SystemClock
from snapshot_mcp.providers.local import LocalZone, registration, restore
from snapshot_mcp.providers.local.folder import FolderCatalogue
from snapshot_mcp.providers.local.work import create
from snapshot_mcp.providers.local.worker import run as run_worker
from tests.disks import MIB, back_up, get, ids, make_image, succeed, worker_pid
from tests.patience import PATIENCE_SECONDS

pytestmark = pytest.mark.anyio


async def test_looking_makes_nothing(unused_zone: LocalZone) -> None:
    """Listing needs no zone folder."""
    assert (await unused_zone.list_snapshots(SnapshotFilter())).total_count == 0
    assert (await unused_zone.list_volumes(ResourceFilter())).total_count == 0
    assert await unused_zone.list_unfinished_jobs() == ()
    assert (await unused_zone.check()).snapshot_count == 0
    with pytest.raises(NotFound, match="no job"):
        await unused_zone.get_job("nonsense")
    assert not unused_zone.folder.exists()


async def test_what_the_zone_keeps_is_for_its_owner_alone(unused_zone: LocalZone, tmp_path: Path) -> None:
    """Backups hold what the disks hold, whatever the umask and the folder's own mode."""
    unused_zone.folder.mkdir(parents=True)
    volume = await unused_zone.add_resource(make_image(tmp_path / "disk.img", MIB))
    await succeed(unused_zone, await unused_zone.create_volume(await back_up(unused_zone, volume.id), "copy"))
    files = [path for path in unused_zone.folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".sqlite", ".sqlite-wal", ".log", ".snap", ".raw"}
    assert [path for path in files if path.stat().st_mode & 0o077] == []


@pytest.mark.long
async def test_an_unchanged_empty_disk_costs_next_to_nothing(local_zone: LocalZone, tmp_path: Path) -> None:
    """FORMAT.md, "Speed": an empty disk costs nothing, at any size."""
    image = tmp_path / "empty.img"
    with image.open("wb") as file:
        file.truncate(1 << 40)
    volume = await local_zone.add_resource(image)
    await back_up(local_zone, volume.id)
    assert (await get(local_zone, await back_up(local_zone, volume.id))).stored_bytes < 4096


def a_pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda folder: folder / "nowhere.img", BadRequest, "does not exist"),
        (lambda folder: folder, BadRequest, "not a regular file"),
        (a_pipe, BadRequest, "not a regular file"),
    ],
)
async def test_what_is_no_disk_image_is_not_registered(
    make: Callable[[Path], Path], error: type[ZoneError], says: str, local_zone: LocalZone, tmp_path: Path
) -> None:
    """The message names the value."""
    path = make(tmp_path)
    with pytest.raises(error, match=says) as refusal:
        await local_zone.add_resource(path)
    assert str(path) in str(refusal.value)


async def test_a_file_of_the_zone_itself_is_no_disk(local_zone: LocalZone, tmp_path: Path) -> None:
    """A roll-back of such a "disk" would overwrite the snapshots."""
    disk = (await local_zone.add_resource(make_image(tmp_path / "disk.img"), "db")).id
    await back_up(local_zone, disk)
    (stored,) = (local_zone.folder / "snapshots").iterdir()
    for path in (stored, local_zone.folder / "catalogue.sqlite"):
        with pytest.raises(BadRequest, match="belongs to the zone itself"):
            await local_zone.add_resource(path)


@pytest.mark.parametrize("link", [None, os.symlink, os.link])
async def test_one_file_is_registered_once(
    link: Callable[[Path, Path], None] | None, local_zone: LocalZone, tmp_path: Path
) -> None:
    """FORMAT.md, "Invariants"; also by another name of the same file."""
    image = make_image(tmp_path / "disk.img")
    volume = await local_zone.add_resource(image, "db")
    other = image
    if link:
        other = tmp_path / "other.img"
        link(image, other)
    with pytest.raises(BadRequest, match=f"already registered as volume “db” .{volume.id}"):
        await local_zone.add_resource(other)
    assert (await local_zone.list_volumes(ResourceFilter())).total_count == 1


async def test_a_forgotten_disk_keeps_its_file_and_its_snapshots(local_zone: LocalZone, tmp_path: Path) -> None:
    image = make_image(tmp_path / "disk.img")
    volume = await local_zone.add_resource(image)
    snapshot_id = await back_up(local_zone, volume.id)
    await local_zone.remove_resource(volume.id)
    assert (await local_zone.list_volumes(ResourceFilter())).total_count == 0
    assert image.exists()
    with pytest.raises(NotUsable, match="no longer registered") as caught:
        await local_zone.apply_snapshots([snapshot_id])
    assert "If the disk is registered again, it is a new disk" in caught.value.hint, (
        "a hint that leads on: it does not come back"
    )
    job = await succeed(local_zone, await local_zone.create_volume(snapshot_id, "copy"))
    assert Path(job.details["path"]).read_bytes() == image.read_bytes()
    again = await local_zone.add_resource(image)
    assert again.id != volume.id


async def test_a_disk_whose_file_is_gone_says_so(local_zone: LocalZone, tmp_path: Path) -> None:
    image = make_image(tmp_path / "disk.img")
    volume = await local_zone.add_resource(image)
    image.unlink()
    (found,) = (await local_zone.list_volumes(ResourceFilter())).items
    assert found.problem is not None
    assert "cannot be read" in found.problem
    with pytest.raises(NotUsable, match="cannot be opened: No such file"):
        await local_zone.create_snapshots([volume.id], "")


def a_loop(path: Path) -> None:
    path.symlink_to(path)


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))


NOW_THERE: dict[str, tuple[Callable[[Path], object], str]] = {
    "link": (lambda path: path.symlink_to(path.with_suffix(".aside")), "a symbolic link to '{path}.aside'"),
    "dangling link": (lambda path: path.symlink_to("gone"), "a symbolic link to 'gone', which does not exist"),
    "link to a device": (
        lambda path: path.symlink_to("/dev/zero"),
        "a symbolic link to '/dev/zero', which is a character device",
    ),
    "loop": (a_loop, "a symbolic link that leads in a circle"),
    "directory": (Path.mkdir, "a directory"),
    "pipe": (os.mkfifo, "a named pipe"),
    "socket": (a_socket, "a socket"),
    "device": (lambda path: os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 5)), "a character device"),
}


@pytest.mark.parametrize("kind", NOW_THERE)
async def test_what_is_at_a_disks_path_now_is_said(
    kind: str, local_zone: LocalZone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ "Too many levels of symbolic links" is what a symlink at the old path was called; nothing is opened to find out."""
    if kind == "device" and os.geteuid():
        pytest.skip("making a device needs root")
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    make, says = NOW_THERE[kind]
    image = make_image(Path("disk.img").absolute(), MIB)
    volume = await local_zone.add_resource(image)
    snapshot_id = await back_up(local_zone, volume.id)
    image.rename(image.with_suffix(".aside"))
    make(Path("disk.img") if kind == "socket" else image)
    says = says.format(path=image.with_suffix(""))
    for refused in (local_zone.create_snapshots([volume.id], ""), local_zone.apply_snapshots([snapshot_id])):
        with pytest.raises(NotUsable) as refusal:
            await refused
        assert refusal.value.message.endswith(f"is now {says}, not the disk's file.")
        assert "`zone move ID PATH`" in refusal.value.hint
    (found,) = (await local_zone.list_volumes(ResourceFilter(verbose=1))).items
    assert found.problem == f"its path no longer leads to a regular file: it is now {says}"
    (finding,) = (await local_zone.check()).findings
    assert f"is now {says}" in finding.text


async def test_the_part_of_a_path_that_is_missing_is_named(local_zone: LocalZone, tmp_path: Path) -> None:
    """A filesystem that is not mounted is not a disk that was deleted."""
    folder = tmp_path / "mounted" / "disks"
    folder.mkdir(parents=True)
    volume = await local_zone.add_resource(make_image(folder / "disk.img", MIB))
    folder.parent.rename(tmp_path / "away")
    for make, says in (
        (lambda: None, f"there is no folder '{folder.parent}'"),
        (lambda: folder.parent.touch(), f"'{folder.parent}' is not a folder"),
        (lambda: folder.parent.symlink_to("gone"), f"'{folder.parent}' leads nowhere"),
        (lambda: folder.parent.symlink_to(folder.parent), "a symbolic link in it leads in a circle"),
    ):
        folder.parent.unlink(missing_ok=True)
        make()
        with pytest.raises(NotUsable, match=re.escape(says)):
            await local_zone.create_snapshots([volume.id], "")


async def test_links_that_lead_to_no_disk_are_named_at_the_registration(local_zone: LocalZone, tmp_path: Path) -> None:
    (tmp_path / "link.img").symlink_to("gone")
    (tmp_path / "loop.img").symlink_to("loop.img")
    for name, says in (("link.img", "to 'gone', which does not exist"), ("loop.img", "that leads in a circle")):
        with pytest.raises(BadRequest, match=f"{name}' is a symbolic link {says}"):
            await local_zone.add_resource(tmp_path / name)


async def test_the_moved_file_of_a_disk_is_no_new_disk_while_its_old_path_leads_there(
    local_zone: LocalZone, tmp_path: Path
) -> None:
    """It was "already registered, use it", while the disk itself could not be used."""
    image = make_image(tmp_path / "disk.img", MIB)
    volume = await local_zone.add_resource(image)
    image.rename(tmp_path / "moved.img")
    image.symlink_to("moved.img")
    with pytest.raises(BadRequest, match=volume.id) as refusal:
        await local_zone.add_resource(tmp_path / "moved.img")
    assert "is now a symbolic link to 'moved.img': the command `zone move ID PATH`" in refusal.value.hint


async def test_creates_and_applies_are_refused_whole(local_zone: LocalZone, tmp_path: Path) -> None:
    """CONTRACT.md, "All or nothing": an unknown, repeated or unusable id, before anything starts."""
    volume = await local_zone.add_resource(make_image(tmp_path / "disk.img"))
    snapshot_id, second = await back_up(local_zone, volume.id), await back_up(local_zone, volume.id)
    attempts: list[tuple[Callable[[], Awaitable[object]], type[ZoneError], str]] = [
        (lambda: local_zone.create_snapshots([volume.id, "vol-nowhere"], ""), NotFound, "vol-nowhere"),
        (lambda: local_zone.create_snapshots([volume.id, volume.id], ""), BadRequest, "listed twice"),
        (lambda: local_zone.create_snapshots([], ""), BadRequest, "empty"),
        (lambda: local_zone.create_snapshots([volume.id], "n" * 256), BadRequest, "256 characters"),
        (lambda: local_zone.apply_snapshots([snapshot_id, "ss-nowhere"]), NotFound, "ss-nowhere"),
        (lambda: local_zone.apply_snapshots([snapshot_id, second]), BadRequest, "only one of them"),
        (lambda: local_zone.apply_snapshots([snapshot_id, snapshot_id]), BadRequest, "listed twice"),
        (lambda: local_zone.create_snapshots([volume.id], "\ud800"), BadRequest, "not valid Unicode"),
        (lambda: local_zone.delete_snapshot("ss-\ud800"), BadRequest, "not valid Unicode"),
        (lambda: local_zone.get_job("\ud800"), BadRequest, "not valid Unicode"),
        (lambda: local_zone.delete_snapshot("ss-nowhere"), NotFound, "ss-nowhere"),
        (
            lambda: local_zone.capture_instance(snapshot_id, "image"),
            WrongResourceType,
            "only from a snapshot of an instance",
        ),
        (lambda: local_zone.recover_snapshots([snapshot_id]), NotUsable, "is available"),
        (lambda: local_zone.update_snapshot("ss-nowhere", SnapshotUpdate(snapshot_name="x")), NotFound, "ss-nowhere"),
    ]
    for attempt, error, says in attempts:
        with pytest.raises(error, match=says):
            await attempt()
    assert await local_zone.list_unfinished_jobs() == ()
    assert await ids(local_zone) == {snapshot_id, second}


async def test_a_chain_at_its_limit_is_followed_by_a_full_snapshot(zone_folder: Path, tmp_path: Path) -> None:
    """CONTRACT.md, "Limit": counted over the whole tree; a recovery may exceed it."""
    zone = LocalZone(zone_folder, chain_limit=3)
    volume = await zone.add_resource(make_image(tmp_path / "disk.img", MIB))
    made = [await back_up(zone, volume.id) for _ in range(4)]
    assert [(await get(zone, one)).is_full for one in made] == [True, False, False, True]
    await succeed(zone, await zone.apply_snapshots([made[0]]))
    assert (await get(zone, await back_up(zone, volume.id))).is_full
    await succeed(zone, await zone.delete_snapshot(made[2]))
    await succeed(zone, await zone.apply_snapshots([made[0]]))
    branch = await back_up(zone, volume.id)
    assert (await get(zone, branch)).parent == made[0]
    await succeed(zone, await zone.recover_snapshots([made[2]]))
    assert (await get(zone, made[0])).total_count == 4
    await zone.aclose()


async def test_one_job_at_a_time_changes_a_resource(
    here: LocalZone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CONTRACT.md, "Busy": a second is refused with the job that is in the way; exports share and block a delete."""
    image = make_image(tmp_path / "disk.img")
    volume = await here.add_resource(image)
    first = await back_up(here, volume.id)
    go_on = threading.Event()
    capture, export = create.capture, restore.export
    monkeypatch.setattr(create, "capture", lambda *arguments: (go_on.wait(PATIENCE_SECONDS), capture(*arguments)))
    monkeypatch.setattr(restore, "export", lambda *arguments: (go_on.wait(PATIENCE_SECONDS), export(*arguments)))

    job = await here.create_snapshots([volume.id], "in the way", is_full=True)
    for attempt in (
        lambda: here.create_snapshots([volume.id], "second"),
        lambda: here.delete_snapshot(first),
        lambda: here.apply_snapshots([first]),
        lambda: here.remove_resource(volume.id),
    ):
        with pytest.raises(ResourceBusy, match=job.job_id) as refusal:
            await attempt()
        assert refusal.value.job_id == job.job_id
    exports = [await here.create_volume(first, "meanwhile") for _ in range(2)]
    go_on.set()
    await succeed(here, job)
    go_on.clear()
    exports.append(await here.create_volume(first, "more"))
    with pytest.raises(ResourceBusy) as refusal:
        await here.delete_snapshot(first)
    assert refusal.value.job_id in {one.job_id for one in exports}
    go_on.set()
    for one in exports:
        await succeed(here, one)
    await succeed(here, await here.delete_snapshot(first))


async def test_what_is_purged_does_not_come_back(local_zone: LocalZone, tmp_path: Path) -> None:
    """CONTRACT.md, "Deletion": the space comes free after the grace, or when a person purges."""
    volume = await local_zone.add_resource(make_image(tmp_path / "disk.img"))
    snapshot_id = await back_up(local_zone, volume.id)
    job = await local_zone.delete_snapshot(snapshot_id)
    assert job.details["space_free_at"]
    await succeed(local_zone, job)
    assert list((local_zone.folder / "snapshots").iterdir())
    assert await local_zone.purge() == (snapshot_id,)
    assert not list((local_zone.folder / "snapshots").iterdir())
    with pytest.raises(NotUsable, match="Its data is gone"):
        await local_zone.recover_snapshots([snapshot_id])


async def test_a_purge_takes_children_first_whatever_their_grace(zone_folder: Path, tmp_path: Path) -> None:
    """FORMAT.md, "Invariants". A parent that was due before its child waited for another purge."""
    patient, hasty = LocalZone(zone_folder), LocalZone(zone_folder, recovery_seconds=1)
    volume = await patient.add_resource(make_image(tmp_path / "disk.img"))
    parent, child = await back_up(patient, volume.id), await back_up(patient, volume.id)
    await succeed(patient, await patient.delete_snapshot(child))
    await succeed(hasty, await hasty.delete_snapshot(parent))
    assert await patient.purge() == (child, parent)
    assert not list((zone_folder / "snapshots").iterdir())
    await hasty.aclose()
    await patient.aclose()


async def test_what_is_about_to_be_deleted_is_not_exported(local_zone: LocalZone, tmp_path: Path) -> None:
    """Found by five processes at once: deleted and purged before it was read, it was called damaged."""
    volume = await local_zone.add_resource(make_image(tmp_path / "disk.img"))
    kept, going, below = [await back_up(local_zone, volume.id) for _ in range(3)]
    end_worker(local_zone.folder)
    with FolderCatalogue(local_zone.folder) as catalogue:
        act = admission.delete(catalogue, going, admission.ZoneRules())["job_id"]
    for one in (going, below):
        with pytest.raises(ResourceBusy, match=act):
            await local_zone.create_volume(one, "copy")
    await succeed(local_zone, await local_zone.create_volume(kept, "copy"))
    await succeed(local_zone, await local_zone.get_job(act))


async def test_without_grace_the_next_worker_frees_the_space(zone_folder: Path, tmp_path: Path) -> None:
    """Also when it was started for a job on the same disk, which holds what is due until it is over."""
    zone = LocalZone(zone_folder, recovery_seconds=0)
    volume = await zone.add_resource(make_image(tmp_path / "disk.img"))
    gone = await back_up(zone, volume.id)
    await succeed(zone, await zone.delete_snapshot(gone))
    with pytest.raises(NotUsable, match="its grace period has ended"):
        await zone.recover_snapshots([gone])
    end_worker(zone_folder)
    with FolderCatalogue(zone_folder) as catalogue:
        admission.create(catalogue, [volume.id], "next", False, admission.ZoneRules())
    await anyio.to_thread.run_sync(run_worker, zone_folder, 0.0)
    (kept,) = await ids(zone)
    assert [path.name for path in (zone_folder / "snapshots").iterdir()] == [f"{kept}.snap"]
    assert (await get(zone, gone)).status == "ceased"
    await zone.aclose()


HOUR = 3600


class ShiftedClock:
    """The system's clocks, the wall clock and the uptime each set ahead; `boot` names another run of the system."""

    def __init__(self, wall: float = 0.0, uptime: float = 0.0, boot: str | None = None) -> None:
        self.wall, self.uptime, self.boot = wall, uptime, boot

    def read(self) -> Moment:
        real = SystemClock().read()
        boot = real.boot if self.boot is None else self.boot
        return Moment(real.wall + self.wall, boot, real.uptime + self.uptime)


async def test_a_clock_that_jumps_frees_nothing_before_its_time_and_keeps_nothing_beyond_it(
    zone_folder: Path, tmp_path: Path
) -> None:
    """CONTRACT.md, "Deletion": two hours; a clock without a battery is decades ahead once it is set, a wrong one is set back."""
    clock = ShiftedClock()
    zone = LocalZone(zone_folder, clock=clock)
    volume = await zone.add_resource(make_image(tmp_path / "disk.img"))
    kept, gone = await back_up(zone, volume.id), await back_up(zone, volume.id)
    await succeed(zone, await zone.delete_snapshot(gone))
    clock.wall = 3 * HOUR
    with FolderCatalogue(zone_folder, clock=clock) as catalogue:
        assert deletion.purge(catalogue) == []
    await succeed(zone, await zone.recover_snapshots([gone]))
    assert await ids(zone) == {kept, gone}
    clock.wall = 0

    await succeed(zone, await zone.delete_snapshot(gone))
    after_a_restart = (3 * HOUR, 5.0, "another run")
    for clock.wall, clock.uptime, clock.boot in (
        after_a_restart,
        (3 * HOUR, 3 * HOUR, None),
        (-10 * 365 * 24 * HOUR, 3 * HOUR, None),
    ):
        with pytest.raises(NotUsable, match="its grace period has ended"):
            await zone.recover_snapshots([gone])
    with FolderCatalogue(zone_folder, clock=clock) as catalogue:
        assert deletion.purge(catalogue) == [gone]
    await zone.aclose()


def test_a_system_that_does_not_name_its_runs_goes_by_the_clock(zone_folder: Path, tmp_path: Path) -> None:
    """A sandbox may hide the name, and nothing could be deleted there any more."""
    clock = ShiftedClock(boot="")
    with FolderCatalogue(zone_folder, clock=clock) as catalogue:
        disk = registration.register(catalogue, make_image(tmp_path / "disk.img", MIB), "", ResourceType.VOLUME)
        admission.create(catalogue, [disk["resource_id"]], "", False, admission.ZoneRules())
        run_worker(zone_folder, 0, clock=clock)
        (snapshot,) = catalogue.rows("SELECT * FROM snapshots")
        admission.delete(catalogue, snapshot["snapshot_id"], admission.ZoneRules())
        run_worker(zone_folder, 0, clock=clock)
        assert [row["status"] for row in catalogue.rows("SELECT status FROM snapshots")] == ["deleted"]
        clock.wall = 3 * HOUR
        assert deletion.purge(catalogue) == [snapshot["snapshot_id"]]


def end_worker(folder: Path) -> None:
    """SIGKILL the worker that this test's zone started, and wait until the kernel has its lock back."""
    if pid := worker_pid(folder):
        os.kill(pid, signal.SIGKILL)
        while worker_pid(folder) == pid:
            time.sleep(0.005)


async def test_names_and_tags_are_kept_and_found(local_zone: LocalZone, tmp_path: Path) -> None:
    """CONTRACT.md, "The six operations", "Tags": search is a part of id or name; % and _ are themselves."""
    volume = await local_zone.add_resource(make_image(tmp_path / "disk.img"))
    one, two = await back_up(local_zone, volume.id, "100% sure_thing"), await back_up(local_zone, volume.id, "other")
    await local_zone.update_snapshot(
        two, SnapshotUpdate(snapshot_name="Ärger\n", description="why", tags=("prod", "db"))
    )
    assert (await get(local_zone, two)).snapshot_name == "Ärger\n"
    assert await ids(local_zone, tags=("db", "nothing")) == {two}
    assert await ids(local_zone, search_word="0% sure_") == {one}
    assert await ids(local_zone, search_word="_") == {one}
    assert await ids(local_zone, search_word=two[3:8]) == {two}
    assert await ids(local_zone, snapshot_type=1) == {one}
    assert await ids(local_zone, root_id=one) == {one, two}
    page = await local_zone.list_snapshots(SnapshotFilter(limit=1, offset=1))
    assert (len(page.items), page.total_count) == (1, 2)


async def test_an_instance_is_an_instance(local_zone: LocalZone, tmp_path: Path) -> None:
    instance = await local_zone.add_resource(make_image(tmp_path / "web.img"), "web", ResourceType.INSTANCE)
    snapshot_id = await back_up(local_zone, instance.id)
    with pytest.raises(WrongResourceType, match="only from a snapshot of a volume"):
        await local_zone.create_volume(snapshot_id, "copy")
    (found,) = (await local_zone.list_instances(ResourceFilter(search_word="we"))).items
    assert (found.id, found.status) == (instance.id, "stopped")
    assert (await local_zone.list_volumes(ResourceFilter())).total_count == 0


@pytest.mark.long
async def test_watching_sees_every_change_of_a_job(local_zone: LocalZone, tmp_path: Path) -> None:
    """`watch_jobs` yields Jobs at each change of status, and their progress on the way."""
    volume = await local_zone.add_resource(make_image(tmp_path / "disk.img", 256 * MIB))
    await back_up(local_zone, volume.id)
    seen: list[Job] = []

    async def watch() -> None:
        async with aclosing(local_zone.watch_jobs()) as changes:
            async for change in changes:
                seen.extend(change)
                if any(one.is_finished for one in change):
                    return

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        await anyio.wait_all_tasks_blocked()
        job = await local_zone.create_snapshots([volume.id], "watched", is_full=True)
    assert {change.job_id for change in seen} == {job.job_id}
    statuses = [change.status for change in seen]
    assert statuses == sorted(statuses, key=["pending", "working", "successful"].index)
    done = [change.progress.done for change in seen if change.progress and change.status == "working"]
    assert done == sorted(done)
    assert statuses[-1] == "successful"
