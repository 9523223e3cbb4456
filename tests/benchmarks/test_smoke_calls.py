"""The benchmark of calls runs over both ways in both eras; its bars are for a quiet machine."""

import pytest

from tests.benchmarks.bench_calls import BARS, CALLERS, VERSIONS, measure

pytestmark = [pytest.mark.anyio, pytest.mark.long]


@pytest.mark.parametrize("era", VERSIONS)
async def test_every_way_is_measured_against_an_empty_tool(era: str) -> None:
    result = await measure(era, rounds=1, calls=32)
    for way in ("stdio", "http"):
        for callers in CALLERS:
            assert all(0 < result[f"{way}, {callers} callers, {tool} ratio"] < 100 for tool in BARS)
