"""The zone's benchmark runs and says what it should; its figures are for people (ARCHITECTURE.md, "Targets")."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long


def test_the_zone_benchmark_measures_every_step(tmp_path: Path) -> None:
    script = Path(__file__).parent / "bench_zone.py"
    command = [
        sys.executable,
        str(script),
        "--size",
        "24",
        "--rounds",
        "1",
        "--json",
        "--no-peers",
        "--folder",
        str(tmp_path),
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    found = json.loads(done.stdout)
    assert set(found["figures"]) == {"limit", "full", "incremental", "roll-back", "export", "scattered"}
    assert found["skipped"] == ["borg", "restic"]
    assert found["ratios"]["full / limit"] > 0
