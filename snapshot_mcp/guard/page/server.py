"""Starting the page and ending it with the process's other tasks.

The first link costs a listening socket; the web server is imported and started by the first visitor.
"""

import contextlib
import socket
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import anyio
from anyio.abc import TaskGroup

if TYPE_CHECKING:
    from snapshot_mcp.guard.guard import Guard

HOST = "127.0.0.1"


class ApprovalPage:
    """`async with ApprovalPage(guard):` lets the guard give out links."""

    def __init__(self, guard: "Guard") -> None:
        self._guard = guard
        self._lock = anyio.Lock()
        self._tasks: TaskGroup | None = None
        self._waiting = anyio.CancelScope()
        self._server: Any = None
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
            self._server.should_exit = True
        return await tasks.__aexit__(kind, error, traceback) if tasks else None

    def _start(self, tasks: TaskGroup) -> str:
        """Listen on a free port; connections wait in the socket until the server takes them."""
        try:
            listener = socket.create_server((HOST, 0))
        except OSError:
            return ""
        listener.setblocking(False)
        origin = f"http://{HOST}:{listener.getsockname()[1]}"
        tasks.start_soon(self._serve, listener, origin)
        return origin

    async def _serve(self, listener: socket.socket, origin: str) -> None:
        with listener:
            with self._waiting:
                await anyio.wait_readable(listener)
            if not self._waiting.cancelled_caught:
                await self._run(listener, origin)

    async def _run(self, listener: socket.socket, origin: str) -> None:
        import uvicorn

        from snapshot_mcp.guard.page.routes import build_app

        class QuietServer(uvicorn.Server):
            """Leaves the process's signals to whoever had them."""

            @contextlib.contextmanager
            def capture_signals(self) -> Iterator[None]:
                yield

        config = uvicorn.Config(
            build_app(self._guard, origin),
            lifespan="off",
            ws="none",
            log_config=None,
            log_level="critical",
            access_log=False,
            server_header=False,
            timeout_keep_alive=2,
            timeout_graceful_shutdown=1,
        )
        self._server = QuietServer(config)
        if self._tasks is not None:
            # It ends by `should_exit`, whole; cancelled it would leave its connections behind.
            with anyio.CancelScope(shield=True):
                await self._server.serve(sockets=[listener])
