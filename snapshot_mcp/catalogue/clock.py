"""Time as the catalogue trusts it: the wall clock, and the system's uptime, which no correction of the clock can move."""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Moment:
    """`wall` in seconds since 1970; `uptime` in seconds since the start of the system that `boot` names, "" for unknown."""

    wall: float
    boot: str = ""
    uptime: float = 0.0


class Clock(Protocol):
    def read(self) -> Moment: ...


class SystemClock:
    """The machine's clocks. Where the system names no boot (outside of Linux, or in a sandbox) the wall clock stands alone."""

    def __init__(self) -> None:
        self._boot = ""
        if sys.platform == "linux":
            try:
                self._boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
            except OSError:
                self._boot = ""

    def read(self) -> Moment:
        uptime = time.clock_gettime(time.CLOCK_BOOTTIME) if sys.platform == "linux" else 0.0
        return Moment(time.time(), self._boot, uptime)
