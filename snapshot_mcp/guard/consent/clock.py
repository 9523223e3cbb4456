"""Time as the guard trusts it: the wall clock, and the machine's uptime against it.

A wall clock can be set back, by mistake or to revive what has run out. So a moment keeps both; what has passed since is the
larger of the two, and a moment that lies in the future is no moment to count from.
"""

import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
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
    """The machine's clocks. Where the system names no boot (outside of Linux) the wall clock stands alone."""

    def __init__(self) -> None:
        self._boot = ""
        if sys.platform == "linux":
            try:
                self._boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
            except OSError:
                self._boot = ""

    def read(self) -> Moment:
        uptime = time.clock_gettime(time.CLOCK_BOOTTIME) if sys.platform == "linux" else 0.0
        return Moment(time.time(), self._boot, uptime)
