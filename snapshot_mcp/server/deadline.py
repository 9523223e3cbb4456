"""The time that a call has: hosts abandon a call after a minute, so it answers within `CALL_SECONDS` of its beginning."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import anyio

from snapshot_mcp.contract.errors import Unavailable

CALL_SECONDS = 50.0
"""A call answers within this time; hosts abandon it after 60 seconds."""

LOOKUP_SECONDS = 2.0
"""What a wait leaves of the call's time for looking up what was made."""

SUBMIT_SECONDS = 15.0
"""What looking things up leaves of it for the change itself, whose answer should not be lost."""

_began: ContextVar[float] = ContextVar("began")


def begin_call() -> None:
    """Note that a tool's call begins now."""
    _began.set(anyio.current_time())


def seconds_left() -> float:
    """Return the time until the call that is being handled must have answered, at least 0."""
    return max(0.0, _began.get(anyio.current_time()) + CALL_SECONDS - anyio.current_time())


@contextmanager
def preparing() -> Iterator[None]:
    """Bound what is looked up before a change. Raises Unavailable: nothing was submitted."""
    try:
        with anyio.fail_after(max(0.0, seconds_left() - SUBMIT_SECONDS)):
            yield
    except TimeoutError:
        raise Unavailable(
            "The zone answers so slowly that the call was given up. Nothing was submitted.",
            hint="Try again in a moment.",
        ) from None
