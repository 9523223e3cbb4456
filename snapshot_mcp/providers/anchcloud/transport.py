"""The only module that imports httpx: requests out, whole replies in, failures told apart by whether anything was sent.

Redirects are not followed (a token would travel with them), cookies are not kept, answers are bounded.
"""

import ssl
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
import httpx

from snapshot_mcp.contract.errors import BadRequest
from snapshot_mcp.contract.text import clean_text
from snapshot_mcp.providers.anchcloud.patience import Patience
from snapshot_mcp.providers.anchcloud.replies import Lost, NotSent, Reply, TooLarge
from snapshot_mcp.providers.anchcloud.settings import AnchCloudZoneSettings

MAX_ANSWER_BYTES = 32 << 20
"""A page of 100 snapshots has less than 100 KB; what is larger is no answer of the API."""

KEEPALIVE_SECONDS = 3.0
"""Below what servers keep an idle connection for (uvicorn 5 s): a request must not meet a connection that is being closed."""

CONNECTIONS = 20
"""httpx looks at every connection of its pool for every request: with 100 it is slower than with 20, and a provider throttles."""

_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError, httpx.UnsupportedProtocol)


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One request, ready: absolute URL, headers and body."""

    method: str
    url: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes | None = field(default=None, repr=False)


class Transport:
    """A connection pool to one provider. Build it inside the event loop, `aclose` it there."""

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
        """Return the whole reply. Raises NotSent, or Lost when the request may have arrived."""
        try:
            with anyio.fail_after(seconds):
                async with self._open(outgoing, seconds) as response:
                    body = bytearray()
                    async for chunk in response.aiter_bytes():
                        body += chunk
                        if len(body) > MAX_ANSWER_BYTES:
                            raise TooLarge(f"the answer has more than {MAX_ANSWER_BYTES} bytes")
                    return Reply(response.status_code, response.headers, bytes(body))
        except TimeoutError:
            raise Lost(f"no answer within {seconds:g} s") from None

    @asynccontextmanager
    async def stream(self, outgoing: Outgoing, silence_seconds: float) -> AsyncGenerator[httpx.Response, None]:
        """Yield the open response. Raises NotSent or Lost, also from inside the block."""
        async with self._open(outgoing, silence_seconds) as response:
            yield response

    async def aclose(self) -> None:
        await self._client.aclose()

    @asynccontextmanager
    async def _open(self, outgoing: Outgoing, read_seconds: float) -> AsyncGenerator[httpx.Response, None]:
        # who waits half the time for a connection has sent nothing, and says so
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
            raise NotSent(_reason(error)) from None
        except httpx.TimeoutException:
            raise Lost(f"no answer within {read_seconds:g} s") from None
        except httpx.HTTPError as error:
            raise Lost(_reason(error)) from None
        except httpx.InvalidURL:
            raise NotSent("the address is malformed") from None


def _tls(settings: AnchCloudZoneSettings) -> ssl.SSLContext | bool:
    if not settings.is_encrypted:
        return False  # plain http to this machine: no reason to load the system's authorities
    if settings.ca_file is None:
        return True
    try:
        return ssl.create_default_context(cafile=settings.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise BadRequest(
            f"The CA file {str(settings.ca_file)!r} cannot be read: {clean_text(error)}.",
            hint="Set ca_file to a PEM file with the provider's certificate authority.",
        ) from None


def _reason(error: httpx.HTTPError) -> str:
    """The cause in a few words: httpx often has an empty text, the system's own text is one level down."""
    text = str(error) or str(error.__cause__ or "") or type(error).__name__
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return f"its certificate is not trusted ({clean_text(text.partition('] ')[2] or text, 120)})"
    return clean_text(text, 160)
