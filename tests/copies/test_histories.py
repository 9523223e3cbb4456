"""200 random histories: what `restore-from` gives on an empty home is right to the byte, or is said to be missing."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.copies.copyist import Copyist
from tests.copies.history import History
from tests.copies.radosgw import bucket_in, object_gateway
from tests.copies.wire import Wire, wire_to

pytestmark = [pytest.mark.anyio, pytest.mark.long]

HISTORIES: Final = 200


@pytest.fixture(scope="session")
def copyist() -> Iterator[Copyist]:
    with Copyist() as one:
        yield one


@pytest.fixture(scope="session")
def wire() -> Iterator[Wire]:
    """The way to a real S3 server."""
    with object_gateway() as url, wire_to(url) as wire:
        yield wire


@pytest.mark.parametrize("seed", range(HISTORIES))
async def test_whatever_happens_a_copied_restore_point_comes_back_or_is_said_to_be_missing(
    request: pytest.FixtureRequest, tmp_path: Path, copyist: Copyist, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    wire = request.getfixturevalue("wire") if seed % 2 else None
    if wire:
        to = bucket_in(wire.url, f"history-{seed}")
    else:
        (tmp_path / "nas").mkdir()
        to = {"to": str(tmp_path / "nas")}
    history = History(seed, tmp_path, to, seed % 4 >= 2, wire, copyist, monkeypatch)
    try:
        await history.run()
    except BaseException as error:
        error.add_note("\n".join(history.told))
        raise
    finally:
        await history.close()
