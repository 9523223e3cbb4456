"""The benchmark of waits runs both ways and loses none; its figures are for people (ARCHITECTURE.md, "Targets")."""

import pytest

from tests.benchmarks.bench_waits import run

pytestmark = [pytest.mark.anyio, pytest.mark.long]


@pytest.mark.parametrize("way", ["local", "rest"])
async def test_every_wait_is_told_over_one_stream(way: str) -> None:
    """One stream or one poller upstream (ARCHITECTURE.md, "Targets")."""
    found = await run(way, 12, 0.2)
    assert found["streams"] == 1
    assert found["single reads"] + found["lists"] < 30
    assert found["p50 ms"] <= found["p99 ms"] <= found["max ms"]
