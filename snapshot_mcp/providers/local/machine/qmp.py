"""`QmpMonitor`: QEMU's monitor on a UNIX socket, by the library `qemu.qmp`. It and asyncio are imported when first needed.

The connection stays open while anything of ours is in QEMU: it keeps other clients out, and reads the events away.
"""

import errno
import logging
import os
import socket
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from snapshot_mcp.ground.closing import Closing
from snapshot_mcp.providers.local.machine.monitor import (
    ANSWER_SECONDS,
    MAX_ANSWER_BYTES,
    MonitorAbsent,
    MonitorError,
    MonitorGone,
    refuse_other_commands,
)

if TYPE_CHECKING:
    from qemu.qmp import QMPClient

CONNECT_SECONDS: Final = 3.0
"""How long QEMU may take for its greeting. While another client has the socket there is none."""

_CREDENTIALS: Final = struct.Struct("3i")


def connect(path: Path, timeout_seconds: float = CONNECT_SECONDS) -> socket.socket:
    """Connect to a UNIX socket, also one whose path is longer than an address may be. Raises OSError."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    one = socket.socket(socket.AF_UNIX)
    try:
        one.settimeout(timeout_seconds)
        one.connect(f"/proc/self/fd/{folder}/{path.name}")
    except BaseException:
        one.close()
        raise
    finally:
        os.close(folder)
    return one


class QmpMonitor(Closing):
    """The monitor at a socket. Raises MonitorGone if there is none, or if another program is connected to it."""

    def __init__(self, path: Path) -> None:
        try:
            one = connect(path)
        except OSError as error:
            is_absent = error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ECONNREFUSED}
            kind = MonitorAbsent if is_absent else MonitorGone
            raise kind(f"nothing answers at {str(path)!r} ({error.strerror or error})") from None
        self.pid = _CREDENTIALS.unpack(one.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))[0]
        one.setblocking(False)
        from anyio.from_thread import start_blocking_portal

        self._is_open = True
        self._entered = start_blocking_portal()
        self._portal = self._entered.__enter__()
        try:
            self._client = self._portal.call(_open, one, str(path))
        except BaseException:
            self._entered.__exit__(None, None, None)
            one.close()
            raise

    def execute(self, command: str, arguments: Mapping[str, Any] | None = None, fd: int = -1) -> Any:
        """Send a command and wait for its answer."""
        refuse_other_commands(command)
        if not self._is_open:
            raise MonitorGone("the connection to QEMU is closed")
        return self._portal.call(_execute, self._client, command, dict(arguments or {}), fd)

    def close(self) -> None:
        """Disconnect."""
        if self._is_open:
            self._is_open = False
            try:
                self._portal.call(_close, self._client)
            finally:
                self._entered.__exit__(None, None, None)


async def _open(one: socket.socket, path: str) -> "QMPClient":
    import anyio
    from qemu.qmp import QMPClient
    from qemu.qmp.error import QMPError

    client = QMPClient(readbuflen=MAX_ANSWER_BYTES)
    client.logger = logging.Logger("qemu.qmp", logging.CRITICAL + 1)  # it would log what QEMU says
    client.events.event_filter = lambda event: False  # nobody reads them, and they would pile up
    try:
        with anyio.fail_after(CONNECT_SECONDS):
            await client.connect(one)
    except TimeoutError:
        raise MonitorGone(f"another program is connected to {path!r}, or QEMU hangs") from None
    except (QMPError, OSError, EOFError) as error:
        raise MonitorGone(f"what answers at {path!r} is not the monitor of a QEMU ({error})") from None
    return client


async def _execute(client: "QMPClient", command: str, arguments: dict[str, Any], fd: int) -> Any:
    import anyio
    from qemu.qmp import ExecInterruptedError, ExecuteError
    from qemu.qmp.error import QMPError

    try:
        with anyio.fail_after(ANSWER_SECONDS):
            if fd >= 0:
                client.send_fd_scm(fd)
            return await client.execute(command, arguments)
    except ExecuteError as error:
        raise MonitorError(error) from None
    except ExecInterruptedError:
        raise MonitorGone("QEMU ended, or closed its monitor") from None
    except TimeoutError:
        raise MonitorGone(f"QEMU did not answer {command} within {ANSWER_SECONDS:.0f} s") from None
    except (QMPError, OSError, EOFError) as error:
        raise MonitorGone(f"the connection to QEMU failed ({error})") from None


async def _close(client: "QMPClient") -> None:
    import anyio
    from qemu.qmp.error import QMPError

    try:
        with anyio.move_on_after(CONNECT_SECONDS):
            await client.disconnect()
    except (QMPError, OSError, EOFError):
        pass  # it is gone
