"""The turn of a call in a zone: one at a time, waited for only so long where what a call waits for may not answer."""

import threading
import time
from types import TracebackType
from typing import Final

from snapshot_mcp.contract.errors import Unavailable

FOR_EVER: Final = -1.0


class Turn:
    """A lock. Raises Unavailable for who has waited for it for more than `seconds`."""

    def __init__(self, seconds: float = FOR_EVER) -> None:
        self._lock, self._seconds = threading.Lock(), seconds

    def acquire(self, timeout: float) -> bool:
        """Take it; return False if it was not free within so many seconds."""
        return self._lock.acquire(timeout=timeout)

    def release(self) -> None:
        """Give it back."""
        self._lock.release()

    def __enter__(self) -> None:
        if not self.acquire(self._seconds):
            raise _too_late()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def refuse_late(self, since: float) -> None:
        """Raise Unavailable for a call that waits since then, by the monotonic clock."""
        if 0 < self._seconds < time.monotonic() - since:
            raise _too_late()


def _too_late() -> Unavailable:
    return Unavailable(
        "The zone answers too slowly: other calls of this server were first.", hint="Try again in a moment."
    )
