"""The page that hosts with MCP Apps show: in Chromium, in a host page that speaks the extension, over a real server.

`CARD_PICTURES=FOLDER` keeps the screenshots.
"""

import json
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from mcp import Client
from mcp.client.extension import ClientExtension
from mcp.server.apps import APP_MIME_TYPE, EXTENSION_ID
from mcp.types import TextResourceContents

from snapshot_mcp import app
from snapshot_mcp.server.build import TOOLS as ALL_TOOLS
from snapshot_mcp.server.card import TOOLS, URI
from snapshot_mcp.server.toolbox import READ
from tests.guard.test_page_in_browser import CHROMIUM, browser
from tests.hosts.programs import npm
from tests.marks import long
from tests.server.environments import FOLDER
from tests.server.lab import MIB, Lab, back_up, finish

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed")]

PHONE, DESK = {"width": 360, "height": 740}, {"width": 900, "height": 700}
HOSTILE = "<img src=x onerror=fetch('//evil')>\u202e</script><script>parent.x=1</script>"

DONE = {"job_id": "j", "zone": "local", "action": "CreateSnapshots", "status": "successful", "percent": 100}

HOST_PAGE = """<!doctype html><style>body { margin: 0 } iframe { border: 0; width: 100%; height: 2000px }</style><body>
<script>
const frame = document.createElement("iframe");
const send = (message) => frame.contentWindow.postMessage({ jsonrpc: "2.0", ...message }, "*");
window.show = (result) => send({ method: "ui/notifications/tool-result", params: result });
window.dress = (theme) => send({ method: "ui/notifications/host-context-changed", params: { theme } });
window.opened = []; window.sizes = [];
addEventListener("message", async ({ data, source }) => {
  if (source !== frame.contentWindow) return;
  if (data.method === "ui/initialize") send({ id: data.id, result: {
    protocolVersion: "2026-01-26", hostInfo: { name: "host", version: "1" },
    hostCapabilities: {}, hostContext: { theme: THEME } } });
  if (data.method === "ui/notifications/initialized") window.isReady = true;
  if (data.method === "ui/notifications/size-changed") window.sizes.push(data.params);
  if (data.method === "tools/call") send({ id: data.id, result: await callTool(data.params.name, data.params.arguments) });
  if (data.method === "resources/read") send({ id: data.id, result: await readResource(data.params.uri) });
  if (data.method === "ui/open-link") { window.opened.push(data.params.url); send({ id: data.id, result: {} }); }
});
frame.sandbox = "allow-scripts"; frame.srcdoc = HTML; document.body.append(frame);
</script>"""


class Stage:
    """A host page with the card in it."""

    def __init__(self, page: Any, client: Client) -> None:
        self.page, self.client = page, client
        self.called: list[str] = []
        self.requests: list[str] = []

    @property
    def card(self) -> Any:
        return self.page.frames[1]

    async def call(self, name: str, arguments: dict[str, Any]) -> Any:
        self.called.append(name)
        return (await self.client.call_tool(name, arguments)).model_dump(mode="json", by_alias=True, exclude_none=True)

    async def read(self, uri: str) -> Any:
        return (await self.client.read_resource(uri)).model_dump(mode="json", by_alias=True, exclude_none=True)

    async def show(self, name: str, **arguments: Any) -> str:
        """Show a tool's result; return the text of the card."""
        return await self.show_result(await self.call(name, arguments))

    async def show_result(self, result: Any) -> str:
        await self.page.evaluate("(result) => window.show(result)", result)
        await self.card.wait_for_selector("h1")
        return str(await self.card.inner_text("main"))

    async def picture(self, name: str) -> None:
        if folder := os.environ.get("CARD_PICTURES"):
            height = await self.card.evaluate("Math.ceil(document.body.getBoundingClientRect().height)")
            before = self.page.viewport_size
            await self.page.set_viewport_size(before | {"height": min(int(height), 1800)})
            await self.page.screenshot(path=Path(folder) / f"{name}.png")
            await self.page.set_viewport_size(before)


