"""A host leaves in the middle of a call, by design or because it died: the server ends quietly, and what it did stays true."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

import anyio
import pytest

from snapshot_mcp import app
from snapshot_mcp.contract.models import SnapshotFilter
from tests.disks import worker_pid
from tests.marks import legacy_first, long, modern_first
from tests.patience import PATIENCE_SECONDS
from tests.server.lab import Lab, back_up, data_of
from tests.server.test_processes import SERVE, http_server

pytestmark = pytest.mark.anyio

MODERN, LEGACY = "2026-07-28", "2025-11-25"
CAPABILITIES: dict[str, Any] = {"elicitation": {"form": {}}}
WHO = {"name": "a host", "version": "1"}


class Host:
    """A host that speaks to a server process over pipes, or over a socket as some do."""

    def __init__(self, lab: Lab, mode: str, *, over_socket: bool = False) -> None:
        self._is_modern = mode == "auto"
        self._number = 0
        self._ours, theirs = socket.socketpair() if over_socket else (None, None)
        self.process = subprocess.Popen(
            SERVE,
            env={**os.environ, **lab.environ},
            stdin=theirs or subprocess.PIPE,
            stdout=theirs or subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        if self._ours and theirs:
            theirs.close()
            self.write = cast(BinaryIO, self._ours.makefile("wb"))
            self.read = cast(BinaryIO, self._ours.makefile("rb"))
        else:
            assert self.process.stdin is not None
            assert self.process.stdout is not None
            self.write = cast(BinaryIO, self.process.stdin)
            self.read = cast(BinaryIO, self.process.stdout)

    def open(self) -> None:
        """Shake hands."""
        if self._is_modern:
            self.ask("server/discover")
        else:
            self.ask("initialize", protocolVersion=LEGACY, capabilities=CAPABILITIES, clientInfo=WHO)
        self.read.readline()
        if not self._is_modern:
            self.send(method="notifications/initialized")

    def call(self, tool: str, more: dict[str, Any] | None = None, **arguments: Any) -> None:
        self.ask("tools/call", name=tool, arguments=arguments, **more or {})

    def ask(self, method: str, **params: Any) -> None:
        self._number += 1
        meta: dict[str, Any] = {"progressToken": self._number}
        if self._is_modern:
            prefix = "io.modelcontextprotocol"
            meta |= {f"{prefix}/protocolVersion": MODERN, f"{prefix}/clientInfo": WHO}
            meta[f"{prefix}/clientCapabilities"] = CAPABILITIES
        self.send(id=self._number, method=method, params={**params, "_meta": meta})

    def send(self, **message: Any) -> None:
        self.write.write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")
        self.write.flush()

    def leave(self, way: str) -> None:
        """Close one end or both; what the server still writes goes nowhere."""
        if way != "input":
            self.read.close()
        if self._ours:
            self._ours.shutdown(socket.SHUT_RDWR)
            self._ours.close()
        self.write.close()

    def end(self) -> tuple[int, str]:
        """The server's exit status, and what it said on stderr."""
        if not self.read.closed:
            self.read.read()
            self.read.close()
        assert self.process.stderr is not None
        with self.process.stderr as stderr:
            said = stderr.read().decode()
        return self.process.wait(PATIENCE_SECONDS), said


@contextmanager
def stopped_worker(lab: Lab) -> Iterator[None]:
    """Nothing that is submitted ends."""
    pid = worker_pid(lab.home / "zones" / "local")
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def prepare(lab: Lab) -> str:
    await lab.add_disk("web")
    await lab.add_disk("busy")
    async with lab.connect() as client:
        return await back_up(client, "web", "one")


async def submit(lab: Lab) -> str:
    async with lab.connect() as client:
        made = await client.call_tool("create_snapshots", {"resource_ids": ["busy"], "name": "endless"})
        return str(data_of(made)["job_id"])


@pytest.mark.parametrize(
    ("mode", "way"),
    [
        ("legacy", "both"),
        long("auto", "input"),
        long("legacy", "socket"),
        long("auto", "both"),
        long("auto", "socket"),
        long("legacy", "input"),
    ],
)
async def test_a_host_leaves_in_the_middle_of_calls(lab: Lab, mode: str, way: str) -> None:
    """ "A traceback when a host leaves in the middle of a call"."""
    snapshot_id = await prepare(lab)
    with stopped_worker(lab):
        job_id = await submit(lab)
        host = Host(lab, mode, over_socket=way == "socket")
        host.open()
        host.call("wait_for_job", job_ids=[job_id])
        host.call("rollback_to_snapshots", snapshot_ids=[snapshot_id])
        for _ in range(100):
            host.call("list_snapshots")
        host.read.readline()
        host.leave(way)
        assert host.end() == (0, "")


@legacy_first
@pytest.mark.long
async def test_a_host_dies_in_the_middle_of_a_line(lab: Lab, mode: str) -> None:
    """ "A traceback when a host leaves in the middle of a call": its last message is not whole."""
    host = Host(lab, mode)
    host.open()
    host.write.write(b'{"jsonrpc": "2.0", "id": 7, "method": "tools/ca')
    host.leave("both")
    assert host.end() == (0, "")


