"""The processes of approval pages: which one a home has, and the end of those that a test leaves behind."""

import os
import signal
from contextlib import suppress
from pathlib import Path

from snapshot_mcp.guard.page.process import LOCK_NAME
from snapshot_mcp.providers.local.holders import is_locked


def page_pid(home: Path) -> int | None:
    """The page's process, None where there is none (or it has not said its id yet)."""
    lock = home / LOCK_NAME
    return int(lock.read_text() or 0) or None if is_locked(lock) else None


def end_pages(folder: Path) -> None:
    """End the pages of all homes in a folder, each by its id."""
    for lock in folder.rglob(LOCK_NAME):
        if pid := page_pid(lock.parent):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
