"""Calls with a token: fetching and renewing it, one retry after a 401, and bounded retries for reads.

Many callers that find the token old wait for one renewal. A change is sent once; only an answer that proves that it was
not started (a 401) lets it be sent again.
"""

import base64
import logging
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import anyio

from snapshot_mcp.contract.errors import BadRequest, Forbidden, TooManyRequests, Unauthorized, Unavailable, ZoneError
from snapshot_mcp.providers.anchcloud.calls import Call
from snapshot_mcp.providers.anchcloud.replies import (
    Lost,
    NotSent,
    Reply,
    decoded,
    error_of,
    is_transient,
    member,
    whole_number,
)
from snapshot_mcp.providers.anchcloud.settings import Endpoint, Patience

if TYPE_CHECKING:
    from snapshot_mcp.providers.anchcloud.transport import Outgoing, Transport

logger = logging.getLogger(__name__)

RENEW_BEFORE_SECONDS = 60.0
"""A token is renewed this long before its end, or at nine tenths of a shorter life, so that it does not end on the way."""

HIDDEN = "•••"


@dataclass(frozen=True, slots=True)
class _Token:
    text: str = field(repr=False)
    renew_at: float


class Response(Protocol):
    """An open stream's head, as far as it is read here."""

    @property
    def status_code(self) -> int: ...
    @property
    def headers(self) -> Any: ...
    def aiter_bytes(self) -> AsyncIterator[bytes]: ...


