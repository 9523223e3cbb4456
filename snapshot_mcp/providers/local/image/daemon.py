"""`ImageServer`: `qemu-storage-daemon` with one image, over connections that nobody else can make; and `qemu-img` beside it.

The socket lies in a folder of mode 0700 for the moment in which it is bound and connected to, and is unlinked before the daemon
starts. QEMU opens `/proc/self/fd/N`, the files that were opened and compared here. It runs under limits (`confined`), and one
that stalls is given up. What it says is untrusted text.
"""

import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from snapshot_mcp.contract.errors import NotUsable, ResourceBusy
from snapshot_mcp.contract.text import MESSAGE_CHARACTERS, clean_text
from snapshot_mcp.ground.closing import Closing
from snapshot_mcp.providers.local.capture import THREADS
from snapshot_mcp.providers.local.image import confined
from snapshot_mcp.providers.local.image.layers import QCOW2, Layout, OpenBase
from snapshot_mcp.providers.local.nbd.disk import NbdDisk
from snapshot_mcp.providers.local.nbd.private import connected

MEMORY_BYTES: Final = 2 << 30
"""Address space; QEMU's caches for an image take up to 33 MiB a layer, its threads and libraries most of this."""

OPEN_FILES: Final = 256
CPU_SECONDS: Final = 600
BYTES_PER_CPU_SECOND: Final = 20 << 20
"""A tenth of what QEMU decompresses in a second, so that only one that hangs meets the limit."""

LEAKS: Final = 3
"""The exit status of `qemu-img check` for an image that only wastes space."""

STOP_SECONDS: Final = 20.0
SAID_BYTES: Final = 4096


def find_tool(name: str) -> str:
    """Return the path of a program of QEMU. Raises NotUsable, naming the package."""
    if found := shutil.which(name):
        return found
    raise NotUsable(
        f"The program {name} is missing, which reads and writes qcow2 images.",
        hint="Install QEMU's tools: apt install qemu-utils qemu-system-common (Debian, Ubuntu), or the package of qemu-img and"
        " qemu-storage-daemon of your system.",
    )


def require_tools() -> None:
    """Raise NotUsable, naming the package, if a program is missing that a qcow2 image needs."""
    for name in ("qemu-storage-daemon", "qemu-img"):
        find_tool(name)


def node(layout: Layout, fd: int, bases: Sequence[OpenBase], *, is_writable: bool) -> dict[str, Any]:
    """Return QEMU's description of the disk: a driver and an open file for each layer, and nothing left to its header."""
    below: dict[str, Any] | None = None
    for one in reversed(bases):
        below = _layer(one.base.format, one.fd, below, is_writable=False)
    return _layer(layout.format, fd, below, is_writable=is_writable)


def _layer(form: str, fd: int, below: dict[str, Any] | None, *, is_writable: bool) -> dict[str, Any]:
    file = {
        "driver": "file",
        "filename": f"/proc/self/fd/{fd}",
        "read-only": not is_writable,
        "locking": "on"
        if is_writable
        else "off",  # what is only read is held by a lease, which keeps no machine from starting
        "discard": "unmap",
    }
    layer: dict[str, Any] = {"driver": form, "file": file, "read-only": not is_writable, "discard": "unmap"}
    return layer | ({"backing": below} if form == QCOW2 else {})


def _command(virtual_bytes: int, *command: str, file_bytes: int = -1) -> list[str]:
    seconds = CPU_SECONDS + virtual_bytes // BYTES_PER_CPU_SECOND
    limits = (os.getpid(), MEMORY_BYTES, seconds, OPEN_FILES, file_bytes)
    return [sys.executable, "-I", "-S", str(Path(confined.__file__)), *map(str, limits), *command]


_ENVIRONMENT: Final = {"PATH": os.defpath, "LC_ALL": "C"}


