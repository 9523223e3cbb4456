"""`snapshot-mcp open`: a restore point served read-only over NBD, to real clients and to hostile ones (README, "One file …")."""

import json
import os
import random
import re
import shutil
import signal
import socket
import stat
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshot_mcp.providers.local import LocalZone
from snapshot_mcp.providers.local.nbd import server as nbd_server
from snapshot_mcp.providers.local.nbd.disk import NbdDisk
from snapshot_mcp.providers.local.nbd.server import NbdServer
from tests.cli.shell import COMMAND, environment
from tests.disks import MIB, back_up, change, make_image
from tests.local.test_nbd import needs_daemon
from tests.patience import PATIENCE_SECONDS
from tests.qemu import needs_qemu, qemu_img

pytestmark = pytest.mark.anyio

FIRST_REQUEST = b"\0\0\0\3" + struct.pack(">8sIIIsHH", b"IHAVEOPT", 7, 6, 0, b"", 0, 0)[:-3]


class Opened:
    """The command as a process, and where it serves."""

    def __init__(self, home: Path, snapshot_id: str, folder: Path, *words: str) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, "open", snapshot_id, "--json", *words],
            env=environment(home, TMPDIR=str(folder), XDG_RUNTIME_DIR=""),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout
        said = self.process.stdout.readline()
        assert said, self.process.stderr and self.process.stderr.read()
        self.told = json.loads(said)
        self.socket = Path(self.told["socket"])

    def close(self) -> tuple[int, str]:
        """End it as Ctrl-C does; return its status and what it says at the end."""
        self.process.send_signal(signal.SIGINT)
        _, errors = self.process.communicate(timeout=PATIENCE_SECONDS)
        return self.process.returncode, errors


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder whose path is short enough for a socket."""
    made = Path(subprocess.run(["mktemp", "-d"], capture_output=True, text=True, check=True).stdout.strip())
    yield made
    shutil.rmtree(made)


async def chain_of_three(zone: LocalZone, image: Path) -> tuple[str, str, bytes]:
    """A disk, its second restore point of three, and that one's content."""
    disk = await zone.add_resource(make_image(image, 9 * MIB + 512), "db")
    await back_up(zone, disk.id, "one")
    change(image, MIB, seed=3)
    content = image.read_bytes()
    wanted = await back_up(zone, disk.id, "two")
    change(image, MIB, seed=4)
    await back_up(zone, disk.id, "three")
    return disk.id, wanted, content


