"""Serve the REST face on a socket, with or without TLS."""

import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
from starlette.applications import Starlette
from starlette.responses import Response

from snapshot_mcp.contract.errors import BadRequest
from snapshot_mcp.contract.text import clean_text
from snapshot_mcp.ground import web
from snapshot_mcp.ground.http_server import HttpServer
from snapshot_mcp.ground.permissions import READ, reason_of
from snapshot_mcp.service.answers import error_answer
from snapshot_mcp.service.requests import MAX_QUERY_BYTES

MAX_HEAD_BYTES = MAX_QUERY_BYTES + 16_384
"""Limit for the request line and the headers together."""


def parse_address(text: str, *, is_encrypted: bool) -> tuple[str, int]:
    """Return host and port of `HOST:PORT`. Raises BadRequest, also for another host than loopback without TLS."""
    try:
        host, port = web.parse_address(text)
    except ValueError as error:
        raise BadRequest(clean_text(error), hint="For example 127.0.0.1:8010; port 0 picks a free one.") from None
    if not is_encrypted and not web.is_loopback(host):
        raise BadRequest(
            f"{clean_text(host)!r} is not a loopback address, so key pairs would be sent unencrypted.",
            hint="Give --tls-cert and --tls-key, or listen on 127.0.0.1 behind a proxy with TLS.",
        )
    return host, port


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raises BadRequest."""
    try:
        return web.listen(host, port)
    except OSError as error:
        raise BadRequest(
            f"Cannot listen on {host}:{port}: {error.strerror}.",
            hint="Give another address or port, or stop the process that uses it.",
        ) from None


def _server(app: Starlette, certificate: Path | None, key: Path | None, *, handles_signals: bool) -> HttpServer:
    if certificate is not None:
        _check_tls(certificate, key)
    return HttpServer(
        app,
        handles_signals=handles_signals,
        max_head_bytes=MAX_HEAD_BYTES,
        on_stop=app.state.close_streams,
        malformed=_answer_malformed,
        certificate=certificate,
        key=key,
    )


def _answer_malformed() -> Response:
    hint = f"Send HTTP/1.1; the request line and the headers have at most {MAX_HEAD_BYTES} bytes together."
    return error_answer(BadRequest("The request is not well-formed HTTP.", hint=hint))


def _check_tls(certificate: Path, key: Path | None) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        is_ssl = isinstance(error, ssl.SSLError)
        why = clean_text(error) if is_ssl else reason_of(error, certificate, READ)
        raise BadRequest(
            f"Cannot use the certificate {str(certificate)!r}: {why}.",
            hint="Give PEM files: --tls-cert with the certificate chain, --tls-key with its private key.",
        ) from None


async def serve(
    app: Starlette,
    listener: socket.socket,
    *,
    certificate: Path | None = None,
    key: Path | None = None,
    on_ready: Callable[[], None] = lambda: None,
    until: Callable[[], Awaitable[None]] = anyio.sleep_forever,
) -> tuple[int, ...]:
    """Serve until SIGINT or SIGTERM, which it returns, or until `until` returns."""
    server = _server(app, certificate, key, handles_signals=True)

    async def announce_and_stop() -> None:
        await server.is_ready.wait()
        on_ready()
        await until()
        server.stop()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(announce_and_stop)
        signals = await server.serve_on(listener)
        tasks.cancel_scope.cancel()
    return signals


@asynccontextmanager
async def running(
    app: Starlette, listener: socket.socket, *, certificate: Path | None = None, key: Path | None = None
) -> AsyncIterator[str]:
    """Serve for the length of the block; yield the base URL."""
    server = _server(app, certificate, key, handles_signals=False)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.serve_on, listener)
        await server.is_ready.wait()
        try:
            yield web.url_of(listener, is_encrypted=certificate is not None)
        finally:
            server.stop()
