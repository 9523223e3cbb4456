"""The guard's own errors, in the contract's tree.

ZoneError
├── BadRequest
│   ├── WrongPin        the PIN is wrong or missing
│   └── NotDecidable    the approval is no longer pending, or its plan is not what the person saw
├── TooManyRequests
│   └── PinLocked       too many wrong PINs
└── InternalError
    ├── GuardBroken     the guard's records cannot be read or written; nothing is destroyed then
    └── PageNotDetached the approval page's process cannot be started; each server has a page of its own then
"""

from snapshot_mcp.contract.errors import BadRequest, InternalError, TooManyRequests


class WrongPin(BadRequest):
    """The PIN is wrong or missing. `attempts_left`: tries before it is locked."""

    def __init__(self, message: str, *, hint: str = "", attempts_left: int = 0) -> None:
        super().__init__(message, hint=hint)
        self.attempts_left = attempts_left


class NotDecidable(BadRequest):
    """The approval cannot be decided this way, or no longer."""


class PinLocked(TooManyRequests):
    """Too many wrong PINs were entered."""


class GuardBroken(InternalError):
    """The guard's records cannot be read or written."""


class PageNotDetached(InternalError):
    """No process of its own can be started for the approval page."""
