"""qcow2 images, whole with what they hold beside the disk: read, put back, moved, resized."""

import os
import random
import signal
from contextlib import aclosing
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from snapshot_mcp.contract.errors import BadRequest, NotUsable, ResourceBusy
from snapshot_mcp.contract.models import ResourceFilter
from snapshot_mcp.contract.states import ResourceType
from snapshot_mcp.providers.local import LocalZone
from snapshot_mcp.providers.local.folder import FolderCatalogue
from snapshot_mcp.providers.local.formats import Form
from snapshot_mcp.providers.local.source import Target
from tests.disks import MIB, back_up, finish, get, make_image, succeed, worker_pid
from tests.local.test_in_use import holder
from tests.marks import few, long
from tests.patience import PATIENCE_SECONDS
from tests.qemu import content_of, create, is_clean, needs_qemu, qemu_img, write, write_randomly
from tests.whole_way.workers import Nursery

pytestmark = [pytest.mark.anyio, needs_qemu]

SIZE = 8 * MIB


async def add(zone: LocalZone, path: Path, *bases: Path) -> str:
    return (await zone.add_resource(path, form=Form("qcow2", bases))).id


async def exported(zone: LocalZone, snapshot_id: str) -> bytes:
    job = await succeed(zone, await zone.create_volume(snapshot_id, "copy"))
    return Path(job.details["path"]).read_bytes()


async def test_an_image_goes_back_and_forth_to_the_byte(local_zone: LocalZone, tmp_path: Path) -> None:
    """Full, incremental, export, roll-back with a safety snapshot into the image, forward again."""
    image = create(tmp_path / "disk.qcow2", SIZE)
    write(image, "write -P 1 0 1M", "write -P 2 3M 100k", "write -c -P 3 4M 64k")
    disk = await add(local_zone, image)
    contents = {(full := await back_up(local_zone, disk)): content_of(image)}
    write(image, "write -P 4 512k 1M", "write -z 3M 64k")
    contents[incremental := await back_up(local_zone, disk)] = content_of(image)
    found = await get(local_zone, incremental)
    assert (found.parent, found.virtual_size_bytes, found.consistency) == (full, SIZE, "unchanged")
    assert found.stored_bytes < MIB // 4
    job = await succeed(local_zone, await local_zone.apply_snapshots([full], safety_snapshot_name="before"))
    assert content_of(image) == contents[full]
    assert is_clean(image)
    (safety,) = job.details["safety_snapshots"].values() if "safety_snapshots" in job.details else [incremental]
    for snapshot_id in (incremental, safety):
        assert await exported(local_zone, snapshot_id) == contents[incremental]
    await succeed(local_zone, await local_zone.apply_snapshots([incremental]))
    assert content_of(image) == contents[incremental]
    assert is_clean(image)
    assert (await local_zone.check()).is_clean


async def test_lists_show_the_size_that_the_machine_sees_and_the_format(unused_zone: LocalZone, tmp_path: Path) -> None:
    image = create(tmp_path / "disk.qcow2", 5 << 30)
    await add(unused_zone, image)
    (found,) = (await unused_zone.list_volumes(ResourceFilter(verbose=1))).items
    assert (found.size_bytes, found.format, found.problem) == (5 << 30, "qcow2", None)
    qemu_img("resize", "-q", image, 6 << 30)
    (found,) = (await unused_zone.list_volumes(ResourceFilter())).items
    assert found.size_bytes == 6 << 30


@pytest.mark.parametrize("seed", [1, *(long(seed) for seed in range(2, 12))])
async def test_a_chain_of_overlays_reads_as_the_one_disk_that_the_machine_sees(
    seed: int, local_zone: LocalZone, tmp_path: Path
) -> None:
    """Depth 3, internal snapshots, bitmaps, compressed clusters, an overlay that is larger than its base."""
    chance = random.Random(seed)
    base = tmp_path / "base.raw"
    base.write_bytes(chance.randbytes(3 * MIB))
    middle = create(tmp_path / "middle.qcow2", 4 * MIB, base, "raw")
    write(middle, "write -c -P 7 1M 64k")
    write_randomly(middle, 4 * MIB, chance)
    image = create(tmp_path / "disk.qcow2", SIZE, middle)
    write_randomly(image, SIZE, chance)
    qemu_img("snapshot", "-c", "inside", image)
    qemu_img("bitmap", "--add", image, "bits")
    below = {path: path.read_bytes() for path in (base, middle)}
    disk = await add(local_zone, image, middle, base)
    contents = {}
    for round_number in range(3):
        if round_number == 2:
            qemu_img("resize", "-q", image, SIZE + MIB)
        write_randomly(image, SIZE, chance)
        before = content_of(image)
        contents[await back_up(local_zone, disk)] = before
    for snapshot_id, content in contents.items():
        assert await exported(local_zone, snapshot_id) == content
    for snapshot_id, content in reversed(contents.items()):
        job = await finish(local_zone, await local_zone.apply_snapshots([snapshot_id]))
        assert job.is_successful, job.info
        assert content_of(image) == content
        assert is_clean(image)
    assert "inside" in qemu_img("snapshot", "-l", image)
    assert "bits" in qemu_img("info", image)
    assert {path: path.read_bytes() for path in below} == below, "a base is never written to"


