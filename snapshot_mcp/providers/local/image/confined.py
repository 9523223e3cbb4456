"""Run a command under limits, as a script of its own: it ends with whoever started it, and cannot grow, run on or write more.

`python -I -S confined.py PARENT MEMORY_BYTES CPU_SECONDS FILES FILE_BYTES COMMAND…`; FILE_BYTES -1 is no limit. It imports
nothing of ours, since it is started for every disk.
"""

import ctypes
import os
import resource
import signal
import sys

SET_PARENT_DEATH_SIGNAL, SET_NO_NEW_PRIVILEGES = 1, 38


def main(parent: int, memory_bytes: int, cpu_seconds: int, files: int, file_bytes: int, *command: str) -> None:
    """Limit this process and become the command."""
    libc = ctypes.CDLL(None)
    libc.prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGTERM, 0, 0, 0)
    libc.prctl(SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit("its parent has ended")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 10))
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    if file_bytes >= 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    os.execv(command[0], command)


if __name__ == "__main__":
    _limits = [int(one) for one in sys.argv[1:6]]
    main(_limits[0], _limits[1], _limits[2], _limits[3], _limits[4], *sys.argv[6:])
