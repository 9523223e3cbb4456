"""Calls with a token: fetch and renew it, retry once after a 401, and retry reads within limits.

Callers that find the token expired wait for one renewal. A change is sent once; it is repeated only after a 401, which proves
that it was not started.
"""

import itertools
import json
import logging
import math
import random
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import anyio
from pydantic import SecretStr

from snapshot_mcp.contract.errors import (
    BadRequest,
    Forbidden,
    TooManyRequests,
    Unauthorized,
    Unavailable,
    UnknownZone,
    ZoneError,
)
from snapshot_mcp.providers.anchcloud.calls import ApiCall, Outgoing
from snapshot_mcp.providers.anchcloud.patience import Patience
from snapshot_mcp.providers.anchcloud.replies import (
    CHECK_URL,
    Garbled,
    Lost,
    NoRoute,
    NotSent,
    Reply,
    TooLarge,
    Unfit,
    decoded,
    envelope_of,
    error_of,
    is_transient,
    member,
    retry_after,
)
from snapshot_mcp.providers.anchcloud.settings import AnchCloudZoneSettings

if TYPE_CHECKING:
    from snapshot_mcp.providers.anchcloud.transport import Transport

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

RENEW_BEFORE_SECONDS = 60.0
"""A token is renewed this long before it expires, or after nine tenths of a shorter lifetime."""

DEFAULT_LIFE_SECONDS = 3600.0
"""The lifetime of a token whose `expires_in` is missing, as RFC 6749 allows, or invalid; a 401 shows when it is too long."""

LONGEST_RATE_LIMIT_SECONDS = 60.0
"""The longest `Retry-After` that is respected."""

HIDDEN = "•••"
FETCHING = "Fetching a token"

SECRET_CHARACTERS = 8
"""Shorter texts occur anywhere by chance; no provider issues so short a secret."""

KNOWN_TOKENS = 4
"""Includes old ones: the answer that rejects a token may repeat it."""


@dataclass(frozen=True, slots=True)
class _Token:
    text: SecretStr
    renew_at: float


class Response(Protocol):
    """An open response, as far as it is used here."""

    status_code: int
    headers: Any

    def aiter_bytes(self) -> AsyncIterator[bytes]:
        """Iterate over the chunks of the body."""
        ...


