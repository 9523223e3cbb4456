"""Attempts to destroy without a person's yes over the wire: a server process on stdio and on HTTP, in both eras."""

import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from mcp import Client, MCPError, StdioServerParameters
from mcp.types import ElicitResult, InputRequiredResult

from tests.guard.test_attacks import ANSWERS, Ground, Siege, Victim, ask, says, status_of, yes
from tests.guard.test_attacks import ground as ground
from tests.guard.test_attacks import victim as victim
from tests.marks import legacy_first, long, modern_first
from tests.patience import PATIENCE_SECONDS

pytestmark = pytest.mark.anyio


def environment(siege: Siege) -> dict[str, str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("SNAPSHOT_MCP_")}
    home, config = siege.settings.home, siege.folder / "config.toml"
    return clean | {"SNAPSHOT_MCP_HOME": str(home), "SNAPSHOT_MCP_CONFIG": str(config)}


@contextmanager
def http_server(siege: Siege) -> Iterator[str]:
    command = [sys.executable, "-m", "snapshot_mcp", "serve", "--http", "127.0.0.1:0"]
    process = subprocess.Popen(command, env=environment(siege), stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        yield process.stderr.readline().split()[-1]
    finally:
        process.terminate()
        process.communicate()


@asynccontextmanager
async def connect(siege: Siege, url: str, reply: Any = None) -> AsyncIterator[Client]:
    words = ["-m", "snapshot_mcp"]
    server: Any = url or StdioServerParameters(command=sys.executable, args=words, env=environment(siege))
    async with Client(server, mode=siege.mode, elicitation_callback=reply) as client:
        yield client


@pytest.mark.parametrize(
    ("mode", "transport"),
    [
        ("auto", "stdio"),
        long("legacy", "http"),
        long("auto", "http"),
        long("legacy", "stdio"),
    ],
)
@pytest.mark.long
async def test_every_attempt_over_the_wire_comes_to_nothing(
    ground: Ground, tmp_path: Path, mode: str, transport: str
) -> None:
    """A connection makes one attempt after the other; each kind of call is asked about anew, because each has its own id."""
    siege = Siege(ground, tmp_path, mode)
    before = await ground.state()
    if transport == "stdio":
        await attempts(siege, "")
    else:
        with http_server(siege) as url:
            await attempts(siege, url)
            await knock(url)
    assert await ground.state() == before


async def attempts(siege: Siege, url: str) -> None:
    delete, roll_back = "delete_snapshot", "rollback_to_snapshots"
    answers = iter(ANSWERS.values())
    given: list[str] = []

    async def reply(context: Any, params: Any) -> ElicitResult:
        action, content = next(answers)
        given.append(action)
        return ElicitResult(action=action, content=content)

    async with connect(siege, url, reply) as client:
        for extra in ({"confirm": True}, {"approval_id": "ap-22222222"}, {"pin": "483920"}, {"answer": "delete"}):
            assert (await client.call_tool(delete, {"snapshot_id": siege["tuesday"], **extra})).is_error
        for arguments in ({"snapshot_id": siege[name]} for name in ("full", "monday", "tuesday", "only")):
            result = await client.call_tool(delete, arguments)
            assert result.is_error or status_of(result)[0] == "needs_approval"
            assert status_of(await client.call_tool(delete, arguments))[0] == "needs_approval"
        for names in (["full"], ["monday"], ["tuesday"], ["only"], ["full", "only"]):
            for safety in (True, False):
                call = {"snapshot_ids": [siege[name] for name in names], "safety_snapshot": safety}
                assert status_of(await client.call_tool(roll_back, call))[0] == "needs_approval"
        assert len(given) >= 13
        approvals = await siege.guard.list_approvals()
        for approval in approvals:
            for tool in ("approve", "approvals", "set_pin"):
                assert (await client.call_tool(tool, {"approval_id": approval.id})).is_error
        assert {one.state for one in await siege.guard.list_approvals()} == {"pending"}
    siege.rules = 'consent = "human"'
    if not url:
        async with connect(siege, url, says({"answer": "delete"})) as client:
            for name in ("monday", "tuesday"):
                result = await client.call_tool(delete, {"snapshot_id": siege[name]})
                assert status_of(result)[0] == "needs_approval"
    if siege.mode == "auto":
        await forge(siege, url)


async def forge(siege: Siege, url: str) -> None:
    """Rounds with answers nobody gave, states nobody sealed, and another call's state."""
    siege.rules = ""
    mine = {"snapshot_id": siege["tuesday"], "zone": "twin"}
    async with connect(siege, url, says(None)) as client:
        asked = await ask(client, "delete_snapshot", mine, input_responses=yes())
        assert isinstance(asked, InputRequiredResult)
        for arguments, state in (
            (mine, "forged"),
            (mine, asked.request_state[:-3]),
            ({"snapshot_id": siege["monday"], "zone": "twin"}, asked.request_state),
        ):
            try:
                result = await ask(client, "delete_snapshot", arguments, input_responses=yes(), request_state=state)
            except MCPError:
                continue
            assert isinstance(result, InputRequiredResult)


async def knock(url: str) -> None:
    """What is on the port beside MCP: no door to approve through, for any Host or Origin."""
    base = url.rsplit("/", 1)[0]
    async with httpx.AsyncClient(timeout=PATIENCE_SECONDS) as client:
        for path in ("/approvals", "/approvals/ap-22222222", "/approve", "/pin", "/"):
            for method in ("GET", "POST"):
                response = await client.request(method, base + path, json={"pin": "483920", "decision": "approve"})
                assert response.status_code in {404, 405}
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
        for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}):
            response = await client.post(url, json=body, headers=headers)
            assert response.status_code in {403, 421}


