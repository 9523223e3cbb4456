"""Running uvicorn, for every HTTP server of the program. Importing this imports uvicorn."""

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
"""Longer than clients keep an idle connection (httpx: 5 s), so that no POST meets one that is being closed."""

HEAD_SECONDS = 10.0
"""Time for a new connection to ask for something."""

MAX_CONNECTIONS = 400
"""Connections at a time, less than a process may open files: beyond, one that asks for nothing makes way for each new one."""

GRACE_SECONDS = 3
"""Time for requests in progress when the server stops."""


class HttpServer(uvicorn.Server):
    """Serves an application on one listening socket until a signal arrives or `stop` is called.

    `max_head_bytes` limits the request line and headers together. `on_stop` ends streams, which would use up the whole grace
    period. `malformed` builds the response to what is not HTTP. Without `handles_signals` the process's signal handlers stay
    in place. `is_ready` is set once connections are accepted.
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
            http=_protocol(malformed) if malformed else BoundedProtocol,
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
        self.captured: tuple[int, ...] = ()

    async def serve_on(self, listener: socket.socket) -> tuple[int, ...]:
        """Serve until stopped, then close the socket; return the signals that stopped it."""
        await self.serve(sockets=[listener])
        return self.captured

    def stop(self) -> None:
        """Stop gracefully."""
        self.should_exit = True
        self._stop.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals like uvicorn, or not at all; those that came are in `captured`, to be raised after the event loop.

        uvicorn raises them within it, which ends its own tasks with a traceback.
        """
        if not self._handles_signals:
            yield
            return
        with super().capture_signals():
            yield
            self.captured, self._captured_signals = tuple(self._captured_signals), []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start like uvicorn, then set `is_ready`."""
        await super().startup(sockets)
        self.is_ready.set()

    async def main_loop(self) -> None:
        """Run like uvicorn's loop, but notice `stop` at once."""
        counter = 0
        while not await self.on_tick(counter):
            counter = (counter + 1) % 864_000
            with anyio.move_on_after(0.1):
                await self._stop.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Call `on_stop`, then shut down like uvicorn."""
        self._on_stop()
        await super().shutdown(sockets)


class BoundedProtocol(H11Protocol):
    """A connection that is closed if it asks for nothing, since any program of the machine can open very many."""

    _deadline: "asyncio.TimerHandle | None" = None

    def connection_made(self, transport: "asyncio.Transport") -> None:  # type: ignore[override]
        """Wait for a request, but not for long; make room if there are too many."""
        super().connection_made(transport)
        self._deadline = self.loop.call_later(HEAD_SECONDS, self._end_if_silent)
        if len(self.connections) > MAX_CONNECTIONS:
            for one in self.connections:
                if one is not self and isinstance(one, BoundedProtocol) and one.is_idle:
                    one.transport.abort()
                    break

    @property
    def is_idle(self) -> bool:
        """Whether no request is being answered, and it is not about to be closed."""
        return (self.cycle is None or self.cycle.response_complete) and not self.transport.is_closing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the deadline."""
        if self._deadline:
            self._deadline.cancel()
        super().connection_lost(exc)

    def _end_if_silent(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.abort()


def _protocol(malformed: "Callable[[], Response]") -> type[H11Protocol]:
    class Protocol(BoundedProtocol):
        """Answers malformed HTTP in the application's error format."""

        def send_400_response(self, msg: str) -> None:
            answer = malformed()
            headers = [*answer.raw_headers, (b"connection", b"close")]
            head = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
            for event in (head, h11.Data(data=bytes(answer.body)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
            self.transport.close()

    return Protocol
