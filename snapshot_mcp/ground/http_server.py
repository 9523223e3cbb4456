"""Running uvicorn: one way for all HTTP doors of the program. Importing this imports uvicorn."""

import socket
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    from starlette.responses import Response
    from starlette.types import ASGIApp

KEEP_ALIVE_SECONDS = 75
"""Longer than clients keep an idle connection (httpx 5 s, as uvicorn): else a POST meets one that is just being closed."""

GRACE_SECONDS = 3
"""For requests under way when the server is told to stop."""


class HttpServer(uvicorn.Server):
    """Serves an application on one listening socket until a signal comes or `stop` is called.

    `max_head_bytes`: of a request line and its headers together. `on_stop` ends what would last for the whole grace (streams).
    `malformed` words the answer to what is not HTTP. Without `handles_signals` the process's signals stay with whoever has
    them. `is_ready` is set once connections are taken.
    """

    def __init__(
        self,
        app: "ASGIApp",
        *,
        handles_signals: bool,
        grace_seconds: int = GRACE_SECONDS,
        max_head_bytes: int | None = None,
        log_level: str | None = None,
        on_stop: Callable[[], None] = lambda: None,
        malformed: "Callable[[], Response] | None" = None,
        certificate: Path | None = None,
        key: Path | None = None,
    ) -> None:
        config = uvicorn.Config(
            app,
            http=_protocol(malformed) if malformed else H11Protocol,
            h11_max_incomplete_event_size=max_head_bytes,
            ws="none",
            log_config=None,
            log_level=log_level,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=grace_seconds,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            ssl_certfile=certificate,
            ssl_keyfile=key,
        )
        super().__init__(config)
        self.is_ready = anyio.Event()
        self._stop = anyio.Event()
        self._on_stop = on_stop
        self._handles_signals = handles_signals

    async def serve_on(self, listener: socket.socket) -> None:
        """Serve; the socket is closed at the end."""
        await self.serve(sockets=[listener])

    def stop(self) -> None:
        """Let it end, whole."""
        self.should_exit = True
        self._stop.set()

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

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._on_stop()
        await super().shutdown(sockets)


def _protocol(malformed: "Callable[[], Response]") -> type[H11Protocol]:
    class Protocol(H11Protocol):
        """Answers what is not HTTP as the application answers its errors."""

        def send_400_response(self, msg: str) -> None:
            answer = malformed()
            headers = [*answer.raw_headers, (b"connection", b"close")]
            head = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
            for event in (head, h11.Data(data=bytes(answer.body)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
            self.transport.close()

    return Protocol
