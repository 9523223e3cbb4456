"""Which cases of a test run by default; tests/README.md has the rule."""

from collections.abc import Iterable
from typing import Any

import pytest


def long(*values: Any) -> Any:
    """Mark one set of parameters: it runs with `pytest -m long` only."""
    return pytest.param(*values, marks=pytest.mark.long)


def few(values: Iterable[Any], count: int) -> list[Any]:
    """Mark all but `count` values of a parameter, evenly spaced ones, as long."""
    them = list(values)
    kept = {number * len(them) // count for number in range(count)}
    return [value if number in kept else long(value) for number, value in enumerate(them)]


modern_first = pytest.mark.parametrize("mode", ["auto", long("legacy")])
"""For a process test of both protocol eras: the modern one by default, the legacy one with `-m long`."""
legacy_first = pytest.mark.parametrize("mode", [long("auto"), "legacy"])
"""The same the other way round, where a session that lasts is the harder case."""
