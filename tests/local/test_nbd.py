"""The NBD client: right over a real server, and refusing in bounded time whatever a hostile one sends."""

import os
import random
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshot_mcp.providers.local.nbd.disk import NbdDisk
from tests.disks import MIB, make_image
from tests.patience import PATIENCE_SECONDS

SIZE = 64 << 10
CONTENT = random.Random(3).randbytes(4096)

needs_daemon = pytest.mark.skipif(
    not shutil.which("qemu-storage-daemon"), reason="qemu-storage-daemon is not installed (Debian: qemu-system-common)"
)


def greeting(flags: int = 3) -> bytes:
    return b"NBDMAGIC" + b"IHAVEOPT" + struct.pack(">H", flags)


def option(number: int, kind: int, body: bytes = b"") -> bytes:
    return struct.pack(">QIII", 0x3E889045565A9, number, kind, len(body)) + body


def negotiated(size: int = SIZE, block: int = 1, flags: int = 0x65) -> bytes:
    """What a server sends until the disk is open."""
    return b"".join(
        (
            greeting(),
            option(8, 1),
            option(10, 4, struct.pack(">I", 7) + b"base:allocation"),
            option(10, 1),
            option(7, 3, struct.pack(">HQH", 0, size, flags)),
            option(7, 3, struct.pack(">HIII", 3, block, 4096, 32 * MIB)),
            option(7, 1),
        )
    )


def chunk(cookie: int, kind: int, body: bytes = b"", flags: int = 1) -> bytes:
    return struct.pack(">IHHQI", 0x668E33EF, flags, kind, cookie, len(body)) + body


def data(offset: int, content: bytes) -> bytes:
    return struct.pack(">Q", offset) + content


def hole(offset: int, length: int) -> bytes:
    return struct.pack(">QI", offset, length)


def extents(*pairs: tuple[int, int], context: int = 7) -> bytes:
    return struct.pack(">I", context) + b"".join(struct.pack(">II", *pair) for pair in pairs)


READ = chunk(1, 1, data(0, CONTENT[:1024]), flags=0) + chunk(1, 2, hole(1024, 3072))
STATUS = chunk(2, 5, extents((4096, 0), (SIZE - 4096, 3)))
ZEROED = struct.pack(">IIQ", 0x67446698, 0, 3)
GOOD = negotiated() + READ + STATUS + ZEROED


def talk(stream: bytes) -> tuple[bytes, list[tuple[int, int]]]:
    """Read, ask for extents and write zeros; the server has said everything beforehand."""
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(stream)
        theirs.shutdown(socket.SHUT_WR)
        with NbdDisk([ours], "a", timeout_seconds=2.0) as disk:
            found = disk.read(4096, 0), list(disk.data_extents(0, SIZE))
            disk.write_zeros(0, 4096)
            return found


def test_what_a_good_server_says_is_understood() -> None:
    assert talk(GOOD) == (CONTENT[:1024] + bytes(3072), [(0, 4096)])


