"""Fixtures that every part's tests share."""

import os
import shutil
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from snapshot_mcp.providers.local import LocalZone
from snapshot_mcp.providers.local.worker import LOCK_NAME, is_running
from snapshot_mcp.providers.local.worker import run as run_worker


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
    if is_running(folder):
        os.kill(int((folder / LOCK_NAME).read_text()), signal.SIGTERM)
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
