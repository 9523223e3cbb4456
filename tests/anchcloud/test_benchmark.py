"""The benchmark of the REST client runs; its figures are for a quiet machine."""

import pytest

from tests.benchmarks.bench_rest import run

pytestmark = [pytest.mark.anyio, pytest.mark.long]


async def test_the_benchmark_measures_both_sides() -> None:
    """A small run of it."""
    result = await run(lists=20, creates=8, concurrency=4, rounds=2)
    assert set(result) == {"list", "create and wait"}
    assert all(rate > 0 for rates in result.values() for rate in rates.values())
    assert all(set(rates) == {"bare httpx", "snapshot-mcp"} for rates in result.values())
