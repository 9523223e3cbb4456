"""The large zone's benchmark runs and says what it should; that costs do not grow is `tests/local/test_catalogue.py`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long


def test_the_large_zone_benchmark_measures_every_query(tmp_path: Path) -> None:
    script = Path(__file__).parent / "bench_large_zone.py"
    options = ["--large", "2000", "--small", "500", "--rounds", "1", "--json", "--folder", str(tmp_path)]
    done = subprocess.run([sys.executable, str(script), *options], check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    assert {"by id", "by resource", "by root", "status available", "type full", "open"} <= set(found["ratios"])
    assert set(found["seconds"]["large"]) - set(found["ratios"]) >= {"search, nothing"}
    assert all(value > 0 for value in found["ratios"].values())
