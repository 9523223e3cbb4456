"""What came back over the wire, and what it means: pure.

A reply is an answer, an error of the zone itself, or nonsense from something in between; a lost one may or may not mean
that the request was carried out. Each becomes an error of `contract.errors`, in words for a person.
"""

import email.utils
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

from pydantic import ValidationError

from snapshot_mcp.contract.errors import (
    ERRORS_BY_CODE,
    BadRequest,
    Cancelled,
    Damaged,
    Expired,
    Forbidden,
    InternalError,
    NotFound,
    NotUsable,
    OutcomeUnknown,
    QuotaExceeded,
    ResourceBusy,
    StorageFull,
    TermsChanged,
    TooManyRequests,
    Unauthorized,
    Unavailable,
    UnknownZone,
    Unsupported,
    WrongResourceType,
    ZoneError,
)
from snapshot_mcp.contract.models import ZoneModel
from snapshot_mcp.contract.text import MESSAGE_CHARACTERS, clean_text, quoted
from snapshot_mcp.contract.values import MAX_COUNT
from snapshot_mcp.providers.anchcloud.bounds import bounded, is_within_bounds

Model = TypeVar("Model", bound=ZoneModel)

LONGEST_RETRY_AFTER_SECONDS = 86_400.0


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole HTTP answer; header names are in lower case."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)


class NotSent(Exception):
    """The request cannot have reached the zone: there was no connection to send it on."""


class NoRoute(Unavailable):
    """Something without the API's envelope says that there is nothing of that path: no outage that passes by itself."""


class Unfit(Unavailable):
    """The answer is beyond all measure, and would be so again."""


class Lost(Exception):
    """The request was sent, wholly or in part, and no sensible answer came back."""


class TooLarge(Lost):
    """…because it has no end, or is larger than any answer of the API."""


_BY_STATUS: dict[int, type[ZoneError]] = {
    400: BadRequest,
    401: Unauthorized,
    402: Forbidden,
    403: Forbidden,
    404: NotFound,
    405: Unsupported,
    409: ResourceBusy,
    410: NotFound,
    413: BadRequest,
    415: BadRequest,
    422: BadRequest,
    423: ResourceBusy,
    429: TooManyRequests,
    500: InternalError,
    501: Unsupported,
    507: StorageFull,
}

_BY_WORDS: tuple[tuple[tuple[str, ...], type[ZoneError]], ...] = (
    (("zone", "notfound"), UnknownZone),
    (("notfound",), NotFound),
    (("notexist",), NotFound),
    (("permission",), Forbidden),
    (("forbidden",), Forbidden),
    (("denied",), Forbidden),
    (("quota",), QuotaExceeded),
    (("toomany",), TooManyRequests),
    (("throttl",), TooManyRequests),
    (("ratelimit",), TooManyRequests),
    (("unauth",), Unauthorized),
    (("token",), Unauthorized),
    (("busy",), ResourceBusy),
    (("lock",), ResourceBusy),
    (("status",), NotUsable),
    (("invalid",), BadRequest),
    (("param",), BadRequest),
)
"""Words of a foreign code → what it means, where the status does not. With numbers for codes, the message begins so."""

_IN_WORDS: dict[type[ZoneError], tuple[str, str]] = {
    BadRequest: ("the request was refused", ""),
    Unauthorized: ("the credentials were not accepted", "Check client_id and client_secret in the settings."),
    Forbidden: ("not permitted", "The key pair of the settings may not do this; trying again does not help."),
    NotFound: ("not found", ""),
    UnknownZone: ("no such zone", "Check zone in the settings."),
    ResourceBusy: ("something is in the way", "See list_jobs, and try again when it is over."),
    NotUsable: ("its state forbids this", ""),
    QuotaExceeded: ("a quota is reached", ""),
    TooManyRequests: ("throttled", "Ask again later, and less often."),
    StorageFull: ("no room", ""),
    Unsupported: ("the zone cannot do this", ""),
    InternalError: ("the zone failed", ""),
    Unavailable: ("the zone is out of order", "Try again later."),
    WrongResourceType: ("it is of the wrong kind", ""),
    Damaged: ("stored bytes are damaged", ""),
    TermsChanged: ("what was agreed to is not what would happen now", "Look again, and ask again."),
    Expired: ("its time is over", ""),
    Cancelled: ("it was called off", ""),
    OutcomeUnknown: (
        "it is not known whether it was carried out",
        "Look at what it would change before it is repeated.",
    ),
}
"""What an error means, for a reader to whom a foreign code and a foreign text may say nothing; and the next step."""

