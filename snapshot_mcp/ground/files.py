"""Files that only their owner can read, written atomically and synced. Blocking."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def make_private_folder(path: Path) -> None:
    """Create the folder and its missing parents; the folder gets mode 0700."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)


def create_private(path: Path) -> None:
    """Create the file with mode 0600 unless it exists.

    An existing file is never opened: closing it would drop the locks (SQLite's) that this process has on it.
    """
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o600))


@contextmanager
def written_beside(path: Path, content: bytes) -> Iterator[Path]:
    """Yield a synced temporary file (0600) in the same folder, to be renamed or linked; a kill leaves `.*.partial`."""
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
    """Write the file atomically with mode 0600. Its name is durable after `fsync_folder`."""
    with written_beside(path, content) as temporary:
        temporary.replace(path)


def fsync_folder(path: Path) -> None:
    """Sync a folder's names to the disk; does nothing outside POSIX."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
