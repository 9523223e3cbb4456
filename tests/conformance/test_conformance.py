"""The official conformance suite against the product's own server, in both protocol eras; what may fail is named in a file."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.hosts.programs import npm
from tests.server.conftest import lab as lab
from tests.server.lab import Lab

pytestmark = pytest.mark.long

HERE = Path(__file__).parent
BASELINE = HERE / "expected-failures.yml"
SUITE = "@modelcontextprotocol/conformance@0.2.0-alpha.12"
LEAST_CHECKS = {"2025-11-25": 80, "2026-07-28": 145, "every extension": 200}
"""How many checks pass at least: a suite that tests less has found the server lacking something, or was not run whole."""


@pytest.fixture
def url(lab: Lab) -> Iterator[str]:
    """The server with the suite's fixtures, as a process."""
    command = [sys.executable, "-m", "tests.conformance.fixtures"]
    environ = lab.environ | {"PYTHONPATH": str(HERE.parents[1]), "PATH": "/usr/bin:/bin"}
    process = subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True, cwd=HERE.parents[1])
    try:
        assert process.stderr is not None
        yield process.stderr.readline().split()[-1]
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("version", LEAST_CHECKS)
def test_what_may_fail_is_the_tasks_extension_alone(url: str, version: str) -> None:
    filters = [] if version == "every extension" else ["--spec-version", version]
    done = subprocess.run(
        ["conformance", "server", "--url", url, "--suite", "all", *filters, "--expected-failures", str(BASELINE)],
        env=npm(SUITE, "conformance"),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    total = re.search(r"Total: (\d+) passed", done.stdout)
    assert total
    assert int(total[1]) >= LEAST_CHECKS[version], done.stdout[-6000:]


def test_the_file_names_nothing_but_tasks() -> None:
    named = yaml.safe_load(BASELINE.read_text(encoding="utf-8"))
    assert all(one.startswith("tasks-") for one in named["server"])
    assert named.keys() == {"server"}
