"""Fixtures that every part's tests share."""

import os
import shutil
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from blockbuster import blockbuster_ctx

from snapshot_mcp.providers.local import LocalZone
from snapshot_mcp.providers.local.worker import run as run_worker
from tests.disks import worker_pid

NEEDS_SETTINGS = "not configured: "
"""Begins the reason of a skip that a missing setting causes (a real provider's address); any other is a missing tool."""

_skipped: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if not reason.startswith(NEEDS_SETTINGS):
            _skipped.append(f"{report.nodeid}: {reason}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In CI every tool is there: a test that was skipped for want of one has failed."""
    if os.environ.get("CI") and _skipped:
        print("\nSkipped in CI, which counts as failed:", *_skipped, sep="\n  ")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


ON_THE_LOOP = [
    "snapshot_mcp.server",
    "snapshot_mcp.service",
    "snapshot_mcp.jobs",
    "snapshot_mcp.providers.anchcloud",
    "snapshot_mcp.providers.local.zone",
]
"""The async shells; what they hand to threads may block there."""
BEFORE_THE_LOOP = ["snapshot_mcp.server.build", "snapshot_mcp.server.prompts", "snapshot_mcp.server.face"]
"""Building a server and its guard reads the prompts and the machine's boot id; nothing waits yet."""


@pytest.fixture(autouse=True)
def event_loop_is_never_blocked() -> Iterator[None]:
    """Code of ours that waits for a disk, a lock or a process on the event loop fails the test (house_style.md, 21)."""
    with blockbuster_ctx(scanned_modules=ON_THE_LOOP, excluded_modules=BEFORE_THE_LOOP) as watched:
        for name in ("threading.Lock.acquire", "threading.Lock.acquire_lock"):
            # The tracer shares a lock with the other threads that it measures: not ours, and held by chance.
            watched.functions[name].can_block_in("coverage/collector.py", {"lock_data", "unlock_data"})
        # One stat of a file a request: microseconds, and a thread for it would cost every request more.
        watched.functions["os.stat"].can_block_in("service/key_file.py", {"stamp"})
        watched.functions["os.stat"].can_block_in("guard/guard.py", {"_has_records"})
        yield


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def zone_folder(tmp_path: Path) -> Iterator[Path]:
    """A zone's folder; the worker that a test started on it ends with the test."""
    folder = tmp_path / "home" / "zones" / "local"
    yield folder
    end_worker(folder)


def end_worker(folder: Path) -> None:
    """End the worker that a test started, by its id: an idle one sees that its folder is gone, a busy one is told."""
    if pid := worker_pid(folder):
        os.kill(pid, signal.SIGTERM)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
async def local_zone(zone_folder: Path) -> AsyncIterator[LocalZone]:
    zone = LocalZone(zone_folder)
    yield zone
    await zone.aclose()


@pytest.fixture
async def here(zone_folder: Path) -> AsyncIterator[LocalZone]:
    """A zone whose worker is a thread of this process, so that a test can reach into it."""
    worker = threading.Thread(target=run_worker, args=(zone_folder, 3600.0), daemon=True)
    zone_folder.mkdir(parents=True)
    worker.start()
    zone = LocalZone(zone_folder)
    yield zone
    await zone.aclose()
    shutil.rmtree(zone_folder)
    worker.join(5)
