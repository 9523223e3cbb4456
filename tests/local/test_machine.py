"""Running machines: an instant of all their disks while they write, incrementals by QEMU's bitmaps, and no harm to the guest."""

from pathlib import Path

import pytest

from snapshot_mcp.contract.errors import NotUsable, ResourceBusy
from snapshot_mcp.providers.local import LocalZone
from snapshot_mcp.providers.local.formats import Form, Machine
from tests.disks import MIB, back_up, get, make_image, succeed
from tests.machines import DEVICES, BareMachine, needs_machines
from tests.qemu import create, qemu_img

pytestmark = [pytest.mark.anyio, needs_machines]

SIZE = 16 * MIB


def disk_of(path: Path, form: str = "raw", seed: int = 1) -> Path:
    return make_image(path, SIZE, seed) if form == "raw" else create(path, SIZE)


def content(path: Path, form: str = "raw") -> bytes:
    """What the machine sees, while it runs, once it has flushed."""
    if form == "raw":
        return path.read_bytes()
    raw = path.with_name("converted")
    qemu_img("convert", "-U", "-f", form, "-O", "raw", path, raw)
    return raw.read_bytes()


async def add(zone: LocalZone, path: Path, machine: BareMachine, form: str = "raw", agent: str = "") -> str:
    return (await zone.add_resource(path, form=Form(form, (), Machine(str(machine.socket), agent)))).id


async def exported(zone: LocalZone, snapshot_id: str) -> bytes:
    job = await succeed(zone, await zone.create_volume(snapshot_id, "copy"))
    return Path(job.details["path"]).read_bytes()


@pytest.mark.parametrize("form", ["raw", "qcow2"])
async def test_a_running_machine_is_backed_up_in_full_and_by_what_it_wrote(
    form: str, local_zone: LocalZone, tmp_path: Path
) -> None:
    """Issue 13, Must show 1: full, incremental by bitmap; nothing is left in QEMU but bitmaps of restore points."""
    path = disk_of(tmp_path / "disk", form)
    contents = {}
    with BareMachine(tmp_path / "machine", (path, form)) as machine:
        machine.write("write -P 1 1M 300k", "write -P 2 9M 64k")
        disk = await add(local_zone, path, machine, form)
        for round_number in range(3):
            machine.flush()
            before = content(path, form)
            contents[snapshot_id := await back_up(local_zone, disk)] = before
            assert machine.left == []
            assert f"snapshot-mcp-{disk}-{snapshot_id}" in machine.bitmaps
            machine.write(f"write -P {round_number + 3} {round_number}M 70k", f"write -z {round_number + 8}M 64k")
        machine.quit()
    for snapshot_id, before in contents.items():
        assert (await get(local_zone, snapshot_id)).consistency == "instant"
        assert await exported(local_zone, snapshot_id) == before
    job = await succeed(local_zone, await local_zone.apply_snapshots([snapshot_id], safety_snapshot_name="before"))
    assert job.is_successful
    assert content(path, form) == before


async def test_an_incremental_reads_what_the_bitmap_names_and_believes_it_for_its_parent_alone(
    local_zone: LocalZone, tmp_path: Path
) -> None:
    """What is changed behind QEMU's back is in no bitmap: so it shows what was read."""
    path = disk_of(tmp_path / "disk")
    with BareMachine(tmp_path / "machine", (path, "raw")) as machine:
        disk = await add(local_zone, path, machine)
        first = await back_up(local_zone, disk)
        original = path.read_bytes()
        with path.open("r+b") as file:
            file.seek(12 * MIB)
            file.write(b"behind its back")
        machine.write("write -P 5 3M 64k")
        by_bitmap = await exported(local_zone, await back_up(local_zone, disk))
        assert by_bitmap == original[: 3 * MIB] + b"\5" * 65536 + original[3 * MIB + 65536 :]
        for name in machine.bitmaps:  # another program's backup, or a restart of a machine with a raw disk
            machine.monitor.execute("block-dirty-bitmap-remove", node="d0", name=name)
        machine.monitor.execute("block-dirty-bitmap-add", node="d0", name=f"snapshot-mcp-{disk}-{first}")
        assert await exported(local_zone, await back_up(local_zone, disk)) == path.read_bytes()