class Session:
    """One key pair at one provider. Raises errors of the contract, and Lost for a change whose answer was lost."""

    def __init__(self, endpoint: Endpoint, patience: Patience) -> None:
        self._endpoint = endpoint
        self._patience = patience
        self._transport: Transport | None = None
        self._token: _Token | None = None
        self._renewing = anyio.Lock()
        self.headers: dict[str, str] = {}
        """The zone's own headers of the last answer (`x-snapshot-…`)."""

    async def read(self, call: Call) -> Any:
        """Return the decoded answer of a GET, tried again while that makes sense and time is left."""
        deadline = time.monotonic() + self._patience.total_seconds
        for tried in range(1, self._patience.read_tries + 1):
            try:
                return await self._read_once(call, deadline)
            except ZoneError as error:
                pause = self._pause(error, tried)
                is_last = tried == self._patience.read_tries or time.monotonic() + pause >= deadline
                if is_last or not is_transient(error):
                    raise
                logger.debug("%s: try %d failed, next in %.1f s", call.what, tried, pause)
            await anyio.sleep(pause)
        raise AssertionError

    async def _read_once(self, call: Call, deadline: float) -> Any:
        seconds = max(0.1, min(self._patience.read_seconds, deadline - time.monotonic()))
        try:
            return self._checked(await self._with_token(call, seconds, token_tries=1), call)
        except Lost as lost:
            raise self._unreachable(call.what, str(lost)) from None

    async def change(self, call: Call) -> Reply:
        """Send a change once and return its reply. Raises Lost; Unavailable where it cannot have arrived."""
        return await self._with_token(call, self._patience.change_seconds, token_tries=self._patience.read_tries)

    def _checked(self, reply: Reply, call: Call) -> Any:
        try:
            return decoded(reply, call.what)
        except ZoneError as error:
            raise self.without_secrets(error) from None

    @asynccontextmanager
    async def stream(self, call: Call) -> AsyncGenerator[Response, None]:
        """Yield an open response of any status but 401. Raises Unavailable, also from inside the block."""
        transport = await self._connected()
        for is_first in (True, False):
            token = await self._fresh_token(call.what)
            outgoing = self._outgoing(call, token, accept="text/event-stream")
            try:
                async with transport.stream(outgoing, self._patience.silence_seconds) as response:
                    if response.status_code == 401 and is_first:
                        self._drop(token)
                        continue
                    self._keep_headers(response.headers)
                    yield response
                    return
            except (NotSent, Lost) as error:
                raise self._unreachable(call.what, str(error)) from None

    async def aclose(self) -> None:
        if self._transport is not None:
            await self._transport.aclose()
            self._transport = None

    def without_secrets(self, error: ZoneError) -> ZoneError:
        """Return the error without the secret and the token: a zone may repeat what it was sent."""
        secrets = [self._endpoint.client_secret.get_secret_value(), self._token.text if self._token else ""]
        for secret in filter(None, secrets):
            error.message = error.message.replace(secret, HIDDEN)
            error.hint = error.hint.replace(secret, HIDDEN)
        error.args = (error.message,)
        return error

    async def _with_token(self, call: Call, seconds: float, *, token_tries: int) -> Reply:
        """Send it; with a new token once if ours was refused. A read is tried again as a whole, so its token is not."""
        transport = await self._connected()
        reply = None
        for _ in range(2):
            token = await self._fresh_token(call.what, token_tries)
            try:
                reply = await transport.send(self._outgoing(call, token), seconds)
            except NotSent as error:
                raise self._unreachable(call.what, str(error)) from None
            self._keep_headers(reply.headers)
            if reply.status != 401:
                break
            self._drop(token)
        assert reply is not None
        return reply

    def _outgoing(self, call: Call, token: _Token, accept: str = "application/json") -> "Outgoing":
        from snapshot_mcp.providers.anchcloud.transport import Outgoing

        headers = {"authorization": f"Bearer {token.text}", "accept": accept}
        if call.body is not None:
            headers["content-type"] = "application/json"
        return Outgoing(call.method, self._endpoint.location + call.target, headers, call.body)

    def _keep_headers(self, headers: Any) -> None:
        if "x-snapshot-features" in headers:
            self.headers = {name: headers[name] for name in headers if name.startswith("x-snapshot-")}

    def _drop(self, token: _Token) -> None:
        if self._token is token:
            self._token = None

    async def _connected(self) -> "Transport":
        if self._transport is None:
            async with self._renewing:
                if self._transport is None:
                    self._transport = await anyio.to_thread.run_sync(self._build_transport)
        return self._transport

    def _build_transport(self) -> "Transport":
        """Loads httpx and the authorities' certificates: some 100 ms, off the event loop and not before they are needed."""
        from snapshot_mcp.providers.anchcloud.transport import Transport

        return Transport(self._endpoint, self._patience)

    async def _fresh_token(self, what: str, tries: int = 1) -> _Token:
        token = self._token
        if token is not None and time.monotonic() < token.renew_at:
            return token
        async with self._renewing:
            if self._token is None or time.monotonic() >= self._token.renew_at:
                self._token = await self._fetch_token(what, tries)
            return self._token

    async def _fetch_token(self, what: str, tries: int) -> _Token:
        """Safe to repeat: a token too many expires by itself."""
        deadline = time.monotonic() + self._patience.total_seconds
        tried = 0
        while True:
            tried += 1
            try:
                return await self._fetch_token_once()
            except ZoneError as error:
                pause = self._pause(error, tried)
                if tried == tries or not is_transient(error) or time.monotonic() + pause >= deadline:
                    error.message = f"{what}: no token. {error.message}"
                    raise self.without_secrets(error) from None
            await anyio.sleep(pause)

    async def _fetch_token_once(self) -> _Token:
        from snapshot_mcp.providers.anchcloud.transport import Outgoing

        what = "Fetching a token"
        pair = f"{self._endpoint.client_id}:{self._endpoint.client_secret.get_secret_value()}"
        headers = {
            "authorization": "Basic " + base64.b64encode(pair.encode()).decode(),
            "content-type": "application/x-www-form-urlencoded",
        }
        url = f"{self._endpoint.url}/v2/oauth2/token"
        outgoing = Outgoing("POST", url, headers, b"grant_type=client_credentials")
        assert self._transport is not None
        asked_at = time.monotonic()
        try:
            reply = await self._transport.send(outgoing, self._patience.token_seconds)
        except (NotSent, Lost) as error:
            raise self._unreachable(what, str(error)) from None
        if reply.status in {400, 401}:
            refusal = error_of(reply, what)
            if isinstance(refusal, (Unauthorized, BadRequest)):
                raise Unauthorized(
                    f"{self._endpoint.url} does not accept the key pair: {refusal.message}",
                    hint="Check client_id and client_secret in the settings.",
                )
        answer = decoded(reply, what)
        text = member(answer, "access_token", what)
        if not isinstance(text, str) or not text.isascii() or not text.isprintable() or not text:
            raise Unavailable(f"{what}: the access_token is no token.")
        if str(answer.get("token_type", "Bearer")).lower() != "bearer":
            raise Forbidden(f"{what}: the token is no Bearer token.")
        life = whole_number(answer.get("expires_in", 3600), "expires_in", what)
        return _Token(text, asked_at + max(life - RENEW_BEFORE_SECONDS, life * 0.9))

    def _unreachable(self, what: str, reason: str) -> Unavailable:
        return Unavailable(
            f"{what}: {self._endpoint.url} cannot be reached ({reason}).",
            hint="Check the network, the url and the provider's state, then try again.",
        )

    def _pause(self, error: ZoneError, tried: int) -> float:
        """Seconds before the next try: the zone's wish, else longer each time, with jitter."""
        longest: float = min(
            self._patience.longest_pause_seconds, self._patience.first_pause_seconds * 2 ** (tried - 1)
        )
        jitter = random.uniform(0.5, 1.0) * longest
        if isinstance(error, TooManyRequests) and error.retry_after_seconds is not None:
            return error.retry_after_seconds + jitter * 0.1
        return jitter