@asynccontextmanager
async def stage(client: Client, theme: str = "light", viewport: dict[str, int] = DESK) -> AsyncIterator[Stage]:
    (content,) = (await client.read_resource(URI)).contents
    assert isinstance(content, TextResourceContents)
    assert content.mime_type == APP_MIME_TYPE
    html = json.dumps(content.text).replace("</", "<\\/")
    async with browser() as chromium:
        page = await chromium.new_page(viewport=viewport)
        made = Stage(page, client)
        problems: list[str] = []
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: made.requests.append(request.url))
        await page.route("**/*", lambda route: route.abort())
        await page.expose_function("callTool", made.call)
        await page.expose_function("readResource", made.read)
        await page.set_content(HOST_PAGE.replace("THEME", json.dumps(theme)).replace("HTML;", f"{html};"))
        await page.wait_for_function("window.isReady")
        yield made
        assert problems == []
        assert [one for one in made.requests if not one.startswith(("about:", "data:"))] == []
        assert await page.evaluate("window.x") is None
        assert set(made.called) <= TOOLS | {"create_snapshots"}


def large(count: int) -> dict[str, Any]:
    """A picture of so many restore points, as `show_chain` answers."""
    nodes = [
        {
            "snapshot_id": f"ss-{at:08}", "parent_id": f"ss-{at - 1:08}" if at % 10 else None, "root_id": f"ss-{at - at % 10:08}",
            "depth": at % 10, "name": f"night {at}", "type": "incremental" if at % 10 else "full", "status": "available",
            "snapshot_time": f"2026-10-{at % 28 + 1:02}T02:00:00Z", "stored_bytes": 1 << (20 + at % 12),
            "is_damaged": at % 50 == 49,
        }
        for at in range(count)
    ]  # fmt: skip
    told = {"zone": "local", "resource_id": "vol-1", "resource_name": "db", "stored_bytes": 1 << 40, "lines": []}
    return {"content": [], "structuredContent": told, "_meta": {"nodes": nodes}}


async def test_the_card_draws_a_chain_and_what_an_act_would_take(lab: Lab) -> None:
    await lab.add_disk("web")
    async with lab.connect() as client:
        for name in ("full", "second", HOSTILE[:60]):
            await finish(client, await client.call_tool("create_snapshots", {"resource_ids": ["web"], "name": name}))
        async with stage(client) as host:
            said = await host.show("show_chain", resource_id="web")
            assert "3 restore points" in said
            await host.picture("chain")
            await host.card.click("li:nth-child(2) button")
            said = await host.card.inner_text("main")
            assert "would take 2 restore points" in said
            assert "would lose all that was written" in said
            assert await host.card.locator(".lost").count() == 2
            await host.picture("chosen")
            assert await host.page.evaluate("window.sizes.length") > 0


@pytest.mark.long
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", ["phone", "desk"])
async def test_every_view_is_accessible_in_both_themes_and_on_a_phone(lab: Lab, theme: str, width: str) -> None:
    npm("axe-core@4", "axe")
    axe = (FOLDER / "npm" / "axe-core@4" / "node_modules" / "axe-core" / "axe.min.js").read_text(encoding="utf-8")
    await lab.add_disk("web")
    await lab.add_disk(HOSTILE, file_name="hostile")
    await lab.add_disk("a very long name " + "x" * 180, file_name="long")
    async with lab.connect() as client:
        first = await back_up(client, "web", "first")
        async with stage(client, theme, PHONE if width == "phone" else DESK) as host:
            views = {
                "coverage": await host.call("list_resources", {}),
                "chain": await host.call("show_chain", {"resource_id": "web"}),
                "one": large(1),
                "thirty": large(30),
                "300": large(300),
                "plan": await host.call("delete_snapshot", {"snapshot_id": first, "plan_only": True}),
                "waits": await host.call("delete_snapshot", {"snapshot_id": first}),
                "done": {"structuredContent": {"outcome": "successful", "jobs": [DONE]}},
            }  # fmt: skip
            await host.card.evaluate(axe)
            for name, result in views.items():
                await host.show_result(result)
                assert await host.card.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
                found = await host.card.evaluate("axe.run(document, { resultTypes: ['violations'] })")
                assert [(one["id"], one["nodes"][0]["html"]) for one in found["violations"]] == [], name
                await host.picture(f"{name}-{theme}-{width}")
            shown = await host.card.evaluate("getComputedStyle(document.body).backgroundColor")
            assert shown == ("rgb(255, 255, 255)" if theme == "light" else "rgb(22, 24, 28)")
            await host.page.evaluate("window.dress('dark')")
            await host.card.wait_for_function("getComputedStyle(document.body).backgroundColor === 'rgb(22, 24, 28)'")


