"""Running machines: an instant of all their disks while they write, incrementals by QEMU's bitmaps, and no harm to the guest."""

import json
import os
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from snapshot_mcp.contract.errors import NotUsable, ResourceBusy
from snapshot_mcp.providers.local import LocalZone
from snapshot_mcp.providers.local.formats import Form, Machine
from snapshot_mcp.providers.local.machine import filters
from snapshot_mcp.providers.local.machine.disk import InstantContent
from snapshot_mcp.providers.local.machine.monitor import MonitorError
from tests.disks import MIB, back_up, finish, get, make_image, succeed
from tests.machines import DEVICES, BareMachine, make_stamper, needs_machines, stamp_of
from tests.marks import long
from tests.patience import PATIENCE_SECONDS
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


def noting(work: Callable[..., Any], first: Callable[[], object]) -> Callable[..., Any]:
    """The same work, before which something happens."""

    def wrapped(*arguments: Any) -> Any:
        first()
        return work(*arguments)

    return wrapped


def once(work: Callable[[], object]) -> Callable[[], None]:
    """The work, when it is asked for the first time; others wait for it."""
    lock, left = threading.Lock(), [work]

    def wrapped() -> None:
        with lock:
            while left:
                left.pop()()

    return wrapped


async def wait_until(is_so: Callable[[], bool]) -> None:
    with anyio.fail_after(PATIENCE_SECONDS):
        while not is_so():
            await anyio.sleep(0.01)


async def add(zone: LocalZone, path: Path, machine: BareMachine, form: str = "raw", agent: str = "") -> str:
    return (await zone.add_resource(path, form=Form(form, (), Machine(str(machine.socket), agent)))).id


async def exported(zone: LocalZone, snapshot_id: str) -> bytes:
    with tempfile.TemporaryFile() as file:
        await zone.read_out(snapshot_id, file.fileno())
        file.seek(0)
        return file.read()


@pytest.mark.parametrize("form", ["raw", "qcow2"])
async def test_a_running_machine_is_backed_up_in_full_and_by_what_it_wrote(
    form: str, local_zone: LocalZone, tmp_path: Path
) -> None:
    """Full, incremental by bitmap; nothing is left in QEMU but bitmaps of restore points."""
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


async def test_an_image_with_internal_snapshots_gets_no_bitmap_which_would_keep_it_from_being_reverted(
    local_zone: LocalZone, tmp_path: Path
) -> None:
    path = disk_of(tmp_path / "disk", "qcow2")
    qemu_img("snapshot", "-c", "inside", path)
    with BareMachine(tmp_path / "machine", (path, "qcow2")) as machine:
        disk = await add(local_zone, path, machine, "qcow2")
        for value in (1, 2):
            machine.write(f"write -P {value} 2M 64k")
            machine.flush()
            assert await exported(local_zone, await back_up(local_zone, disk)) == content(path, "qcow2")
            assert machine.bitmaps == []
        machine.quit()
    qemu_img("snapshot", "-a", "inside", path)