@needs_qemu
async def test_a_restore_point_reads_as_the_disk_of_its_moment_and_stays_though_it_is_deleted(
    local_zone: LocalZone, tmp_path: Path, folder: Path
) -> None:
    home = local_zone.folder.parents[1]
    _, wanted, content = await chain_of_three(local_zone, tmp_path / "db.img")
    opened = Opened(home, wanted, folder)
    try:
        assert opened.told["disk_bytes"] == len(content)
        assert stat.S_IMODE(opened.socket.stat().st_mode) == 0o600
        assert stat.S_IMODE(opened.socket.parent.stat().st_mode) == 0o700
        qemu_img("convert", "-f", "raw", "-O", "raw", opened.told["uri"], tmp_path / "out.raw")
        assert (tmp_path / "out.raw").read_bytes() == content
        extents = json.loads(qemu_img("map", "--output=json", opened.told["uri"]))
        assert {one["zero"] for one in extents} == {True, False}, "holes are told, so that nobody reads them"
        await local_zone.delete_snapshot(wanted)
        await back_up_is_gone(local_zone, wanted)
        with NbdDisk([connect(opened.socket) for _ in range(2)]) as disk:
            chance = random.Random(5)
            for _ in range(50):
                at, length = chance.randrange(0, len(content) - 70_000), chance.randrange(1, 70_000)
                assert disk.read(length, at) == content[at : at + length]
        done = subprocess.run(
            ["qemu-io", "-f", "raw", "-c", "write 0 512", opened.told["uri"]],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode, "it is read-only"
    finally:
        assert opened.close() == (0, "")
    assert not opened.socket.parent.exists()


async def back_up_is_gone(zone: LocalZone, snapshot_id: str) -> None:
    for _ in range(1000):
        if snapshot_id in await zone.purge():
            break
        time.sleep(0.01)
    assert not (zone.folder / "snapshots" / f"{snapshot_id}.snap").exists()


def connect(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.settimeout(PATIENCE_SECONDS)
    made.connect(str(path))
    return made


async def test_damage_is_an_error_and_never_other_bytes(local_zone: LocalZone, tmp_path: Path, folder: Path) -> None:
    home = local_zone.folder.parents[1]
    _, wanted, content = await chain_of_three(local_zone, tmp_path / "db.img")
    file = local_zone.folder / "snapshots" / f"{wanted}.snap"
    damaged = bytearray(file.read_bytes())
    at = len(damaged) // 2
    damaged[at] ^= 1
    file.write_bytes(damaged)
    opened = Opened(home, wanted, folder)
    failed = 0
    with NbdDisk([connect(opened.socket)]) as disk:
        for start in range(0, len(content) - 65536, 65536):
            try:
                assert disk.read(65536, start) == content[start : start + 65536]
            except OSError:
                failed += 1
    status, said = opened.close()
    assert 1 <= failed <= 2
    assert status == 1
    assert "does not match its hash" in said


async def test_with_once_it_ends_when_the_last_client_has_left(
    local_zone: LocalZone, tmp_path: Path, folder: Path
) -> None:
    _, wanted, content = await chain_of_three(local_zone, tmp_path / "db.img")
    opened = Opened(local_zone.folder.parents[1], wanted, folder, "--once", "--socket", str(folder / "s"))
    with NbdDisk([connect(folder / "s")]) as disk:
        assert disk.read(100, 0) == content[:100]
    opened.process.communicate(timeout=PATIENCE_SECONDS)
    assert opened.process.returncode == 0
    assert not (folder / "s").exists()
    (folder / "s").write_text("mine")
    done = subprocess.run(
        [*COMMAND, "open", wanted, "--socket", str(folder / "s")],
        env=environment(local_zone.folder.parents[1]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "No socket can be made" in done.stderr
    assert (folder / "s").read_text() == "mine"


EXT4_FILE = random.Random(11).randbytes(300_001)


async def point_with_a_file(zone: LocalZone, tmp_path: Path) -> str:
    """A restore point of an ext4 disk with the file /etc/hosts; the disk itself is wiped."""
    source = tmp_path / "content"
    (source / "etc").mkdir(parents=True)
    (source / "etc" / "hosts").write_bytes(EXT4_FILE)
    image = tmp_path / "db.img"
    with image.open("wb") as file:
        file.truncate(32 * MIB)
    subprocess.run(["/sbin/mkfs.ext4", "-q", "-d", str(source), str(image)], check=True)
    disk = await zone.add_resource(image, "db")
    wanted = await back_up(zone, disk.id, "one")
    image.write_bytes(bytes(32 * MIB))
    return wanted


@needs_qemu
async def test_a_file_is_taken_out_of_a_real_disk(local_zone: LocalZone, tmp_path: Path, folder: Path) -> None:
    opened = Opened(local_zone.folder.parents[1], await point_with_a_file(local_zone, tmp_path), folder)
    qemu_img("convert", "-f", "raw", "-O", "raw", opened.told["uri"], tmp_path / "disk")
    debugfs = ["/sbin/debugfs", "-R", f"dump /etc/hosts {tmp_path / 'hosts'}", str(tmp_path / "disk")]
    subprocess.run(debugfs, check=True, capture_output=True)
    assert opened.close() == (0, "")
    assert (tmp_path / "hosts").read_bytes() == EXT4_FILE


@pytest.mark.long
@needs_daemon
@pytest.mark.skipif(
    not os.access("/dev/fuse", os.W_OK) or not shutil.which("debugfs"), reason="needs /dev/fuse and debugfs"
)
async def test_a_file_is_taken_out_by_the_lines_of_readme_without_copying_the_disk(
    local_zone: LocalZone, tmp_path: Path, folder: Path
) -> None:
    """README, "One file out of a restore point"."""
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    section = readme.partition("### One file out of a restore point\n")[2].partition("\n#")[0]
    (first, second) = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    wanted = await point_with_a_file(local_zone, tmp_path)
    script = first.replace("snapshot-mcp", " ".join(COMMAND)).replace("SNAPSHOT", wanted).rstrip()
    lines = (
        f"cd {folder}; {script} &",
        "opened=$!",
        "until [ -S nbd ]; do sleep 0.1; done",
        second,
        f"while grep -q {folder}/disk /proc/mounts; do sleep 0.1; done",
        "kill $opened; wait",
    )
    done = subprocess.run(
        ["bash", "-e", "-c", "\n".join(lines)],
        env=environment(local_zone.folder.parents[1]),
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert (folder / "hosts").read_bytes() == EXT4_FILE, done.stderr


# A hostile client


class Zeros:
    """A disk of zeros."""

    size_bytes = 1 << 20

    def read(self, length: int, offset: int) -> bytes:
        return bytes(length)

    def extents(self, offset: int, length: int) -> Iterator[tuple[int, bool]]:
        yield length, True


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server in this process that gives a silent client a tenth of a second."""
    name = f"\0snapshot-mcp-test-{os.getpid()}"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(name)
    listener.listen(64)
    served = NbdServer(listener, Zeros(), frozenset({""}))
    before, nbd_server.NEGOTIATION_SECONDS = nbd_server.NEGOTIATION_SECONDS, 0.1
    thread = threading.Thread(target=served.serve)
    thread.start()
    yield name
    served.close()
    thread.join(PATIENCE_SECONDS)
    nbd_server.NEGOTIATION_SECONDS = before
    listener.close()
    assert not thread.is_alive()


OPTIONS = st.builds(
    lambda magic, number, length, body: (
        magic + struct.pack(">II", number, length if length is not None else len(body)) + body
    ),
    st.sampled_from([b"IHAVEOPT", b"IHAVEOPt", b"\0" * 8]),
    st.one_of(st.integers(0, 12), st.integers(0, (1 << 32) - 1)),
    st.one_of(st.none(), st.sampled_from([0, 1, 4096, 4097, (1 << 32) - 1])),
    st.one_of(
        st.binary(max_size=40),
        st.just(struct.pack(">I", 0) + struct.pack(">H", 0)),
        st.just(struct.pack(">II", 0, (1 << 32) - 1) + b"\0\0\0\x0fbase:allocation"),
    ),
)
REQUESTS = st.builds(
    lambda magic, flags, kind, at, length: struct.pack(">IHHQQI", magic, flags, kind, 7, at, length),
    st.sampled_from([0x25609513, 0]),
    st.integers(0, 65535),
    st.integers(0, 9),
    st.one_of(st.integers(0, 2 << 20), st.integers(0, (1 << 64) - 1)),
    st.one_of(st.integers(0, 2 << 20), st.integers(0, (1 << 32) - 1)),
)


@given(st.binary(max_size=4), st.lists(OPTIONS, max_size=6), st.lists(REQUESTS, max_size=6), st.binary(max_size=30))
def test_whatever_a_client_sends_the_next_one_is_served(
    address: str, flags: bytes, options: list[bytes], requests: list[bytes], rest: bytes
) -> None:
    go = b"IHAVEOPT" + struct.pack(">IIIH", 7, 6, 0, 0)
    hostile = socket.socket(socket.AF_UNIX)
    hostile.settimeout(PATIENCE_SECONDS)
    hostile.connect(address)
    with hostile:
        try:
            hostile.sendall(flags.ljust(4, b"\3") + b"".join(options) + go + b"".join(requests) + rest)
            hostile.shutdown(socket.SHUT_WR)
            received = 0
            while chunk := hostile.recv(1 << 20):
                received += len(chunk)
                assert received < 300 << 20
        except (BrokenPipeError, ConnectionResetError):
            pass
    good = socket.socket(socket.AF_UNIX)
    good.settimeout(PATIENCE_SECONDS)
    good.connect(address)
    with NbdDisk([good]) as disk:
        assert disk.read(10, (1 << 20) - 10) == bytes(10)


def test_silent_clients_keep_nobody_out(address: str) -> None:
    silent = []
    for _ in range(2 * nbd_server.MAX_CLIENTS):
        one = socket.socket(socket.AF_UNIX)
        one.connect(address)
        silent.append(one)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        good = socket.socket(socket.AF_UNIX)
        good.settimeout(PATIENCE_SECONDS)
        good.connect(address)
        try:
            with NbdDisk([good]) as disk:
                assert disk.read(10, 0) == bytes(10)
            break
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    for one in silent:
        one.close()
