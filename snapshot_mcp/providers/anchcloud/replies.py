"""Parse replies: pure.

A reply is an answer, an error of the zone, or something else from a proxy or gateway. Errors become those of
`contract.errors`, worded for a person; after a lost reply it is unknown whether the request was carried out.
"""

import email.utils
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

from pydantic import ValidationError

from snapshot_mcp.contract import errors
from snapshot_mcp.contract.errors import ERRORS_BY_CODE, ZoneError
from snapshot_mcp.contract.models import ZoneModel
from snapshot_mcp.contract.text import MESSAGE_CHARACTERS, clean_text, quoted
from snapshot_mcp.contract.values import MAX_COUNT
from snapshot_mcp.providers.anchcloud.bounds import bounded, is_within_bounds

Model = TypeVar("Model", bound=ZoneModel)

LONGEST_RETRY_AFTER_SECONDS = 86_400.0

CHECK_URL = "Check that url is the address of the volume-snapshot API."


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete HTTP response; header names are in lower case."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)


class NotSent(Exception):
    """The request certainly did not reach the zone: there was no connection. `hint`: the next step, "" if none is known."""

    def __init__(self, reason: str, hint: str = "") -> None:
        super().__init__(reason)
        self.hint = hint


class NoRoute(errors.Unavailable):
    """A 404, 405 or 410 that is not from the API, so retrying does not help."""


class Unfit(errors.Unavailable):
    """Nothing usable comes from this address as it is set, so retrying does not help."""


class Lost(Exception):
    """The request was sent, at least in part, but no usable answer came back."""


class TooLarge(Lost):
    """The answer is larger than any answer of the API."""


class Garbled(Lost):
    """The answer cannot be unpacked as its headers say."""


_BY_STATUS: dict[int, type[ZoneError]] = {
    400: errors.BadRequest,
    401: errors.Unauthorized,
    402: errors.Forbidden,
    403: errors.Forbidden,
    404: errors.NotFound,
    405: errors.Unsupported,
    409: errors.ResourceBusy,
    410: errors.NotFound,
    413: errors.BadRequest,
    415: errors.BadRequest,
    422: errors.BadRequest,
    423: errors.ResourceBusy,
    429: errors.TooManyRequests,
    500: errors.InternalError,
    501: errors.Unsupported,
    507: errors.StorageFull,
}

_BY_WORDS: dict[str, type[ZoneError]] = {
    "zone.*notfound|notfound.*zone": errors.UnknownZone,
    "notfound|notexist": errors.NotFound,
    "permission|forbidden|denied": errors.Forbidden,
    "quota": errors.QuotaExceeded,
    "toomany|throttl|ratelimit": errors.TooManyRequests,
    "unauth|token": errors.Unauthorized,
    "busy|lock": errors.ResourceBusy,
    "status": errors.NotUsable,
    "invalid|param": errors.BadRequest,
}
"""The meaning of a foreign code, by the words in it, if the status does not say it. A numeric code has them in its message."""

_DESCRIPTIONS: dict[type[ZoneError], tuple[str, str]] = {
    errors.BadRequest: ("the request was rejected", ""),
    errors.Unauthorized: ("the credentials were not accepted", "Check client_id and client_secret in the settings."),
    errors.Forbidden: ("not permitted", "The key pair in the settings may not do this; retrying does not help."),
    errors.NotFound: ("not found", ""),
    errors.UnknownZone: ("unknown zone", "Check zone in the settings."),
    errors.ResourceBusy: ("the resource is busy", "See list_jobs, and retry when the job has finished."),
    errors.NotUsable: ("not possible in its present state", ""),
    errors.QuotaExceeded: ("a quota is exhausted", ""),
    errors.TooManyRequests: ("rate-limited", "Retry later, and less often."),
    errors.StorageFull: ("the storage is full", ""),
    errors.Unsupported: ("not supported by the zone", ""),
    errors.InternalError: ("internal error in the zone", ""),
    errors.Unavailable: ("the zone is unavailable", "Retry later."),
    errors.WrongResourceType: ("wrong resource type", ""),
    errors.Damaged: ("stored bytes are damaged", ""),
    errors.TermsChanged: ("the state has changed since it was agreed to", "Look at the present state, then ask again."),
    errors.Expired: ("its time limit has passed", ""),
    errors.Cancelled: ("it was cancelled", ""),
    errors.OutcomeUnknown: ("unknown whether it was carried out", "Look at what it would change before you repeat it."),
}
"""The meaning of an error, for a reader who does not know the foreign code and text, and the next step."""

