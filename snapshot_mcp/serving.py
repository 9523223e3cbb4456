"""What a process of this program is: the server on stdin and stdout or over HTTP, a zone as REST API, the approval page.

`app` builds them. Imports are inside the functions, so a process loads only what it uses.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snapshot_mcp import app
from snapshot_mcp.contract.errors import InternalError
from snapshot_mcp.settings import Settings

if TYPE_CHECKING:
    from mcp.server.mcpserver import MCPServer


def serve_page(lock: str, listener: str) -> None:
    """Be the process of the approval page, with the descriptors that it inherited, until nothing waits for a person."""
    import socket

    from snapshot_mcp.guard.page import run
    from snapshot_mcp.operator_file import OperatorFile

    settings = app.own_settings()
    file = OperatorFile(settings)
    _settle_memory()
    run(
        app.build_guard(settings, file, partial(app.roles_in, file), has_page=False),
        int(lock),
        socket.socket(fileno=int(listener)),
    )


def serve_stdio(build: Callable[..., MCPServer[Any]]) -> None:
    """Serve MCP on stdin and stdout until the host closes them; `build` takes the event `leaving` and returns the server.

    Raises InternalError if answers cannot be written.
    """
    import anyio

    from snapshot_mcp.server.stdio import serve_stdio

    leaving = anyio.Event()
    server = build(leaving=leaving)
    _settle_memory()
    problem = ""
    try:
        anyio.run(serve_stdio, server, leaving)
    except* (BrokenPipeError, ConnectionResetError):
        pass
    except* OSError as errors:
        problem = str(errors.exceptions[0])
    if problem:
        raise InternalError(f"The answers could not be written: {problem}. Jobs go on.")


def serve_http(settings: Settings, address: str) -> None:
    """Serve MCP over streamable HTTP on a loopback address."""
    import anyio

    from snapshot_mcp.operator_file import OperatorFile
    from snapshot_mcp.server.callers import Callers
    from snapshot_mcp.server.http import PATH, listen, parse_address, serve_http

    with listen(*parse_address(address)) as listener:
        host, port = address.rpartition(":")[0], listener.getsockname()[1]  # for port 0 a free one was taken
        file = OperatorFile(settings)
        callers = Callers(app.roll_in(file), partial(app.roll_in, file))
        server = app.build_server(settings, file=file, callers=callers, url=f"http://{host}:{port}{PATH}")
        _settle_memory()
        _end_as(anyio.run(serve_http, server, listener, callers))


def serve_zone(
    settings: Settings,
    name: str,
    address: str,
    *,
    certificate: Path | None = None,
    key: Path | None = None,
    allowed_hosts: Sequence[str] = (),
    until_stdin_closes: bool = False,
    say: Callable[[str], None],
) -> None:
    """Serve an embedded zone as the REST API until a signal; `say` receives messages for a person.

    `until_stdin_closes` ends it with its parent, however that ends: its end of the pipe closes even after SIGKILL.
    """
    import anyio

    from snapshot_mcp import service
    from snapshot_mcp.ground.web import is_loopback, url_of

    zone = app.open_own_zone(settings, name)
    host, port = service.parse_address(address, is_encrypted=certificate is not None)
    listener = service.bind(host, port)
    keys = app.key_file(settings)
    pairs, is_new = keys.read_or_create()
    tokens = service.TokenBook(keys)
    url = url_of(listener, is_encrypted=certificate is not None)

    def announce() -> None:
        say(f"zone {zone.zone!r} at {url}/v2/zone/{zone.zone}")
        where = "wrote a new key pair to" if is_new else "the key pairs are in"
        say(f"{where} {keys.path} (client_id {', '.join(f'{one.client_id}: {one.role}' for one in pairs)})")

    async def serve() -> tuple[int, ...]:
        face = service.build_service(
            {zone.zone: zone}, tokens, allowed_hosts=allowed_hosts, any_address=not is_loopback(host)
        )
        try:
            return await service.serve(
                face,
                listener,
                certificate=certificate,
                key=key,
                on_ready=announce,
                until=_stdin_closes if until_stdin_closes else anyio.sleep_forever,
            )
        finally:
            await zone.aclose()

    with listener:
        _end_as(anyio.run(serve))


def log_to_stderr() -> None:
    """Write warnings and errors of all modules to stderr."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)


def _settle_memory() -> None:
    """Start collecting garbage, without the objects that the imports made: they live as long as the process."""
    import gc

    gc.enable()
    gc.freeze()


def _end_as(signals: Sequence[int]) -> None:
    """End as these signals end a program: with KeyboardInterrupt for the one of Ctrl-C."""
    import signal

    for one in signals:
        signal.raise_signal(one)


async def _stdin_closes() -> None:
    import anyio

    with suppress(PermissionError):  # a file or /dev/null, which nobody holds open: as good as closed
        while True:
            await anyio.wait_readable(sys.stdin)
            if not os.read(sys.stdin.fileno(), 4096):
                return
