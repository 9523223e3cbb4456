"""Roles over HTTP: a viewer looks, an operator asks, another principal approves; attempts across principals."""

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import httpx2
import pytest
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client
from mcp.types import ElicitResult

from tests.guard.test_attacks import Siege, Victim, ask, says, status_of, yes
from tests.guard.test_attacks import victim as victim
from tests.patience import PATIENCE_SECONDS

pytestmark = pytest.mark.anyio

TOKENS = {
    "vera": ("viewer", "token-of-vera-0123456789abcdef"),
    "olga": ("operator", "token-of-olga-0123456789abcdef"),
    "omar": ("operator", "token-of-omar-0123456789abcdef"),
    "anna": ("approver", "token-of-anna-0123456789abcdef"),
    "both": ("operator", "token-of-both-0123456789abcdef"),
}


def write_tokens(siege: Siege) -> dict[str, str]:
    """The settings with tokens; the environment of a server with them."""
    home = siege.settings.home
    config = siege.folder / "config.toml"
    text = config.read_text(encoding="utf-8")
    for name, (role, token) in TOKENS.items():
        roles = '["operator", "approver"]' if name == "both" else f'["{role}"]'
        text += f'[tokens.{name}]\ntoken = "{token}"\nroles = {roles}\n'
    config.write_text(text, encoding="utf-8")
    clean = {key: value for key, value in os.environ.items() if not key.startswith("SNAPSHOT_MCP_")}
    return clean | {"SNAPSHOT_MCP_HOME": str(home), "SNAPSHOT_MCP_CONFIG": str(config)}


