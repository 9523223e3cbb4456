"""Fixtures of the server's tests; the classes are in `lab`."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.server.lab import Lab
from tests.whole_way.workers import Nursery


@pytest.fixture(params=["auto", "legacy"])
def mode(request: pytest.FixtureRequest) -> str:
    """Both protocol eras."""
    return str(request.param)


@pytest.fixture
def lab(tmp_path: Path, zone_folder: Path, nursery: Nursery) -> Iterator[Lab]:
    """A fresh home, which is gone afterwards; `zone_folder` ends the worker."""
    yield Lab(tmp_path, nursery=nursery)
    shutil.rmtree(tmp_path / "home", ignore_errors=True)


@pytest.fixture
def make_lab(tmp_path: Path, zone_folder: Path, nursery: Nursery) -> Iterator[Callable[..., Lab]]:
    """Homes with variables of their own."""

    def make(**extra: str) -> Lab:
        return Lab(tmp_path, {f"SNAPSHOT_MCP_{key}": value for key, value in extra.items()}, nursery)

    yield make
    shutil.rmtree(tmp_path / "home", ignore_errors=True)
