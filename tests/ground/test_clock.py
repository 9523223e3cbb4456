"""Time that cannot be set back."""

import time

import pytest

from snapshot_mcp.ground.clock import SLACK_SECONDS, Moment, SystemClock, running_since

HOUR = 3600.0
NOON = 1_800_000_000.0


@pytest.mark.parametrize(
    ("wall", "boot", "uptime", "is_within", "is_over"),
    [
        (10, "a", 10, True, False),
        (HOUR, "a", HOUR, False, True),
        (10, "a", HOUR, False, True),  # the wall clock was set back, the uptime tells
        (HOUR, "a", 10, False, False),  # it was set ahead: what must not last is over, what must not end early is not
        (-HOUR, "a", 10, False, False),
        (-SLACK_SECONDS, "a", 0, True, False),  # NTP corrects
        (10, "b", 0, True, False),  # another boot: the wall clock is all there is
        (HOUR, "b", 0, False, True),
        (10, "", 0, True, False),
        (HOUR, "", 0, False, True),
    ],
)
def test_what_has_passed_is_told_by_both_clocks(
    wall: float, boot: str, uptime: float, is_within: bool, is_over: bool
) -> None:
    since, now = Moment(NOON, "a", 500.0), Moment(NOON + wall, boot, 500.0 + uptime)
    assert since.is_within(now, HOUR) is is_within
    assert since.is_over(now, HOUR) is is_over


def test_the_system_clock_is_the_wall_clock_and_the_uptime_of_this_boot() -> None:
    before, (boot, uptime) = time.time(), running_since()
    now = SystemClock().read()
    assert before <= now.wall <= time.time()
    assert now.boot == boot
    assert now.uptime >= uptime
