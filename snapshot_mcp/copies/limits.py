"""What bounds a copy: bytes a second, and bytes in all."""

import threading
import time
from collections.abc import Callable, Iterable

from snapshot_mcp.contract.errors import StorageFull
from snapshot_mcp.contract.text import format_bytes

BURST_SECONDS = 1.0
"""How far sending may get ahead of the limit."""


class Bandwidth:
    """Lets `rate` bytes a second through, of all threads together; None for no limit."""

    def __init__(self, rate: int | None, sleep: Callable[[float], None] = time.sleep) -> None:
        self.rate, self._sleep = rate, sleep
        self._lock = threading.Lock()
        self._free_at = time.monotonic()

    def wait(self, amount: int) -> None:
        """Wait until so many bytes may be sent."""
        if not self.rate:
            return
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now - BURST_SECONDS) + amount / self.rate
            pause = self._free_at - now
        if pause > 0:
            self._sleep(pause)


def refuse_over(ceiling: int | None, stored: Iterable[int], more: int, copy: str) -> None:
    """Raise StorageFull if a copy would hold more than the operator allows."""
    if ceiling is not None and (held := sum(stored)) + more > ceiling:
        raise StorageFull(
            f"Copy {copy!r} holds {format_bytes(held)}, and {format_bytes(more)} more would pass its ceiling of"
            f" {format_bytes(ceiling)}.",
            hint=f"Raise `ceiling` in [copies.{copy}], or delete restore points; what is copied stays as it is.",
        )
