"""The start-up benchmark runs; its bar is for a quiet machine, so that here only the ratio's being one counts."""

import pytest

from tests.benchmarks.bench_startup import measure

pytestmark = pytest.mark.long


def test_the_startup_benchmark_measures_both() -> None:
    result = measure(1)
    assert result["empty start ms"] > 0
    assert 0 < result["ratio"] < 5
