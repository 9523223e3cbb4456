"""What a call costs: `list_jobs` and `list_snapshots` of ten, against an empty tool on the same SDK in the same run.

    python -m tests.benchmarks.bench_calls [--rounds N] [--calls N] [--era modern|legacy]

Over stdio and over HTTP, with one caller and with 32: as many connections over HTTP, as many calls at once over the one pipe
that a host has. The requests are bytes and the answers are not decoded, so that the servers' own work is compared. Tools
take turns, and what counts is the median of each turn's ratio, which a busy machine disturbs least. The bars: `list_jobs` at
most 1.5 times an empty tool, `list_snapshots` of ten (its default) at most 2 times.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import ByteReceiveStream, ByteSendStream

from tests.large_zone import fill_zone

EMPTY = """
import sys
from mcp.server.mcpserver import MCPServer

server = MCPServer("empty", log_level="WARNING")


@server.tool()
async def empty() -> str:
    return ""


if sys.argv[1:]:
    server.run("streamable-http", port=int(sys.argv[1]))
else:
    server.run()
"""
CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "empty": ("empty", {}),
    "list_jobs": ("list_jobs", {}),
    "list_snapshots": ("list_snapshots", {}),
}
BARS = {"list_jobs": 1.5, "list_snapshots": 2.0}
CALLERS = (1, 32)
VERSIONS = {"modern": "2026-07-28", "legacy": "2025-11-25"}
CLIENT = {"name": "bench", "version": "1"}


def message(era: str, number: int, method: str, params: dict[str, Any]) -> bytes:
    """A request as an era has it: the modern one says with each who asks."""
    if era == "modern":
        prefix = "io.modelcontextprotocol/"
        meta = {"protocolVersion": VERSIONS[era], "clientInfo": CLIENT, "clientCapabilities": {}}
        params = params | {"_meta": {f"{prefix}{key}": value for key, value in meta.items()}}
    return json.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": params}).encode()


def first_message(era: str) -> bytes:
    if era == "modern":
        return message(era, 0, "tools/list", {})
    return message(era, 0, "initialize", {"protocolVersion": VERSIONS[era], "clientInfo": CLIENT, "capabilities": {}})


INITIALIZED = b'{"jsonrpc": "2.0", "method": "notifications/initialized"}'


class Pipe:
    """A server on stdio; any number of calls at once."""

    def __init__(self, era: str, send: ByteSendStream, receive: ByteReceiveStream) -> None:
        self._era, self._send, self._receive = era, send, receive
        self._rest, self._number = b"", 0

    async def open(self) -> None:
        await self._send.send(first_message(self._era) + b"\n")
        await self._answers(1)
        if self._era == "legacy":
            await self._send.send(INITIALIZED + b"\n")

    async def _answers(self, count: int) -> list[bytes]:
        while self._rest.count(b"\n") < count:
            self._rest += await self._receive.receive()
        *lines, self._rest = self._rest.split(b"\n")
        return lines

    async def call(self, tool: str, arguments: dict[str, Any], calls: int, callers: int) -> None:
        params = {"name": tool, "arguments": arguments}
        for _ in range(calls // callers):
            self._number += callers
            numbers = range(self._number, self._number + callers)
            await self._send.send(
                b"\n".join([*(message(self._era, one, "tools/call", params) for one in numbers), b""])
            )
            for line in await self._answers(callers):
                assert b'"isError":true' not in line, line


class Connections:
    """A server on HTTP; a connection a caller, kept alive."""

    def __init__(self, era: str, port: int) -> None:
        self._era, self._port, self._session = era, port, b""
        self._numbers = count(1)

    async def open(self) -> None:
        if self._era == "modern":
            return
        async with await anyio.connect_tcp("127.0.0.1", self._port) as stream:
            head, _ = await self._ask(stream, first_message(self._era), b"initialize", b"")
            session = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"mcp-session-id:"))
            self._session = session + b"\r\n"
            await self._ask(stream, INITIALIZED, b"notifications/initialized", b"")

    async def _ask(
        self, stream: anyio.abc.SocketStream, body: bytes, method: bytes, name: bytes
    ) -> tuple[bytes, bytes]:
        routing = b"Mcp-Method: %b\r\nMcp-Name: %b\r\n" % (method, name) if self._era == "modern" else self._session
        await stream.send(
            b"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAccept: application/json, text/event-stream\r\n"
            b"Content-Type: application/json\r\nMCP-Protocol-Version: %b\r\n%bContent-Length: %d\r\n\r\n%b"
            % (self._port, VERSIONS[self._era].encode(), routing, len(body), body)
        )
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += await stream.receive()
        head, _, content = answer.partition(b"\r\n\r\n")
        lower = head.lower()
        if b"content-length:" in lower:
            length = int(lower.partition(b"content-length:")[2].split()[0])
            while len(content) < length:
                content += await stream.receive()
        elif b"chunked" in lower:
            while not content.endswith(b"0\r\n\r\n"):
                content += await stream.receive()
        assert head.split()[1] in {b"200", b"202"}, answer
        return head, content

    async def call(self, tool: str, arguments: dict[str, Any], calls: int, callers: int) -> None:
        params = {"name": tool, "arguments": arguments}

        async def caller() -> None:
            async with await anyio.connect_tcp("127.0.0.1", self._port) as stream:
                for _ in range(calls // callers):
                    body = message(self._era, next(self._numbers), "tools/call", params)
                    _, content = await self._ask(stream, body, b"tools/call", tool.encode())
                    assert b'"isError":true' not in content, content

        async with anyio.create_task_group() as tasks:
            for _ in range(callers):
                tasks.start_soon(caller)


@asynccontextmanager
async def served(command: list[str], way: str, era: str, environ: dict[str, str]) -> AsyncIterator[Pipe | Connections]:
    """A server process; the empty one gets its port, ours says which it took."""
    listens = way == "http"
    is_ours = "snapshot_mcp" in command
    port = 0
    if listens:
        port = 0 if is_ours else _free_port()
        command = [*command, "serve", "--http", "127.0.0.1:0"] if is_ours else [*command, str(port)]
    error = subprocess.PIPE if listens else subprocess.DEVNULL
    async with await anyio.open_process(command, env=environ, stderr=error) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            if not listens:
                server: Pipe | Connections = Pipe(era, process.stdin, process.stdout)
            else:
                assert process.stderr is not None
                port = int((await process.stderr.receive()).split()[-1].split(b":")[-1][:-4]) if is_ours else port
                await _wait_for(port)
                server = Connections(era, port)
            await server.open()
            yield server
        finally:
            process.kill()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


async def _wait_for(port: int) -> None:
    with anyio.fail_after(60):
        while True:
            try:
                await (await anyio.connect_tcp("127.0.0.1", port)).aclose()
            except OSError:
                await anyio.sleep(0.05)
            else:
                return


async def measure_way(way: str, era: str, rounds: int, calls: int, home: Path) -> dict[str, Any]:
    """Milliseconds a call and ratios, for each number of callers."""
    config = home / "config.toml"
    config.touch()
    environ = {**os.environ, "SNAPSHOT_MCP_HOME": str(home), "SNAPSHOT_MCP_CONFIG": str(config)}
    result: dict[str, Any] = {}
    async with (
        served([sys.executable, "-c", EMPTY], way, era, environ) as empty,
        served([sys.executable, "-m", "snapshot_mcp"], way, era, environ) as ours,
    ):
        for callers in CALLERS:
            number_of_calls = max(calls // callers, 1) * callers
            seconds: dict[str, list[float]] = {name: [] for name in CALLS}
            for number in range(rounds + 1):
                for name, (tool, arguments) in CALLS.items():
                    began = time.perf_counter()
                    await (empty if name == "empty" else ours).call(tool, arguments, number_of_calls, callers)
                    if number:  # the first round fills the caches
                        seconds[name].append((time.perf_counter() - began) / number_of_calls)
            for name in CALLS:
                result[f"{way}, {callers} callers, {name} ms"] = round(statistics.median(seconds[name]) * 1000, 2)
            for name in BARS:
                ratios = [mine / peer for mine, peer in zip(seconds[name], seconds["empty"], strict=True)]
                result[f"{way}, {callers} callers, {name} ratio"] = round(statistics.median(ratios), 2)
    return result


async def measure(era: str, rounds: int, calls: int) -> dict[str, Any]:
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        await anyio.to_thread.run_sync(fill_zone, Path(folder) / "zones" / "local", 100)
        for way in ("stdio", "http"):
            result |= await measure_way(way, era, rounds, calls, Path(folder))
    return result


def is_missed(name: str, value: float) -> bool:
    return name.endswith("ratio") and value > BARS[name.split()[-2]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--calls", type=int, default=192, help="a tool, a round")
    parser.add_argument("--era", choices=VERSIONS, default="modern")
    args = parser.parse_args()
    result = anyio.run(measure, args.era, args.rounds, args.calls)
    print(json.dumps(result, indent=2))
    missed = [name for name, value in result.items() if is_missed(name, value)]
    print(f"MISSED: {'; '.join(missed)}" if missed else "reached: list_jobs at most 1.5, list_snapshots at most 2")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