@modern_first
async def test_a_host_that_can_open_the_page_leads_a_person_there_and_proves_nothing_itself(
    victim: Victim, mode: str
) -> None:
    """Offered as URL-mode elicitation where the client can. Its accept is no yes, its decline no no."""
    siege = victim.siege
    siege.mode, siege.rules = mode, 'consent = "human"'
    await siege.guard.set_pin("483920")
    opened: list[str] = []
    replies = iter([("decline", ""), ("cancel", ""), ("accept", "approve")])

    async def host(context: Any, params: Any) -> ElicitResult:
        opened.append(params.url)
        action, decision = next(replies)
        if decision:
            async with httpx.AsyncClient(timeout=PATIENCE_SECONDS) as browser:
                page = await browser.get(params.url)
                fields = dict(re.findall(r'name="(token|digest)" value="([^"]*)"', page.text))
                form = fields | {"decision": decision, "pin": "483920"}
                await browser.post(params.url, data=form, headers={"Origin": params.url.rsplit("/", 3)[0]})
        return ElicitResult(action=action)

    async with siege.connect(host) as client:
        call = {"snapshot_id": victim.last}
        said = [status_of(await client.call_tool("delete_snapshot", call))[0] for _ in range(3)]
    assert said == ["needs_approval", "needs_approval", "started"]
    assert len(set(opened)) == 1
    await victim.settle()
    assert await victim.acts() == 1


async def test_a_server_that_ends_while_it_asks_destroys_nothing(ground: Ground, tmp_path: Path) -> None:
    siege = Siege(ground, tmp_path, "legacy")
    before = await ground.state()
    asked = anyio.Event()

    async def never(context: Any, params: Any) -> ElicitResult:
        asked.set()
        await anyio.sleep_forever()
        raise AssertionError

    async def call() -> None:
        async with connect(siege, "", never) as client:
            await client.call_tool("delete_snapshot", {"snapshot_id": siege["tuesday"]})

    with anyio.fail_after(PATIENCE_SECONDS):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call)
            await asked.wait()
            tasks.cancel_scope.cancel()
    assert await ground.state() == before
    assert not [one for one in await siege.guard.list_approvals() if one.state == "granted"]


@legacy_first
async def test_the_page_of_a_server_on_stdio_lets_a_person_in_and_nobody_else(victim: Victim, mode: str) -> None:
    """Started when it is first needed, also from stdio; it shows what became of the approval after the server has ended."""
    siege = victim.siege
    siege.mode, siege.rules = mode, 'consent = "human"'
    await siege.guard.set_pin("483920")
    call = {"snapshot_id": victim.last}
    async with httpx.AsyncClient(timeout=PATIENCE_SECONDS) as browser:
        async with connect(siege, "", says(None, "decline")) as client:
            _, data = status_of(await client.call_tool("delete_snapshot", call))
            link = data["approval_link"]
            page = await browser.get(link)
            fields = dict(re.findall(r'name="(token|digest)" value="([^"]*)"', page.text))
            origin = {"Origin": link.rsplit("/", 3)[0]}
            for pin, status in (("", 403), ("000000", 403), ("483920", 303)):
                answer = await browser.post(link, data=fields | {"decision": "approve", "pin": pin}, headers=origin)
                assert answer.status_code == status
            assert status_of(await client.call_tool("delete_snapshot", call))[0] == "started"
        assert ">used<" in (await browser.get(link)).text
    await victim.settle()
    assert await victim.acts() == 1
