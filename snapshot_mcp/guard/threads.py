"""The way from the event loop to blocking work."""

from collections.abc import Callable
from typing import Any, TypeVar

import anyio.to_thread

T = TypeVar("T")


async def in_thread(function: Callable[..., T], *args: Any) -> T:
    """Run blocking work in a worker thread; it is finished even when the caller is cancelled."""
    return await anyio.to_thread.run_sync(lambda: function(*args))
