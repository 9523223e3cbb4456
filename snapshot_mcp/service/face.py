"""The REST face put together: routes over Providers, behind the gate.

`build_service` makes the Starlette application; nothing here listens (`service.run` does).
"""

import base64
import binascii
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing, asynccontextmanager
from functools import partial
from urllib.parse import parse_qs

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from snapshot_mcp.contract.errors import BadRequest, NotFound, Unauthorized, UnknownZone, Unsupported, ZoneError
from snapshot_mcp.contract.models import Job
from snapshot_mcp.contract.provider import Feature, Provider
from snapshot_mcp.contract.text import clean_text
from snapshot_mcp.ground.web import Gatekeeper, Refused, read_body
from snapshot_mcp.service.answers import error_answer, json_answer, refusal_answer
from snapshot_mcp.service.gate import Gate
from snapshot_mcp.service.keys import Grant, TokenBook
from snapshot_mcp.service.openapi import build_openapi
from snapshot_mcp.service.operations import OPERATIONS, ZONE_PATH, ApiRequest
from snapshot_mcp.service.requests import NoQuery, read_json, read_query
from snapshot_mcp.service.roles import refuse_without
from snapshot_mcp.service.stream import Hub, events

HEARTBEAT_SECONDS = 15.0
"""Below what proxies and clients take for silence (30 to 60 s)."""


MAX_BODY_BYTES = 1 << 20
"""The largest legitimate body, a hundred ids and names, has about 10 KB."""

MAX_FORM_FIELDS = 20
"""Nobody has shown a key pair yet: a body of separators must not keep the event loop busy."""

METHODS_BY_PATH: dict[str, list[str]] = {}
for _operation in OPERATIONS:
    METHODS_BY_PATH.setdefault(_operation.path, []).append(_operation.method)


EVENT_STREAM = "text/event-stream; charset=utf-8"

Body = Callable[[MemoryObjectReceiveStream[Job]], AsyncGenerator[bytes, None]]


class MethodNotAllowed(BadRequest):
    http_status = 405


class RestFace:
    """The handlers of every route: the zones that are served, by their id in the path, behind the tokens' book."""

    def __init__(self, zones: Mapping[str, Provider], tokens: TokenBook, heartbeat_seconds: float) -> None:
        self._zones = dict(zones)
        self._tokens = tokens
        self._heartbeat_seconds = heartbeat_seconds
        self._hubs = {name: Hub(name, provider) for name, provider in self._zones.items()}

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks:
            for hub in self._hubs.values():
                tasks.start_soon(hub.run)
            yield
            self.close_streams()
            tasks.cancel_scope.cancel()

    def close_streams(self) -> None:
        """End the streams, so that the server can go down at once."""
        for hub in self._hubs.values():
            hub.close()

    def route(self, path: str) -> Callable[[Request], Awaitable[Response]]:
        """Return the endpoint of all of a path's methods, so that a 405 names them all."""
        operations = {one.method: one for one in OPERATIONS if one.path == path}

        async def endpoint(request: Request) -> Response:
            operation = operations["GET" if request.method == "HEAD" else request.method]
            grant: Grant = request.scope["grant"]
            refuse_without(operation.role, grant.role, grant.client_id, operation.summary)
            provider, _ = self._zone(request, operation.feature)
            features = provider.features
            query = read_query(operation.query or NoQuery, request.scope["query_string"], features)
            body = (
                read_json(operation.body, await read_body(request, MAX_BODY_BYTES), features)
                if operation.body
                else None
            )
            response = await operation.handle(ApiRequest(provider, request, query, body))
            response.headers.update(feature_headers(provider))
            return response

        return endpoint

    async def stream(self, request: Request) -> Response:
        provider, hub = self._zone(request, Feature.WATCH)
        if request.method == "HEAD":
            return Response(headers=feature_headers(provider), media_type=EVENT_STREAM)
        grant: Grant = request.scope["grant"]
        body = partial(
            events,
            zone_id=hub.zone_id,
            heartbeat_seconds=self._heartbeat_seconds,
            may_go_on=lambda: self._tokens.still_stands(grant),
        )
        return EventStream(hub, body, feature_headers(provider))

    async def token(self, request: Request) -> Response:
        """POST /v2/oauth2/token: HTTP Basic with the key pair, form `grant_type=client_credentials`."""
        body = await read_body(request, MAX_BODY_BYTES)
        try:
            form = parse_qs(body.decode("utf-8", "replace"), max_num_fields=MAX_FORM_FIELDS)
        except ValueError:
            form = {}
        if form.get("grant_type") != ["client_credentials"]:
            raise BadRequest(
                "The form's grant_type is not client_credentials.", hint="Send grant_type=client_credentials."
            )
        await self._tokens.refresh()
        try:
            token = self._tokens.issue(*_basic_credentials(request.headers.get("authorization", "")))
        except Unauthorized as error:
            return error_answer(error, headers={"www-authenticate": 'Basic realm="snapshot"'})
        return json_answer(
            {"access_token": token, "token_type": "Bearer", "expires_in": self._tokens.expires_in_seconds}
        )

    def _zone(self, request: Request, feature: Feature | None) -> tuple[Provider, Hub]:
        name = request.path_params["zone"]
        provider = self._zones.get(name)
        if provider is None:
            raise UnknownZone(
                f"No zone {clean_text(name)!r} here.", hint=f"This service has: {', '.join(sorted(self._zones))}."
            )
        if feature is not None and feature not in provider.features:
            raise Unsupported(f"The zone {name!r} has no {feature.value!r}.")
        return provider, self._hubs[name]


