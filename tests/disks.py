"""Disk images for tests, the end of a job, and the worker behind it."""

import fcntl
import os
import random
import signal
from pathlib import Path

import anyio

from snapshot_mcp.contract.models import Job, Snapshot, SnapshotFilter
from snapshot_mcp.contract.provider import Provider
from snapshot_mcp.providers.local.worker import LOCK_NAME
from tests.patience import PATIENCE_SECONDS

MIB = 1 << 20


def make_image(path: Path, size_bytes: int = 4 * MIB, seed: int = 1) -> Path:
    """A raw image with random, compressible, zero and hole regions."""
    chance = random.Random(seed)
    with path.open("wb") as file:
        file.truncate(size_bytes)
        quarter = size_bytes // 4
        file.write(chance.randbytes(quarter))
        file.write(bytes(quarter // 2))
        file.seek(2 * quarter + 4096)
        file.write(b"a line of a log file, repeated\n" * (quarter // 62))
    return path


def change(path: Path, size_bytes: int, seed: int = 2, count: int = 4) -> None:
    """Overwrite `size_bytes` of the image in `count` places."""
    chance = random.Random(seed)
    length = path.stat().st_size
    with path.open("r+b") as file:
        for _ in range(count):
            file.seek(chance.randrange(0, max(1, length - size_bytes // count)))
            file.write(chance.randbytes(size_bytes // count))


def free_bytes(folder: Path) -> int:
    """The room on a folder's filesystem."""
    usage = os.statvfs(folder)
    return usage.f_bavail * usage.f_frsize


def fill(folder: Path, leave: int = 0) -> Path:
    """Take all the room of a filesystem but `leave` bytes."""
    filler = folder / "filler"
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free_bytes(folder) - leave)
    return filler


def worker_pid(folder: Path) -> int | None:
    """The living worker's process, None where there is none (or it has not said its id yet)."""
    return holder_of(folder / LOCK_NAME)


def holder_of(lock: Path) -> int | None:
    """The process that holds a lock file, None where there is none (or it has not said its id yet)."""
    try:
        with lock.open("r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(file.read() or 0) or None
    except FileNotFoundError:
        pass
    return None


def end_process(lock: Path) -> None:
    """End the process that holds a lock file, by its id."""
    if pid := holder_of(lock):
        os.kill(pid, signal.SIGTERM)


async def finish(zone: Provider, job: Job, timeout_seconds: float = PATIENCE_SECONDS) -> Job:
    """The job at its end, whatever that is."""
    with anyio.fail_after(timeout_seconds):
        while not (job := await zone.get_job(job.job_id)).is_finished:
            await anyio.sleep(0.01)
    return job


async def succeed(zone: Provider, job: Job, timeout_seconds: float = PATIENCE_SECONDS) -> Job:
    job = await finish(zone, job, timeout_seconds)
    assert job.is_successful, job.info
    return job


async def back_up(zone: Provider, resource_id: str, name: str = "", *, is_full: bool = False) -> str:
    """Create a snapshot of one resource and return its id."""
    job = await succeed(zone, await zone.create_snapshots([resource_id], name, is_full=is_full))
    return job.resource_ids[0]


async def get(zone: Provider, snapshot_id: str) -> Snapshot:
    (snapshot,) = (await zone.list_snapshots(SnapshotFilter(snapshots=(snapshot_id,), verbose=1))).items
    return snapshot


async def ids(zone: Provider, **query: object) -> set[str]:
    page = await zone.list_snapshots(SnapshotFilter(limit=100, **query))  # type: ignore[arg-type]
    return {snapshot.snapshot_id for snapshot in page.items}