_AMBIGUOUS_STATUSES = frozenset({408, 425, 499})
"""4xx by which a proxy gives up on a request that may be on its way."""


def envelope_of(reply: Reply) -> dict[str, Any] | None:
    """Return `{"code", "message"}` where the reply is one: with any status (CONTRACT.md, "What surrounds them")."""
    try:
        value = json.loads(reply.body)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and "code" in value and "message" in value else None


def error_of(reply: Reply, what: str) -> ZoneError:
    """Return what an error reply means; `what` says what was asked for."""
    error = _told_error(reply, what)
    error.retry_after_seconds = retry_after(reply.headers)
    if error.retry_after_seconds and not (envelope_of(reply) or {}).get("hint"):
        error.add(hint=f"It asks to wait {math.ceil(error.retry_after_seconds)} s.")
    return error


def _told_error(reply: Reply, what: str) -> ZoneError:
    envelope = envelope_of(reply)
    if envelope is None:
        return _bare_error(reply, what)
    code, message = str(envelope["code"]), clean_text(envelope["message"], MESSAGE_CHARACTERS)
    kind = ERRORS_BY_CODE.get(code) or _foreign_kind(reply.status, code, message)
    hint = clean_text(envelope.get("hint") or "", MESSAGE_CHARACTERS)
    if not hint:  # else it is from a face like ours, whose messages stand by themselves
        words, hint = _IN_WORDS[kind]
        status = "" if reply.status == 200 else f" ({reply.status})"
        message = f"{what}: {words}{status}; the zone says {quoted(message or code, MESSAGE_CHARACTERS)}."
    error = kind(message, hint=hint)
    if isinstance(error, ResourceBusy):
        error.job_id = clean_text(envelope.get("job_id") or "")
    return error


def _foreign_kind(status: int, code: str, message: str) -> type[ZoneError]:
    if status in {502, 503, 504}:
        return Unavailable
    kind = _kind_of_words(message.partition(",")[0] if code.isdigit() else code)
    if status in {200, 400} or (status == 403 and kind in {QuotaExceeded, TooManyRequests}):
        return kind or (BadRequest if status == 400 else InternalError)
    return _BY_STATUS.get(status, BadRequest if status < 500 else InternalError)


def _kind_of_words(name: str) -> type[ZoneError] | None:
    """What a name like `PermissionDenied` means; a sentence is no name."""
    plain = "".join(character for character in name.lower() if character.isalnum())
    if " " in name.strip():
        return None
    return next((kind for words, kind in _BY_WORDS if all(word in plain for word in words)), None)


def _bare_error(reply: Reply, what: str) -> ZoneError:
    """An error without envelope does not come from the API itself: absence cannot be told from a wrong address."""
    status, excerpt = reply.status, _excerpt(reply)
    match status:
        case 401:
            return Unauthorized(f"{what}: the credentials were not accepted (401{excerpt}).")
        case 403 | 402:
            return Forbidden(
                f"{what}: refused with {status}{excerpt}.",
                hint="The answer is not the API's own: a proxy or a firewall may stand between.",
            )
        case 407:
            return Unavailable(f"{what}: the proxy wants credentials (407).", hint="Put them into the proxy setting.")
        case 429:
            return TooManyRequests(f"{what}: throttled (429).", hint=_IN_WORDS[TooManyRequests][1])
        case 404 | 405 | 410:
            return NoRoute(
                f"{what}: {status} from something that is not the API{excerpt}.",
                hint="Check url and zone in the settings.",
            )
        case _ if 300 <= status < 400:
            return Unavailable(
                f"{what}: redirected ({status}), which is not followed.", hint="Set url to the final address."
            )
        case _ if status < 500 and status not in _AMBIGUOUS_STATUSES:
            return BadRequest(f"{what}: refused with {status}{excerpt}.")
        case _:
            return Unavailable(f"{what}: the zone is out of order ({status}{excerpt}).", hint="Try again later.")


