"""Connections that ask for nothing: closed after a while, and never in the way of one that asks."""

import socket
import time
from contextlib import ExitStack

import anyio
import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from snapshot_mcp.ground import http_server
from snapshot_mcp.ground.http_server import HttpServer
from snapshot_mcp.ground.web import listen

pytestmark = pytest.mark.anyio


async def test_silent_connections_keep_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "MAX_CONNECTIONS", 20)
    monkeypatch.setattr(http_server, "HEAD_SECONDS", 0.5)

    async def hello(_: object) -> PlainTextResponse:
        return PlainTextResponse("hello")

    server = HttpServer(
        Starlette(routes=[Route("/", hello)]), handles_signals=False, grace_seconds=1, log_level="critical"
    )
    listener = listen("127.0.0.1", 0)
    address = listener.getsockname()
    with ExitStack() as stack:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.serve_on, listener)
            await server.is_ready.wait()
            silent = [stack.enter_context(socket.create_connection(address)) for _ in range(60)]
            for one in silent:
                one.send(b"GET / HTTP/1.1\r\nHost: x\r\n")
            async with httpx.AsyncClient() as client:
                assert (await client.get(f"http://127.0.0.1:{address[1]}/")).text == "hello"
            assert len(server.server_state.connections) <= 25
            deadline = time.monotonic() + 10
            while len(server.server_state.connections) > 1:
                assert time.monotonic() < deadline
                await anyio.sleep(0.05)
            server.stop()