HOSTILE = {
    "silence": b"",
    "an old server": b"NBDMAGIC" + b"\0\0\x42\x02\x81\x86\x12\x53" + bytes(200),
    "no fixed newstyle": greeting(0),
    "no structured replies": greeting() + option(8, 0x80000001),
    "an option's reply of 4 GiB": greeting() + struct.pack(">QIII", 0x3E889045565A9, 8, 1, 0xFFFFFFFF),
    "endless replies to an option": greeting() + option(8, 1) + option(10, 4, b"\0\0\0\1x") * 1000,
    "a reply to another option": greeting() + option(7, 1),
    "no such export": greeting() + option(8, 1) + option(10, 1) + option(7, 0x80000006, b"\x1b[2Jnone"),
    "no size": greeting() + option(8, 1) + option(10, 1) + option(7, 1),
    "an absurd size": negotiated(size=(1 << 64) - 1),
    "a block size of three": negotiated(block=3),
    "a block size of nothing": negotiated(block=0),
    "another cookie": negotiated() + chunk(9, 1, data(0, CONTENT)),
    "data before the start": negotiated() + chunk(1, 1, struct.pack(">q", -512) + CONTENT),
    "data beyond the end": negotiated() + chunk(1, 1, data(512, CONTENT)),
    "data of 4 GiB": negotiated() + struct.pack(">IHHQI", 0x668E33EF, 1, 1, 1, 0xFFFFFFFF),
    "too little data": negotiated() + chunk(1, 1, data(0, CONTENT[:512])),
    "data twice": negotiated() + chunk(1, 1, data(0, CONTENT[:2048]), flags=0) + chunk(1, 2, hole(1024, 2048)),
    "a hole without length": negotiated() + chunk(1, 2, hole(0, 0)),
    "a chunk too short for its offset": negotiated() + chunk(1, 1, b"1234"),
    "a simple reply to a read": negotiated() + struct.pack(">IIQ", 0x67446698, 0, 1) + CONTENT,
    "an unknown chunk": negotiated() + chunk(1, 99, b"12345678"),
    "endless empty chunks": negotiated() + chunk(1, 0, flags=0) * 10,
    "an error that is too long": negotiated() + struct.pack(">IHHQI", 0x668E33EF, 1, 0x8001, 1, 0xFFFFFFF0),
    "an error without a message": negotiated() + chunk(1, 0x8001, struct.pack(">IH", 5, 500)),
    "no extents": negotiated() + READ + chunk(2, 5, struct.pack(">I", 7)),
    "empty extents": negotiated() + READ + chunk(2, 5, extents((0, 0))),
    "extents beyond what was asked": negotiated() + READ + chunk(2, 5, extents((SIZE, 0), (SIZE, 0))),
    "extents of another context": negotiated() + READ + chunk(2, 5, extents((SIZE, 0), context=8)),
    "an answer to a write with data": negotiated() + READ + STATUS + chunk(3, 1, data(0, CONTENT)),
    "the end in the middle": GOOD[:-5],
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_server_is_refused(what: str) -> None:
    with pytest.raises(OSError, match=r".") as refusal:
        talk(HOSTILE[what])
    assert "\x1b" not in str(refusal.value)


@given(st.data())
def test_a_mutated_conversation_ends_in_an_error_or_in_what_was_asked(choice: st.DataObject) -> None:
    """Bytes flipped, cut, repeated or put in anywhere: the result has the right form, or there is an OSError."""
    stream = bytearray(GOOD)
    for _ in range(choice.draw(st.integers(1, 4))):
        at = choice.draw(st.integers(0, max(0, len(stream) - 1)))
        match choice.draw(st.sampled_from(["flip", "cut", "put in", "repeat", "end"])):
            case "flip":
                stream[at : at + 1] = bytes([choice.draw(st.integers(0, 255))])
            case "cut":
                del stream[at : at + choice.draw(st.integers(1, 40))]
            case "put in":
                stream[at:at] = choice.draw(st.binary(min_size=1, max_size=40))
            case "repeat":
                stream[at:at] = stream[at : at + choice.draw(st.integers(1, 200))]
            case "end":
                del stream[at:]
    try:
        content, found = talk(bytes(stream))
    except OSError:
        return
    assert len(content) == 4096
    ends = [end for pair in found for end in pair]
    assert ends == sorted(ends)
    assert all(0 <= start < end <= SIZE for start, end in found)


@given(st.binary(max_size=300))
def test_noise_ends_in_an_error(noise: bytes) -> None:
    for start in (b"", greeting(), negotiated()):
        with pytest.raises(OSError, match=r"."):
            talk(start + noise)


def test_a_server_that_stalls_or_drips_is_given_up() -> None:
    ours, theirs = socket.socketpair()

    def drip() -> None:
        with theirs:
            for byte in greeting() + bytes(1000):
                time.sleep(0.02)
                try:
                    theirs.send(bytes([byte]))
                except OSError:
                    return

    server = threading.Thread(target=drip)
    server.start()
    with pytest.raises(OSError, match=r"long|timed out|protocol"):
        NbdDisk([ours], timeout_seconds=0.2)
    server.join(PATIENCE_SECONDS)
    assert not server.is_alive()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, NbdDisk]]:
    """An image with holes behind QEMU's own server, over four connections."""
    image, address = make_image(tmp_path / "disk.img", 8 * MIB), tmp_path / "nbd"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(address))
    listener.listen(4)
    sockets = [socket.socket(socket.AF_UNIX) for _ in range(4)]
    for one in sockets:
        one.connect(str(address))
    command = ["qemu-storage-daemon", "--blockdev", f"driver=file,filename={image},node-name=d,discard=unmap"]
    command += ["--nbd-server", f"addr.type=fd,addr.str={listener.fileno()},max-connections=0"]
    command += ["--export", "type=nbd,id=e,node-name=d,name=a,writable=on"]
    server = subprocess.Popen(command, pass_fds=[listener.fileno()])
    listener.close()
    with NbdDisk(sockets, "a") as disk:
        yield image, disk
    server.terminate()
    server.wait(PATIENCE_SECONDS)


@needs_daemon
def test_a_real_servers_disk_is_the_images_bytes(served: tuple[Path, NbdDisk]) -> None:
    image, disk = served
    content = image.read_bytes()
    assert (disk.size_bytes, disk.is_read_only) == (len(content), False)
    with ThreadPoolExecutor(8) as pool:
        pieces = pool.map(lambda at: disk.read(65536, at), range(0, len(content), 65536))
    assert b"".join(pieces) == content
    assert disk.read(1000, len(content) - 100) == content[-100:] + bytes(900)
    found = list(disk.data_extents(12345, 7 * MIB))
    assert found
    assert found[0][0] >= 12345
    assert found[-1][1] <= 7 * MIB
    rest = bytearray(content[12345 : 7 * MIB])
    for start, end in found:
        rest[start - 12345 : end - 12345] = bytes(end - start)
    assert not rest.strip(b"\0")
    assert sum(end - start for start, end in found) < 5 * MIB


@needs_daemon
def test_what_is_written_over_nbd_is_in_the_image(served: tuple[Path, NbdDisk]) -> None:
    image, disk = served
    content = bytearray(image.read_bytes())
    chance = random.Random(4)
    for _ in range(30):
        at, length = chance.randrange(7 * MIB), chance.randrange(1, 300_000)
        if chance.random() < 0.5:
            disk.write(piece := chance.randbytes(length), at)
        else:
            disk.write_zeros(at, length)
            piece = bytes(length)
        content[at : at + length] = piece
    disk.flush()
    assert image.read_bytes() == content
    with pytest.raises(OSError, match=os.strerror(22)):
        disk.write(b"x", len(content))
    assert disk.read(4, 0) == content[:4], "a refused request does not end the connection"
