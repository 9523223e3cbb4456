"""The HTTP doors of the program, each as it is really served: MCP, the approvers' door beside it, the REST face, the page.

Whatever Host, Origin or length a request has, every door gives the same answer; and none of them holds an answer back.
"""

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from snapshot_mcp import app
from snapshot_mcp.guard.page import approval_page
from snapshot_mcp.settings import load_settings
from tests.ground.accepted import nodelay_by_port
from tests.marks import long
from tests.rest_face import RawAnswer, ask, fetch_token, send_raw

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(sys.platform != "linux", reason="/proc")]

TOKEN = "token-of-anna-0123456789abcdef"
CONFIG = f'[tokens.anna]\ntoken = "{TOKEN}"\nroles = ["approver", "operator"]\n'
LISTING = b'{"jsonrpc": "2.0", "id": 1, "method": "tools/list"}'
MCP_HEADERS = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


@dataclass(frozen=True)
class Door:
    """One request that the door lets in: with the right Host and no Origin it is answered with `status`."""

    url: str
    method: str
    path: str
    headers: dict[str, str]
    status: int
    body: bytes = b""
    too_long: int = 5000

    async def ask(self, headers: dict[str, str], body: bytes | None = None) -> RawAnswer:
        content = self.body if body is None else body
        return await ask(self.url, self.method, self.path, content, headers=self.headers | headers)


def environment_of(folder: Path) -> dict[str, str]:
    config = folder / "config.toml"
    config.write_text(CONFIG, encoding="utf-8")
    config.chmod(0o600)
    clean = {key: value for key, value in os.environ.items() if not key.startswith("SNAPSHOT_MCP_")}
    paths = {"SNAPSHOT_MCP_HOME": str(folder / "home"), "SNAPSHOT_MCP_CONFIG": str(config)}
    return clean | paths | {"PYTHONPATH": os.pathsep.join(sys.path)}


@contextmanager
def command(folder: Path, *arguments: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A serving command of the program: its URL, and the process, which tells of its connections."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.ground.accepted", *arguments],
        env=environment_of(folder),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            yield next(word for word in line.split() if word.startswith("http://")), process
        finally:
            process.terminate()


@asynccontextmanager
async def mcp(folder: Path) -> AsyncIterator[tuple[Door, subprocess.Popen[str] | None]]:
    with command(folder, "serve", "--http", "127.0.0.1:0") as (url, process):
        headers = MCP_HEADERS | {"Authorization": f"Bearer {TOKEN}", "MCP-Protocol-Version": "2025-06-18"}
        yield (
            Door(url.removesuffix("/mcp"), "POST", "/mcp", headers, 400, body=LISTING, too_long=5 << 20),
            process,
        )


@asynccontextmanager
async def approvals(folder: Path) -> AsyncIterator[tuple[Door, subprocess.Popen[str] | None]]:
    with command(folder, "serve", "--http", "127.0.0.1:0") as (url, process):
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        yield Door(url.removesuffix("/mcp"), "POST", "/approvals/ap-none", headers, 400, body=b"{}"), process


@asynccontextmanager
async def rest(folder: Path) -> AsyncIterator[tuple[Door, subprocess.Popen[str] | None]]:
    with command(folder, "zone", "serve", "--http", "127.0.0.1:0") as (url, process):
        base = url.partition("/v2/")[0]
        assert process.stderr is not None
        process.stderr.readline()  # the key pairs are written
        (pair,) = json.loads((folder / "home" / "zone-serve.json").read_text())
        token = await fetch_token(base, pair["client_id"], pair["client_secret"])
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        path = "/v2/zone/local/volume_snapshots"
        yield Door(base, "POST", path, headers, 400, body=b"{}", too_long=2 << 20), process


@asynccontextmanager
async def page(folder: Path) -> AsyncIterator[tuple[Door, subprocess.Popen[str] | None]]:
    settings = await anyio.to_thread.run_sync(load_settings, environment_of(folder))
    guard = await anyio.to_thread.run_sync(partial(app.build_guard, settings))
    async with approval_page(guard):
        base, slash, path = (await guard.link("ap-none")).url.partition("/approvals")
        yield Door(base, "GET", slash + path, {}, 404), None


DOORS = [mcp, approvals, rest, page]