@pytest.fixture
def url(victim: Victim) -> Iterator[str]:
    """A server process that takes tokens, where only a person outside of the conversation can say yes."""
    victim.siege.rules = 'consent = "human"'
    command = [sys.executable, "-m", "snapshot_mcp", "serve", "--http", "127.0.0.1:0"]
    process = subprocess.Popen(command, env=write_tokens(victim.siege), stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        yield process.stderr.readline().split()[-1]
    finally:
        process.terminate()
        process.communicate()


@asynccontextmanager
async def connect(url: str, name: str, reply: Any = None, mode: str = "auto") -> AsyncIterator[Client]:
    headers = {"Authorization": f"Bearer {TOKENS[name][1]}"}
    async with httpx2.AsyncClient(headers=headers, timeout=PATIENCE_SECONDS) as http:
        transport = streamable_http_client(url, http_client=http)
        async with Client(transport, mode=mode, elicitation_callback=reply) as client:
            yield client


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {TOKENS[name][1]}"}


REFUSED: dict[str, tuple[dict[str, str], str, str]] = {
    "no header": ({}, "The header Authorization is missing", 'Bearer realm="snapshot-mcp"'),
    "a wrong token": (
        {"Authorization": "Bearer wrong"},
        "is not one of this server's",
        'Bearer realm="snapshot-mcp", error="invalid_token"',
    ),
    "a token alone": ({"Authorization": TOKENS["olga"][1]}, "must read: Bearer TOKEN", 'Bearer realm="snapshot-mcp"'),
}


async def test_without_a_token_nobody_gets_in_and_is_told_which_header_is_missing(victim: Victim, url: str) -> None:
    """There is nothing of OAuth to be discovered: a client would try to register with this server."""
    base = url.rsplit("/", 1)[0]
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    async with httpx.AsyncClient(timeout=PATIENCE_SECONDS) as browser:
        for headers, says, challenge in REFUSED.values():
            for answer in (
                await browser.post(url, json=body, headers=headers),
                await browser.get(url, headers=headers),
                await browser.get(f"{base}/approvals", headers=headers),
                await browser.post(f"{base}/approvals/ap-x", json={"decision": "deny"}, headers=headers),
            ):
                assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
                assert says in answer.json()["message"]
                assert answer.headers["www-authenticate"] == challenge
        for kind in ("oauth-protected-resource", "oauth-authorization-server", "openid-configuration"):
            for path in (f"/.well-known/{kind}", f"/.well-known/{kind}/mcp"):
                assert (await browser.get(f"{base}{path}", headers=bearer("olga"))).status_code == 404


async def test_a_viewer_looks_and_changes_nothing(victim: Victim, url: str) -> None:
    async with connect(url, "vera") as client:
        assert not (await client.call_tool("list_snapshots", {})).is_error
        for tool, arguments in (
            ("create_snapshots", {"resource_ids": ["pg-data"], "name": "x"}),
            ("delete_snapshot", {"snapshot_id": victim.last}),
            ("rollback_to_snapshots", {"snapshot_ids": [victim.full]}),
            ("rename_snapshot", {"snapshot_id": victim.last, "name": "x"}),
        ):
            result = await client.call_tool(tool, arguments)
            assert result.is_error
            assert "is read-only" in str(result.content)
    assert await victim.siege.guard.list_approvals() == ()


async def only_those_see(uri: str, *, seen_by: Client, hidden_from: Client) -> None:
    """An approval is listed and read by whoever asked, and by approvers; to others it is not there."""
    assert uri in [str(one.uri) for one in (await seen_by.list_resources()).resources]
    assert (await seen_by.read_resource(uri)).contents
    assert uri not in [str(one.uri) for one in (await hidden_from.list_resources()).resources]
    with pytest.raises(MCPError):
        await hidden_from.read_resource(uri)


async def test_another_principal_approves_and_only_the_one_who_asked_can_use_it(victim: Victim, url: str) -> None:
    base = url.rsplit("/", 1)[0]
    call = {"snapshot_id": victim.last}
    async with (
        httpx.AsyncClient(timeout=PATIENCE_SECONDS) as browser,
        connect(url, "olga") as olga,
        connect(url, "omar") as omar,
    ):
        asked = status_of(await olga.call_tool("delete_snapshot", call))[1]
        pending = asked["approval_id"]
        assert f"POST {base}/approvals/{pending}\n" in asked["how_to_approve"], "the port that was taken"
        await only_those_see(f"approval://{pending}", seen_by=olga, hidden_from=omar)
        for name in ("vera", "olga", "omar"):
            assert (await browser.get(f"{base}/approvals", headers=bearer(name))).status_code == 403
            decision = {"decision": "approve", "digest": "0" * 64}
            refused = await browser.post(f"{base}/approvals/{pending}", json=decision, headers=bearer(name))
            assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
        (listed,) = (await browser.get(f"{base}/approvals", headers=bearer("anna"))).json()["approvals"]
        assert (listed["id"], listed["principal"]) == (pending, "olga")
        assert any("monday" in line for line in listed["plan"])
        for body in ({}, [], {"decision": "approve"}, {"decision": "approve", "digest": "0" * 64}, {"decision": "yes"}):
            wrong = await browser.post(f"{base}/approvals/{pending}", json=body, headers=bearer("anna"))
            assert wrong.status_code == 400
        for content, status in ((b"[" * 4000, 400), (b"\xff", 400), (b"x" * 5000, 413), (b"", 400)):
            nonsense = await browser.post(f"{base}/approvals/{pending}", content=content, headers=bearer("anna"))
            assert (nonsense.status_code, nonsense.json()["code"]) == (status, "bad_request")
        right = {"decision": "approve", "digest": listed["digest"]}
        for header, value, status in (("Host", "evil.example", 421), ("Origin", "http://evil.example", 403)):
            lured = bearer("anna") | {header: value}
            assert (await browser.get(f"{base}/approvals", headers=lured)).status_code == status
            assert (await browser.post(f"{base}/approvals/{pending}", json=right, headers=lured)).status_code == status
        approved = await browser.post(f"{base}/approvals/{pending}", json=right, headers=bearer("anna"))
        assert approved.json()["state"] == "granted"
        assert status_of(await omar.call_tool("delete_snapshot", call))[0] == "needs_approval"
        assert await victim.acts() == 0
        assert status_of(await olga.call_tool("delete_snapshot", call))[0] == "started"
        again = await browser.post(f"{base}/approvals/{pending}", json=right, headers=bearer("anna"))
        assert again.status_code == 400
    assert await victim.acts() == 1
    audit = victim.siege.guard.audit
    granted = next(record for record in audit.records() if record["event"] == "granted")
    assert (granted["door"], granted["by"], granted["principal"]) == ("approver", "anna", "olga")
    assert audit.verify().problem == ""


@pytest.mark.long
async def test_an_approver_who_denies_too_late_hears_how_it_ended(victim: Victim, url: str) -> None:
    """Never that nothing was done, of what was carried out."""
    base = url.rsplit("/", 1)[0]
    call = {"snapshot_id": victim.last}
    async with httpx.AsyncClient(timeout=PATIENCE_SECONDS) as browser, connect(url, "olga") as olga:
        pending = status_of(await olga.call_tool("delete_snapshot", call))[1]["approval_id"]
        (listed,) = (await browser.get(f"{base}/approvals", headers=bearer("anna"))).json()["approvals"]
        decision = {"decision": "approve", "digest": listed["digest"]}
        await browser.post(f"{base}/approvals/{pending}", json=decision, headers=bearer("anna"))
        job_id = status_of(await olga.call_tool("delete_snapshot", call))[1]["job_id"]
        await olga.call_tool("wait_for_job", {"job_ids": [job_id]})
        late = await browser.post(f"{base}/approvals/{pending}", json={"decision": "deny"}, headers=bearer("anna"))
    assert late.status_code == 400
    assert f"It was started as job {job_id}: it ended successfully." in late.json()["message"]
    (ended,) = [record for record in victim.siege.guard.audit.records() if record["event"] == "ended"]
    assert (ended["by"], ended["door"], ended["principal"]) == ("anna", "approver", "olga")


@pytest.mark.long
async def test_who_asked_cannot_approve(victim: Victim, url: str) -> None:
    base = url.rsplit("/", 1)[0]
    async with (
        httpx.AsyncClient(timeout=PATIENCE_SECONDS) as browser,
        connect(url, "both", says({"answer": "delete"})) as client,
    ):
        call = {"snapshot_id": victim.last}
        pending = status_of(await client.call_tool("delete_snapshot", call))[1]["approval_id"]
        (listed,) = (await browser.get(f"{base}/approvals", headers=bearer("both"))).json()["approvals"]
        own = {"decision": "approve", "digest": listed["digest"]}
        refused = await browser.post(f"{base}/approvals/{pending}", json=own, headers=bearer("both"))
        assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
        denied = await browser.post(f"{base}/approvals/{pending}", json={"decision": "deny"}, headers=bearer("anna"))
        assert denied.json()["state"] == "denied"
        assert status_of(await client.call_tool("delete_snapshot", call))[0] == "declined"
    assert await victim.acts() == 0


@pytest.mark.long
async def test_a_sealed_answer_of_another_principal_is_none(victim: Victim) -> None:
    """mcp_sdk_notes 6: B replaying A's request state."""
    victim.siege.rules = ""
    command = [sys.executable, "-m", "snapshot_mcp", "serve", "--http", "127.0.0.1:0"]
    process = subprocess.Popen(command, env=write_tokens(victim.siege), stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        url = (await anyio.to_thread.run_sync(process.stderr.readline)).split()[-1]
        call = {"snapshot_id": victim.last}

        async def never(context: Any, params: Any) -> ElicitResult:
            raise AssertionError

        async with connect(url, "olga", never) as olga, connect(url, "omar", never) as omar:
            asked = await ask(olga, "delete_snapshot", call)
            with pytest.raises(MCPError, match="requestState"):
                await ask(omar, "delete_snapshot", call, input_responses=yes(), request_state=asked.request_state)
    finally:
        process.terminate()
        await anyio.to_thread.run_sync(process.communicate)
    assert await victim.acts() == 0
