"""Who has a disk is said before anybody is asked: `held_by`, found in the kernel's tables first and by a lease last."""

import fcntl
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from snapshot_mcp.catalogue import admission
from snapshot_mcp.cli import main
from snapshot_mcp.contract.models import Job, ResourceFilter
from snapshot_mcp.providers.local import LocalZone, holders, in_use, restore
from snapshot_mcp.providers.local import platform as local_platform
from snapshot_mcp.providers.local.folder import FolderCatalogue
from snapshot_mcp.providers.local.source import RawFile
from snapshot_mcp.providers.local.work import create
from tests.conftest import end_worker
from tests.disks import MIB, back_up, change, finish, get, make_image, worker_pid
from tests.local.test_in_use import holder, needs_root
from tests.patience import PATIENCE_SECONDS

pytestmark = pytest.mark.anyio

LEASE = "import signal; f = os.open({path!r}, os.O_RDONLY); fcntl.fcntl(f, fcntl.F_SETLEASE, fcntl.F_RDLCK)"
MAPPED = """
f = os.open({path!r}, os.O_RDWR); m = mmap.mmap(f, 4096)
for one in os.listdir('/proc/self/fd'):
    if os.path.realpath('/proc/self/fd/' + one) == os.path.realpath({path!r}): os.close(int(one))
"""
WAYS = {
    "open for writing": ("f = os.open({path!r}, os.O_RDWR)", "has it open for writing"),
    "open for reading": ("f = os.open({path!r}, os.O_RDONLY)", "has it open for reading"),
    "mapped": (MAPPED, "has it mapped for writing"),
    "locked by flock": ("f = os.open({path!r}, os.O_RDONLY); fcntl.flock(f, fcntl.LOCK_EX)", "has locked it"),
    "locked by fcntl": ("f = os.open({path!r}, os.O_RDWR); fcntl.lockf(f, fcntl.LOCK_EX)", "has locked it"),
    "leased": (LEASE, "holds a lease on it"),
}


async def held_by(zone: LocalZone) -> str | None:
    """What the zone says of its only disk."""
    (volume,) = (await zone.list_volumes(ResourceFilter(verbose=1))).items
    return volume.held_by


@pytest.mark.parametrize("way", WAYS)
async def test_whoever_has_a_disk_is_named(way: str, local_zone: LocalZone, tmp_path: Path) -> None:
    """ "A zone says of a disk whether something holds it"; who merely reads it prevents a write lease, and is said to."""
    image = make_image(tmp_path / "disk.img", MIB)
    await local_zone.add_resource(image)
    assert await held_by(local_zone) == ""
    code, says = WAYS[way]
    with holder(code.format(path=str(image))) as process:
        text = await held_by(local_zone)
        assert text is not None
        assert f"process {process.pid} (python" in text
        assert says in text
    assert await held_by(local_zone) == ""


async def test_only_a_verbose_list_looks(local_zone: LocalZone, tmp_path: Path) -> None:
    """It costs a look at each process and disk; a disk whose file is gone cannot be told of."""
    image = make_image(tmp_path / "disk.img", MIB)
    await local_zone.add_resource(image)
    with holder(f"f = os.open({str(image)!r}, os.O_RDWR)"):
        (volume,) = (await local_zone.list_volumes(ResourceFilter())).items
        assert (volume.held_by, volume.hard_links) == (None, None)
    image.unlink()
    assert await held_by(local_zone) is None


