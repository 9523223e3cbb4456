"""Running machines for tests: a QEMU without an operating system, whose device writes what `qemu-io` is told to."""

import json
import os
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import pytest

from tests.patience import PATIENCE_SECONDS
from tests.qemu import MISSING

QEMU = "qemu-system-x86_64"

needs_machines = pytest.mark.skipif(
    bool(MISSING) or not shutil.which(QEMU), reason=f"{QEMU} not installed (Debian: qemu-system-x86, qemu-utils)"
)

DEVICES = {
    "virtio-blk": ("virtio-blk-pci,drive=d{0},id=v{0}", "/machine/peripheral/v{0}/virtio-backend"),
    "scsi-hd": ("scsi-hd,bus=scsi.0,drive=d{0},id=v{0}", "v{0}"),
    "ide-hd": ("ide-hd,bus=ide.{0},drive=d{0},id=v{0}", "v{0}"),
    "nvme": ("nvme,serial=x,drive=d{0},id=v{0}", ""),
    "iothread": ("virtio-blk-pci,drive=d{0},id=v{0},iothread=io", "/machine/peripheral/v{0}/virtio-backend"),
}
"""How a device is given to QEMU, and its path in QEMU's object model; `{0}` is the number of the disk."""


STAMP_SECTOR = 2048

STAMPING = (
    b"\x31\xc0\x8e\xd8\x8e\xd0\xbc\x00\x7c"  # xor ax, ax; mov ds, ax; mov ss, ax; mov sp, 0x7c00
    b"\x66\xff\x06\x00\x80"  # again: inc dword [0x8000]
    b"\xbe\x80\x7c\xb8\x00\x43\xb2\x80\xcd\x13"  # mov si, 0x7c80; mov ax, 0x4300; mov dl, 0x80; int 0x13
    b"\xbe\x80\x7c\xb8\x00\x43\xb2\x81\xcd\x13"  # the same with the second disk
    b"\xeb\xe5"  # jmp again
).ljust(0x80, b"\0") + struct.pack("<BBHHHQ", 16, 0, 1, 0x8000, 0, STAMP_SECTOR)
"""A boot sector: an endless writer of a counter, to the first disk and then to the second."""


def make_stamper(path: Path) -> None:
    """Make a disk boot as that writer."""
    with path.open("r+b") as file:
        file.write(STAMPING.ljust(510, b"\0") + b"\x55\xaa")
        file.seek(STAMP_SECTOR * 512)
        file.write(bytes(512))


def stamp_of(content: bytes) -> int:
    return int.from_bytes(content[STAMP_SECTOR * 512 :][:4], "little")


class Monitor:
    """A plain client of QEMU's monitor: one line, one answer."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(PATIENCE_SECONDS)
        folder = os.open(path.parent, os.O_PATH)
        try:
            self._socket.connect(f"/proc/self/fd/{folder}/{path.name}")
        except OSError:
            self._socket.close()
            raise
        finally:
            os.close(folder)
        self._file = self._socket.makefile("rb")
        self._file.readline()
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: Any) -> Any:
        words = {name.replace("_", "-"): value for name, value in arguments.items()}
        self._socket.sendall(json.dumps({"execute": command, "arguments": words}).encode() + b"\n")
        while True:
            answer = json.loads(self._file.readline())
            if "error" in answer:
                raise RuntimeError(answer["error"]["desc"])
            if "return" in answer:
                return answer["return"]

    def close(self) -> None:
        self._file.close()
        self._socket.close()


class BareMachine:
    """A paused QEMU with disks, each a path and a format. `socket` is the monitor for the program, another one is the test's."""

    def __init__(
        self,
        folder: Path,
        *disks: tuple[Path, str],
        devices: Sequence[str] = (),
        extra: Sequence[str] = (),
        boots: bool = False,
        drivers: Sequence[str] = (),
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.socket, own = folder / "qmp", folder / "own"
        for old in (self.socket, own):
            old.unlink(missing_ok=True)
        words = [
            *([] if boots else ["-S"]),
            "-machine",
            "q35",
            "-accel",
            "tcg",
            "-nodefaults",
            "-display",
            "none",
            "-m",
            "64",
        ]
        words += ["-object", "iothread,id=io", "-device", "virtio-scsi-pci,id=scsi"]
        for name in (self.socket.name, own.name):
            words += ["-qmp", f"unix:{name},server=on,wait=off"]
        self._paths = []
        for number, (path, form) in enumerate(disks):
            device, qom = DEVICES[devices[number] if devices else "virtio-blk"]
            file = {
                "driver": drivers[number] if drivers else "file",
                "filename": str(path),
                "node-name": f"f{number}",
                "discard": "unmap",
            }
            node = {"driver": form, "file": f"f{number}", "node-name": f"d{number}", "discard": "unmap"}
            words += ["-blockdev", json.dumps(file), "-blockdev", json.dumps(node)]
            words += ["-device", device.format(number) + (f",bootindex={number}" if boots else "")]
            self._paths.append(qom.format(number))
        self._said = folder / "said"
        with self._said.open("wb") as said:
            self.process = subprocess.Popen([QEMU, *words, *extra], cwd=folder, stdin=subprocess.DEVNULL, stdout=said)
        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                self.monitor = Monitor(own)
                break
            except OSError:
                assert self.process.poll() is None, "QEMU did not start"
                assert time.monotonic() < until
                time.sleep(0.005)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def io(self, command: str, disk: int = 0) -> str:
        """Have the device itself do it, such as `write -P 5 0 1M`, and return what it says."""
        said = self.monitor.execute("human-monitor-command", command_line=f'qemu-io -d {self._paths[disk]} "{command}"')
        assert isinstance(said, str)
        return said

    def write(self, *commands: str, disk: int = 0) -> None:
        for command in commands:
            said = self.io(command, disk)
            assert "ops;" in said or not said.strip(), said

    def flush(self, disk: int = 0) -> None:
        self.io("flush", disk)

    @property
    def nodes(self) -> list[str]:
        return [one["node-name"] for one in self.monitor.execute("query-named-block-nodes", flat=True)]

    @property
    def bitmaps(self) -> list[str]:
        found = self.monitor.execute("query-named-block-nodes", flat=True)
        return [bitmap["name"] for one in found for bitmap in one.get("dirty-bitmaps", [])]

    @property
    def left(self) -> list[object]:
        """What of the program's is in it, but for bitmaps of restore points."""
        ours = [one for one in (*self.nodes, *self.bitmaps) if one.startswith("snapshot-mcp-") and "-ss-" not in one]
        devices = {one["inserted"]["node-name"] for one in self.monitor.execute("query-block") if "inserted" in one}
        served = []
        with suppress(RuntimeError):
            self.monitor.execute("nbd-server-stop")
            served = ["an NBD server"]
        return [*ours, *(devices - set(self.nodes)), *served, *self._scratch_files()]

    def _scratch_files(self) -> list[str]:
        """The files without a name that hold data; a paused QEMU closes them only when it goes on."""
        found = [one for one in Path(f"/proc/{self.process.pid}/fd").iterdir() if int(one.name) > 2]
        return [str(one.readlink()) for one in found if "deleted" in str(one.readlink()) and one.stat().st_size]

    def quit(self) -> None:
        """Shut it down as a machine does, so that it closes its images."""
        with suppress(OSError, ValueError):
            self.monitor.execute("quit")
        self.process.wait(PATIENCE_SECONDS)
        self.monitor.close()

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.monitor.close()
