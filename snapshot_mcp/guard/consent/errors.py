"""The guard's own errors, beside the contract's.

ZoneError
├── BadRequest
│   ├── WrongPin        the PIN is not the one that was set, or none was given
│   └── NotDecidable    the approval is no longer pending, or not what the person saw
├── TooManyRequests
│   └── PinLocked       too many wrong PINs
└── InternalError
    └── GuardBroken     the guard's records cannot be read or written; nothing is destroyed then
"""

from snapshot_mcp.contract.errors import BadRequest, InternalError, TooManyRequests


class WrongPin(BadRequest):
    """`attempts_left` before the PIN is locked."""

    def __init__(self, message: str, *, hint: str = "", attempts_left: int = 0) -> None:
        super().__init__(message, hint=hint)
        self.attempts_left = attempts_left


class NotDecidable(BadRequest):
    pass


class PinLocked(TooManyRequests):
    pass


class GuardBroken(InternalError):
    pass
