"""Time that cannot be set back: the wall clock, and the machine's uptime against it.

A wall clock can be set back, by mistake or to revive what has run out. So a moment keeps both; what has passed since is the
larger of the two, and a moment that lies in the future is no moment to count from.
"""

import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Protocol

SLACK_SECONDS = 5.0
"""So much may a clock be corrected backwards (NTP) before what it stamped counts as from the future."""


@dataclass(frozen=True, slots=True)
class Moment:
    """`wall` in seconds since 1970; `uptime` in seconds since the start of the system that `boot` names, "" for unknown."""

    wall: float
    boot: str = ""
    uptime: float = 0.0

    @property
    def time(self) -> datetime:
        return datetime.fromtimestamp(self.wall, UTC)

    def after(self, seconds: float) -> datetime:
        return self.time + timedelta(seconds=seconds)

    def is_within(self, now: "Moment", seconds: float) -> bool:
        """Whether fewer than `seconds` have passed between this moment and `now`, by every clock there is."""
        elapsed = now.wall - self.wall
        if elapsed < -SLACK_SECONDS:
            return False
        if self.boot and self.boot == now.boot:
            elapsed = max(elapsed, now.uptime - self.uptime)
        return elapsed < seconds

    def is_over(self, now: "Moment", seconds: float) -> bool:
        """Whether `seconds` have surely passed, for what must not end early (a lock, a limit per hour)."""
        if self.boot and self.boot == now.boot:
            return now.uptime - self.uptime >= seconds
        return now.wall - self.wall >= seconds


class Clock(Protocol):
    def read(self) -> Moment: ...


class SystemClock:
    """The machine's clocks. Where the system does not name its boots (outside of Linux) the wall clock is all there is."""

    def read(self) -> Moment:
        return Moment(time.time(), *running_since())


_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def running_since() -> tuple[str, float]:
    """Return the id of this boot ("" where the system has none) and the seconds since it, sleep included."""
    boot = _read_boot_id(_BOOT_ID)
    return (boot, time.clock_gettime(time.CLOCK_BOOTTIME)) if boot else ("", 0.0)


@cache
def _read_boot_id(path: Path) -> str:
    try:
        return path.read_text("utf-8").strip()
    except OSError:  # another system, or a sandbox that hides it
        return ""