async def test_what_is_written_during_a_backup_is_not_in_it(
    here: LocalZone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = disk_of(tmp_path / "disk")
    with BareMachine(tmp_path / "machine", (path, "raw")) as machine:
        disk = await add(here, path, machine)
        before = path.read_bytes()
        monkeypatch.setattr(
            "snapshot_mcp.providers.local.machine.disk.InstantContent.read",
            _writing_first(machine, ["write -P 9 0 4M"]),
        )
        snapshot_id = await back_up(here, disk)
        assert path.read_bytes() != before
        assert await exported(here, snapshot_id) == before
        assert machine.left == []


def _writing_first(machine: BareMachine, commands: list[str]):  # type: ignore[no-untyped-def]
    """A read of the instant, before the first of which the guest writes."""
    from snapshot_mcp.providers.local.machine.disk import InstantContent

    read = InstantContent.read

    def wrapped(self: InstantContent, length: int, offset: int) -> bytes:
        while commands:
            machine.write(commands.pop())
        return read(self, length, offset)

    return wrapped


@pytest.mark.parametrize("device", [one for one in DEVICES if one != "nvme"])
async def test_each_kind_of_device_that_is_tried(device: str, local_zone: LocalZone, tmp_path: Path) -> None:
    path = disk_of(tmp_path / "disk")
    with BareMachine(tmp_path / "machine", (path, "raw"), devices=[device]) as machine:
        disk = await add(local_zone, path, machine)
        for value in (1, 2):
            machine.write(f"write -P {value} 2M 64k")
            before = path.read_bytes()
            assert await exported(local_zone, await back_up(local_zone, disk)) == before
        assert machine.left == []


async def test_a_device_that_was_never_tried_is_refused_by_name(unused_zone: LocalZone, tmp_path: Path) -> None:
    path = disk_of(tmp_path / "disk")
    with (
        BareMachine(tmp_path / "machine", (path, "raw"), devices=["nvme"]) as machine,
        pytest.raises(
            NotUsable, match=r"device of type .*; a running one is backed up only through virtio-blk, scsi-hd"
        ),
    ):
        await add(unused_zone, path, machine)


async def test_another_machines_monitor_and_another_format_are_refused(unused_zone: LocalZone, tmp_path: Path) -> None:
    path, other = disk_of(tmp_path / "disk"), disk_of(tmp_path / "other")
    with BareMachine(tmp_path / "machine", (path, "raw")) as machine:
        with pytest.raises(NotUsable, match="does not have the file"):
            await add(unused_zone, other, machine)
        path.rename(tmp_path / "aside")
        disk_of(path)  # the same name, and not the file that the machine has open
        with pytest.raises(NotUsable, match="does not have the file"):
            await add(unused_zone, path, machine)
    image = create(tmp_path / "image", SIZE)
    with (
        BareMachine(tmp_path / "machine", (image, "raw")) as machine,
        pytest.raises(NotUsable, match="registered as qcow2, and its machine uses it as 'raw'"),
    ):
        await add(unused_zone, image, machine, "qcow2")


async def test_a_monitor_that_another_program_has_is_said(
    unused_zone: LocalZone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("snapshot_mcp.providers.local.machine.qmp.CONNECT_SECONDS", 0.2)
    path = disk_of(tmp_path / "disk")
    with BareMachine(tmp_path / "machine", (path, "raw")):
        own = Machine(str(tmp_path / "machine" / "own"))
        with pytest.raises(ResourceBusy, match=r"another program is connected to .*own"):
            await unused_zone.add_resource(path, form=Form("raw", (), own))
    disk = (await unused_zone.add_resource(path, form=Form("raw", (), own))).id  # it does not run
    assert disk
