"""Listening: the REST face on a socket, with uvicorn."""

import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from pathlib import Path

import anyio
import h11
import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from snapshot_mcp.contract.errors import BadRequest
from snapshot_mcp.contract.text import clean_text
from snapshot_mcp.service.answers import error_answer
from snapshot_mcp.service.requests import MAX_QUERY_BYTES

GRACE_SECONDS = 3
"""For requests under way when the server is told to stop; streams are ended at once."""

KEEP_ALIVE_SECONDS = 75
"""Longer than clients keep an idle connection (httpx 5 s, as uvicorn): else a POST meets one that is just being closed."""

BACKLOG = 2048

MAX_HEAD_BYTES = MAX_QUERY_BYTES + 16_384
"""Of a request line and its headers together."""


HOW_TO_SEND = f"Send HTTP/1.1; the request line and the headers have at most {MAX_HEAD_BYTES} bytes together."


class _Protocol(H11Protocol):
    """What is no HTTP is refused before any route, and gets the envelope all the same."""

    def send_400_response(self, msg: str) -> None:
        answer = error_answer(BadRequest("The request is not well-formed HTTP.", hint=HOW_TO_SEND))
        head = h11.Response(
            status_code=400, headers=[*answer.raw_headers, (b"connection", b"close")], reason=b"Bad Request"
        )
        for event in (head, h11.Data(data=bytes(answer.body)), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


class _Server(uvicorn.Server):
    """Ends the streams first, or every stop would last the whole grace."""

    def __init__(self, config: uvicorn.Config, *, handles_signals: bool) -> None:
        super().__init__(config)
        self._handles_signals = handles_signals
        self.is_ready = anyio.Event()
        self._stop = anyio.Event()

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        return super().capture_signals() if self._handles_signals else nullcontext()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.is_ready.set()

    async def main_loop(self) -> None:
        """As uvicorn's own, but a stop from inside is seen at once."""
        counter = 0
        while not await self.on_tick(counter):
            counter = (counter + 1) % 864_000
            with anyio.move_on_after(0.1):
                await self._stop.wait()

    def stop(self) -> None:
        self.should_exit = True
        self._stop.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        app = self.config.app
        assert isinstance(app, Starlette)
        app.state.close_streams()
        await super().shutdown(sockets)


def parse_address(text: str, *, is_encrypted: bool) -> tuple[str, int]:
    """Return host and port of `HOST:PORT`. Raises BadRequest; beyond this machine only with TLS: a key pair travels."""
    host, _, digits = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not digits.isdecimal() or int(digits) > 65535:
        raise BadRequest(
            f"{clean_text(text)!r} is no HOST:PORT.", hint="For example 127.0.0.1:8010; port 0 takes a free one."
        )
    if not is_encrypted and not _is_loopback(host):
        raise BadRequest(
            f"{clean_text(host)!r} is beyond this machine, and key pairs would travel unencrypted.",
            hint="Give --tls-cert and --tls-key, or listen on 127.0.0.1 behind a proxy that has TLS.",
        )
    return host, int(digits)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def url_of(listener: socket.socket, *, is_encrypted: bool = False) -> str:
    host, port = listener.getsockname()[:2]
    return f"http{'s' if is_encrypted else ''}://{f'[{host}]' if ':' in host else host}:{port}"


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket, with answers sent at once (uvicorn's own workers lose TCP_NODELAY)."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        bound.bind(address)
        bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        raise BadRequest(
            f"Cannot listen on {host}:{port}: {error.strerror}.",
            hint="Give another address or port, or stop what listens there.",
        ) from None
    return bound


def _server(app: Starlette, certificate: Path | None, key: Path | None, *, handles_signals: bool) -> _Server:
    if certificate is not None:
        _check_tls(certificate, key)
    config = uvicorn.Config(
        app,
        http=_Protocol,
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        ssl_certfile=certificate,
        ssl_keyfile=key,
    )
    return _Server(config, handles_signals=handles_signals)


def _check_tls(certificate: Path, key: Path | None) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise BadRequest(
            f"The certificate {str(certificate)!r} cannot be used: {clean_text(error)}.",
            hint="Give PEM files: --tls-cert with the certificate chain, --tls-key with its private key.",
        ) from None


async def serve(
    app: Starlette,
    listener: socket.socket,
    *,
    certificate: Path | None = None,
    key: Path | None = None,
    on_ready: Callable[[], None] = lambda: None,
) -> None:
    """Serve until SIGINT or SIGTERM."""
    server = _server(app, certificate, key, handles_signals=True)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.serve, [listener])
        await server.is_ready.wait()
        on_ready()


@asynccontextmanager
async def running(
    app: Starlette, listener: socket.socket, *, certificate: Path | None = None, key: Path | None = None
) -> AsyncIterator[str]:
    """Serve inside the caller's task for the length of the block; yields the base URL."""
    server = _server(app, certificate, key, handles_signals=False)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.serve, [listener])
        await server.is_ready.wait()
        try:
            yield url_of(listener, is_encrypted=certificate is not None)
        finally:
            server.stop()
