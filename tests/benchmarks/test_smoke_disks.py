"""The benchmark of other disks runs and says what it should; its figures are for people (ARCHITECTURE.md, "Targets")."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long


def test_the_benchmark_of_disks_measures_every_ratio(tmp_path: Path) -> None:
    script = Path(__file__).parent / "bench_disks.py"
    command = [
        sys.executable,
        str(script),
        "--size",
        "24",
        "--times",
        "2",
        "--rounds",
        "1",
        "--json",
        "--folder",
        str(tmp_path),
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    found = json.loads(done.stdout)
    assert {"full", "limit", "export", "peak memory"} <= set(found["figures"])
    assert found["ratios"]["full / limit"] > 0