@pytest.mark.parametrize(
    ("mode", "milliseconds"),
    [
        ("legacy", 0),
        long("auto", None),
        *(long("auto", one) for one in (0, 20, 100)),
        *(long("legacy", one) for one in (20, 100, None)),
    ],
)
async def test_what_was_going_on_when_the_host_left_stays_true(lab: Lab, mode: str, milliseconds: int | None) -> None:
    """What the server was doing stays true: a deletion is begun and its yes used, or the yes is kept; the record is whole."""
    snapshot_id = await prepare(lab)
    host = Host(lab, mode)
    host.open()
    host.call("delete_snapshot", snapshot_id=snapshot_id)
    asked = json.loads(host.read.readline())
    answer = {"action": "accept", "content": {"answer": "web"}}
    if mode == "auto":
        (key,) = asked["result"]["inputRequests"]
        round_two = {"requestState": asked["result"]["requestState"], "inputResponses": {key: answer}}
        host.call("delete_snapshot", round_two, snapshot_id=snapshot_id)
    else:
        host.send(id=asked["id"], result=answer)
    if milliseconds is None:
        assert b"started" in host.read.readline()
    else:
        await anyio.sleep(milliseconds / 1000)
    host.leave("both")
    assert host.end() == (0, "")
    guard = app.build_guard(lab.settings)
    approvals = await guard.list_approvals()
    is_begun = await is_deletion_begun(lab, snapshot_id)
    assert is_begun or milliseconds is not None
    found = [(one.state, bool(one.job_id)) for one in approvals]
    assert found in ([[("spent", True)]] if is_begun else [[], [("granted", False)]])
    assert guard.audit.verify().problem == ""


async def is_deletion_begun(lab: Lab, snapshot_id: str) -> bool:
    """Whether the zone has been asked to delete it."""
    query = SnapshotFilter(snapshots=(snapshot_id,), status=("available", "pending", "suspended", "deleted", "ceased"))
    async with app.build_zones(lab.settings) as zones:
        jobs = await zones.get().list_unfinished_jobs()
        (snapshot,) = (await zones.get().provider.list_snapshots(query)).items
    return snapshot.status != "available" or "DeleteSnapshots" in {job.action for job in jobs}


@pytest.mark.parametrize(
    ("version", "sent", "is_reset"),
    [
        (MODERN, 10, True),
        long(LEGACY, 0, False),
        *(long(MODERN, *way) for way in ((10, False), (0, False), (0, True))),
        *(long(LEGACY, *way) for way in ((10, False), (10, True), (0, True))),
    ],
)
@pytest.mark.long
def test_over_http_a_host_dies_while_it_sends(lab: Lab, version: str, sent: int, is_reset: bool) -> None:
    """ "A traceback when a host leaves in the middle of a call", over HTTP."""
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/list"})
    with http_server(lab) as (url, process):
        host, _, port = url.split("/")[2].partition(":")
        lines = [
            "POST /mcp HTTP/1.1",
            f"Host: {host}:{port}",
            "Content-Type: application/json",
            "Accept: application/json, text/event-stream",
            f"MCP-Protocol-Version: {version}",
            "Mcp-Method: tools/list",
            f"Content-Length: {len(body)}",
        ]
        with socket.create_connection((host, int(port))) as wire:
            wire.sendall("\r\n".join([*lines, "", body[:sent]]).encode())
            if is_reset:
                wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, 0, 0, 0, 0, 0, 0, 0]))
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        assert process.stderr.read() == ""


CLIENT = """
import anyio, sys
from mcp import Client

async def never(context, params):
    print("asked", flush=True)
    await anyio.sleep_forever()

async def wait(client, job_id):
    await client.call_tool("wait_for_job", {"job_ids": [job_id], "timeout_seconds": 1})

async def main(url, mode, job_id, snapshot_id):
    async with Client(url, mode=mode, elicitation_callback=never) as client, anyio.create_task_group() as tasks:
        tasks.start_soon(wait, client, job_id)
        tasks.start_soon(client.call_tool, "rollback_to_snapshots", {"snapshot_ids": [snapshot_id]})
        with anyio.fail_after(60):
            while True:
                await client.call_tool("list_snapshots", {})

anyio.run(main, *sys.argv[1:])
"""


@modern_first
@pytest.mark.long
async def test_over_http_a_host_is_killed_in_the_middle_of_calls(lab: Lab, mode: str) -> None:
    """ "A traceback when a host leaves in the middle of a call": the server goes on for others, and says nothing."""
    snapshot_id = await prepare(lab)
    with stopped_worker(lab), http_server(lab) as (url, process):
        job_id = await submit(lab)
        command = [sys.executable, "-c", CLIENT, url, mode, job_id, snapshot_id]
        for _ in range(2):
            client = subprocess.Popen(command, stdout=subprocess.PIPE)
            assert client.stdout is not None
            assert await anyio.to_thread.run_sync(client.stdout.readline) == b"asked\n"
            client.kill()
            client.wait()
            client.stdout.close()
        await anyio.sleep(1.5)  # the waits that nobody hears of end meanwhile
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        assert await anyio.to_thread.run_sync(process.stderr.read) == ""