@pytest.mark.long
async def test_coverage_leads_to_a_chain_and_back(lab: Lab) -> None:
    await lab.add_disk("web")
    await lab.add_disk(HOSTILE, file_name="hostile")
    async with lab.connect() as client:
        await back_up(client, "web", "first")
        async with stage(client) as host:
            assert "1 disk without a good restore point" in await host.show("list_resources")
            await host.card.click(".disk:has-text('web')")
            await host.card.wait_for_selector(".tree")
            await host.card.click("text=All disks")
            await host.card.wait_for_selector(".disks")


@pytest.mark.long
@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_a_decision_shows_by_itself_and_nothing_is_approved_here(lab: Lab, mode: str) -> None:
    await lab.add_disk("web")
    await app.build_guard(lab.settings).set_pin("482913")
    async with lab.connect(mode) as client:
        first = await back_up(client, "web", "first")
        async with stage(client) as host:
            asked = await host.call("delete_snapshot", {"snapshot_id": first})
            said = await host.show_result(asked)
            approval = asked["structuredContent"]["approval_id"]
            assert f"approve {approval}" in said
            assert await host.card.locator("code").count() == 1
            await host.card.click("text=Open the approval page")
            await host.page.wait_for_function("window.opened.length === 1")
            assert not re.search("^(Approve|Yes|Delete)$", said, re.MULTILINE)
            await app.build_guard(lab.settings).deny(approval)
            await host.card.wait_for_selector("text=Denied by")


@pytest.mark.long
async def test_a_running_job_is_followed_to_its_end(lab: Lab) -> None:
    await lab.add_disk("web", 256 * MIB)
    async with lab.connect() as client, stage(client) as host:
        made = await host.call("create_snapshots", {"resource_ids": ["web"], "name": "x"})
        job = made["structuredContent"]["job_id"]
        await host.show("wait_for_job", job_ids=[job], timeout_seconds=0)
        await host.picture("progress")
        await host.card.wait_for_selector("h1:has-text('Done')")


class ShowsApps(ClientExtension):
    identifier = EXTENSION_ID

    def settings(self) -> dict[str, Any]:
        return {"mimeTypes": [APP_MIME_TYPE]}


@pytest.mark.parametrize("mode", ["auto", long("legacy")])
async def test_only_hosts_that_show_such_pages_hear_of_it(lab: Lab, mode: str) -> None:
    async with lab.connect(mode) as client:
        assert not any(tool.meta for tool in (await client.list_tools()).tools)
        assert URI not in [str(one.uri) for one in (await client.list_resources()).resources]
    async with lab.connect(mode, extensions=[ShowsApps()]) as client:
        named = {tool.name for tool in (await client.list_tools()).tools if tool.meta == {"ui": {"resourceUri": URI}}}
        assert named == TOOLS
        assert URI in [str(one.uri) for one in (await client.list_resources()).resources]


def test_the_page_calls_only_tools_that_read() -> None:
    page = (Path(app.__file__).parent / "server" / "card.html").read_text(encoding="utf-8")
    called = set(re.findall(r'name: "(\w+)", arguments', page)) | set(re.findall(r'look\("(\w+)"', page))
    reading = {function.__name__ for function, _, hints in ALL_TOOLS if hints is READ}
    assert called == {"wait_for_job", "show_chain"}
    assert called <= reading
    assert "innerHTML" not in page
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in page
