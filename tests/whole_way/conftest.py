"""A scene of its own for each test."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.whole_way import workers
from tests.whole_way.scene import Scene, open_scene
from tests.whole_way.workers import Nursery


@pytest.fixture
async def scene(tmp_path: Path, nursery: Nursery) -> AsyncIterator[Scene]:
    """A zone with a worker that lives, and a disk."""
    async with open_scene(tmp_path) as scene:
        nursery.start(scene.zone_folder)
        yield scene
        workers.kill(scene.zone_folder)