def _excerpt(reply: Reply) -> str:
    """The first words of a foreign page, without its markup."""
    text = reply.body[:4000].decode("utf-8", "replace")
    out, is_tag = [], False
    for character in text:
        is_tag = character == "<" or (is_tag and character != ">")
        out.append(" " if is_tag or character == ">" else character)
    words = clean_text("".join(out), 60)
    return f", {quoted(words, 60)}" if words else ""


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return `Retry-After` in seconds, from a number or a date; None where there is none to read."""
    value = headers.get("retry-after", "").strip()
    try:
        seconds = float(value)
    except ValueError:
        try:
            moment = email.utils.parsedate_to_datetime(value)
        except (ValueError, TypeError, IndexError, OverflowError):
            return None
        seconds = (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER_SECONDS) if math.isfinite(seconds) else None


def is_definite(reply: Reply) -> bool:
    """Whether an error reply proves that a change was not started.

    A redirection may be what follows on one that was, and an outage may be told by a gateway. Of the contract's codes the
    error says it (`ZoneError.is_definite`), with a 5xx only where that is the error's own status.
    """
    if 300 <= reply.status < 400 or reply.status in _AMBIGUOUS_STATUSES:
        return False
    kind = ERRORS_BY_CODE.get(str((envelope_of(reply) or {}).get("code")))
    if kind is None:
        return reply.status < 500
    return kind.is_definite and kind is not Unavailable and (reply.status < 500 or kind.http_status >= 500)


def is_error(reply: Reply) -> bool:
    return not 200 <= reply.status < 300 or envelope_of(reply) is not None


def decoded(reply: Reply, what: str) -> Any:
    """Return the JSON of a 2xx reply. Raises the zone's error, or Unavailable for what is no answer of the API."""
    if not 200 <= reply.status < 300:
        raise error_of(reply, what)
    if not reply.body.strip():
        raise Unavailable(f"{what}: the answer is empty.", hint="Something between here and the zone may have cut it.")
    try:
        value = json.loads(reply.body)
    except (ValueError, RecursionError):
        kind = "a web page" if reply.body.lstrip()[:1] == b"<" else "no whole JSON"
        raise Unavailable(
            f"{what}: the answer is {kind}{_excerpt(reply) if kind == 'a web page' else ''}.",
            hint="A proxy may have answered, or cut the answer.",
        ) from None
    if isinstance(value, dict) and "code" in value and "message" in value:
        raise error_of(reply, what)
    return value if is_within_bounds(reply.body) else bounded(value, what)


def parsed(model: type[Model], value: object, what: str) -> Model:
    """Return `value` as `model`. Raises Unavailable that names the first field that does not fit."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or model.__name__
        raise Unavailable(
            f"{what}: the answer does not fit the contract ({clean_text(place)}: {clean_text(first['msg'])}).",
            hint="Check that url names the volume-snapshot API.",
        ) from None


def parsed_list(model: type[Model], value: object, what: str) -> tuple[Model, ...]:
    if not isinstance(value, list):
        raise Unavailable(f"{what}: the answer is no list.", hint="Check that url names the volume-snapshot API.")
    return tuple(parsed(model, item, what) for item in value)


def member(value: object, key: str, what: str) -> Any:
    """Return `value[key]`. Raises Unavailable where it is not there."""
    if not isinstance(value, dict) or key not in value:
        raise Unavailable(f"{what}: the answer has no {key!r}.", hint="Check that url names the volume-snapshot API.")
    return value[key]


def whole_number(value: object, key: str, what: str) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, str))
        or not str(value).isdecimal()
        or len(str(value)) > len(str(MAX_COUNT))
        or int(value) > MAX_COUNT
    ):
        raise Unavailable(f"{what}: {key!r} is no number but {quoted(value)}.")
    return int(value)


def is_transient(error: ZoneError) -> bool:
    """Whether a read is worth another try: throttled, out of order, cut off."""
    return isinstance(error, (TooManyRequests, Unavailable, InternalError)) and not isinstance(error, (NoRoute, Unfit))
