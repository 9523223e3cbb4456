"""The tour's folder: made where there is space, and removed at the end together with the worker that it has."""

import os
import shutil
import signal
import tempfile
from pathlib import Path
from time import monotonic, sleep

from snapshot_mcp.contract.errors import BadRequest, StorageFull
from snapshot_mcp.contract.text import format_bytes

SCRATCH_BYTES = 1 << 30
"""The free space that the tour needs."""
WORKER_END_SECONDS = 5.0


def make_scratch() -> Path:
    """Create the folder. Raises BadRequest, StorageFull."""
    try:
        folder = tempfile.gettempdir()
        free = shutil.disk_usage(folder).free
        if free >= SCRATCH_BYTES:
            return Path(tempfile.mkdtemp(prefix="snapshot-mcp-tour-"))
    except OSError as error:
        message = f"The tour needs a folder for its scratch disk: {error.strerror}."
        raise BadRequest(message, hint="Set TMPDIR to a folder that this user can write to.") from None
    message = f"The tour needs {format_bytes(SCRATCH_BYTES)}, but {folder} has only {format_bytes(free)} free."
    raise StorageFull(message, hint="Set TMPDIR to a folder with more space.")


def clean_up(scratch: Path) -> None:
    """Remove the folder; the worker ends when its folder is gone, and is killed if it does not."""
    pids = [int(text) for lock in scratch.glob("home/zones/*/worker.lock") if (text := lock.read_text().strip())]
    shutil.rmtree(scratch, ignore_errors=True)
    deadline = monotonic() + WORKER_END_SECONDS
    while any(map(_is_alive, pids)) and monotonic() < deadline:
        sleep(0.05)
    for pid in filter(_is_alive, pids):
        os.kill(pid, signal.SIGTERM)
    shutil.rmtree(scratch, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
