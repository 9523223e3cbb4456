"""What bounds a copy: bytes a second, and bytes in all."""

import threading
import time
from collections.abc import Callable

from snapshot_mcp.contract.errors import StorageFull, Unavailable
from snapshot_mcp.contract.text import format_bytes

BURST_SECONDS = 1.0
"""How far sending may get ahead of the limit."""


class Bandwidth:
    """Lets `rate` bytes a second through, of all threads together; None for no limit. `stop` ends all waits."""

    def __init__(self, rate: int | None, sleep: Callable[[float], object] | None = None) -> None:
        self.rate = rate
        self._stopped = threading.Event()
        self._sleep = sleep or self._stopped.wait
        self._lock = threading.Lock()
        self._free_at = time.monotonic()

    def wait(self, amount: int) -> None:
        """Wait until so many bytes may be sent. Raises Unavailable once it was stopped."""
        self.refuse_stopped(amount)
        if not self.rate:
            return
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now - BURST_SECONDS) + amount / self.rate
            pause = self._free_at - now
        if pause > 0:
            self._sleep(pause)
            self.refuse_stopped(amount)

    def stop(self) -> None:
        """End all waits, now and later."""
        self._stopped.set()

    def refuse_stopped(self, amount: int) -> None:
        """Raise Unavailable once it was stopped."""
        if self._stopped.is_set():
            raise Unavailable("The copy was stopped.")


def refuse_over(ceiling: int | None, held: int, more: int, copy: str) -> None:
    """Raise StorageFull if the place of a copy would hold more than the operator allows."""
    if ceiling is not None and held + more > ceiling:
        raise StorageFull(
            f"The place of copy {copy!r} holds {format_bytes(held)}, and {format_bytes(more)} more would pass the ceiling of"
            f" {format_bytes(ceiling)}.",
            hint=f"Raise `ceiling` in [copies.{copy}], or delete restore points; what is copied stays as it is.",
        )
