"""Runs a command of the program and tells, for each line on stdin, of the TCP connections that it has accepted.

python -m tests.ground.accepted ARGUMENT…     one line of JSON on stdout: the clients' ports and their TCP_NODELAY
"""

import json
import os
import socket
import stat
import sys
import threading
from contextlib import suppress
from pathlib import Path


def nodelay_by_port() -> dict[int, bool]:
    """TCP_NODELAY of each connected socket of this process, by the port of the other side (Linux)."""
    found = {}
    for path in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            if not stat.S_ISSOCK(path.stat().st_mode):
                continue
            with socket.socket(fileno=os.dup(int(path.name))) as one:
                if one.family in {socket.AF_INET, socket.AF_INET6}:
                    found[one.getpeername()[1]] = bool(one.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
    return found


def _tell() -> None:
    for _ in sys.stdin:
        print(json.dumps(nodelay_by_port()), flush=True)


if __name__ == "__main__":
    from snapshot_mcp.cli import main

    threading.Thread(target=_tell, daemon=True).start()
    sys.exit(main(sys.argv[1:]))
