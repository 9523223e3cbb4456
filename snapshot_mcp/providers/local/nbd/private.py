"""Connections to a server of our own, or of a QEMU, that nobody else can make."""

import socket
import tempfile
from pathlib import Path


def connected(count: int) -> tuple[socket.socket, list[socket.socket]]:
    """Return a listening socket and connections to it, to which no other can be added: its name is gone before anybody serves it.

    For that moment it lies in a folder of mode 0700. Raises OSError.
    """
    listener, sockets = socket.socket(socket.AF_UNIX), [socket.socket(socket.AF_UNIX) for _ in range(count)]
    try:
        with tempfile.TemporaryDirectory(prefix="snapshot-mcp-") as folder:
            address = str(Path(folder, "nbd"))
            listener.bind(address)
            listener.listen(count)
            for one in sockets:
                one.connect(address)
    except BaseException:
        for one in (listener, *sockets):
            one.close()
        raise
    return listener, sockets
