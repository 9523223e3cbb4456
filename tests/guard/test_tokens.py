"""Tokens and approvers under a running server: the operator's file is read again, and who is gone from it counts no more."""

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import httpx
import httpx2
import pytest
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client
from mcp.client.subscriptions import SubscriptionLost

from snapshot_mcp.guard import Door
from snapshot_mcp.server.deadline import CALL_SECONDS
from tests.disks import worker_pid
from tests.guard.conftest import Bench, nobody
from tests.guard.test_attacks import Victim, status_of
from tests.guard.test_attacks import victim as victim
from tests.marks import few, legacy_first, long, modern_first
from tests.patience import PATIENCE_SECONDS

pytestmark = pytest.mark.anyio

SERVE = [sys.executable, "-m", "snapshot_mcp", "serve", "--http", "127.0.0.1:0"]
EVERYBODY = {"vera": "viewer", "olga": "operator", "anna": "approver", "axel": "approver"}


def token_of(name: str, number: int = 1) -> str:
    return f"token-{number}-of-{name}-0123456789abcdef"


@dataclass
class Service:
    """A server process and the operator's file that it reads."""

    config: Path
    rules: str
    roles: dict[str, str] = field(default_factory=lambda: dict(EVERYBODY))
    numbers: dict[str, int] = field(default_factory=dict)
    url: str = ""

    @property
    def base(self) -> str:
        return self.url.rsplit("/", 1)[0]

    def write(self, extra: str = "") -> None:
        """Replace the file, as an editor does."""
        text = self.rules + extra
        for name, role in self.roles.items():
            token = token_of(name, self.numbers.get(name, 1))
            text += f'[tokens.{name}]\ntoken = "{token}"\nroles = ["{role}"]\n'
        draft = self.config.with_suffix(".draft")
        draft.write_text(text, encoding="utf-8")
        draft.chmod(0o600)
        draft.replace(self.config)

    def remove(self, *names: str) -> None:
        self.roles = {name: role for name, role in self.roles.items() if name not in names}
        self.write()

    def give(self, name: str, role: str) -> None:
        self.roles[name] = role
        self.write()

    def replace_token(self, name: str) -> None:
        self.numbers[name] = self.numbers.get(name, 1) + 1
        self.write()

    def break_file(self) -> None:
        self.config.write_text("[tokens.vera\n", encoding="utf-8")

    def bearer(self, name: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {token_of(name, self.numbers.get(name, 1))}"}

    @asynccontextmanager
    async def connect(self, name: str, mode: str = "auto", reply: Any = None) -> AsyncIterator[Client]:
        async with httpx2.AsyncClient(headers=self.bearer(name), timeout=PATIENCE_SECONDS) as http:
            transport = streamable_http_client(self.url, http_client=http)
            async with Client(transport, mode=mode, elicitation_callback=reply) as client:
                yield client

    async def status(self, headers: dict[str, str], method: str = "POST") -> int:
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
        async with httpx.AsyncClient(timeout=PATIENCE_SECONDS) as browser:
            return (await browser.request(method, self.url, json=body, headers=headers)).status_code

    async def decide(self, name: str, decision: str, approval_id: str) -> httpx.Response:
        """Look at what waits and decide about one of them, as an approver does."""
        async with httpx.AsyncClient(headers=self.bearer(name), timeout=PATIENCE_SECONDS) as browser:
            found = (await browser.get(f"{self.base}/approvals")).json().get("approvals", [])
            digest = next((one["digest"] for one in found if one["id"] == approval_id), "0" * 64)
            body = {"decision": decision} | ({"digest": digest} if decision == "approve" else {})
            return await browser.post(f"{self.base}/approvals/{approval_id}", json=body)

    async def approvals(self, name: str = "axel") -> list[str]:
        async with httpx.AsyncClient(headers=self.bearer(name), timeout=PATIENCE_SECONDS) as browser:
            return [one["id"] for one in (await browser.get(f"{self.base}/approvals")).json()["approvals"]]


@asynccontextmanager
async def serve(
    victim: Victim, *, roles: dict[str, str] | None = None, rules: str = 'consent = "human"'
) -> AsyncIterator[Service]:
    """A server process over the victim's home. It says nothing on stderr but its address."""
    victim.siege.rules = rules
    config = victim.siege.write()
    service = Service(config, config.read_text(encoding="utf-8"), dict(EVERYBODY if roles is None else roles))
    service.write()
    clean = {key: value for key, value in os.environ.items() if not key.startswith("SNAPSHOT_MCP_")}
    environ = clean | {
        "SNAPSHOT_MCP_HOME": str(victim.siege.folder / "home"),
        "SNAPSHOT_MCP_CONFIG": str(config),
    }
    process = subprocess.Popen(SERVE, env=environ, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        service.url = (await anyio.to_thread.run_sync(process.stderr.readline)).split()[-1]
        yield service
    finally:
        process.terminate()
        said = await anyio.to_thread.run_sync(process.communicate)
    assert said[1] == ""


@contextmanager
def suppress_mcp_errors() -> Iterator[None]:
    """What a client raises whose connection the server ends, alone or in groups."""
    try:
        yield
    except* (MCPError, SubscriptionLost, httpx2.HTTPError):
        pass


async def call_later(seconds: float, act: Any) -> None:
    await anyio.sleep(seconds)
    act()


@pytest.fixture(params=["auto", "legacy"])
def mode(request: pytest.FixtureRequest) -> str:
    """Both protocol eras."""
    return str(request.param)


def records(victim: Victim, event: str) -> list[dict[str, Any]]:
    audit = victim.siege.guard.audit
    assert audit.verify().problem == ""
    return [one for one in audit.records() if one["event"] == event]


async def until(condition: Any) -> None:
    with anyio.fail_after(PATIENCE_SECONDS):
        while not await condition():
            await anyio.sleep(0.05)


@pytest.mark.parametrize(
    ("mode", "change", "production"),
    [
        ("auto", "removed", True),
        long("legacy", "role taken away", True),
        long("auto", "role taken away", True),
        long("legacy", "removed", True),
        *(long(mode, change, False) for mode in ("auto", "legacy") for change in ("removed", "role taken away")),
    ],
)
async def test_a_revoked_approvers_yes_does_not_count(victim: Victim, mode: str, change: str, production: bool) -> None:
    """ "A revoked approver still destroys. An approver's table removed from the file under a running server: that token's
    approval was granted and the deletion carried out, in a production zone." """
    victim.siege.production = production
    rules = "" if production else 'consent = "human"'
    call = {"snapshot_id": victim.last}
    async with serve(victim, rules=rules) as service, service.connect("olga", mode) as olga:
        pending = status_of(await olga.call_tool("delete_snapshot", call))[1]["approval_id"]
        assert (await service.decide("anna", "approve", pending)).json()["state"] == "granted"
        if change == "removed":
            service.remove("anna")
        else:
            service.give("anna", "viewer")
        status, answer = status_of(await olga.call_tool("delete_snapshot", call))
        assert status == "needs_approval"
        assert answer["approval_id"] != pending
        assert await victim.acts() == 0
        assert (await service.decide("axel", "approve", answer["approval_id"])).json()["state"] == "granted"
        assert status_of(await olga.call_tool("delete_snapshot", call))[0] == "started"
    (voided,) = records(victim, "voided")
    assert voided["approval"] == pending
    assert "“anna”, who approved it, " in voided["reason"]


@pytest.mark.long
async def test_a_revoked_approver_cannot_approve(victim: Victim) -> None:
    """ "An approver's table removed from the file under a running server: that token's approval was granted"."""
    call = {"snapshot_id": victim.last}
    async with serve(victim) as service, service.connect("olga") as olga:
        pending = status_of(await olga.call_tool("delete_snapshot", call))[1]["approval_id"]
        gone = service.bearer("anna")
        service.remove("anna")
        async with httpx.AsyncClient(headers=gone, timeout=PATIENCE_SECONDS) as browser:
            assert (await browser.get(f"{service.base}/approvals")).status_code == 401
            for decision in ("approve", "deny"):
                body = {"decision": decision, "digest": "0" * 64}
                refused = await browser.post(f"{service.base}/approvals/{pending}", json=body)
                assert (refused.status_code, refused.json()["code"]) == (401, "unauthorized")
        service.give("anna", "viewer")
        assert (await service.decide("anna", "deny", pending)).status_code == 403
        assert status_of(await olga.call_tool("delete_snapshot", call))[0] == "needs_approval"
    assert await victim.acts() == 0


@pytest.mark.long
async def test_a_replaced_token_is_the_same_person(victim: Victim) -> None:
    """What a person asked for and granted holds under a new token of the same name; the old one is refused at once."""
    call = {"snapshot_id": victim.last}
    async with serve(victim) as service:
        async with service.connect("olga") as olga:
            pending = status_of(await olga.call_tool("delete_snapshot", call))[1]["approval_id"]
        assert (await service.decide("anna", "approve", pending)).status_code == 200
        old = service.bearer("olga")
        service.replace_token("anna")
        service.replace_token("olga")
        assert await service.status(old) == 401
        async with service.connect("olga") as olga:
            assert status_of(await olga.call_tool("delete_snapshot", call))[0] == "started"
    assert await victim.acts() == 1


@pytest.mark.long
async def test_a_removed_principals_requests_are_void_even_if_it_comes_back(victim: Victim) -> None:
    """ "What it asked for and what it granted and is not yet used is void"."""
    call = {"snapshot_id": victim.last}
    async with serve(victim) as service:
        async with service.connect("olga") as olga:
            granted = status_of(await olga.call_tool("delete_snapshot", call))[1]["approval_id"]
            back = {"snapshot_ids": [victim.full]}
            waiting = status_of(await olga.call_tool("rollback_to_snapshots", back))[1]["approval_id"]
        assert (await service.decide("anna", "approve", granted)).status_code == 200
        service.remove("olga")
        assert (await service.decide("axel", "approve", waiting)).status_code == 400

        async def nothing_waits() -> bool:
            return await service.approvals() == []

        await until(nothing_waits)
        service.give("olga", "operator")
        async with service.connect("olga") as olga:
            status, answer = status_of(await olga.call_tool("delete_snapshot", call))
            assert status == "needs_approval"
            assert answer["approval_id"] != granted
    assert await victim.acts() == 0
    assert {one["approval"] for one in records(victim, "voided")} == {granted, waiting}


@legacy_first
@pytest.mark.long
async def test_an_operator_who_became_a_viewer_changes_nothing_more(victim: Victim, mode: str) -> None:
    """A role that is taken away no longer works; in an open session, too."""
    async with serve(victim) as service, service.connect("olga", mode) as olga:
        pending = status_of(await olga.call_tool("delete_snapshot", {"snapshot_id": victim.last}))[1]["approval_id"]
        assert (await service.decide("anna", "approve", pending)).status_code == 200
        service.give("olga", "viewer")
        for tool, arguments in (
            ("delete_snapshot", {"snapshot_id": victim.last}),
            ("create_snapshots", {"resource_ids": ["pg-data"], "name": "x"}),
        ):
            refused = await olga.call_tool(tool, arguments)
            assert "is read-only" in str(refused.content)
        assert not (await olga.call_tool("list_snapshots", {})).is_error
    assert await victim.acts() == 0


async def test_a_removed_token_is_refused_at_once_and_a_new_one_works(victim: Victim) -> None:
    """ "A removed token is refused at once": the very next request, with a session or without."""
    async with serve(victim) as service:
        assert await service.status(service.bearer("nina")) == 401
        service.give("nina", "viewer")
        async with service.connect("nina") as nina:
            assert not (await nina.call_tool("list_snapshots", {})).is_error
        gone = service.bearer("nina")
        service.remove("nina")
        assert [await service.status(gone, method) for method in ("POST", "GET", "DELETE")] == [401, 401, 401]


@dataclass
class Endless:
    """A job that does not end before the test says so: the worker is stopped."""

    job_id: str
    worker: int

    def end(self) -> None:
        os.kill(self.worker, signal.SIGCONT)


@pytest.fixture
async def endless_job(victim: Victim) -> AsyncIterator[Endless]:
    pid = worker_pid(victim.zone.folder)
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        yield Endless((await victim.zone.create_snapshots([victim.disk_id], "endless")).job_id, pid)
    finally:
        os.kill(pid, signal.SIGCONT)
        await victim.settle()


@modern_first
@pytest.mark.long
async def test_a_call_of_a_removed_token_ends(victim: Victim, mode: str, endless_job: Endless) -> None:
    """ "A removed token is refused at once, its open sessions, streams and subscriptions end"; those of others go on."""
    wait = {"job_ids": [endless_job.job_id], "timeout_seconds": CALL_SECONDS}
    async with serve(victim) as service, service.connect("vera", mode) as vera:
        others: list[Any] = []

        async def wait_longer() -> None:
            others.append(await vera.call_tool("wait_for_job", wait))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait_longer)
            with suppress_mcp_errors(), anyio.fail_after(PATIENCE_SECONDS):
                async with service.connect("olga", mode) as olga:
                    tasks.start_soon(call_later, 0.5, lambda: service.remove("olga"))
                    others.append(await olga.call_tool("wait_for_job", wait))
            assert others == [], str(others)
            endless_job.end()
        assert others[0].structured_content["outcome"] == "successful"


@pytest.mark.long
async def test_a_stream_of_a_removed_token_ends(victim: Victim) -> None:
    """ "Its open sessions, streams and subscriptions end": the stream that a modern host listens on."""
    async with serve(victim) as service, service.connect("vera") as vera:
        uris = [f"snapshot://local/{victim.last}"]
        with anyio.fail_after(PATIENCE_SECONDS):
            with suppress_mcp_errors():
                async with service.connect("olga") as olga, olga.listen(resource_subscriptions=uris) as events:
                    service.remove("olga")
                    async for _ in events:
                        pass
        assert not (await vera.call_tool("list_snapshots", {})).is_error


@pytest.mark.long
async def test_a_session_of_a_removed_token_ends(victim: Victim) -> None:
    """ "Its open sessions, streams and subscriptions end": an older host's session, even if the token comes back."""
    hello = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {
            "protocolVersion": "2025-11-25",
            "capabilities": {},
            "clientInfo": {"name": "raw", "version": "1"},
        },
    }
    uri = f"snapshot://local/{victim.last}"
    subscribe = {"jsonrpc": "2.0", "id": 2, "method": "resources/subscribe", "params": {"uri": uri}}
    accept = {"Accept": "application/json, text/event-stream"}
    async with serve(victim) as service, service.connect("vera", "legacy") as vera:
        async with httpx.AsyncClient(headers=service.bearer("olga") | accept, timeout=PATIENCE_SECONDS) as raw:
            opened = await raw.post(service.url, json=hello)
            session = {"Mcp-Session-Id": opened.headers["mcp-session-id"], "MCP-Protocol-Version": "2025-11-25"}
            ready = {"jsonrpc": "2.0", "method": "notifications/initialized"}
            assert (await raw.post(service.url, json=ready, headers=session)).status_code == 202
            assert (await raw.post(service.url, json=subscribe, headers=session)).status_code == 200
            with anyio.fail_after(PATIENCE_SECONDS):
                async with raw.stream("GET", service.url, headers=session) as stream:
                    assert stream.status_code == 200
                    service.remove("olga")
                    assert (await raw.post(service.url, json=subscribe, headers=session)).status_code == 401
                    async for _ in stream.aiter_lines():
                        pass
            service.give("olga", "operator")
            assert (await raw.post(service.url, json=subscribe, headers=session)).status_code == 404
        assert not (await vera.call_tool("list_snapshots", {})).is_error


