"""Send requests and return complete replies; errors say whether anything was sent. The only module that imports httpx.

Redirects are not followed, because they would take the token with them; answers are limited in size.
"""

import re
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
import httpx

from snapshot_mcp.contract.errors import BadRequest
from snapshot_mcp.contract.text import clean_text
from snapshot_mcp.providers.anchcloud.calls import Outgoing
from snapshot_mcp.providers.anchcloud.patience import Patience
from snapshot_mcp.providers.anchcloud.replies import Garbled, Lost, NotSent, Reply, TooLarge
from snapshot_mcp.providers.anchcloud.settings import AnchCloudZoneSettings

MAX_ANSWER_BYTES = 32 << 20
"""Far more than any answer of the API; a page of 100 snapshots has less than 100 KB."""

KEEPALIVE_SECONDS = 3.0
"""Shorter than servers keep idle connections (uvicorn 5 s), so that none is reused while the server closes it."""

CONNECTIONS = 20
"""httpx scans its whole pool for every request, so 100 are slower than 20; providers limit the rate anyway."""

_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError, httpx.UnsupportedProtocol)


class Transport:
    """A connection pool to one provider. Call `aclose` in the event loop that used it."""

    def __init__(self, settings: AnchCloudZoneSettings, patience: Patience) -> None:
        self._patience = patience
        proxy = settings.proxy.get_secret_value()
        self._client = httpx.AsyncClient(
            verify=_tls(settings),
            proxy=proxy or None,
            trust_env=settings.is_encrypted and not proxy,
            follow_redirects=False,
            limits=httpx.Limits(
                max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS, keepalive_expiry=KEEPALIVE_SECONDS
            ),
            headers={"user-agent": "snapshot-mcp"},
        )

    async def send(self, outgoing: Outgoing, seconds: float) -> Reply:
        """Send a request and return the complete reply. Raises NotSent, or Lost if the request may have arrived."""
        try:
            with anyio.fail_after(seconds):
                async with self.stream(outgoing, seconds) as response:
                    body = bytearray()
                    async for chunk in response.aiter_bytes():
                        body += chunk
                        if len(body) > MAX_ANSWER_BYTES:
                            raise TooLarge(f"the answer has more than {MAX_ANSWER_BYTES} bytes")
                    return Reply(response.status_code, response.headers, bytes(body))
        except TimeoutError:
            raise Lost(f"no answer within {seconds:g} s") from None

    @asynccontextmanager
    async def stream(self, outgoing: Outgoing, read_seconds: float) -> AsyncGenerator[httpx.Response, None]:
        """Yield the open response. Raises NotSent or Lost, also inside the block."""
        # a pool timeout means that nothing was sent, so it must come before the caller's own timeout
        timeout = httpx.Timeout(read_seconds, connect=self._patience.connect_seconds, pool=read_seconds / 2)
        request = self._client.build_request(
            outgoing.method, outgoing.url, headers=outgoing.headers, content=outgoing.body, timeout=timeout
        )
        try:
            response = await self._client.send(request, stream=True)
            try:
                yield response
            finally:
                with anyio.CancelScope(shield=True):
                    await response.aclose()
        except _NEVER_SENT as error:
            raise NotSent(*_reason(error)) from None
        except httpx.DecodingError:
            encoding = clean_text(response.headers.get("content-encoding", ""), 40)
            raise Garbled(f"the answer is not {encoding!r}, as its Content-Encoding says") from None
        except httpx.TimeoutException:
            raise Lost(f"no answer within {read_seconds:g} s") from None
        except httpx.HTTPError as error:
            raise Lost(_reason(error)[0]) from None
        except httpx.InvalidURL:
            raise NotSent("the address is malformed") from None

    async def aclose(self) -> None:
        """Close all connections."""
        await self._client.aclose()


def _tls(settings: AnchCloudZoneSettings) -> ssl.SSLContext | bool:
    if not settings.is_encrypted:
        return False  # plain http needs no CA certificates
    if settings.ca_file is None:
        return True
    try:
        return ssl.create_default_context(cafile=settings.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise BadRequest(
            f"Cannot read the CA file {str(settings.ca_file)!r}: {clean_text(error)}.",
            hint="Set ca_file to a PEM file with the provider's certificate authority.",
        ) from None


TLS_TROUBLES = {
    "self-signed|self signed|local issuer": (
        "its certificate is from an authority that this machine does not know",
        "Set ca_file in the zone's settings to a PEM file with the provider's certificate authority.",
    ),
    "expired|not yet valid": (
        "its certificate has expired or is not valid yet",
        "The provider has to renew it; check this machine's clock too.",
    ),
    "hostname mismatch|ip address mismatch|doesn't match": (
        "its certificate is for another name",
        "Set url to a name that the certificate is for.",
    ),
    "wrong_version_number|record layer|http_request|packet length": (
        "it does not speak TLS on this port",
        "If the provider has no TLS, let url begin with http://; else check the port.",
    ),
}
"""What OpenSSL says, what that means, and the next step."""


def _reason(error: httpx.HTTPError) -> tuple[str, str]:
    """Return the cause in a few words, and the next step if one is known; the system's error may be below httpx's."""
    text = str(error) or str(error.__cause__ or "") or type(error).__name__
    if "ssl" in text.lower():
        for pattern, (reason, hint) in TLS_TROUBLES.items():
            if re.search(pattern, text, re.IGNORECASE):
                return f"{reason}: {clean_text(text.partition('] ')[2] or text, 120)}", hint
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return f"its certificate is not trusted ({clean_text(text.partition('] ')[2] or text, 120)})", ""
    return clean_text(text, 160), ""
