"""S3 Object Lock for what was stored: `PUT ?retention`, which `obstore` cannot ask for, signed by AWS Signature Version 4.

Source: "Authenticating Requests (AWS Signature Version 4)" and "PutObjectRetention" in the Amazon S3 API reference.
"""

import base64
import hashlib
import hmac
from datetime import UTC, datetime, timedelta
from typing import Final
from urllib.parse import quote, urlsplit

import httpx

from snapshot_mcp.contract.errors import Forbidden, Unavailable
from snapshot_mcp.copies.settings import StoreSettings

_SECONDS: Final = 30.0
_BODY: Final = '<Retention xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Mode>{}</Mode><RetainUntilDate>{}</RetainUntilDate></Retention>'


class ObjectLock:
    """Locks objects of a bucket for some days, in one mode."""

    def __init__(self, settings: StoreSettings, mode: str, days: int) -> None:
        self._settings, self._mode, self._days = settings, mode.upper(), days
        self._client = httpx.Client(timeout=_SECONDS, follow_redirects=False)

    def apply(self, name: str) -> None:
        """Lock an object that is there. Raises Forbidden where the bucket has no lock, Unavailable."""
        until = datetime.now(UTC) + timedelta(days=self._days)
        body = _BODY.format(self._mode, until.strftime("%Y-%m-%dT%H:%M:%SZ")).encode()
        url = f"{self._base}/{quote('/'.join(filter(None, [self._settings.prefix, name])))}?retention="
        try:
            answer = self._client.put(url, content=body, headers=sign(self._settings, url, body, datetime.now(UTC)))
        except httpx.HTTPError as error:
            raise Unavailable(f"The object store did not lock {name}: {type(error).__name__}.") from None
        if answer.status_code not in {200, 204}:
            raise Forbidden(
                f"The object store did not lock {name} (HTTP {answer.status_code}).",
                hint="Object Lock is switched on when a bucket is made, and the key needs s3:PutObjectRetention. Or take `lock`"
                " out of the copy's settings.",
            )

    @property
    def _base(self) -> str:
        one = self._settings
        if one.endpoint:
            return f"{one.endpoint.rstrip('/')}/{one.bucket}"
        return f"https://{one.bucket}.s3.{one.region}.amazonaws.com"


def sign(settings: StoreSettings, url: str, body: bytes, now: datetime) -> dict[str, str]:
    """Return the headers of a signed PUT."""
    assert settings.access_key_id
    assert settings.secret_access_key
    parts, moment, day = urlsplit(url), now.strftime("%Y%m%dT%H%M%SZ"), now.strftime("%Y%m%d")
    payload = hashlib.sha256(body).hexdigest()
    headers = {
        "content-md5": base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode(),
        "host": parts.netloc,
        "x-amz-content-sha256": payload,
        "x-amz-date": moment,
    }
    if settings.session_token:
        headers["x-amz-security-token"] = settings.session_token.get_secret_value()
    names = ";".join(sorted(headers))
    lines = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
    request = "\n".join(["PUT", parts.path, parts.query, lines, names, payload])
    scope = f"{day}/{settings.region}/s3/aws4_request"
    to_sign = "\n".join(["AWS4-HMAC-SHA256", moment, scope, hashlib.sha256(request.encode()).hexdigest()])
    key = f"AWS4{settings.secret_access_key.get_secret_value()}".encode()
    for step in (day, settings.region, "s3", "aws4_request"):
        key = hmac.new(key, step.encode(), hashlib.sha256).digest()
    signature = hmac.new(key, to_sign.encode(), hashlib.sha256).hexdigest()
    credential = f"{settings.access_key_id.get_secret_value()}/{scope}"
    return headers | {
        "authorization": f"AWS4-HMAC-SHA256 Credential={credential},SignedHeaders={names},Signature={signature}"
    }
