"""The benchmark of copies runs and says what it should; its figures are for people (README, "Development")."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long


def test_the_copies_benchmark_measures_every_step(tmp_path: Path) -> None:
    words = ["--size", "24", "--rounds", "1", "--json", "--moto", "--no-peers", "--folder", str(tmp_path)]
    command = [sys.executable, "-m", "tests.benchmarks.bench_copies", *words]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    found = json.loads(done.stdout)
    kinds = {"folder", "folder age", "s3", "s3 age"}
    wanted = kinds | {f"{one}: worker MiB" for one in kinds} | {"cp", "restore folder", "restore s3"}
    assert set(found["figures"]) == wanted | {"lists for nothing new", "lists needed"}
    assert found["ratios"]["lists for nothing new / lists needed"] == 1
