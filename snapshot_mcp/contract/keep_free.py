"""Free space that a zone leaves on a filesystem: a size, a share of the whole, or the smaller of both. Pure."""

import math
import re
from dataclasses import dataclass

GIB = 1 << 30
UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
UNITS |= {"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*(%|[a-z]+)")
EXPECTED = 'should be a size such as "20GiB", a share of the filesystem such as "5%", or 0 to switch it off'


@dataclass(frozen=True, slots=True)
class KeepFree:
    """Free space that backups and exports leave: the smaller of both values; None means "not given".

    `share` is a fraction of the filesystem's size (0.05 for 5 %). `KeepFree(share=None, size_bytes=0)` sets no limit.
    """

    share: float | None = 0.05
    size_bytes: int | None = 10 * GIB

    def bytes_of(self, filesystem_bytes: int) -> int:
        """Return how many bytes to leave free on a filesystem of this size."""
        limits = [] if self.share is None else [math.ceil(self.share * filesystem_bytes)]
        if self.size_bytes is not None:
            limits.append(self.size_bytes)
        return min(limits, default=0)


DEFAULT_KEEP_FREE = KeepFree()
NOTHING_FREE = KeepFree(share=None, size_bytes=0)
"""No limit: a zone may fill its filesystem."""


def parse_keep_free(value: object) -> KeepFree:
    """Parse `"20GiB"`, `"5%"` or 0. Raises ValueError, which says what to write."""
    if isinstance(value, KeepFree):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and value == 0:
        return NOTHING_FREE
    text = value.strip().casefold() if isinstance(value, str) else ""
    if text == "0":
        return NOTHING_FREE
    amount = _AMOUNT.fullmatch(text)
    if amount is None or (amount[2] != "%" and amount[2] not in UNITS):
        raise ValueError(EXPECTED)
    number = float(amount[1])
    if amount[2] != "%":
        return KeepFree(share=None, size_bytes=math.ceil(number * UNITS[amount[2]]))
    if number >= 100:
        raise ValueError("should be below 100%")
    return KeepFree(share=number / 100, size_bytes=None)
