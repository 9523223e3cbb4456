"""Elapsed time that survives a change of the wall clock.

A wall clock can be set back, by mistake or to revive something expired. A moment therefore keeps the machine's uptime as well;
the elapsed time is the larger of the two, and a moment in the future counts as expired.
"""

import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Protocol

SLACK_SECONDS = 5.0
"""Tolerance for a clock that is corrected backwards (NTP) before a moment counts as being in the future."""


@dataclass(frozen=True, slots=True)
class Moment:
    """A point in time: `wall` in seconds since 1970, `uptime` in seconds since the boot whose id is `boot`, "" if unknown."""

    wall: float
    boot: str = ""
    uptime: float = 0.0

    @property
    def time(self) -> datetime:
        """The wall clock's time in UTC."""
        return datetime.fromtimestamp(self.wall, UTC)

    def after(self, seconds: float) -> datetime:
        """Return the wall clock's time `seconds` later."""
        return self.time + timedelta(seconds=seconds)

    def is_within(self, now: "Moment", seconds: float) -> bool:
        """Return whether less than `seconds` have passed until `now` by both clocks; used for what must not last too long."""
        elapsed = now.wall - self.wall
        if elapsed < -SLACK_SECONDS:
            return False
        if self.boot and self.boot == now.boot:
            elapsed = max(elapsed, now.uptime - self.uptime)
        return elapsed < seconds

    def is_over(self, now: "Moment", seconds: float) -> bool:
        """Return whether `seconds` have certainly passed; used for what must not end early (a lock, a limit per hour)."""
        if self.boot and self.boot == now.boot:
            return now.uptime - self.uptime >= seconds
        return now.wall - self.wall >= seconds


class Clock(Protocol):
    """A source of moments."""

    def read(self) -> Moment:
        """Return the present moment."""


class SystemClock:
    """The machine's clocks; only the wall clock if the system has no boot id (outside of Linux)."""

    def read(self) -> Moment:
        """Return the present moment."""
        return Moment(time.time(), *running_since())


_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def running_since() -> tuple[str, float]:
    """Return the id of this boot ("" if the system has none) and the seconds since it, including sleep."""
    boot = _read_boot_id(_BOOT_ID)
    return (boot, time.clock_gettime(time.CLOCK_BOOTTIME)) if boot else ("", 0.0)


@cache
def _read_boot_id(path: Path) -> str:
    try:
        return path.read_text("utf-8").strip()
    except OSError:  # another system, or a sandbox that hides it
        return ""