OWN, PORT = "{own}", "{port}"
HOSTS = {
    "its own": (OWN, True),
    "an IP literal of loopback": (f"127.1.2.3:{PORT}", True),
    "an IP literal of another machine": (f"192.0.2.7:{PORT}", False),
    "IPv6": (f"[::1]:{PORT}", True),
    "IPv6 of another machine": (f"[2001:db8::7]:{PORT}", False),
    "IPv6 without brackets": ("::1", False),
    "its name": ("LocalHost", True),
    "another port, as through a tunnel": ("127.0.0.1:1", True),
    "no port": ("127.0.0.1", True),
    "a port that is none": ("127.0.0.1:65536", False),
    "a port that is a word": ("127.0.0.1:http", False),
    "foreign": ("evil.example", False),
    "foreign that begins like ours": ("127.0.0.1.evil.example", False),
    "foreign that ends like ours": (f"evil.example:{PORT}@127.0.0.1", False),
    "a trailing dot": ("localhost.", False),
    "half a bracket": ("[half", False),
    "a path": ("127.0.0.1/evil", False),
    "empty": ("", False),
}
ORIGINS = {
    "its own": (f"http://{OWN}", True),
    "its own, encrypted before a proxy": (f"https://{OWN}", True),
    "another port": ("http://127.0.0.1:1", False),
    "another name of it": (f"http://localhost:{PORT}", False),
    "foreign": ("http://evil.example", False),
    "foreign that begins like ours": (f"http://{OWN}.evil.example", False),
    "foreign with ours as its user": (f"http://{OWN}@evil.example", False),
    "another scheme": (f"file://{OWN}", False),
    "no scheme": (OWN, False),
    "null": ("null", False),
    "half a bracket": ("http://[half", False),
    "empty": ("", False),
}


@pytest.fixture(params=DOORS, ids=lambda door: door.__name__)
async def door(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Door]:
    async with request.param(tmp_path) as (found, _):
        yield found


async def test_every_door_gives_the_same_answer(door: Door, subtests: pytest.Subtests) -> None:
    """421 for a Host that is not ours, 403 for another site's Origin, 413 for too long a body, and no word of the route."""
    own = door.url.removeprefix("http://")
    port = own.rpartition(":")[2]
    for header, table, refused in (("Host", HOSTS, 421), ("Origin", ORIGINS, 403)):
        for name, (value, is_let_in) in table.items():
            with subtests.test(header=header, case=name):
                shown = value.replace(OWN, own).replace(PORT, port)
                assert (await door.ask({header: shown})).status == (door.status if is_let_in else refused)
    with subtests.test(case="a foreign Host before a foreign Origin"):
        assert (await door.ask({"Host": "evil.example", "Origin": "http://evil.example"})).status == 421
    with subtests.test(case="an Origin that is the Host's, where the Host is foreign"):
        assert (await door.ask({"Host": "evil.example", "Origin": "http://evil.example"})).status == 421
    with subtests.test(case="no Host, which HTTP/1.0 allows"):
        old = await send_raw(door.url, f"{door.method} {door.path} HTTP/1.0\r\n\r\n".encode())
        assert old is not None
        assert old.status == 421
    with subtests.test(case="no Host, which HTTP/1.1 forbids"):
        malformed = await send_raw(door.url, f"{door.method} {door.path} HTTP/1.1\r\n\r\n".encode())
        assert malformed is not None
        assert malformed.status == 400
    if door.method == "POST":
        with subtests.test(case="too long"):
            assert (await door.ask({}, b" " * door.too_long)).status == 413
        with subtests.test(case="too long, and its length unsaid"):
            chunk = b" " * door.too_long
            body = f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n0\r\n\r\n"
            assert (await door.ask({"Transfer-Encoding": "chunked"}, body)).status == 413
        with subtests.test(case="another site's form without an Origin"):
            assert (await door.ask({"Sec-Fetch-Site": "cross-site"})).status == 403


@pytest.mark.parametrize("opened", [mcp, long(rest), long(page)], ids=lambda door: door.__name__)
async def test_no_door_holds_an_answer_back(opened: object, tmp_path: Path) -> None:
    """Without TCP_NODELAY each answer on a connection that is kept waits some 40 ms for an acknowledgement."""
    async with opened(tmp_path) as (door, process):  # type: ignore[operator]
        own = door.url.removeprefix("http://")
        host, _, port = own.partition(":")
        async with await anyio.connect_tcp(host, int(port)) as stream:
            await stream.send(f"GET / HTTP/1.1\r\nHost: {own}\r\n\r\n".encode())
            assert (await stream.receive()).startswith(b"HTTP/1.1 ")
            client = stream.extra(anyio.abc.SocketAttribute.local_port)
            if process is None:
                found = nodelay_by_port()
            else:
                process.stdin.write("\n")
                process.stdin.flush()
                line = await anyio.to_thread.run_sync(process.stdout.readline)
                found = {int(one): is_set for one, is_set in json.loads(line).items()}
        assert found[client] is True