async def test_what_is_written_during_a_backup_is_not_in_it(
    here: LocalZone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = disk_of(tmp_path / "disk")
    with BareMachine(tmp_path / "machine", (path, "raw")) as machine:
        disk = await add(here, path, machine)
        before = path.read_bytes()
        monkeypatch.setattr(
            InstantContent, "read", noting(InstantContent.read, once(lambda: machine.write("write -P 9 0 4M")))
        )
        snapshot_id = await back_up(here, disk)
        assert path.read_bytes() != before
        assert await exported(here, snapshot_id) == before
        assert machine.left == []


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


async def test_a_block_device_of_a_running_machine(local_zone: LocalZone, tmp_path: Path) -> None:
    """It is registered while the machine is off: nothing else may have it open then."""
    if os.geteuid() != 0:
        pytest.skip("a loop device needs root")
    backing = disk_of(tmp_path / "backing")
    loop = subprocess.run(
        ["losetup", "--find", "--show", backing], check=True, capture_output=True, text=True
    ).stdout.strip()
    link = tmp_path / "by-id"
    link.symlink_to(loop)
    try:
        socket_path = tmp_path / "machine" / "qmp"
        disk = (await local_zone.add_resource(link, form=Form("", (), Machine(str(socket_path))))).id
        with BareMachine(tmp_path / "machine", (Path(loop), "raw"), drivers=["host_device"]) as machine:
            for value in (1, 2):
                machine.write(f"write -P {value} 2M 64k")
                machine.flush()
                before = Path(loop).read_bytes()
                snapshot_id = await back_up(local_zone, disk)
                assert await exported(local_zone, snapshot_id) == before
                assert (await get(local_zone, snapshot_id)).consistency == "instant"
    finally:
        subprocess.run(["losetup", "--detach", loop], check=True)


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


@pytest.mark.parametrize("count", [2, long(20)])
async def test_all_disks_of_a_machine_are_one_instant(count: int, local_zone: LocalZone, tmp_path: Path) -> None:
    """A guest writes a counter to one disk, then to the other, as fast as it can."""
    paths = [tmp_path / "first", tmp_path / "second"]
    for path in paths:
        path.write_bytes(bytes(4 * MIB))
        make_stamper(path)
    with BareMachine(tmp_path / "machine", *((one, "raw") for one in paths), boots=True) as machine:
        disks = [await add(local_zone, path, machine) for path in paths]
        await wait_until(lambda: stamp_of(paths[1].read_bytes()) > 0)
        stamps = []
        for _ in range(count):
            job = await succeed(local_zone, await local_zone.create_snapshots(disks, ""))
            first, second = [stamp_of(await exported(local_zone, one)) for one in job.resource_ids]
            assert 0 <= first - second <= 1
            stamps.append(first)
            for one in job.resource_ids:
                assert (await get(local_zone, one)).consistency == "instant"
        assert stamps == sorted(set(stamps)), "it went on all the time"
        assert machine.left == []


async def test_two_machines_are_two_instants_and_it_is_said(local_zone: LocalZone, tmp_path: Path) -> None:
    paths = [disk_of(tmp_path / "first"), disk_of(tmp_path / "second")]
    with (
        BareMachine(tmp_path / "one", (paths[0], "raw")) as one,
        BareMachine(tmp_path / "two", (paths[1], "raw")) as two,
    ):
        disks = [await add(local_zone, path, machine) for path, machine in zip(paths, (one, two), strict=True)]
        job = await succeed(local_zone, await local_zone.create_snapshots(disks, ""))
        for snapshot_id in job.resource_ids:
            assert (await get(local_zone, snapshot_id)).consistency == "instant, each disk for itself"
        assert one.left == two.left == []


class Agent(threading.Thread):
    """A guest's agent: what it was asked, in order; `is_frozen` as the guest is."""

    def __init__(self, path: Path, *, is_deaf: bool = False) -> None:
        super().__init__(daemon=True)
        self.asked: list[str] = []
        self.is_frozen, self._is_deaf = False, is_deaf
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(os.path.relpath(path))
        self._listener.listen()
        self.start()

    def run(self) -> None:
        with self._listener:
            while True:
                connection, _ = self._listener.accept()
                with connection, connection.makefile("rb") as lines:
                    for line in lines:
                        self._answer(connection, json.loads(line.rpartition(b"\xff")[2]))

    def _answer(self, connection: socket.socket, request: dict[str, Any]) -> None:
        self.asked.append(command := request["execute"])
        if self._is_deaf and command != "guest-sync-delimited":
            connection.shutdown(socket.SHUT_RDWR)
            return
        self.is_frozen = command == "guest-fsfreeze-freeze" or (self.is_frozen and command == "guest-sync-delimited")
        answer = request["arguments"]["id"] if command == "guest-sync-delimited" else 1
        begin = b"\xff" if command == "guest-sync-delimited" else b""
        connection.sendall(begin + json.dumps({"return": answer}).encode() + b"\n")


async def test_a_guest_with_an_agent_is_frozen_for_the_instant_and_no_longer(
    here: LocalZone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    agent = Agent(tmp_path / "agent")
    was_frozen = []
    monkeypatch.setattr(
        filters, "take_instant", noting(filters.take_instant, lambda: was_frozen.append(agent.is_frozen))
    )
    path = disk_of(tmp_path / "disk")
    with BareMachine(tmp_path / "machine", (path, "raw")) as machine:
        disk = await add(here, path, machine, agent=str(tmp_path / "agent"))
        found = await get(here, await back_up(here, disk))
    assert (found.consistency, was_frozen, agent.is_frozen) == ("frozen", [True], False)
    assert [one for one in agent.asked if "sync" not in one] == ["guest-fsfreeze-freeze", "guest-fsfreeze-thaw"]


async def test_a_guest_is_thawed_whatever_happens_to_the_instant(
    here: LocalZone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    agent = Agent(tmp_path / "agent")
    path = disk_of(tmp_path / "disk")

    def fail(*_: object) -> None:
        raise MonitorError("no")

    monkeypatch.setattr(filters, "take_instant", fail)
    with BareMachine(tmp_path / "machine", (path, "raw")) as machine:
        disk = await add(here, path, machine, agent=str(tmp_path / "agent"))
        job = await finish(here, await here.create_snapshots([disk], ""))
        assert job.error
        assert "QEMU refused what the backup" in job.error.message
        assert agent.asked[-1] == "guest-fsfreeze-thaw"
        assert machine.left == []


async def test_a_guest_whose_agent_fails_is_backed_up_as_of_an_instant(
    local_zone: LocalZone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Agent(tmp_path / "agent", is_deaf=True)
    path = disk_of(tmp_path / "disk")
    with BareMachine(tmp_path / "machine", (path, "raw")) as machine:
        disk = await add(local_zone, path, machine, agent=str(tmp_path / "agent"))
        assert (await get(local_zone, await back_up(local_zone, disk))).consistency == "instant"