@modern_first
@pytest.mark.long
async def test_while_the_file_cannot_be_read_nobody_changes_anything(victim: Victim, mode: str) -> None:
    """The tokens of the last good file still look; what changes something fails closed, as the guard's rules do."""
    call = {"snapshot_id": victim.last}
    async with serve(victim) as service, service.connect("olga", mode) as olga:
        pending = status_of(await olga.call_tool("delete_snapshot", call))[1]["approval_id"]
        waiting = status_of(await olga.call_tool("rollback_to_snapshots", {"snapshot_ids": [victim.full]}))[1]
        assert (await service.decide("anna", "approve", pending)).status_code == 200
        service.break_file()
        assert not (await olga.call_tool("list_snapshots", {})).is_error
        for tool, arguments in (
            ("delete_snapshot", call),
            ("create_snapshots", {"resource_ids": ["pg-data"], "name": "x"}),
        ):
            refused = await olga.call_tool(tool, arguments)
            assert refused.is_error
            assert "the operator's settings cannot be read" in str(refused.content)
        uncertain = await service.decide("axel", "approve", waiting["approval_id"])
        assert (uncertain.status_code, uncertain.json()["code"]) == (500, "internal_error")
        assert (await service.decide("axel", "deny", waiting["approval_id"])).json()["state"] == "denied"
        assert await service.status(service.bearer("nina")) == 401
        service.write()
        assert status_of(await olga.call_tool("delete_snapshot", call))[0] == "started"
    assert await victim.acts() == 1