async def test_a_base_that_is_missing_or_changed_is_said(local_zone: LocalZone, tmp_path: Path) -> None:
    base = create(tmp_path / "base.qcow2", SIZE)
    write(base, "write -P 1 0 1M")
    image = create(tmp_path / "disk.qcow2", None, base)
    disk = await add(local_zone, image, base)
    snapshot_id = await back_up(local_zone, disk)
    aside = base.rename(tmp_path / "aside")
    with pytest.raises(NotUsable, match=r"base .* is missing: .*base.qcow2"):
        await local_zone.create_snapshots([disk], "")
    (found,) = (await local_zone.list_volumes(ResourceFilter())).items
    assert "base.qcow2' is missing" in (found.problem or "")
    base.write_bytes(aside.read_bytes())
    with pytest.raises(NotUsable, match="was replaced by another file"):
        await local_zone.apply_snapshots([snapshot_id])
    base.unlink()
    aside.rename(base)
    await back_up(local_zone, disk)
    write(base, "write -P 9 2M 64k")
    with pytest.raises(NotUsable, match="was written to"):
        await local_zone.create_snapshots([disk], "")
    move = await local_zone.plan_move(disk, image, form=Form("", (base,)))
    await local_zone.move_resource(move)
    assert await exported(local_zone, await back_up(local_zone, disk)) == content_of(image)


async def test_an_overlay_that_was_put_on_top_or_committed_is_said(local_zone: LocalZone, tmp_path: Path) -> None:
    """The header is compared with what was registered: a disk never silently becomes another one."""
    base = create(tmp_path / "base.qcow2", SIZE)
    image = create(tmp_path / "disk.qcow2", None, base)
    disk = await add(local_zone, image, base)
    qemu_img("rebase", "-u", "-b", "", "-f", "qcow2", image)
    with pytest.raises(NotUsable, match="is based on nothing now"):
        await local_zone.create_snapshots([disk], "")
    await local_zone.move_resource(await local_zone.plan_move(disk, image))
    await back_up(local_zone, disk)


async def test_one_in_use_is_refused_and_a_machine_may_start_again(local_zone: LocalZone, tmp_path: Path) -> None:
    image = create(tmp_path / "disk.qcow2", SIZE)
    disk = await add(local_zone, image)
    snapshot_id = await back_up(local_zone, disk)
    with holder(f"f = os.open({str(image)!r}, os.O_RDWR)"):
        for act in (local_zone.create_snapshots([disk], ""), local_zone.apply_snapshots([snapshot_id])):
            with pytest.raises(ResourceBusy, match="is in use"):
                await act
    await succeed(local_zone, await local_zone.apply_snapshots([snapshot_id]))