class Session:
    """Calls to one provider with one key pair. Raises the contract's errors, and Lost for a change whose answer was lost."""

    def __init__(self, settings: AnchCloudZoneSettings, location: str, patience: Patience) -> None:
        self._settings = settings
        self._location = location
        self._patience = patience
        self._transport: Transport | None = None
        self._token: _Token | None = None
        self._renewing = anyio.Lock()
        self._tokens: deque[SecretStr] = deque(maxlen=KNOWN_TOKENS)
        self._limited_until: dict[str, float] = {}
        """When each rate limit ends; there is one per method, one for tokens and one for streams."""
        self.headers: dict[str, str] = {}
        """The `x-snapshot-…` headers of the last answer."""
        self.clock_ahead_seconds: float | None = None
        """How far the zone's clock was ahead of this machine's at the last answer that told its time."""

    async def read(self, call: ApiCall) -> Any:
        """Return the decoded answer of a GET, with retries."""
        return await self._retry(partial(self._read_once, call), call.what, self._patience.read_tries)

    async def _retry(self, once: Callable[[float], Awaitable[Result]], what: str, tries: int) -> Result:
        """Call `once` with the deadline, and again after transient errors while tries and time are left."""
        deadline = time.monotonic() + self._patience.total_seconds
        for tried in itertools.count(1):
            try:
                return await once(deadline)
            except ZoneError as error:
                pause = self._pause(error, tried)
                if tried == tries or not is_transient(error) or time.monotonic() + pause >= deadline:
                    raise
                logger.debug("%s: try %d failed, next in %.1f s", what, tried, pause)
            await anyio.sleep(pause)
        raise AssertionError

    async def _read_once(self, call: ApiCall, deadline: float) -> Any:
        seconds = max(0.1, min(self._patience.read_seconds, deadline - time.monotonic()))
        try:
            return decoded(await self._with_token(call, seconds, token_tries=1), call.what)
        except (NoRoute, UnknownZone) as error:
            place = self._location.rpartition("/")[2]
            raise error.add(hint=f"The settings say url = {self._settings.url!r} and zone = {place!r}.") from None
        except (TooLarge, Garbled) as lost:
            raise Unfit(f"{call.what}: {lost}.", hint=CHECK_URL) from None
        except Lost as lost:
            raise self._unreachable(call.what, str(lost)) from None

    async def change(self, call: ApiCall) -> Reply:
        """Send a change once and return its reply. Raises Lost; after any other error it was not sent."""
        return await self._with_token(call, self._patience.change_seconds, token_tries=self._patience.read_tries)

    @asynccontextmanager
    async def stream(self, call: ApiCall) -> AsyncGenerator[Response, None]:
        """Yield the open response of a stream. Raises Unavailable, also inside the block."""
        transport = await self._connect()
        for is_first in (True, False):
            self._check_rate_limit("stream", call.what)
            token = await self._fresh_token(call.what)
            outgoing = self._outgoing(call, token, accept="text/event-stream")
            try:
                async with transport.stream(outgoing, self._patience.silence_seconds) as response:
                    if response.status_code == 401 and is_first:
                        self._drop(token)
                        continue
                    self._note_rate_limit("stream", response.status_code, response.headers)
                    self._keep_headers(response.headers)
                    yield response
                    return
            except (NotSent, Lost) as error:
                raise self._unreachable(call.what, str(error)) from None

    async def aclose(self) -> None:
        """Close the connections."""
        if self._transport is not None:
            await self._transport.aclose()
            self._transport = None

    def without_secrets(self, reply: Reply) -> Reply:
        """Return the reply without our secrets and tokens: a zone or a proxy may repeat what it was sent."""
        return _without([*self._key_pair, *self._tokens], reply)

    @property
    def _key_pair(self) -> list[SecretStr]:
        return [self._settings.client_secret, self._settings.key_pair]

    async def _with_token(self, call: ApiCall, seconds: float, *, token_tries: int) -> Reply:
        """Send the call, and again with a new token after a 401. Reads retry as a whole, so their `token_tries` is 1."""
        await self._connect()
        reply = None
        for _ in range(2):
            token = await self._fresh_token(call.what, token_tries)
            sent = await self._send(self._outgoing(call, token), seconds, call.what, call.method)
            reply = self.without_secrets(sent)
            self._keep_headers(reply.headers)
            if reply.status != 401:
                break
            self._drop(token)
        assert reply is not None
        return reply

    async def _send(self, outgoing: Outgoing, seconds: float, what: str, limit: str) -> Reply:
        """Send a request and return the reply. Raises Lost; TooManyRequests or Unavailable if it was not sent."""
        self._check_rate_limit(limit, what)
        assert self._transport is not None
        try:
            reply = await self._transport.send(outgoing, seconds)
        except NotSent as error:
            raise self._unreachable(what, str(error), error.hint) from None
        self._note_rate_limit(limit, reply.status, reply.headers)
        return reply

    def _check_rate_limit(self, limit: str, what: str) -> None:
        if (left := self._limited_until.get(limit, 0.0) - time.monotonic()) > 0:
            raise TooManyRequests(
                f"{what}: rate-limited by {self._settings.url}.",
                hint=f"Retry in {math.ceil(left)} s.",
                retry_after_seconds=left,
            )

    def _note_rate_limit(self, limit: str, status: int, headers: Any) -> None:
        if status in {429, 503} and (wish := retry_after(headers)):
            self._limited_until[limit] = time.monotonic() + min(wish, LONGEST_RATE_LIMIT_SECONDS)

    def _outgoing(self, call: ApiCall, token: _Token, accept: str = "application/json") -> Outgoing:
        headers = {"authorization": f"Bearer {token.text.get_secret_value()}", "accept": accept}
        if call.body is not None:
            headers["content-type"] = "application/json"
        return Outgoing(call.method, self._location + call.target, headers, call.body)

    def _keep_headers(self, headers: Any) -> None:
        if moment := _date_of(headers):
            self.clock_ahead_seconds = (moment - datetime.now(UTC)).total_seconds()
        if "x-snapshot-features" in headers:
            self.headers = {name: headers[name] for name in headers if name.startswith("x-snapshot-")}

    def _drop(self, token: _Token) -> None:
        if self._token is token:
            self._token = None

    async def _connect(self) -> "Transport":
        if self._transport is None:
            async with self._renewing:
                if self._transport is None:
                    self._transport = await anyio.to_thread.run_sync(self._build_transport)
        return self._transport

    def _build_transport(self) -> "Transport":
        """Build the transport in a thread: loading httpx and the CA certificates takes some 100 ms."""
        from snapshot_mcp.providers.anchcloud.transport import Transport

        return Transport(self._settings, self._patience)

    async def _fresh_token(self, what: str, tries: int = 1) -> _Token:
        token = self._token
        if token is not None and time.monotonic() < token.renew_at:
            return token
        async with self._renewing:
            if self._token is None or time.monotonic() >= self._token.renew_at:
                self._token = await self._fetch_token(what, tries)
            return self._token

    async def _fetch_token(self, what: str, tries: int) -> _Token:
        """Fetch a token, with retries; that is safe, because an unused token simply expires."""
        try:
            return await self._retry(self._fetch_token_once, FETCHING, tries)
        except ZoneError as error:
            error.add(before=f"{what}: no token.")
            raise

    async def _fetch_token_once(self, deadline: float) -> _Token:
        headers = {
            "authorization": f"Basic {self._settings.key_pair.get_secret_value()}",
            "content-type": "application/x-www-form-urlencoded",
        }
        url = f"{self._settings.url}/v2/oauth2/token"
        outgoing = Outgoing("POST", url, headers, b"grant_type=client_credentials")
        asked_at = time.monotonic()
        try:
            sent = await self._send(outgoing, self._patience.token_seconds, FETCHING, "token")
        except (TooLarge, Garbled) as lost:
            raise Unfit(f"{FETCHING}: {lost}.", hint=CHECK_URL) from None
        except Lost as lost:
            raise self._unreachable(FETCHING, str(lost)) from None
        reply = _without(self._key_pair, sent) if b"access_token" in sent.body else self.without_secrets(sent)
        if envelope_of(reply) is None and not (200 <= reply.status < 300 and reply.body.startswith(b"{")):
            reply = replace(reply, body=HIDDEN.encode())  # it may have a token, and errors repeat what they got
        token = self._token_of(reply, asked_at)
        self._tokens.append(token.text)
        return token

    def _token_of(self, reply: Reply, asked_at: float) -> _Token:
        if reply.status in {400, 401}:
            refusal = error_of(reply, FETCHING)
            if isinstance(refusal, (Unauthorized, BadRequest)):
                raise Unauthorized(
                    f"{self._settings.url} does not accept the key pair: {refusal.message}",
                    hint="Check client_id and client_secret in the settings.",
                )
        answer = decoded(reply, FETCHING)
        text = member(answer, "access_token", FETCHING)
        if not isinstance(text, str) or not text.isascii() or not text.isprintable() or not text:
            raise Unavailable(f"{FETCHING}: the access_token is not a token.")
        if str(answer.get("token_type", "Bearer")).lower() != "bearer":
            raise Forbidden(f"{FETCHING}: the token is not a Bearer token.")
        life = _life_seconds(answer.get("expires_in"))
        return _Token(SecretStr(text), asked_at + max(life - RENEW_BEFORE_SECONDS, life * 0.9))

    def _unreachable(self, what: str, reason: str, hint: str = "") -> Unavailable:
        """Return the error for a provider that did not answer; with a `hint` it is not retried, since waiting changes nothing."""
        message = f"{what}: {self._settings.url} cannot be reached ({reason})."
        if hint:
            return Unfit(message, hint=hint)
        encrypted = "" if self._settings.is_encrypted else " If it uses TLS, let url begin with https://."
        return Unavailable(
            message, hint=f"Check the network, the url and the provider's status, then retry.{encrypted}"
        )

    def _pause(self, error: ZoneError, tried: int) -> float:
        """Return the seconds before the next try: the zone's `Retry-After`, else exponential backoff, with jitter."""
        patience = self._patience
        longest = min(patience.longest_pause_seconds, patience.first_pause_seconds * 2.0 ** (tried - 1))
        jitter = random.uniform(0.5, 1.0) * longest
        return jitter if error.retry_after_seconds is None else error.retry_after_seconds + jitter * 0.1


def _without(secrets: Iterable[SecretStr], reply: Reply) -> Reply:
    body = reply.body
    for secret in map(SecretStr.get_secret_value, secrets):
        for spelling in _spellings(secret) if len(secret) >= SECRET_CHARACTERS else ():
            body = body.replace(spelling.encode(), HIDDEN.encode())
    return replace(reply, body=body)


def _spellings(secret: str) -> list[str]:
    """Return the secret as it is and as JSON may escape it; some escape the slash too."""
    escaped = json.dumps(secret)[1:-1]
    return [secret, escaped, secret.replace("/", "\\/"), escaped.replace("/", "\\/")]


def _life_seconds(value: Any) -> float:
    try:
        life = float(value)
    except (TypeError, ValueError, OverflowError):
        return DEFAULT_LIFE_SECONDS
    return life if math.isfinite(life) and life > 0 else DEFAULT_LIFE_SECONDS


def _date_of(headers: Any) -> datetime | None:
    """Return the time that an answer tells, None for none or nonsense."""
    try:
        moment = parsedate_to_datetime(headers.get("date", ""))
    except (ValueError, TypeError):
        return None
    return moment if moment.tzinfo else None
