"""Errors of the contract, each with a code that travels over the wire, an HTTP status and a hint for the next step.

Messages and hints are written for a person or a model. Text from outside is cleaned (`contract.text`) before it is put into one.
"""

import re
from typing import ClassVar, Self

from snapshot_mcp.contract.text import encodable


class ZoneError(Exception):
    """Base of every error that a zone can return.

    `message` says what failed and names the value; `hint` is the next step for a person or a model. `code` and `http_status`
    are the contract's (CONTRACT.md, "Codes"). `is_definite`: a change that raises it has certainly not begun, so a consent to
    it remains usable. `retry_after_seconds` is the pause that the zone asked for, None if it named none.
    """

    code: ClassVar[str] = "internal_error"
    http_status: ClassVar[int] = 500
    is_definite: ClassVar[bool] = True
    retry_after_seconds: float | None = None

    def __init_subclass__(cls, *, code: str = "", http_status: int = 0) -> None:
        cls.code, cls.http_status = code or cls.code, http_status or cls.http_status

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message, self.hint = encodable(message), encodable(hint)

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()

    def add(self, *, before: str = "", after: str = "", hint: str = "") -> Self:
        """Add text before or after the message, or to the end of the hint; return the error itself."""
        self.message = f"{before} {self.message} {after}".strip()
        self.hint = f"{self.hint} {hint}".strip()
        return self

    def within(self, zone: str) -> Self:
        """Name the zone before the message unless the message names it already; return the error itself."""
        is_named = re.search(rf"\bzone ['“]?{re.escape(zone)}\b", self.message, re.IGNORECASE)
        return self if is_named else self.add(before=f"Zone {zone}:")


class BadRequest(ZoneError, code="bad_request", http_status=400):
    """The request is malformed or contradicts itself."""


class Unauthorized(ZoneError, code="unauthorized", http_status=401):
    """The credentials are missing or invalid."""


class Forbidden(ZoneError, code="forbidden", http_status=403):
    """The credentials are valid but do not allow the operation."""


class NotFound(ZoneError, code="not_found", http_status=404):
    """No object has this id."""


class UnknownZone(ZoneError, code="unknown_zone", http_status=404):
    """No zone has this name."""


class ResourceBusy(ZoneError, code="resource_busy", http_status=409):
    """A job or a process holds what the request needs; `job_id` names the job, "" if it is not a job."""

    def __init__(self, message: str, *, hint: str = "", job_id: str = "") -> None:
        super().__init__(message, hint=hint)
        self.job_id = job_id


class NotUsable(ZoneError, code="not_usable", http_status=409):
    """The object exists, but its state does not allow the operation."""


class WrongResourceType(ZoneError, code="wrong_resource_type", http_status=400):
    """The snapshot is of the wrong kind: an image needs an instance's snapshot, a volume needs a volume's."""


class QuotaExceeded(ZoneError, code="quota_exceeded", http_status=403):
    """A limit of the zone is reached."""


class TooManyRequests(ZoneError, code="too_many_requests", http_status=429):
    """The zone is rate-limiting its callers."""

    def __init__(self, message: str, *, hint: str = "", retry_after_seconds: float | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_seconds = retry_after_seconds


class StorageFull(ZoneError, code="storage_full", http_status=507):
    """The zone's disk or the target's disk is full."""


class Damaged(ZoneError, code="damaged", http_status=500):
    """Stored bytes do not match their hash."""


class Unsupported(ZoneError, code="unsupported", http_status=501):
    """The zone does not support the operation."""


class InternalError(ZoneError, code="internal_error", http_status=500):
    """The zone failed because of a bug or an unexpected condition."""

    is_definite = False


class Unavailable(ZoneError, code="unavailable", http_status=503):
    """The zone cannot be reached or its answer makes no sense; the request had no effect or was a read."""


class TermsChanged(ZoneError, code="terms_changed", http_status=409):
    """The change would no longer match what was agreed to (`contract.terms`)."""


class Expired(ZoneError, code="expired", http_status=409):
    """A destructive job did not begin within its time limit."""


class Cancelled(ZoneError, code="cancelled", http_status=409):
    """The job was cancelled before it had an effect."""


class OutcomeUnknown(ZoneError, code="outcome_unknown", http_status=504):
    """A change was sent, its answer was lost, and a lookup did not settle it. The hint names what to look at."""

    is_definite = False


ERRORS_BY_CODE = {error.code: error for error in ZoneError.__subclasses__()}
"""The error for each code that `{"code": …, "message": …}` may have."""