class EventStream(StreamingResponse):
    """Server-sent events of one subscription, which stands before the answer begins and ends with the connection."""

    def __init__(self, hub: Hub, body: Body, headers: Mapping[str, str]) -> None:
        super().__init__((), headers=headers, media_type=EVENT_STREAM)
        self.headers["cache-control"] = "no-store"
        self._hub = hub
        self._body = body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._hub.subscribe() as jobs, aclosing(self._body(jobs)) as self.body_iterator:
            await super().__call__(scope, receive, send)


def feature_headers(provider: Provider) -> dict[str, str]:
    """What the zone can do, for clients that care: the contract has no place for it."""
    return {
        "x-snapshot-features": ", ".join(sorted(provider.features)),
        "x-snapshot-recovery-seconds": str(provider.recovery_seconds),
    }


def _basic_credentials(header: str) -> tuple[str, str]:
    scheme, _, encoded = header.partition(" ")
    try:
        client_id, colon, client_secret = (
            base64.b64decode(encoded.strip(), validate=True).decode("utf-8").partition(":")
        )
    except (binascii.Error, ValueError):
        colon = ""
    if scheme.lower() != "basic" or not colon:
        raise Unauthorized("No key pair was sent.", hint="Send client_id and client_secret with HTTP Basic.")
    return client_id, client_secret


async def healthz(request: Request) -> Response:
    return json_answer({"status": "ok"})


def _zone_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ZoneError)
    return error_answer(error)


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return refusal_answer(error)


def _http_error(request: Request, error: Exception) -> Response:
    """Starlette's own 404 and 405, in our envelope."""
    assert isinstance(error, HTTPException)
    path = clean_text(request.url.path)
    if error.status_code == 405:
        return error_answer(MethodNotAllowed(f"{request.method} does not fit {path!r}."), headers=error.headers)
    if error.status_code == 404:
        return error_answer(NotFound(f"Nothing is at {path!r}.", hint="/openapi.json lists what there is."))
    return error_answer(BadRequest(clean_text(error.detail, 400)), status=error.status_code, headers=error.headers)


def build_service(
    zones: Mapping[str, Provider],
    tokens: TokenBook,
    *,
    allowed_hosts: Iterable[str] = (),
    allowed_origins: Iterable[str] = (),
    any_address: bool = False,
    heartbeat_seconds: float = HEARTBEAT_SECONDS,
) -> Starlette:
    """Return the application that serves `zones` (id in the path → Provider) to whoever holds one of the key pairs.

    `any_address`: clients may reach it by any IP address, because it listens beyond this machine.
    """
    face = RestFace(zones, tokens, heartbeat_seconds)

    async def openapi(request: Request) -> Response:
        return json_answer(build_openapi({name: zones[name].features for name in sorted(zones)}))

    routes = [
        Route("/v2/oauth2/token", face.token, methods=["POST"]),
        Route("/healthz", healthz),
        Route("/openapi.json", openapi),
        Route(f"{ZONE_PATH}/notifier/stream", face.stream),
        *(Route(path, face.route(path), methods=methods) for path, methods in METHODS_BY_PATH.items()),
    ]
    gatekeeper = Gatekeeper(
        hosts=frozenset(host.lower() for host in allowed_hosts),
        origins=frozenset(origin.lower().rstrip("/") for origin in allowed_origins),
        any_address=any_address,
    )
    app = Starlette(
        routes=routes,
        lifespan=face.lifespan,
        middleware=[Middleware(Gate, tokens=tokens, gatekeeper=gatekeeper)],
        exception_handlers={ZoneError: _zone_error, Refused: _refused, HTTPException: _http_error},
    )
    app.router.redirect_slashes = False
    app.state.close_streams = face.close_streams
    return app
