"""Starts the page and ends it with the process's other tasks.

The first link costs a listening socket; the web server and the templates are imported by the first visitor.
"""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
from anyio.abc import TaskGroup

from snapshot_mcp.ground.web import listen, url_of

if TYPE_CHECKING:
    from snapshot_mcp.ground.http_server import HttpServer
    from snapshot_mcp.guard.guard import Guard

HOST = "127.0.0.1"


@asynccontextmanager
async def approval_page(guard: "Guard") -> AsyncIterator[None]:
    """Let the guard hand out links to a page of this process while the block runs."""
    async with anyio.create_task_group() as tasks:
        page = _Page(guard, tasks)
        with guard.linking(page.link):
            try:
                yield
            finally:
                page.stop()


class _Page:
    def __init__(self, guard: "Guard", tasks: TaskGroup) -> None:
        self._guard = guard
        self._tasks = tasks
        self._waiting = anyio.CancelScope()
        self._server: HttpServer | None = None
        self._origin = ""

    async def link(self, approval_id: str) -> str:
        """Return the address of an approval's page, "" if no port can be listened on."""
        self._origin = self._origin or self._start()
        return f"{self._origin}/approvals/{approval_id}" if self._origin else ""

    def stop(self) -> None:
        """Stop listening, or waiting for the first visitor."""
        self._waiting.cancel()
        if self._server is not None:
            self._server.stop()

    def _start(self) -> str:
        """Listen on a free port; connections wait in the socket until the server accepts them."""
        try:
            listener = listen(HOST, 0)
        except OSError:
            return ""
        listener.setblocking(False)
        self._tasks.start_soon(self._serve, listener)
        return url_of(listener)

    async def _serve(self, listener: socket.socket) -> None:
        with listener:
            with self._waiting:
                await anyio.wait_readable(listener)
            if not self._waiting.cancel_called:
                await self._run(listener)

    async def _run(self, listener: socket.socket) -> None:
        from snapshot_mcp.ground.http_server import HttpServer
        from snapshot_mcp.guard.page.routes import build_app

        self._server = HttpServer(build_app(self._guard), handles_signals=False, grace_seconds=1, log_level="critical")
        # `stop` ends it; cancelled, it would leave its connections open.
        with anyio.CancelScope(shield=True):
            await self._server.serve_on(listener)
