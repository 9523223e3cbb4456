"""Starting the page and ending it with the process's other tasks.

The first link costs a listening socket; the web server is imported and started by the first visitor.
"""

import socket
from types import TracebackType
from typing import TYPE_CHECKING, Self

import anyio
from anyio.abc import TaskGroup

from snapshot_mcp.ground.web import listen, url_of

if TYPE_CHECKING:
    from snapshot_mcp.ground.http_server import HttpServer
    from snapshot_mcp.guard.guard import Guard

HOST = "127.0.0.1"


class ApprovalPage:
    """`async with ApprovalPage(guard):` lets the guard give out links."""

    def __init__(self, guard: "Guard") -> None:
        self._guard = guard
        self._lock = anyio.Lock()
        self._tasks: TaskGroup | None = None
        self._waiting = anyio.CancelScope()
        self._server: HttpServer | None = None
        self._origin = ""

    async def link(self, approval_id: str) -> str:
        """Return the address of an approval's page, "" where none can be served."""
        async with self._lock:
            if not self._origin and self._tasks is not None:
                self._origin = self._start(self._tasks)
        return f"{self._origin}/approvals/{approval_id}" if self._origin else ""

    async def __aenter__(self) -> Self:
        self._tasks = await anyio.create_task_group().__aenter__()
        self._guard.links = self
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        self._guard.links = None
        tasks, self._tasks, self._origin = self._tasks, None, ""
        self._waiting.cancel()
        if self._server is not None:
            self._server.stop()
        return await tasks.__aexit__(kind, error, traceback) if tasks else None

    def _start(self, tasks: TaskGroup) -> str:
        """Listen on a free port; connections wait in the socket until the server takes them."""
        try:
            listener = listen(HOST, 0)
        except OSError:
            return ""
        listener.setblocking(False)
        tasks.start_soon(self._serve, listener)
        return url_of(listener)

    async def _serve(self, listener: socket.socket) -> None:
        with listener:
            with self._waiting:
                await anyio.wait_readable(listener)
            if not self._waiting.cancelled_caught:
                await self._run(listener)

    async def _run(self, listener: socket.socket) -> None:
        from snapshot_mcp.ground.http_server import HttpServer
        from snapshot_mcp.guard.page.routes import build_app

        app = build_app(self._guard)
        self._server = HttpServer(app, handles_signals=False, grace_seconds=1, log_level="critical")
        if self._tasks is not None:
            # It is stopped, and ends whole; cancelled it would leave its connections behind.
            with anyio.CancelScope(shield=True):
                await self._server.serve_on(listener)
