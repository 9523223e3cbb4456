"""Fixtures of the server's tests; the classes are in `lab`."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.server.lab import Lab


@pytest.fixture(params=["auto", "legacy"])
def mode(request: pytest.FixtureRequest) -> str:
    """Both protocol eras."""
    return str(request.param)


@pytest.fixture
def lab(tmp_path: Path, zone_folder: Path) -> Iterator[Lab]:
    """A fresh home, which is gone afterwards; `zone_folder` ends the worker."""
    yield Lab(tmp_path)
    shutil.rmtree(tmp_path / "home", ignore_errors=True)


@pytest.fixture
def make_lab(tmp_path: Path, zone_folder: Path) -> Iterator[Callable[..., Lab]]:
    """Homes with variables of their own."""
    yield lambda **extra: Lab(tmp_path, {f"SNAPSHOT_MCP_{key}": value for key, value in extra.items()})
    shutil.rmtree(tmp_path / "home", ignore_errors=True)
