"""Files for their owner alone, written whole and brought to the disk. Blocking."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def make_private_folder(path: Path) -> None:
    """Create the folder, and those above it, where they are missing; a new one has mode 0700."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)


def create_private(path: Path) -> None:
    """Create the file with mode 0600 unless it exists.

    An existing file is never opened: closing it again would drop the locks that this process has on it (SQLite's).
    """
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o600))


@contextmanager
def written_beside(path: Path, content: bytes) -> Iterator[Path]:
    """Yield a synced temporary file (mode 0600) beside `path`, to be renamed or linked; what is left is removed.

    A process that is killed leaves `.*.partial` behind.
    """
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name.lstrip('.')}-", suffix=".partial", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def replace_private(path: Path, content: bytes) -> None:
    """Write the file whole or not at all, with mode 0600. Its name is durable after `fsync_folder`."""
    with written_beside(path, content) as temporary:
        temporary.replace(path)


def fsync_folder(path: Path) -> None:
    """Bring a folder's names to the disk, where the system can (POSIX)."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