async def test_a_program_that_writes_during_a_roll_back_is_noticed(
    here: LocalZone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No lease holds while QEMU has the image open: a watch stands for it."""
    from snapshot_mcp.providers.local import restore

    image = create(tmp_path / "disk.qcow2", SIZE)
    write(image, "write -P 1 0 4M")
    disk = await add(here, image)
    snapshot_id = await back_up(here, disk)
    write(image, "write -P 2 0 4M")
    write_back = restore.write_back

    def disturbed(target: Target, *arguments: Any) -> None:
        assert target.size_bytes == SIZE  # QEMU serves it
        with holder(f"f = os.open({str(image)!r}, os.O_RDWR)"):
            write_back(target, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(restore, "write_back", disturbed)
        job = await finish(here, await here.apply_snapshots([snapshot_id]))
    assert (job.status, job.error and job.error.code) == ("failed", "resource_busy")
    assert "was in use during the roll-back: process" in job.info


async def test_killed_in_the_middle_of_a_roll_back_it_is_resumed_and_clean(
    local_zone: LocalZone, tmp_path: Path
) -> None:
    """kill -9, resumed right, `qemu-img check` clean."""
    image = create(tmp_path / "disk.qcow2", 64 * MIB)
    write(image, *(f"write -P {number + 1} {number}M 1M" for number in range(64)))
    disk = await add(local_zone, image)
    snapshot_id, before = await back_up(local_zone, disk), content_of(image)
    write(image, *(f"write -P {200 - number} {number}M 1M" for number in range(64)))
    job = await local_zone.apply_snapshots([snapshot_id], safety_snapshot_name="before")
    with anyio.fail_after(PATIENCE_SECONDS):
        while (await local_zone.list_volumes(ResourceFilter())).items[0].status != "pending":
            await anyio.lowlevel.checkpoint()
    pid = worker_pid(local_zone.folder)
    assert pid
    os.kill(pid, signal.SIGKILL)
    job = await finish(local_zone, job)
    assert job.is_successful, job.info
    assert content_of(image) == before
    assert is_clean(image)


async def test_the_format_is_said_and_never_guessed(unused_zone: LocalZone, tmp_path: Path) -> None:
    image = create(tmp_path / "disk.qcow2", SIZE)
    with pytest.raises(BadRequest, match="is a qcow2 image") as refusal:
        await unused_zone.add_resource(image)
    assert "--format qcow2" in (refusal.value.hint or "")
    raw = tmp_path / "disk.raw"
    raw.write_bytes(bytes(MIB))
    with pytest.raises(NotUsable, match="not a qcow2 image"):
        await add(unused_zone, raw)


async def test_exports_can_be_qcow2_and_their_ending_says_so(
    zone_folder: Path, nursery: Nursery, tmp_path: Path
) -> None:
    FolderCatalogue(zone_folder).close()
    nursery.start(zone_folder)
    image = make_image(tmp_path / "disk.img", SIZE)
    async with aclosing(LocalZone(zone_folder, export_format="qcow2")) as zone:
        machine = await zone.add_resource(image, "web", ResourceType.INSTANCE)
        volume = await zone.add_resource(make_image(tmp_path / "data.img", SIZE, seed=2), "data")
        job = await succeed(zone, await zone.capture_instance(await back_up(zone, machine.id), "golden"))
        (golden,) = (await zone.list_images(ResourceFilter())).items
        assert (golden.path, golden.size_bytes, golden.format) == (job.details["path"], SIZE, "qcow2")
        assert content_of(Path(golden.path or "")) == image.read_bytes()
        job = await succeed(zone, await zone.create_volume(await back_up(zone, volume.id), "copy"))
        path = Path(job.details["path"])
        assert path.suffix == ".qcow2"
        assert is_clean(path)
        assert content_of(path) == (tmp_path / "data.img").read_bytes()
        (copy,) = (await zone.list_volumes(ResourceFilter(ids=job.resource_ids))).items
        assert (copy.size_bytes, copy.format) == (SIZE, "qcow2")
        assert (await zone.look_at_own_file(copy.id)).path == str(path)
        again = await back_up(zone, copy.id)
        write(path, "write -P 1 0 1M")
        await succeed(zone, await zone.apply_snapshots([again]))
        assert content_of(path) == (tmp_path / "data.img").read_bytes()


async def test_on_btrfs_and_xfs_a_running_machines_image_is_taken_at_an_instant(
    reflink_folder: Path, local_zone: LocalZone
) -> None:
    """A clone of the image: what its program writes meanwhile is not in it."""
    image = create(reflink_folder / "disk.qcow2", SIZE)
    write(image, "write -P 1 0 1M")
    before = content_of(image)
    disk = await add(local_zone, image)
    with holder(f"f = os.open({str(image)!r}, os.O_RDWR)"):
        snapshot_id = await back_up(local_zone, disk)
    assert (await get(local_zone, snapshot_id)).consistency == "instant"
    write(image, "write -P 2 0 1M")
    await succeed(local_zone, await local_zone.apply_snapshots([snapshot_id]))
    assert content_of(image) == before


@pytest.mark.parametrize("wait_seconds", few([0.002 * number for number in range(20)], 1))
async def test_killed_at_any_moment_the_roll_back_ends_right(
    wait_seconds: float, local_zone: LocalZone, tmp_path: Path
) -> None:
    image = create(tmp_path / "disk.qcow2", 16 * MIB)
    write(image, "write -P 1 0 16M")
    disk = await add(local_zone, image)
    snapshot_id, before = await back_up(local_zone, disk), content_of(image)
    write(image, *(f"write -P {number + 2} {number}M 1M" for number in range(16)))
    after = content_of(image)
    job = await local_zone.apply_snapshots([snapshot_id], safety_snapshot_name="before")
    with anyio.fail_after(PATIENCE_SECONDS):
        while (await local_zone.get_job(job.job_id)).status == "pending":
            await anyio.sleep(0.001)
    await anyio.sleep(wait_seconds * 10)
    if pid := worker_pid(local_zone.folder):
        os.kill(pid, signal.SIGKILL)
    job = await finish(local_zone, job)
    assert job.is_successful, job.info
    assert content_of(image) == before != after
    assert is_clean(image)