@pytest.mark.long
async def test_a_server_that_has_lost_its_last_token_lets_nobody_in(victim: Victim) -> None:
    """Removing the last token must not open the server to everybody."""
    async with serve(victim) as service:
        everybody = [{}, *map(service.bearer, EVERYBODY)]
        service.remove(*EVERYBODY)
        assert [await service.status(headers) for headers in everybody] == [401] * 5
        service.config.unlink()
        assert [await service.status(headers) for headers in everybody] == [401] * 5
        service.roles = dict(EVERYBODY)
        service.write()
        async with service.connect("vera") as vera:
            assert not (await vera.call_tool("list_snapshots", {})).is_error


@legacy_first
@pytest.mark.long
async def test_a_server_without_tokens_closes_with_the_first_one(victim: Victim, mode: str) -> None:
    """Who gives out the first token expects that nobody else gets in from then on."""
    async with serve(victim, roles={}) as service:
        with suppress_mcp_errors(), anyio.fail_after(PATIENCE_SECONDS):
            async with Client(service.url, mode=mode) as anybody:
                assert not (await anybody.call_tool("list_snapshots", {})).is_error
                service.give("vera", "viewer")
                while not (await anybody.call_tool("list_snapshots", {})).is_error:
                    await anyio.sleep(0.05)
        assert [await service.status(headers) for headers in ({}, service.bearer("vera"))] == [401, 401]


