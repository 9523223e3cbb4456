"""Errors of the contract: one tree, each with a code that travels over the wire and a hint for the next step.

    ZoneError                       anything that a zone, or the way to it, can answer
    ├── BadRequest                  400 bad_request         the request is malformed or contradicts itself
    ├── Unauthorized                401 unauthorized        no valid credentials
    ├── Forbidden                   403 forbidden           valid credentials without the permission
    ├── NotFound                    404 not_found           no such id
    ├── UnknownZone                 404 unknown_zone        no such zone
    ├── ResourceBusy                409 resource_busy       a job or a process holds what the request needs
    ├── NotUsable                   409 not_usable          it exists, but its state forbids the operation
    ├── WrongResourceType           400 wrong_resource_type an image needs an instance's snapshot, a volume a volume's
    ├── QuotaExceeded               403 quota_exceeded      a limit of the zone
    ├── TooManyRequests             429 too_many_requests   throttled
    ├── StorageFull                 507 storage_full        no room on the zone's disk, or on the target's
    ├── Damaged                     500 damaged             stored bytes do not match their hash
    ├── Unsupported                 501 unsupported         this zone cannot do that
    ├── InternalError               500 internal_error      the zone failed for a reason of its own
    ├── Unavailable                 503 unavailable         the zone cannot be reached, or does not answer sense
    ├── TermsChanged                409 terms_changed       what was agreed to is not what would happen now
    ├── Expired                     409 expired             the time within which it had to begin is over
    ├── Cancelled                   409 cancelled           it was called off before it had an effect
    └── OutcomeUnknown              504 outcome_unknown     a change was sent and its answer was lost

Messages and hints are written for a person or a model. Text that came from outside is cleaned (`contract.text`) by
whoever puts it into a message. `is_definite` says of each kind whether a change that it answers was certainly not begun.
"""

from typing import ClassVar


class ZoneError(Exception):
    """Base of everything that a zone can answer beside success.

    `message` says what failed and names the value; `hint` is the next step that a person or a model can take.
    `code` and `http_status` are the contract's ("Codes of errors"). `is_definite`: a change that raises it has certainly not
    begun, so a consent to it is as good as before. `retry_after_seconds` is the zone's wish, None where it said nothing.
    """

    code: ClassVar[str] = "internal_error"
    http_status: ClassVar[int] = 500
    is_definite: ClassVar[bool] = True
    retry_after_seconds: float | None = None

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class BadRequest(ZoneError):
    code = "bad_request"
    http_status = 400


class Unauthorized(ZoneError):
    code = "unauthorized"
    http_status = 401


class Forbidden(ZoneError):
    code = "forbidden"
    http_status = 403


class NotFound(ZoneError):
    code = "not_found"
    http_status = 404


class UnknownZone(ZoneError):
    code = "unknown_zone"
    http_status = 404


class ResourceBusy(ZoneError):
    """Something holds what the request needs; `job_id` names the job in the way, "" where it is no job."""

    code = "resource_busy"
    http_status = 409

    def __init__(self, message: str, *, hint: str = "", job_id: str = "") -> None:
        super().__init__(message, hint=hint)
        self.job_id = job_id


class NotUsable(ZoneError):
    code = "not_usable"
    http_status = 409


class WrongResourceType(ZoneError):
    code = "wrong_resource_type"
    http_status = 400


class QuotaExceeded(ZoneError):
    code = "quota_exceeded"
    http_status = 403


class TooManyRequests(ZoneError):
    """Throttled."""

    code = "too_many_requests"
    http_status = 429

    def __init__(self, message: str, *, hint: str = "", retry_after_seconds: float | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_seconds = retry_after_seconds


class StorageFull(ZoneError):
    code = "storage_full"
    http_status = 507


class Damaged(ZoneError):
    code = "damaged"
    http_status = 500


class Unsupported(ZoneError):
    code = "unsupported"
    http_status = 501


class InternalError(ZoneError):
    code = "internal_error"
    http_status = 500
    is_definite = False


class Unavailable(ZoneError):
    """The zone cannot be reached, or what answers is not it; the request had no effect or was a read."""

    code = "unavailable"
    http_status = 503


class TermsChanged(ZoneError):
    """What was agreed to (`contract.terms`) is not what would happen now."""

    code = "terms_changed"
    http_status = 409


class Expired(ZoneError):
    """The time within which a destructive job had to begin is over."""

    code = "expired"
    http_status = 409


class Cancelled(ZoneError):
    """A job was called off before it had an effect."""

    code = "cancelled"
    http_status = 409


class OutcomeUnknown(ZoneError):
    """A change was sent and its answer was lost, and looking it up did not settle it. The hint names what to look at."""

    code = "outcome_unknown"
    http_status = 504
    is_definite = False


ERRORS_BY_CODE: dict[str, type[ZoneError]] = {
    error.code: error
    for error in (
        BadRequest,
        Unauthorized,
        Forbidden,
        NotFound,
        UnknownZone,
        ResourceBusy,
        NotUsable,
        WrongResourceType,
        QuotaExceeded,
        TooManyRequests,
        StorageFull,
        Damaged,
        Unsupported,
        InternalError,
        Unavailable,
        TermsChanged,
        Expired,
        Cancelled,
        OutcomeUnknown,
    )
}
"""Every code that may stand in `{"code": …, "message": …}`, and the error that it means."""