class ImageServer(Closing):
    """Serves a disk until it is closed; `disk` reads it, and writes it if that was asked for.

    Raises NotUsable (QEMU is missing, or cannot open the image), ResourceBusy (another QEMU has it open).
    """

    def __init__(
        self, layout: Layout, fd: int, bases: Sequence[OpenBase], label: str, *, is_writable: bool = False
    ) -> None:
        tool, name = find_tool("qemu-storage-daemon"), secrets.token_hex(16)
        described = node(layout, fd, bases, is_writable=is_writable) | {"node-name": "disk"}
        listener, sockets = connected(THREADS)
        try:
            command = _command(
                layout.virtual_bytes,
                tool,
                *("--blockdev", json.dumps(described)),
                *("--nbd-server", f"addr.type=fd,addr.str={listener.fileno()},max-connections=0"),
                *("--export", f"type=nbd,id=e,node-name=disk,name={name},writable={'on' if is_writable else 'off'}"),
                file_bytes=-1 if is_writable else 0,
            )
            self._process = subprocess.Popen(
                command,
                pass_fds=[listener.fileno(), fd, *(one.fd for one in bases)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=_ENVIRONMENT,
                process_group=0,
            )
        except BaseException:
            for one in sockets:
                one.close()
            raise
        finally:
            listener.close()
        try:
            self.disk = NbdDisk(sockets, name)
        except OSError as error:
            raise _refused(label, self._end() or str(error)) from None
        except BaseException:
            self._end()
            raise

    @property
    def pid(self) -> int:
        """The daemon's process."""
        return self._process.pid

    def close(self) -> None:
        """End the connections and the daemon, which writes out what it has."""
        self.disk.close()
        self._end()

    def _end(self) -> str:
        """End the daemon, and return what it said."""
        self._process.terminate()
        try:
            _, said = self._process.communicate(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            _, said = self._process.communicate()
        return _cleaned(said)


def _refused(label: str, said: str) -> NotUsable | ResourceBusy:
    if "lock" in said:
        return ResourceBusy(
            f"{label} is in use by another program of QEMU: {said}.",
            hint="Shut the machine down and try again.",
        )
    return NotUsable(f"QEMU cannot open {label}: {said}.", hint="Check the image with `qemu-img check`.")


def _cleaned(said: bytes) -> str:
    lines = said[:SAID_BYTES].decode(errors="replace").strip().splitlines()
    return clean_text("; ".join(lines).removeprefix("qemu-storage-daemon: "), MESSAGE_CHARACTERS).rstrip(".")


def check_image(layout: Layout, fd: int, bases: Sequence[OpenBase], label: str) -> None:
    """Have QEMU check an image's tables, without changing it. Raises NotUsable for a damaged one; leaked space is no damage.

    Nothing is ever repaired: with QEMU 7.2 `qemu-img check -r leaks` loses the internal snapshots of an image with bitmaps.
    """
    described = node(layout, fd, bases, is_writable=False)
    status, said = _run_qemu_img(layout, fd, bases, ["check", "-q", f"json:{json.dumps(described)}"])
    if status not in (0, LEAKS):
        raise NotUsable(
            f"The image of {label} is damaged: {said}.",
            hint="Nothing was changed. Copy the image, then repair it: qemu-img check -r all IMAGE",
        )


def create_image(layout: Layout, fd: int, name: str) -> None:
    """Make an open, empty file a qcow2 image. Raises NotUsable."""
    command = ["create", "-q", "-f", QCOW2, f"/proc/self/fd/{fd}", str(layout.virtual_bytes)]
    status, said = _run_qemu_img(layout, fd, (), command)
    if status:
        raise NotUsable(
            f"QEMU cannot make the image {name}: {said}.", hint='Set `export_format` to "raw", and export again.'
        )


def resize_image(
    layout: Layout, fd: int, bases: Sequence[OpenBase], label: str, size_bytes: int, *, may_shrink: bool
) -> None:
    """Change the size of the disk in an image that is held. Raises NotUsable."""
    described = node(layout, fd, bases, is_writable=True)
    shrink = ["--shrink"] if may_shrink else []
    command = ["resize", "-q", *shrink, f"json:{json.dumps(described)}", str(size_bytes)]
    status, said = _run_qemu_img(layout, fd, bases, command)
    if status:
        raise NotUsable(
            f"QEMU cannot change the size of {label} to {size_bytes} bytes: {said}.",
            hint="Its content was not changed. Export the restore point to a new volume instead.",
        )


def _run_qemu_img(layout: Layout, fd: int, bases: Sequence[OpenBase], command: list[str]) -> tuple[int, str]:
    """Run `qemu-img` on open files, and return its exit status and what it said."""
    done = subprocess.run(
        _command(layout.virtual_bytes, find_tool("qemu-img"), *command),
        pass_fds=[fd, *(one.fd for one in bases)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=_ENVIRONMENT,
        check=False,
    )
    return done.returncode, _cleaned(done.stderr or done.stdout)
