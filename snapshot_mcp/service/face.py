"""The REST face: routes over Providers, behind the gate.

`build_service` builds the Starlette application; `service.run` listens.
"""

import base64
import binascii
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping
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
"""Shorter than the idle timeout of proxies and clients (30 to 60 s)."""

MAX_BODY_BYTES = 1 << 20
"""The largest legitimate body, with a hundred ids and names, has about 10 KB."""

MAX_FORM_FIELDS = 20
"""The token route is open to anyone: a body of separators must not block the event loop."""

EVENT_STREAM = "text/event-stream; charset=utf-8"

Body = Callable[[MemoryObjectReceiveStream[Job]], AsyncGenerator[bytes, None]]


class RestFace:
    """The handlers of every route; `zones` maps the id in the path to its provider."""

    def __init__(self, zones: Mapping[str, Provider], tokens: TokenBook, heartbeat_seconds: float) -> None:
        self._zones = dict(zones)
        self._tokens = tokens
        self._heartbeat_seconds = heartbeat_seconds
        self._hubs = {name: Hub(name, provider) for name, provider in self._zones.items()}

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Run the hubs while the application runs."""
        async with anyio.create_task_group() as tasks:
            for hub in self._hubs.values():
                tasks.start_soon(hub.run)
            yield
            self.close_streams()
            tasks.cancel_scope.cancel()

    def close_streams(self) -> None:
        """End all streams, so that the server can shut down at once."""
        for hub in self._hubs.values():
            hub.close()

    def route(self, path: str) -> Route:
        """Return one route for all methods of a path, so that a 405 lists them all."""
        operations = {one.method: one for one in OPERATIONS if one.path == path}

        async def endpoint(request: Request) -> Response:
            operation = operations["GET" if request.method == "HEAD" else request.method]
            grant: Grant = request.scope["grant"]
            refuse_without(operation.role, grant.role, grant.client_id, operation.summary)
            provider, _ = self._zone(request, operation.feature)
            features = provider.features
            query = read_query(operation.query or NoQuery, request.scope["query_string"], features)
            body = None
            if operation.body:
                body = read_json(operation.body, await read_body(request, MAX_BODY_BYTES), features)
            response = await operation.handle(ApiRequest(provider, request, query, body))
            response.headers.update(feature_headers(provider))
            return response

        return Route(path, endpoint, methods=list(operations))

    async def stream(self, request: Request) -> Response:
        """Stream the jobs of a zone as server-sent events, for as long as the token is valid."""
        provider, hub = self._zone(request, Feature.WATCH)
        if request.method == "HEAD":
            return Response(headers=feature_headers(provider), media_type=EVENT_STREAM)
        grant: Grant = request.scope["grant"]
        may_go_on = partial(self._tokens.is_still_valid, grant)
        body = partial(events, zone_id=hub.zone_id, heartbeat_seconds=self._heartbeat_seconds, may_go_on=may_go_on)
        return EventStream(hub, body, feature_headers(provider))

    async def token(self, request: Request) -> Response:
        """Issue a token for a key pair, sent with HTTP Basic; the form has `grant_type=client_credentials`."""
        body = await read_body(request, MAX_BODY_BYTES)
        try:
            form = parse_qs(body.decode("utf-8", "replace"), max_num_fields=MAX_FORM_FIELDS)
        except ValueError:
            form = {}
        if form.get("grant_type") != ["client_credentials"]:
            raise BadRequest("grant_type must be client_credentials.", hint="Send grant_type=client_credentials.")
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
                f"Unknown zone {clean_text(name)!r}.", hint=f"Zones served here: {', '.join(sorted(self._zones))}."
            )
        if feature is not None and feature not in provider.features:
            raise Unsupported(f"The zone {name!r} does not support {feature.value!r}.")
        return provider, self._hubs[name]


class EventStream(StreamingResponse):
    """The events of one subscription, which is active before the response starts and ends with the connection."""

    def __init__(self, hub: Hub, body: Body, headers: Mapping[str, str]) -> None:
        super().__init__((), headers=headers, media_type=EVENT_STREAM)
        self.headers["cache-control"] = "no-store"
        self._hub = hub
        self._body = body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._hub.subscribe() as jobs, aclosing(self._body(jobs)) as self.body_iterator:
            await super().__call__(scope, receive, send)


def feature_headers(provider: Provider) -> dict[str, str]:
    """Return the headers that say what the zone supports; the contract has no field for it."""
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
        raise Unauthorized("The request has no key pair.", hint="Send client_id and client_secret with HTTP Basic.")
    return client_id, client_secret


async def healthz(request: Request) -> Response:
    """Answer that the service is running."""
    return json_answer({"status": "ok"})


def _answer_error(request: Request, error: Exception) -> Response:
    """Return the envelope of an error, also for Starlette's own 404 and 405."""
    if isinstance(error, ZoneError):
        return error_answer(error)
    if isinstance(error, Refused):
        return refusal_answer(error)
    assert isinstance(error, HTTPException)
    path = clean_text(request.url.path)
    if error.status_code == 404:
        return error_answer(NotFound(f"Unknown path {path!r}.", hint="/openapi.json lists all paths."))
    is_method = error.status_code == 405
    message = f"{request.method} is not allowed for {path!r}." if is_method else clean_text(error.detail, 400)
    return error_answer(BadRequest(message), error.status_code, error.headers)


def build_service(
    zones: Mapping[str, Provider],
    tokens: TokenBook,
    *,
    allowed_hosts: Iterable[str] = (),
    allowed_origins: Iterable[str] = (),
    any_address: bool = False,
    heartbeat_seconds: float = HEARTBEAT_SECONDS,
) -> Starlette:
    """Return the application that serves `zones` (id in the path → Provider) to the holders of key pairs.

    `any_address`: clients may use any IP address as the Host, because the service listens beyond this machine.
    """
    face = RestFace(zones, tokens, heartbeat_seconds)

    async def openapi(request: Request) -> Response:
        return json_answer(build_openapi({name: zones[name].features for name in sorted(zones)}))

    routes = [
        Route("/v2/oauth2/token", face.token, methods=["POST"]),
        Route("/healthz", healthz),
        Route("/openapi.json", openapi),
        Route(f"{ZONE_PATH}/notifier/stream", face.stream),
        *map(face.route, dict.fromkeys(operation.path for operation in OPERATIONS)),
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
        exception_handlers=dict.fromkeys((ZoneError, Refused, HTTPException), _answer_error),
    )
    app.router.redirect_slashes = False
    app.state.close_streams = face.close_streams
    return app