@needs_root
async def test_a_loop_device_and_its_mount_are_named(local_zone: LocalZone, tmp_path: Path) -> None:
    """Loop tables: no process has the file open then, and the path may be another name of it, with any characters."""
    image, mount_point = tmp_path / "disk.img", tmp_path / "mounted"
    mount_point.mkdir()
    with image.open("wb") as file:
        file.truncate(16 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
    await local_zone.add_resource(image)
    other_name = tmp_path / "another\nname.img"
    other_name.hardlink_to(image)
    command = ["losetup", "--find", "--show", str(other_name)]
    device = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    try:
        assert await held_by(local_zone) == f"loop device {device} is attached to it"
        subprocess.run(["mount", device, str(mount_point)], check=True)
        try:
            assert await held_by(local_zone) == f"loop device {device} is attached to it, mounted at {mount_point}"
        finally:
            subprocess.run(["umount", str(mount_point)], check=True)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


@needs_root
@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
async def test_a_lock_is_found_on_every_filesystem(kind: str, local_zone: LocalZone, tmp_path: Path) -> None:
    """The tables name a file by its filesystem's device, which stat() does not answer for a btrfs subvolume."""
    backing, mount_point = tmp_path / "backing", tmp_path / "mounted here"
    mount_point.mkdir()
    with backing.open("wb") as file:
        file.truncate(512 * MIB)
    subprocess.run([f"mkfs.{kind}", "-q", str(backing)], check=True)
    subprocess.run(["mount", "-o", "loop", str(backing), str(mount_point)], check=True)
    try:
        image = make_image(mount_point / "disk.img", MIB)
        await local_zone.add_resource(image)
        with holder(f"f = os.open({str(image)!r}, os.O_RDONLY); fcntl.flock(f, fcntl.LOCK_SH)") as process:
            assert f"process {process.pid} (python" in (text := str(await held_by(local_zone)))
            assert "has locked it" in text
            other = make_image(tmp_path / "other.img", MIB)
            assert not holders.find_holders([other])[other]
    finally:
        subprocess.run(["umount", str(mount_point)], check=True)


async def test_a_page_of_disks_costs_one_walk_over_the_processes(
    local_zone: LocalZone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ "For many disks in one pass.\""""
    with FolderCatalogue(local_zone.folder) as catalogue, catalogue.transaction():
        for number in range(100):
            image = make_image(tmp_path / f"{number}.img", 65536)
            catalogue.add_resource(f"vol-{number}", "volume", image.name, str(image))
    walks = []

    def processes() -> Iterator[str]:
        walks.append(1)
        return walk()

    walk = holders._processes
    monkeypatch.setattr(holders, "_processes", processes)
    code = f"files = [os.open({str(tmp_path)!r} + f'/{{one}}.img', os.O_RDWR) for one in (3, 97)]"
    with holder(code):
        page = await local_zone.list_volumes(ResourceFilter(limit=100, verbose=1))
    assert {one.name for one in page.items if one.held_by} == {"3.img", "97.img"}
    assert {one.held_by for one in page.items if one.name not in {"3.img", "97.img"}} == {""}
    assert len(walks) == 1


async def test_many_holders_are_counted(local_zone: LocalZone, tmp_path: Path) -> None:
    image = make_image(tmp_path / "disk.img", MIB)
    await local_zone.add_resource(image)
    code = f"f = os.open({str(image)!r}, os.O_RDONLY); [os.fork() or (sys.stdin.read(), os._exit(0)) for _ in range(7)]"
    with holder(code):
        assert str(await held_by(local_zone)).endswith("; 3 more")


# a job of ours


async def test_a_disk_that_a_job_reads_is_busy_and_not_opened(
    here: LocalZone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ "Never while a job of ours has the disk (then it is busy with job X)": its lease proves afterwards what it proved."""
    volume = await here.add_resource(make_image(tmp_path / "disk.img"))
    reached, go_on = threading.Event(), threading.Event()
    capture = create.capture

    def paused(*arguments: Any) -> None:
        reached.set()
        go_on.wait(PATIENCE_SECONDS)
        capture(*arguments)

    monkeypatch.setattr(create, "capture", paused)
    monkeypatch.setattr(in_use, "_ask", lambda path: pytest.fail("the disk was opened"))
    job = await here.create_snapshots([volume.id], "under way")
    await anyio.to_thread.run_sync(reached.wait)
    assert await held_by(here) == f"busy with job {job.job_id} (CreateSnapshots)"
    go_on.set()
    assert (await finish(here, job)).is_successful
    assert (await get(here, job.resource_ids[0])).consistency == "unchanged"


async def test_a_look_does_not_break_the_hold_of_a_roll_back(
    here: LocalZone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ "Opening a disk breaks our own leases": the write lease is whole after every look."""
    image = make_image(tmp_path / "disk.img")
    volume = await here.add_resource(image)
    snapshot_id = await back_up(here, volume.id)
    change(image, 65536)
    reached, go_on = threading.Event(), threading.Event()
    leases: list[int] = []
    write_back = restore.write_back

    def paused(target: RawFile, *arguments: Any) -> None:
        reached.set()
        go_on.wait(PATIENCE_SECONDS)
        leases.append(fcntl.fcntl(target.fd, fcntl.F_GETLEASE))
        write_back(target, *arguments)

    monkeypatch.setattr(restore, "write_back", paused)
    job = await here.apply_snapshots([snapshot_id])
    await anyio.to_thread.run_sync(reached.wait)
    for _ in range(3):
        assert await held_by(here) == f"busy with job {job.job_id} (ApplySnapshots)"
    go_on.set()
    assert (await finish(here, job)).is_successful
    assert leases == [fcntl.F_WRLCK]


async def test_a_job_without_a_worker_is_said_to_wait(local_zone: LocalZone, tmp_path: Path) -> None:
    """Whether a worker lives is read from the kernel's table of locks; to try the lock could keep one from starting."""
    volume = await local_zone.add_resource(make_image(tmp_path / "disk.img", MIB))
    await back_up(local_zone, volume.id)
    end_worker_only(local_zone.folder)
    with FolderCatalogue(local_zone.folder) as catalogue:
        job = admission.create(catalogue, [volume.id], "", False, admission.ZoneRules())
    assert await held_by(local_zone) == (
        f"busy with job {job['job_id']} (CreateSnapshots), which waits for the zone's worker"
    )


def end_worker_only(folder: Path) -> None:
    """Kill the worker that a test started, by its id, and leave the folder."""
    if pid := worker_pid(folder):
        os.kill(pid, signal.SIGKILL)
        while worker_pid(folder):
            pass


# where the tables say nothing


async def test_a_holder_that_no_table_shows_is_found_by_a_lease(
    local_zone: LocalZone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process of another user, or in a container, is not shown; that the disk is in use is known all the same."""
    image = make_image(tmp_path / "disk.img", MIB)
    await local_zone.add_resource(image)
    monkeypatch.setattr(holders, "_processes", lambda: iter(()))
    for mode, says in (
        ("RDWR", "another program has it open ("),
        ("RDONLY", "another program has it open for reading ("),
    ):
        with holder(f"f = os.open({str(image)!r}, os.O_{mode})"):
            assert str(await held_by(local_zone)).startswith(says)
    assert await held_by(local_zone) == ""


async def test_what_cannot_be_told_is_not_called_free(
    local_zone: LocalZone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None where it is not known: systems without leases."""
    await local_zone.add_resource(make_image(tmp_path / "disk.img", MIB))
    monkeypatch.setattr(local_platform, "HAS_LEASE", False)
    assert await held_by(local_zone) is None


@needs_root
def test_another_users_disk_is_not_called_free(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Only its owner may ask for a lease; the tables are not whole for anybody but root."""
    code = textwrap.dedent("""
        import os, sys, tempfile
        from pathlib import Path
        from snapshot_mcp.providers.local.folder import FolderCatalogue
        with tempfile.TemporaryDirectory() as folder, tempfile.NamedTemporaryFile() as disk:
            disk.write(bytes(4096)), disk.flush(), os.fchmod(disk.fileno(), 0o644), os.chown(folder, 65534, 65534)
            os.setgroups([]), os.setegid(65534), os.seteuid(65534)
            with FolderCatalogue(Path(folder)) as catalogue:
                with catalogue.transaction():
                    catalogue.add_resource("vol-1", "volume", "disk", disk.name)
                (use,) = catalogue.store.find_uses(catalogue, [catalogue.resource("vol-1")]).values()
                print(use.held_by)
            os.seteuid(0)
    """)
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "None\n"


async def test_a_catalogue_that_cannot_be_locked_opens_no_disk(
    local_zone: LocalZone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the transaction a job could begin between the look at the claims and the opening of its disk."""
    image = make_image(tmp_path / "disk.img", MIB)
    await local_zone.add_resource(image)
    with FolderCatalogue(local_zone.folder) as catalogue:
        catalogue.db.execute("PRAGMA query_only = ON")
        catalogue.db.execute("PRAGMA busy_timeout = 1")
        rows = catalogue.rows("SELECT * FROM resources")
        with FolderCatalogue(local_zone.folder) as another, another.transaction():
            monkeypatch.setattr(in_use, "_ask", lambda path: pytest.fail("the disk was opened"))
            assert [use.held_by for use in catalogue.store.find_uses(catalogue, rows).values()] == [None]


# what a person sees


async def _zone_list(zone: LocalZone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNAPSHOT_MCP_HOME", str(zone.folder.parents[1]))
    monkeypatch.setenv("SNAPSHOT_MCP_CONFIG", "")
    assert await anyio.to_thread.run_sync(main, ["zone", "list"]) == 0


async def test_the_list_shows_who_has_a_disk_and_its_other_names(
    local_zone: LocalZone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`zone list` shows held disks; a roll-back of a file with two names takes the other name's content along."""
    image = make_image(tmp_path / "disk.img", MIB)
    await local_zone.add_resource(image)
    (tmp_path / "other.img").hardlink_to(image)
    with holder(f"f = os.open({str(image)!r}, os.O_RDWR)") as process:
        await _zone_list(local_zone, monkeypatch)
        line = capsys.readouterr().out
    assert f"{image}  in use: process {process.pid} (" in line
    assert "has it open for writing  (2 hard links)" in line


async def _roll_back_and_kill(zone: LocalZone, image: Path, snapshot_id: str) -> Job:
    """Roll back; kill the worker between the first byte and the last."""
    for seed in range(50):
        change(image, 48 * MIB, seed=seed)
        job = await zone.apply_snapshots([snapshot_id])
        with FolderCatalogue(zone.folder) as catalogue:
            while catalogue.row("SELECT 1 FROM resources WHERE applying_id IS NOT NULL") is None:
                if (await zone.get_job(job.job_id)).is_finished:
                    break
            end_worker_only(zone.folder)
            if catalogue.row("SELECT 1 FROM resources WHERE applying_id IS NOT NULL"):
                return job
    raise AssertionError("no roll-back was caught while it wrote")


@pytest.mark.long
async def test_the_list_shows_a_roll_back_that_was_broken_off(
    local_zone: LocalZone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """ "Worker killed while it writes …: `zone list` shows nothing of it beforehand"; and showing it resumes nothing."""
    image = make_image(tmp_path / "disk.img", 64 * MIB)
    volume = await local_zone.add_resource(image)
    snapshot_id = await back_up(local_zone, volume.id)
    job = await _roll_back_and_kill(local_zone, image, snapshot_id)
    half = image.read_bytes()
    await _zone_list(local_zone, monkeypatch)
    line = " ".join(capsys.readouterr().out.split())
    assert f"in use: busy with job {job.job_id} (ApplySnapshots), which waits for the zone's worker" in line
    assert f"PROBLEM: a roll-back to {snapshot_id} is unfinished" in line
    assert "holds old and new content mixed. The roll-back is resumed when the zone's worker next starts" in line
    assert worker_pid(local_zone.folder) is None
    assert image.read_bytes() == half
    end_worker(local_zone.folder)
