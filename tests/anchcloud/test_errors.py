"""Errors travel: what a zone raises behind the face is what the client raises, and foreign errors find their place."""

from pathlib import Path

import pytest

from snapshot_mcp.contract.errors import (
    ERRORS_BY_CODE,
    BadRequest,
    Forbidden,
    InternalError,
    NotFound,
    OutcomeUnknown,
    QuotaExceeded,
    ResourceBusy,
    StorageFull,
    TooManyRequests,
    Unauthorized,
    Unavailable,
    Unsupported,
    ZoneError,
)
from snapshot_mcp.contract.models import Page, Snapshot, SnapshotFilter
from snapshot_mcp.providers.anchcloud.replies import Reply, decoded, error_of, is_definite, retry_after
from snapshot_mcp.providers.local import LocalZone
from tests.rest_face import ask, fetch_token, served

pytestmark = pytest.mark.anyio

FOREIGN = [
    (400, "InvalidParameter", BadRequest),
    (401, "x", Unauthorized),
    (403, "PermissionDenied", Forbidden),
    (404, "ResourceNotFound", NotFound),
    (409, "Conflict", ResourceBusy),
    (422, "x", BadRequest),
    (429, "x", TooManyRequests),
    (500, "x", InternalError),
    (501, "x", Unsupported),
    (502, "x", Unavailable),
    (503, "x", Unavailable),
    (507, "x", StorageFull),
    (200, "ResourceNotFound", NotFound),
    (200, "PermissionDenied", Forbidden),
    (200, "QuotaExceeded", QuotaExceeded),
    (200, "TooManyRequests", TooManyRequests),
    (200, "InvalidParameterValue", BadRequest),
    (200, 1400, InternalError),
    (400, "QuotaExceeded", QuotaExceeded),
]
"""Status and code of an envelope → our error."""


class Raising(LocalZone):
    """An embedded zone that raises what it is told to."""

    error: ZoneError

    async def list_snapshots(self, query: SnapshotFilter) -> Page[Snapshot]:
        raise self.error


@pytest.mark.parametrize("code", sorted(ERRORS_BY_CODE))
async def test_each_error_of_the_tree_crosses_the_wire_whole(code: str, tmp_path: Path) -> None:
    """CONTRACT.md, "Codes": none is unmapped on either side."""
    kind = ERRORS_BY_CODE[code]
    zone = Raising(tmp_path / "zone")
    zone.error = kind("it is said with é and 日本", hint="and what to do")
    if isinstance(zone.error, ResourceBusy):
        zone.error.job_id = "job-7"
    if isinstance(zone.error, TooManyRequests):
        zone.error.retry_after_seconds = 99
    async with served(zone) as face:
        answer = await ask(face.url, "GET", "/v2/zone/ac1/volume_snapshots", token=await fetch_token(face.url))
        assert answer.status == kind.http_status
        assert answer.json["code"] == code
        error = error_of(Reply(answer.status, answer.headers, answer.body), "Listing")
    assert type(error) is kind
    assert "é and 日本" in error.message
    assert error.hint == "and what to do"
    if isinstance(error, ResourceBusy):
        assert error.job_id == "job-7"
    if isinstance(error, TooManyRequests):
        assert error.retry_after_seconds == 99


async def test_a_bug_is_hidden_outside_and_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """House style 19: "hidden outside"."""
    zone = Raising(tmp_path / "zone")
    zone.error = RuntimeError("the secret of the house")  # type: ignore[assignment]
    async with served(zone) as face:
        answer = await ask(face.url, "GET", "/v2/zone/ac1/volume_snapshots", token=await fetch_token(face.url))
    assert (answer.status, answer.json["code"]) == (500, "internal_error")
    assert b"secret of the house" not in answer.body
    assert caplog.text.count("RuntimeError: the secret of the house") == 1


def test_foreign_envelopes_find_their_place() -> None:
    """a 200 may carry the same two keys and is then an error too"; permission, absence, throttling, outage told apart."""
    for status, code, kind in FOREIGN:
        body = f'{{"code": {code if isinstance(code, int) else chr(34) + code + chr(34)}, "message": "why"}}'.encode()
        reply = Reply(status, {}, body)
        assert type(error_of(reply, "Listing")) is kind, (status, code)
        with pytest.raises(kind, match="why"):
            decoded(reply, "Listing")


def test_only_an_answer_of_the_zone_itself_proves_a_refusal() -> None:
    """What may have been carried out is looked up; what was refused is not."""
    envelope = b'{"code": "x", "message": "y"}'
    assert all(is_definite(Reply(status, {}, envelope)) for status in (200, 400, 401, 403, 404, 409, 413, 422, 429))
    assert not any(is_definite(Reply(status, {}, envelope)) for status in (408, 499, 500, 502, 503, 504))
    assert is_definite(Reply(507, {}, b'{"code": "storage_full", "message": "y"}'))
    assert not is_definite(Reply(507, {}, b"<html>"))


def test_markup_and_terminal_codes_of_foreign_pages_are_not_passed_on() -> None:
    page = Reply(502, {}, b"<html><script>evil()</script>\x1b[31mBad\x1b[0m gate\xe2\x80\xaeway</html>")
    text = str(error_of(page, "Listing"))
    assert "<" not in text
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_retry_after_is_read_in_both_forms() -> None:
    """RFC 9110: seconds, or a date; what is neither is no wish."""
    assert retry_after({"retry-after": "3"}) == 3
    assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    for nothing in ("", "soon", "nan", "inf", "Wed, 21 Oct 99999 07:28:00 GMT", f"Wed, 21 Oct {'9' * 30} 07:28:00 GMT"):
        assert retry_after({"retry-after": nothing}) is None
    assert retry_after({"retry-after": "9" * 30}) == 86_400
    assert issubclass(OutcomeUnknown, ZoneError)
