"""Copies in a folder and in an S3-compatible store: moto by default, a real one with `-m long` (tests/copies/README.md)."""

import logging
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.copies.lab import CopyLab
from tests.marks import long

KEYS = {"access_key_id": "AKIATEST", "secret_access_key": "canary-of-the-secret-key"}


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """The URL of an S3-compatible server on loopback."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_endpoint: str, tmp_path: Path) -> dict[str, Any]:
    """A new bucket: the settings of a copy in it."""
    name = f"b{abs(hash(tmp_path))}"
    httpx.put(f"{s3_endpoint}/{name}").raise_for_status()
    return {"to": f"s3://{name}/copies/of-us", "endpoint": s3_endpoint, **KEYS}


@pytest.fixture
def nas(tmp_path: Path) -> dict[str, Any]:
    """A folder on another disk: the settings of a copy in it."""
    (tmp_path / "nas").mkdir()
    return {"to": str(tmp_path / "nas")}


@pytest.fixture
async def make_lab(tmp_path: Path) -> AsyncIterator[Callable[..., CopyLab]]:
    """Makes homes with a copy; they are closed at the end."""
    made: list[CopyLab] = []

    def make(to: dict[str, Any], *, is_sealed: bool = True, name: str = "home", **more: Any) -> CopyLab:
        made.append(CopyLab(tmp_path / name, to, is_sealed, **more))
        return made[-1]

    yield make
    for lab in made:
        await lab.zone.aclose()


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Where a copy goes."""
    return dict(request.getfixturevalue("nas" if request.param == "folder" else "bucket"))


@pytest.fixture
def lab(make_lab: Callable[..., CopyLab], nas: dict[str, Any]) -> CopyLab:
    """A home whose copy is a sealed folder."""
    return make_lab(nas)


sealed_first = pytest.mark.parametrize("is_sealed", [True, long(False)])