_AMBIGUOUS_STATUSES = frozenset({408, 425, 499})
"""4xx with which a proxy gives up on a request that may be in flight."""


def envelope_of(reply: Reply) -> dict[str, Any] | None:
    """Return the error envelope, None if the reply is not one; any status may have one (CONTRACT.md, "What surrounds them")."""
    try:
        value = json.loads(reply.body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    if "code" not in value and str(value.get("ret_code", 0)) not in {"0", ""}:
        return {"code": value["ret_code"], "message": value.get("message") or ""}
    return value if "code" in value and "message" in value else None


def error_of(reply: Reply, what: str) -> ZoneError:
    """Return the error that a reply means; `what` describes the request."""
    error = _envelope_error(reply, what)
    error.retry_after_seconds = retry_after(reply.headers)
    if error.retry_after_seconds and not (envelope_of(reply) or {}).get("hint"):
        error.add(hint=f"Wait {math.ceil(error.retry_after_seconds)} s.")
    return error


def _envelope_error(reply: Reply, what: str) -> ZoneError:
    envelope = envelope_of(reply)
    if envelope is None:
        return _bare_error(reply, what)
    code, message = str(envelope["code"])[:80], clean_text(envelope["message"], MESSAGE_CHARACTERS)
    kind = ERRORS_BY_CODE.get(code) or _foreign_kind(reply.status, code, message)
    hint = clean_text(envelope.get("hint") or "", MESSAGE_CHARACTERS)
    if not hint:  # with a hint it comes from our own face, whose messages are complete
        words, hint = _DESCRIPTIONS[kind]
        status = "" if reply.status == 200 else f" ({reply.status})"
        message = f"{what}: {words}{status}; the zone says {quoted(message or code, MESSAGE_CHARACTERS)}."
    error = kind(message, hint=hint)
    if isinstance(error, errors.ResourceBusy):
        error.job_id = clean_text(envelope.get("job_id") or "")
    return error


def _foreign_kind(status: int, code: str, message: str) -> type[ZoneError]:
    if status in {502, 503, 504}:
        return errors.Unavailable
    kind = _kind_of_words(re.split("[,:;(]", message)[0] if code.lstrip("-").isdigit() else code)
    is_said = (403, errors.QuotaExceeded), (403, errors.TooManyRequests), (404, errors.UnknownZone)
    if status in {200, 400} or (status, kind) in is_said:
        return kind or (errors.BadRequest if status == 400 else errors.InternalError)
    return _BY_STATUS.get(status, errors.BadRequest if status < 500 else errors.InternalError)


def _kind_of_words(name: str) -> type[ZoneError] | None:
    """Return the meaning of a name such as `PermissionDenied`; a sentence has none."""
    plain = "".join(character for character in name.lower() if character.isalnum())
    if " " in name.strip():
        return None
    return next((kind for pattern, kind in _BY_WORDS.items() if re.search(pattern, plain)), None)


def _bare_error(reply: Reply, what: str) -> ZoneError:
    """Return the error for a reply that is not from the API: a 404 may mean a wrong address as well as a missing thing."""
    status, excerpt = reply.status, _excerpt(reply)
    match status:
        case 401:
            return errors.Unauthorized(f"{what}: the credentials were not accepted (401{excerpt}).")
        case 403 | 402:
            return errors.Forbidden(
                f"{what}: rejected with {status}{excerpt}.",
                hint="The answer is not from the API: a proxy or a firewall may have sent it.",
            )
        case 407:
            return errors.Unavailable(
                f"{what}: the proxy requires credentials (407).", hint="Add them to the proxy setting."
            )
        case 429:
            return errors.TooManyRequests(f"{what}: rate-limited (429).", hint=_DESCRIPTIONS[errors.TooManyRequests][1])
        case 404 | 405 | 410:
            return NoRoute(
                f"{what}: {status}, but not from the API{excerpt}.",
                hint="Check url and zone in the settings.",
            )
        case _ if 300 <= status < 400:
            return errors.Unavailable(
                f"{what}: redirects are not followed ({status}).", hint="Set url to the final address."
            )
        case 400 if b"https" in reply.body[:4000].lower():
            return Unfit(
                f"{what}: the port expects TLS (400{excerpt}).", hint="Let url in the settings begin with https://."
            )
        case _ if status < 500 and status not in _AMBIGUOUS_STATUSES:
            return errors.BadRequest(f"{what}: rejected with {status}{excerpt}.")
        case _:
            return errors.Unavailable(f"{what}: the zone is unavailable ({status}{excerpt}).", hint="Retry later.")


def _excerpt(reply: Reply) -> str:
    """Return the first words of a foreign page, without its markup."""
    words = clean_text(
        re.sub("<[^>]*>?|>", lambda tag: " " * len(tag[0]), reply.body[:4000].decode("utf-8", "replace")), 60
    )
    return f", {quoted(words, 60)}" if words else ""


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return `Retry-After` in seconds, from a number or a date; None if it is missing or malformed."""
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
    """Return whether an error reply proves that a change was not started.

    A redirect may follow a change that was carried out, and a gateway may report an outage during one. For the contract's
    codes `ZoneError.is_definite` decides, with a 5xx only if that is the error's own status.
    """
    if 300 <= reply.status < 400 or reply.status in _AMBIGUOUS_STATUSES:
        return False
    kind = ERRORS_BY_CODE.get(str((envelope_of(reply) or {}).get("code")))
    if kind is None:
        return reply.status < 500
    return kind.is_definite and kind is not errors.Unavailable and (reply.status < 500 or kind.http_status >= 500)


def is_error(reply: Reply) -> bool:
    """Return whether the reply is an error: by its status, or by an envelope in a 2xx."""
    return not 200 <= reply.status < 300 or envelope_of(reply) is not None


def decoded(reply: Reply, what: str) -> Any:
    """Return the JSON of a 2xx reply. Raises the zone's error, or Unavailable for a reply that is not from the API."""
    if not 200 <= reply.status < 300:
        raise error_of(reply, what)
    if not reply.body.strip():
        raise errors.Unavailable(f"{what}: the answer is empty.", hint="A proxy may have cut it off.")
    try:
        value = json.loads(reply.body)
    except (ValueError, RecursionError):
        is_page = reply.body.lstrip()[:1] == b"<"
        kind = f"a web page{_excerpt(reply)}" if is_page else "not complete JSON"
        hint = "A proxy may have answered, or cut the answer off."
        raise errors.Unavailable(f"{what}: the answer is {kind}.", hint=hint) from None
    if envelope_of(reply) is not None:
        raise error_of(reply, what)
    return value if is_within_bounds(reply.body) else bounded(value, what)


def parsed(model: type[Model], value: object, what: str) -> Model:
    """Return `value` as `model`. Raises Unavailable, which names the first invalid field."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or model.__name__
        raise errors.Unavailable(
            f"{what}: the answer does not match the contract ({clean_text(place)}: {clean_text(first['msg'])}).",
            hint=CHECK_URL,
        ) from None


def readable(model: type[Model], value: object, what: str) -> tuple[list[Model], tuple[str, ...]]:
    """Return the rows of a list that can be read, and why the others cannot. Raises Unavailable for what is no list."""
    if not isinstance(value, list):
        raise errors.Unavailable(f"{what}: the answer is not a list.", hint=CHECK_URL)
    found: list[Model] = []
    reasons: list[str] = []
    for item in value:
        try:
            found.append(parsed(model, item, what))
        except errors.Unavailable as error:
            reasons.append(error.message)
    if reasons and not found:
        raise errors.Unavailable(reasons[0], hint=CHECK_URL)
    return found, tuple(reasons)


def parsed_list(model: type[Model], value: object, what: str) -> tuple[Model, ...]:
    """Return a list of `model`. Raises Unavailable."""
    if not isinstance(value, list):
        raise errors.Unavailable(f"{what}: the answer is not a list.", hint=CHECK_URL)
    return tuple(parsed(model, item, what) for item in value)


def member(value: object, key: str, what: str) -> Any:
    """Return `value[key]`. Raises Unavailable if it is missing."""
    if not isinstance(value, dict) or key not in value:
        raise errors.Unavailable(f"{what}: the answer has no {key!r}.", hint=CHECK_URL)
    return value[key]


def whole_number(value: object, key: str, what: str) -> int:
    """Return a count that may be written as text or as a float. Raises Unavailable."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value)
    if not text.isdecimal() or len(text) > len(str(MAX_COUNT)) or int(text) > MAX_COUNT:
        raise errors.Unavailable(f"{what}: {key!r} is {quoted(value)}, not a whole number.")
    return int(text)


def is_transient(error: ZoneError) -> bool:
    """Return whether a read that failed in this way should be retried."""
    return isinstance(error, (errors.TooManyRequests, errors.Unavailable, errors.InternalError)) and not isinstance(
        error, (NoRoute, Unfit)
    )
