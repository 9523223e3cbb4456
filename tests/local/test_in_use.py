"""A disk in use is never rolled back, and never copied as a mixture (FORMAT.md, "A disk in use")."""

import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from snapshot_mcp.catalogue import admission
from snapshot_mcp.catalogue.store import Row
from snapshot_mcp.contract.errors import ResourceBusy
from snapshot_mcp.providers.local import LocalZone, restore, work
from snapshot_mcp.providers.local import platform as local_platform
from snapshot_mcp.providers.local.disk import TargetDisk
from snapshot_mcp.providers.local.folder import FolderCatalogue
from snapshot_mcp.providers.local.work import overwriting
from tests.disks import MIB, back_up, change, finish, get, make_image, succeed, worker_pid

pytestmark = pytest.mark.anyio

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


@contextmanager
def holder(code: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that runs `code`, says so, and holds on until it is let go."""
    script = f"import fcntl, mmap, os, sys\n{code}\nprint('holding', flush=True)\nsys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "holding\n"
        yield process
        assert process.stdin is not None
        process.stdin.close()


WAYS = {
    "open for writing": ("f = os.open({path!r}, os.O_RDWR)", "has it open for writing"),
    "mapped": (
        "f = os.open({path!r}, os.O_RDWR); m = mmap.mmap(f, 4096); os.close(f)",
        "has it open for writing",
    ),
    "locked by flock": ("f = os.open({path!r}, os.O_RDONLY); fcntl.flock(f, fcntl.LOCK_EX)", "has locked it"),
    "locked by fcntl": (
        "f = os.open({path!r}, os.O_RDWR); fcntl.lockf(f, fcntl.LOCK_EX)",
        "has locked it",
    ),
}


@pytest.mark.parametrize("way", WAYS)
async def test_a_disk_that_another_process_holds_is_not_rolled_back(
    way: str, local_zone: LocalZone, tmp_path: Path
) -> None:
    """Refused, naming by what; the disk stays byte for byte as it was."""
    image = make_image(tmp_path / "disk.img")
    volume = await local_zone.add_resource(image)
    snapshot_id = await back_up(local_zone, volume.id)
    change(image, 5000)
    before = image.read_bytes()
    code, says = WAYS[way]
    with holder(code.format(path=str(image))) as process:
        with pytest.raises(ResourceBusy, match=says) as refusal:
            await local_zone.apply_snapshots([snapshot_id])
        if way != "mapped":
            assert str(process.pid) in str(refusal.value)
        assert image.read_bytes() == before
    await succeed(local_zone, await local_zone.apply_snapshots([snapshot_id]))


@needs_root
@pytest.mark.parametrize("mode", ["--read-only", ""])
async def test_a_loop_device_is_named(mode: str, local_zone: LocalZone, tmp_path: Path) -> None:
    """Loop-mounted, also read-only: its cache would show what is no longer there."""
    image = make_image(tmp_path / "disk.img")
    volume = await local_zone.add_resource(image)
    snapshot_id = await back_up(local_zone, volume.id)
    command = ["losetup", "--find", "--show", *mode.split(), str(image)]
    device = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    try:
        with pytest.raises(ResourceBusy, match=f"loop device {device} is attached to it"):
            await local_zone.apply_snapshots([snapshot_id])
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


@needs_root
async def test_a_loop_device_is_seen_through_another_name_of_the_file(local_zone: LocalZone, tmp_path: Path) -> None:
    """A hard link is the same disk; and a name that is no UTF-8, of any loop device, hinders nobody."""
    image = make_image(tmp_path / "disk.img")
    volume = await local_zone.add_resource(image)
    snapshot_id = await back_up(local_zone, volume.id)
    other_name = os.fsencode(tmp_path) + b"/caf\xe9.img"
    os.link(image, other_name)
    command = [b"losetup", b"--find", b"--show", b"--read-only", other_name]
    device = subprocess.run(command, check=True, capture_output=True).stdout.decode().strip()
    try:
        with pytest.raises(ResourceBusy, match=f"loop device {device} is attached to it"):
            await local_zone.apply_snapshots([snapshot_id])
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


async def test_a_holder_whose_name_is_no_text_is_named_all_the_same(local_zone: LocalZone, tmp_path: Path) -> None:
    image = make_image(tmp_path / "disk.img")
    volume = await local_zone.add_resource(image)
    code = f"open('/proc/self/comm', 'wb').write(b'caf\\xe9'); f = os.open({str(image)!r}, os.O_RDWR)"
    with holder(code) as process, pytest.raises(ResourceBusy, match=rf"process {process.pid} \(caf.*for writing"):
        await local_zone.create_snapshots([volume.id], "mixture")


async def test_a_mere_reader_prevents_nothing(local_zone: LocalZone, tmp_path: Path) -> None:
    """Somebody who only reads (a checksum, an indexer) is no use of the disk; what was written is compared afterwards."""
    image = make_image(tmp_path / "disk.img")
    before = image.read_bytes()
    volume = await local_zone.add_resource(image)
    snapshot_id = await back_up(local_zone, volume.id)
    change(image, 5000)
    with holder(f"f = os.open({str(image)!r}, os.O_RDONLY)"):
        await succeed(local_zone, await local_zone.apply_snapshots([snapshot_id]))
        assert image.read_bytes() == before


async def test_a_writer_that_slips_in_beside_a_reader_is_noticed(
    here: LocalZone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that somebody wrote to during a roll-back is never called whole; the roll-back is resumed."""
    image = make_image(tmp_path / "disk.img")
    before = image.read_bytes()
    volume = await here.add_resource(image)
    snapshot_id = await back_up(here, volume.id)
    change(image, 5000)
    write_back = restore.write_back

    def disturbed(*arguments: Any) -> None:
        write_back(*arguments)
        with image.open("r+b") as file:
            file.write(b"somebody else")

    with holder(f"f = os.open({str(image)!r}, os.O_RDONLY)"), monkeypatch.context() as patch:
        patch.setattr(restore, "write_back", disturbed)
        job = await finish(here, await here.apply_snapshots([snapshot_id]))
    assert (job.status, job.error and job.error.code) == ("failed", "resource_busy")
    assert job.details["resources"] == {volume.id: "incomplete"}
    await succeed(here, await here.apply_snapshots([snapshot_id]))
    assert image.read_bytes() == before


async def test_a_disk_that_is_being_written_is_not_backed_up_as_a_mixture(
    local_zone: LocalZone, tmp_path: Path
) -> None:
    image = make_image(tmp_path / "disk.img")
    volume = await local_zone.add_resource(image)
    with (
        holder(f"f = os.open({str(image)!r}, os.O_RDWR)") as process,
        pytest.raises(ResourceBusy, match=rf"process {process.pid} .* has it open for writing"),
    ):
        await local_zone.create_snapshots([volume.id], "mixture")


async def test_the_operator_may_allow_fuzzy_copies_and_they_say_so(zone_folder: Path, tmp_path: Path) -> None:
    image = make_image(tmp_path / "disk.img")
    zone = LocalZone(zone_folder, allow_fuzzy=True)
    volume = await zone.add_resource(image)
    with holder(f"f = os.open({str(image)!r}, os.O_RDWR)"):
        snapshot_id = await back_up(zone, volume.id)
    assert (await get(zone, snapshot_id)).consistency == "fuzzy"
    assert (await get(zone, await back_up(zone, volume.id))).consistency == "unchanged"
    await zone.aclose()


@pytest.mark.long
async def test_a_writer_that_comes_during_a_backup_waits_or_ends_it(
    here: LocalZone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FORMAT.md, "A disk in use": a lease that was broken for too long proves nothing; the job fails and says why."""
    monkeypatch.setattr(local_platform.ReadLease, "PATIENCE_SECONDS", 0.0)
    image = make_image(tmp_path / "disk.img", 256 * MIB)
    volume = await here.add_resource(image)
    job = await here.create_snapshots([volume.id], "disturbed")
    while not (progress := (await here.get_job(job.job_id)).progress) or not progress.total:
        pass
    with holder(f"f = os.open({str(image)!r}, os.O_RDWR)"):
        job = await finish(here, job)
    if job.status == "failed":
        assert job.error is not None
        assert job.error.code == "resource_busy"
        assert "started writing to it while it was being read" in job.info
    else:
        assert (await get(here, job.resource_ids[0])).consistency == "unchanged"


async def test_an_image_that_changes_its_size_during_a_job_is_an_error(
    here: LocalZone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CONTRACT.md, "Size". Without leases nothing holds the other program off, so the change must be noticed."""
    monkeypatch.setattr(local_platform, "HAS_LEASE", False)
    image = make_image(tmp_path / "disk.img", 64 * MIB)
    volume = await here.add_resource(image)
    read = os.pread
    sizes = iter((65 * MIB,))

    def grow_once(fd: int, length: int, offset: int) -> bytes:
        for size in sizes:
            os.truncate(image, size)
        return read(fd, length, offset)

    monkeypatch.setattr("snapshot_mcp.providers.local.capture.os.pread", grow_once)
    job = await finish(here, await here.create_snapshots([volume.id], "growing"))
    assert job.status == "failed"
    assert f"its size changed from {64 * MIB} to {65 * MIB} bytes" in job.info


async def test_a_disk_in_use_is_copied_in_an_instant_where_the_filesystem_can(
    reflink_folder: Path, here: LocalZone
) -> None:
    """FORMAT.md, "A disk in use": btrfs and XFS."""
    image = make_image(reflink_folder / "disk.img")
    volume = await here.add_resource(image)
    with image.open("r+b") as writer:
        snapshot_id = await back_up(here, volume.id)
        before = image.read_bytes()
        writer.write(b"written after the capture")
    assert (await get(here, snapshot_id)).consistency == "instant"
    assert [path.name for path in reflink_folder.glob("*.img*")] == ["disk.img"]
    await succeed(here, await here.apply_snapshots([snapshot_id]))
    assert image.read_bytes() == before


def test_a_lock_of_our_own_is_given_back(tmp_path: Path) -> None:
    image = make_image(tmp_path / "disk.img")
    for _ in range(50):
        with image.open("r+b") as file, local_platform.WriteHold(file.fileno(), image):
            pass
    with image.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@needs_root
def test_a_file_of_another_user_is_not_taken_for_unused(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The system answers its owner only: to anyone else a disk that is being written looks as one that is not."""
    image = make_image(tmp_path_factory.mktemp("shared") / "disk.img")
    for path in (image, *image.parents):
        if (
            path.stat().st_uid == os.geteuid()
            and path.is_relative_to(tempfile.gettempdir())
            and path != Path(tempfile.gettempdir())
        ):
            path.chmod(0o777)
    code = f"""
        import os
        from snapshot_mcp.contract.errors import NotUsable
        from snapshot_mcp.providers.local.disk import CaptureSource, TargetDisk
        os.setgid(65534), os.setuid(65534)
        for opened in (CaptureSource, TargetDisk):
            try:
                opened({str(image)!r}, "volume x").close()
            except NotUsable as refusal:
                print(refusal)
        with CaptureSource({str(image)!r}, "volume x", allow_fuzzy=True) as source:
            print(source.consistency)
    """
    with holder(f"f = os.open({str(image)!r}, os.O_RDWR)"):
        command = [sys.executable, "-c", textwrap.dedent(code)]
        lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert ["only its owner may ask" in line for line in lines] == [True, True, False]
    assert lines[2] == "fuzzy"


async def test_a_roll_back_lets_go_of_the_disk_before_it_says_that_it_is_done(
    local_zone: LocalZone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever hears of the end may start the machine or roll back again at once: no writer may be left then."""
    image = make_image(tmp_path / "disk.img")
    volume = await local_zone.add_resource(image)
    snapshot_id = await back_up(local_zone, volume.id)
    change(image, 4096)
    worker = worker_pid(local_zone.folder)
    assert worker
    os.kill(worker, signal.SIGKILL)
    ended = []

    def end(catalogue: FolderCatalogue, job: Row, extra: dict[str, Any]) -> None:
        TargetDisk(str(image), "disk.img").close()
        ended.append(job["job_id"])
        succeed_as_ever(catalogue, job, extra)

    succeed_as_ever = overwriting.succeed
    monkeypatch.setattr(overwriting, "succeed", end)
    with FolderCatalogue(local_zone.folder) as catalogue:
        job_id = admission.apply(catalogue, [snapshot_id], admission.ZoneRules())["job_id"]
        work.carry_out(catalogue, job_id)
    assert ended == [job_id]
    assert (await local_zone.get_job(job_id)).is_successful
