"""Serves the page on a listening socket, in a process of its own or, where none can be detached, in the server.

The web server and the templates are imported by the first visitor.
"""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
from anyio.abc import TaskGroup

from snapshot_mcp.ground.web import listen
from snapshot_mcp.guard.consent.address import HOST, PageAddress
from snapshot_mcp.guard.page.watch import ApprovalWatch

if TYPE_CHECKING:
    from snapshot_mcp.ground.http_server import HttpServer
    from snapshot_mcp.guard.guard import Guard


@asynccontextmanager
async def approval_page(guard: "Guard") -> AsyncIterator[None]:
    """Let the guard hand out links to a page of this process while the block runs, where it has no process of its own."""
    async with anyio.create_task_group() as tasks:
        own = _OwnPage(guard, tasks)
        with guard.links.falling_back_on(own.link):
            try:
                yield
            finally:
                own.stop()


class LoopbackPage:
    """The page at an address."""

    def __init__(self, guard: "Guard", address: PageAddress, watch: ApprovalWatch) -> None:
        self._guard = guard
        self._address = address
        self._watch = watch
        self._waiting = anyio.CancelScope()
        self._server: HttpServer | None = None

    async def serve(self, listener: socket.socket) -> None:
        """Serve until `stop`; connections wait in the socket until the web server is imported."""
        with listener:
            listener.setblocking(False)
            with self._waiting:
                await anyio.wait_readable(listener)
            if not self._waiting.cancel_called:
                await self._run(listener)

    def stop(self) -> None:
        """Stop listening, or waiting for the first visitor."""
        self._waiting.cancel()
        if self._server is not None:
            self._server.stop()

    async def _run(self, listener: socket.socket) -> None:
        from snapshot_mcp.ground.http_server import HttpServer
        from snapshot_mcp.guard.page.routes import build_app

        app = build_app(self._guard, self._address, self._watch)
        self._server = HttpServer(
            app, handles_signals=False, grace_seconds=1, log_level="critical", on_stop=self._watch.end
        )
        # `stop` ends it; cancelled, it would leave its connections open.
        with anyio.CancelScope(shield=True):
            await self._server.serve_on(listener)


class _OwnPage:
    """A page that ends with this process; it starts to listen with the first link."""

    def __init__(self, guard: "Guard", tasks: TaskGroup) -> None:
        self._guard = guard
        self._tasks = tasks
        self._address: PageAddress | None = None
        self._page: LoopbackPage | None = None

    def link(self, approval_id: str) -> str:
        """Return the link to an approval's page, "" if no port can be listened on."""
        self._address = self._address or self._start()
        return self._address.url(approval_id) if self._address else ""

    def stop(self) -> None:
        if self._page is not None:
            self._page.stop()

    def _start(self) -> PageAddress | None:
        try:
            listener = listen(HOST, 0)
        except OSError:
            return None
        address = PageAddress(listener.getsockname()[1])
        self._page = LoopbackPage(self._guard, address, ApprovalWatch(self._guard))
        self._tasks.start_soon(self._page.serve, listener)
        return address