async def test_on_stdio_an_approver_counts_who_is_in_this_servers_file(victim: Victim) -> None:
    """ "What it granted and is not yet used is void", whichever server carries it out."""
    call = {"snapshot_id": victim.last}
    anna = f'consent = "human"\n[tokens.anna]\ntoken = "{token_of("anna")}"\nroles = ["approver"]\n'
    for rules, expected in (('consent = "human"', "needs_approval"), (anna, "started")):
        victim.siege.rules = anna
        async with victim.siege.connect() as client:
            pending = status_of(await client.call_tool("delete_snapshot", call))[1]["approval_id"]
            await victim.siege.guard.approve(pending, None, door=Door.APPROVER, by="anna")
            victim.siege.rules = rules
            victim.siege.write()
            assert status_of(await client.call_tool("delete_snapshot", call))[0] == expected
    assert await victim.acts() == 1


@pytest.mark.parametrize("looks", few(range(6), 2))
async def test_who_counts_is_looked_at_until_the_zone_is_asked(bench: Bench, looks: int) -> None:
    """A grant counts "in the moment it is spent", whenever the approver goes; a person's yes carries out one deletion at most."""
    snapshot = await bench.back_up(await bench.add_disk())
    olga = nobody()
    olga.principal = "olga"
    left = looks

    def roles() -> dict[str, frozenset[str]]:
        nonlocal left
        left -= 1
        return {"olga": frozenset({"operator"})} | ({"anna": frozenset({"approver"})} if left >= 0 else {})

    everybody = bench.guard(roles=lambda: {"olga": frozenset({"operator"}), "anna": frozenset({"approver"})})
    asked = await everybody.delete_snapshot(bench.zone, snapshot.snapshot_id, olga)
    await everybody.approve(asked.approval_id, None, door=Door.APPROVER, by="anna")
    outcome = await bench.guard(roles=roles).delete_snapshot(bench.zone, snapshot.snapshot_id, olga)
    if left >= 0:
        assert outcome.status == "started"
    else:
        assert outcome.status in {"needs_approval", "plan_changed"}
        assert bench.destroyed == []
        (voided,) = [one for one in everybody.audit.records() if one["event"] == "voided"][-1:]
        assert voided["approval"] == asked.approval_id
        assert voided["reason"] == "“anna”, who approved it, is no longer in the operator's settings"
    assert (left >= 0) == (looks >= 4)
