"""Processes of our own that outlive whoever starts them, one for each lock file. POSIX only; blocking.

A process holds an exclusive lock on its file while it runs, so the kernel knows whether there is one, even after a SIGKILL. It
inherits the lock from the process that starts it, so that no second one can start in between.
"""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

MAX_LOG_BYTES: Final = 1 << 20

_START: Final = """
import os, sys
if os.fork(): os._exit(0)
from importlib import import_module
getattr(import_module(sys.argv[1]), sys.argv[2])(*sys.argv[3:])
"""
"""Forks before importing anything, so that the parent exits within milliseconds and the process has none."""


def is_possible() -> bool:
    """Whether this system has what such a process needs."""
    return os.name == "posix"


def take_lock(path: Path) -> int | None:
    """Return a descriptor that holds the file's lock, None if another process has it. Raises OSError."""
    import fcntl

    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def start_detached(
    main: tuple[str, str], arguments: Sequence[str], *, keep: Sequence[int], log: Path, environ: Mapping[str, str]
) -> None:
    """Start a process without parent, terminal and session that calls the function `main` (a module and its name).

    It inherits the descriptors in `keep`. Raises OSError or subprocess.SubprocessError if it does not start.
    """
    log_fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with os.fdopen(log_fd, "ab") as log_file:
        subprocess.run(
            [sys.executable, "-P", "-c", _START, *main, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log_file,
            cwd="/",
            env=environ,
            pass_fds=keep,
            start_new_session=True,
            check=True,
            timeout=30,
        )


def say_who(lock_fd: int, *others: int) -> None:
    """Write this process's id into its lock file, and those of others that hold it too behind it."""
    os.ftruncate(lock_fd, 0)
    os.pwrite(lock_fd, "".join(f"{one}\n" for one in (os.getpid(), *others)).encode(), 0)


def shorten_log(log: Path) -> None:
    """Empty the log if it has become too long."""
    if log.exists() and log.stat().st_size > MAX_LOG_BYTES:
        os.truncate(log, 0)
