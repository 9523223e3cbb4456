"""Block devices, by loop devices: there and back, in use, of another size, replaced, detached."""

import os
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from snapshot_mcp.contract.errors import BadRequest, NotUsable, ResourceBusy, Unsupported
from snapshot_mcp.contract.models import ResourceFilter
from snapshot_mcp.contract.states import JobAction
from snapshot_mcp.providers.local import LocalZone, device
from snapshot_mcp.providers.local.formats import Form
from tests.disks import MIB, back_up, finish, get, make_image, succeed
from tests.local.test_in_use import holder
from tests.qemu import needs_qemu

pytestmark = pytest.mark.anyio

SIZE = 4 * MIB

Attach = Callable[[Path], Path]


def attached(image: Path) -> Path:
    done = subprocess.run(["losetup", "--find", "--show", str(image)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no loop device can be had: {done.stderr.strip()}")
    return Path(done.stdout.strip())


def detached(loop: Path) -> None:
    subprocess.run(["losetup", "--detach", str(loop)], check=False, capture_output=True)


@pytest.fixture
def attach() -> Iterator[Attach]:
    loops: list[Path] = []

    def run(image: Path) -> Path:
        loops.append(attached(image))
        return loops[-1]

    yield run
    for loop in loops:
        detached(loop)


@pytest.fixture
def loop(attach: Attach, tmp_path: Path) -> Path:
    return attach(make_image(tmp_path / "behind.img", SIZE))


def content_of(path: Path) -> bytes:
    with path.open("rb", buffering=0) as file:
        return file.read(64 * MIB)


def write(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b", buffering=0) as file:
        file.seek(at)
        file.write(data)
        os.fsync(file.fileno())


async def test_a_device_goes_back_and_forth_to_the_byte(local_zone: LocalZone, loop: Path) -> None:
    volume = await local_zone.add_resource(loop, "usb")
    assert (volume.size_bytes, volume.format, volume.path) == (SIZE, "device", str(loop))
    contents = {(full := await back_up(local_zone, volume.id)): content_of(loop)}
    write(loop, 1000, random.Random(1).randbytes(100_000))
    write(loop, 2 * MIB, bytes(MIB))
    contents[incremental := await back_up(local_zone, volume.id)] = content_of(loop)
    assert (await get(local_zone, incremental)).consistency == "held"
    assert (await get(local_zone, incremental)).parent == full
    await succeed(local_zone, await local_zone.apply_snapshots([full], safety_snapshot_name="before"))
    assert content_of(loop) == contents[full]
    await succeed(local_zone, await local_zone.apply_snapshots([incremental]))
    assert content_of(loop) == contents[incremental]
    job = await succeed(local_zone, await local_zone.create_volume(full, "copy"))
    assert Path(job.details["path"]).read_bytes() == contents[full]
    assert (await local_zone.check()).is_clean


async def test_one_in_use_is_refused_with_who_uses_it(local_zone: LocalZone, loop: Path, tmp_path: Path) -> None:
    volume = await local_zone.add_resource(loop)
    snapshot_id = await back_up(local_zone, volume.id)

    async def refused(who: str) -> None:
        for act in (local_zone.create_snapshots([volume.id], ""), local_zone.apply_snapshots([snapshot_id])):
            with pytest.raises(ResourceBusy, match=who):
                await act

    with holder(f"f = os.open({str(loop)!r}, os.O_RDWR)") as process:
        await refused(f"process {process.pid} .* has it open for writing")
    with holder(f"f = os.open({str(loop)!r}, os.O_RDWR | os.O_EXCL)") as process:
        await refused(f"process {process.pid}")
    subprocess.run(["mkfs.ext4", "-q", "-F", str(loop)], check=True)
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    subprocess.run(["mount", str(loop), str(mounted)], check=True)
    try:
        await refused(f"it is mounted at {mounted}")
        (found,) = (await local_zone.list_volumes(ResourceFilter(verbose=1))).items
        assert found.held_by == f"it is mounted at {mounted}"
    finally:
        subprocess.run(["umount", str(mounted)], check=True)
    await back_up(local_zone, volume.id)


@needs_qemu
async def test_one_that_qemu_has_open_is_refused(local_zone: LocalZone, loop: Path) -> None:
    """O_EXCL alone does not see QEMU."""
    volume = await local_zone.add_resource(loop)
    command = ["qemu-io", "-f", "raw", str(loop)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as qemu:
        assert qemu.stdin is not None
        assert qemu.stdout is not None
        qemu.stdin.write(b"read 0 512\n")
        qemu.stdin.flush()
        qemu.stdout.readline()
        with pytest.raises(ResourceBusy, match="qemu-io"):
            await local_zone.create_snapshots([volume.id], "")
        qemu.stdin.close()


async def test_a_program_that_writes_during_a_backup_ends_it(
    here: LocalZone, loop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = await here.add_resource(loop)
    read = device.DeviceContent.read

    def disturbed(self: device.DeviceContent, length: int, offset: int) -> bytes:
        with holder(f"f = os.open({str(loop)!r}, os.O_RDWR)"):
            return read(self, length, offset)

    with monkeypatch.context() as patch:
        patch.setattr(device.DeviceContent, "read", disturbed)
        patch.setattr("snapshot_mcp.providers.local.capture.WINDOW_SIZE", SIZE // 2)
        patch.setattr("snapshot_mcp.providers.local.snapshot_file.format.chunk_size_for", lambda size: MIB)
        patch.setattr("snapshot_mcp.providers.local.work.create.chunk_size_for", lambda size: MIB)
        job = await finish(here, await here.create_snapshots([volume.id], ""))
    assert (job.status, job.error and job.error.code) == ("failed", "resource_busy")
    assert "was aborted" in job.info


async def test_a_roll_back_needs_the_same_size(local_zone: LocalZone, loop: Path, tmp_path: Path) -> None:
    volume = await local_zone.add_resource(loop)
    snapshot_id = await back_up(local_zone, volume.id)
    os.truncate(tmp_path / "behind.img", SIZE + MIB)
    subprocess.run(["losetup", "--set-capacity", str(loop)], check=True)
    with pytest.raises(NotUsable, match="cannot change its size"):
        await local_zone.refuse_beforehand(JobAction.APPLY, [snapshot_id])
    before = content_of(loop)
    job = await finish(local_zone, await local_zone.apply_snapshots([snapshot_id]))
    assert "cannot change its size" in job.info
    assert content_of(loop) == before
    assert (await get(local_zone, await back_up(local_zone, volume.id))).virtual_size_bytes == SIZE + MIB


async def test_another_device_under_the_name_is_not_overwritten(
    local_zone: LocalZone, loop: Path, tmp_path: Path
) -> None:
    """A device is known by its serial number or what is behind it, not by the name that it has today."""
    volume = await local_zone.add_resource(loop)
    snapshot_id = await back_up(local_zone, volume.id)
    (found,) = (await local_zone.list_volumes(ResourceFilter(verbose=1))).items
    detached(loop)
    with pytest.raises(NotUsable, match="has nothing behind it"):
        await local_zone.create_snapshots([volume.id], "")
    other = make_image(tmp_path / "other.img", SIZE, seed=9)
    subprocess.run(["losetup", str(loop), str(other)], check=True)
    before = content_of(loop)
    (there,) = (await local_zone.list_volumes(ResourceFilter(verbose=1))).items
    assert there.identity != found.identity
    for act in (local_zone.create_snapshots([volume.id], ""), local_zone.apply_snapshots([snapshot_id])):
        with pytest.raises(NotUsable, match="leads to another device"):
            await act
    assert content_of(loop) == before


async def test_what_is_no_disk_or_no_stable_name_is_refused(
    unused_zone: LocalZone, loop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadRequest, match="is raw"):
        await unused_zone.add_resource(loop, form=Form("qcow2"))
    with pytest.raises(BadRequest, match="character device"):
        await unused_zone.add_resource(Path("/dev/null"))
    volume = await unused_zone.add_resource(make_image(tmp_path / "disk.img"))
    with pytest.raises(Unsupported, match="block device"):
        await unused_zone.plan_move(volume.id, loop)
    link = tmp_path / "by-id-name"
    link.symlink_to(loop)
    monkeypatch.setattr(device, "_STABLE", (str(tmp_path),))
    with pytest.raises(BadRequest, match="may lead to another device") as refusal:
        await unused_zone.add_resource(loop)
    assert str(link) in (refusal.value.hint or "")
    assert (await unused_zone.add_resource(link)).path == str(link)
    monkeypatch.setattr(device, "_STABLE", ())
    with pytest.raises(BadRequest, match="already registered"):
        await unused_zone.add_resource(loop)


async def test_one_that_is_detached_in_mid_capture_fails_truthfully_or_is_right(
    here: LocalZone, loop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux detaches a loop device that is open when it is closed; one that is gone at once reads as errors or as nothing."""
    volume = await here.add_resource(loop)
    before, behind = content_of(loop), tmp_path / "behind.img"
    read = device.DeviceContent.read

    def pulled(self: device.DeviceContent, length: int, offset: int) -> bytes:
        detached(loop)
        return read(self, length, offset)

    with monkeypatch.context() as patch:
        patch.setattr(device.DeviceContent, "read", pulled)
        job = await finish(here, await here.create_snapshots([volume.id], ""))
    if job.is_successful:
        exported = await succeed(here, await here.create_volume(job.resource_ids[0], "copy"))
        assert Path(exported.details["path"]).read_bytes() == before
    assert behind.read_bytes() == before
