"""The processes of approval pages: which one a home has, and the end of those that a test leaves behind."""

import os
import signal
from contextlib import suppress
from pathlib import Path

from snapshot_mcp.guard.page.process import LOCK_NAME
from snapshot_mcp.providers.local.holders import is_locked


def page_pid(home: Path) -> int | None:
    """The page's process, None where there is none (or it has not said its id yet)."""
    pids = page_pids(home)
    return pids[0] if pids else None


def page_pids(home: Path) -> list[int]:
    """The page's process and its keeper, [] where there is none."""
    lock = home / LOCK_NAME
    return [int(one) for one in lock.read_text().split()] if is_locked(lock) else []


def end_pages(folder: Path) -> None:
    """End the pages of all homes in a folder, each by its id."""
    for lock in folder.rglob(LOCK_NAME):
        for pid in reversed(page_pids(lock.parent)):  # the keeper first, or there is another page
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
