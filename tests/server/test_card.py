"""The page that hosts with MCP Apps show: in Chromium, in a host page that speaks the extension, over a real server.

`CARD_PICTURES=FOLDER` keeps the screenshots.
"""

import json
import os
import re
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client
from mcp.client.extension import ClientExtension
from mcp.server.apps import APP_MIME_TYPE, EXTENSION_ID
from mcp.types import TextResourceContents

from snapshot_mcp import app
from snapshot_mcp.server import read_tools
from snapshot_mcp.server.build import TOOLS as ALL_TOOLS
from snapshot_mcp.server.card import META, TOOLS, URI, page
from snapshot_mcp.server.toolbox import READ
from tests.accessibility import violations
from tests.guard.test_page_in_browser import CHROMIUM, browser
from tests.hosts.programs import folder_of, npm
from tests.large_zone import fill_zone, resource_id
from tests.marks import long
from tests.patience import PATIENCE_SECONDS
from tests.server.lab import MIB, Lab, back_up, data_of, finish
from tests.server.test_mixtures import disk_in_use

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed")]

PHONE, DESK = {"width": 360, "height": 740}, {"width": 900, "height": 700}
ABLE = ("serverTools", "serverResources", "openLinks")
HOSTILE = "<img src=x onerror=fetch('//evil')>\u202e</script><script>parent.x=1</script>"

HOST_PAGE = """<!doctype html><style>body { margin: 0 } iframe { border: 0; width: 100%; height: 2000px }</style><body>
<script>window.told = TOLD;</script><script type="module">SCRIPT</script>"""

PLAIN_HOST = """
const { able, theme, html } = window.told;
const frame = document.createElement("iframe");
const send = (message) => frame.contentWindow.postMessage({ jsonrpc: "2.0", ...message }, "*");
window.show = (result) => send({ method: "ui/notifications/tool-result", params: result });
window.dress = (theme) => send({ method: "ui/notifications/host-context-changed", params: { theme } });
window.opened = []; window.sizes = [];
addEventListener("message", async ({ data, source }) => {
  if (source !== frame.contentWindow) return;
  if (data.method === "ui/initialize") send({ id: data.id, result: {
    protocolVersion: "2026-01-26", hostInfo: { name: "host", version: "1" },
    hostCapabilities: able, hostContext: { theme } } });
  if (data.method === "ui/notifications/initialized") window.isReady = true;
  if (data.method === "ui/notifications/size-changed") window.sizes.push(data.params);
  if (data.method === "tools/call") send({ id: data.id, result: await callTool(data.params.name, data.params.arguments) });
  if (data.method === "resources/read") send({ id: data.id, result: await readResource(data.params.uri) });
  if (data.method === "ui/open-link") { window.opened.push(data.params.url); send({ id: data.id, result: {} }); }
});
frame.sandbox = "allow-scripts"; frame.srcdoc = html; document.body.append(frame);
"""


def bridged_host() -> str:
    """A host over the extension's own bridge, bundled once a machine."""
    package = "esbuild@0.28"
    environ = npm(package, "esbuild", "@modelcontextprotocol/ext-apps@2")
    source = Path(__file__).with_name("card_host.js")
    copied = folder_of(package) / f"{os.getpid()}.js"
    copied.write_bytes(source.read_bytes())
    bundle = ["esbuild", copied, "--bundle", "--format=esm", "--log-level=error"]
    done = subprocess.run(bundle, env=environ, capture_output=True, text=True, timeout=60, check=True)
    copied.unlink()
    return done.stdout


class Stage:
    """A host page with the card in it."""

    def __init__(self, page: Any, client: Client) -> None:
        self.page, self.client = page, client
        self.called: list[str] = []
        """Tools that the card has called."""
        self.requests: list[str] = []

    @property
    def card(self) -> Any:
        return self.page.frames[1]

    async def call(self, name: str, arguments: dict[str, Any]) -> Any:
        return (await self.client.call_tool(name, arguments)).model_dump(mode="json", by_alias=True, exclude_none=True)

    async def call_for_card(self, name: str, arguments: dict[str, Any]) -> Any:
        self.called.append(name)
        return await self.call(name, arguments)

    async def read(self, uri: str) -> Any:
        return (await self.client.read_resource(uri)).model_dump(mode="json", by_alias=True, exclude_none=True)

    async def show(self, name: str, **arguments: Any) -> str:
        """Show a tool's result; return the text of the card."""
        return await self.show_result(await self.call(name, arguments))

    async def show_result(self, result: Any) -> str:
        before = await self.card.evaluate("view")
        await self.page.evaluate("(result) => { window.show(result) }", result)
        await self.until("view > BEFORE".replace("BEFORE", str(before)))
        return str(await self.card.inner_text("main"))

    async def until(self, expression: str) -> None:
        """Wait for it in the card, whose policy lets no text be run there as a script, so it is asked from outside."""
        with anyio.fail_after(PATIENCE_SECONDS):
            while not await self.card.evaluate(expression):
                await anyio.sleep(0.05)

    async def picture(self, name: str) -> None:
        if folder := os.environ.get("CARD_PICTURES"):
            height = await self.card.evaluate("Math.ceil(document.body.getBoundingClientRect().height)")
            before = self.page.viewport_size
            await self.page.set_viewport_size(before | {"height": min(int(height), 1800)})
            await self.page.screenshot(path=Path(folder) / f"{name}.png")
            await self.page.set_viewport_size(before)


@asynccontextmanager
async def stage(
    client: Client,
    theme: str = "light",
    viewport: dict[str, int] = DESK,
    able: tuple[str, ...] = ABLE,
    script: str = PLAIN_HOST,
) -> AsyncIterator[Stage]:
    """Show the card in Chromium; the host lets it do what it is `able` to."""
    (content,) = (await client.read_resource(URI)).contents
    assert isinstance(content, TextResourceContents)
    assert content.mime_type == APP_MIME_TYPE
    async with browser() as chromium:
        page = await chromium.new_page(viewport=viewport)
        made = Stage(page, client)
        problems: list[str] = []
        page.on("console", lambda message: message.type in {"error", "warning"} and problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: made.requests.append(request.url))
        await page.route("**/*", lambda route: route.abort())
        await page.expose_function("callTool", made.call_for_card)
        await page.expose_function("readResource", made.read)
        told = json.dumps({"able": {name: {} for name in able}, "theme": theme, "html": content.text})
        scripts = {"TOLD": told, "SCRIPT": script}
        await page.set_content(re.sub("TOLD|SCRIPT", lambda found: scripts[found[0]].replace("</", "<\\/"), HOST_PAGE))
        await page.wait_for_function("window.isReady")
        yield made
        assert problems == []
        assert [one for one in made.requests if not one.startswith(("about:", "data:"))] == []
        assert await page.evaluate("window.x") is None
        assert set(made.called) <= {"wait_for_job", "show_chain"}


async def damage(lab: Lab, client: Client, snapshot_id: str) -> None:
    """Break a snapshot's file, and have it found out."""
    (path,) = [one for one in (lab.home / "zones" / "local").rglob(f"{snapshot_id}*") if one.is_file()]
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"broken")
    await finish(client, await client.call_tool("verify_snapshots", {"snapshot_ids": [snapshot_id]}))


async def name_and_back_up(client: Client, name: str) -> str:
    """Back up `web` under a name that no list repeats as it is; return the snapshot's id."""
    result = await client.call_tool("create_snapshots", {"resource_ids": ["web"], "name": name, "wait_seconds": 30})
    return str(data_of(result)["snapshot_ids"][0])


async def worths(host: Stage) -> list[str]:
    """What the card says of each restore point, in the order in which they stand."""
    return [str(one) for one in await host.card.locator(".row .worth small").all_inner_texts()]


async def test_the_card_draws_a_chain_and_what_an_act_would_take(lab: Lab) -> None:
    await lab.add_disk("web")
    async with lab.connect() as client:
        for name in ("full", "second", HOSTILE):
            await name_and_back_up(client, name)
        async with stage(client) as host:
            said = await host.show("show_chain", resource_id="web")
            assert "3 restore points" in said
            assert await worths(host) == ["good"] * 3
            await host.picture("chain")
            await host.card.click("li:nth-child(2) button")
            said = await host.card.inner_text("main")
            assert "would take 2 restore points" in said
            assert "1 would be left" in said
            assert "would lose what was written" in said
            assert await host.card.locator(".lost").count() == 2
            await host.picture("chosen")
            assert await host.page.evaluate("window.sizes.length") > 0


@pytest.mark.long
async def test_the_card_calls_good_only_what_can_be_restored(lab: Lab) -> None:
    """Damaged, on a damaged one, and a new chain beside it."""
    await lab.add_disk("web")
    async with lab.connect() as client:
        first = await back_up(client, "web", "first")
        second = await back_up(client, "web", "second")
        await back_up(client, "web", "third")
        await damage(lab, client, second)
        whole = await back_up(client, "web", "whole", full=True)
        await finish(client, await client.call_tool("verify_snapshots", {"snapshot_ids": [first]}))
        async with stage(client) as host:
            await host.show("show_chain", resource_id="web")
            assert await worths(host) == ["good", "verified just now", "damaged", "builds on what cannot be restored"]
            assert "2 cannot be restored" in await host.card.inner_text("main")
            await host.picture("damaged")
            said = await host.show("list_resources")
            assert "2 cannot be restored" in said
            await lab.delete(whole)
            await lab.delete(first)
            assert "no good restore point" in await host.show("list_resources")
            assert "0 restore points" in await host.show("show_chain", resource_id="web")


async def test_a_mixture_is_not_called_good(lab: Lab) -> None:
    async with disk_in_use(lab, "auto") as client, stage(client, able=()) as host:
        await back_up(client, "web", "mixed")
        await host.show("show_chain", resource_id="web")
        assert await worths(host) == ["fuzzy: may be a mixture"]
        said = await host.show("list_resources")
        assert "1 disk without a good restore point" in said
        assert "1 fuzzy" in said


@pytest.mark.parametrize("able", [(), ABLE])
async def test_a_cut_chain_does_not_look_whole(
    lab: Lab, able: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_tools, "MAX_CHAIN_NODES", 2)
    await lab.add_disk("web")
    async with lab.connect() as client:
        for number in range(3):
            await back_up(client, "web", f"night {number}")
        async with stage(client, able=able) as host:
            said = await host.show("show_chain", resource_id="web")
            if able:
                await host.card.wait_for_selector("li:nth-child(3)")
                assert await worths(host) == ["good"] * 3
            else:
                assert "The newest 2 of 3 restore points" in said
                assert await worths(host) == ["what it builds on is not shown"] * 2


async def check_view(host: Stage, name: str) -> None:
    """It fits the width, and axe-core finds nothing."""
    assert await host.card.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
    assert await violations(host.card) == [], name


@pytest.mark.long
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", ["phone", "desk"])
async def test_every_view_is_accessible_in_both_themes_and_on_a_phone(lab: Lab, theme: str, width: str) -> None:
    await lab.add_disk("web")
    await lab.add_disk(HOSTILE, file_name="hostile")
    await lab.add_disk("a very long name " + "x" * 180, file_name="long")
    async with lab.connect() as client:
        first = await back_up(client, "web", "first")
        second = await name_and_back_up(client, HOSTILE)
        await damage(lab, client, second)
        made = await client.call_tool("create_snapshots", {"resource_ids": ["web"], "name": "whole", "full": True})
        job = made.structured_content["job_id"] if made.structured_content else ""
        async with stage(client, theme, PHONE if width == "phone" else DESK) as host:
            views = {
                "done": ("wait_for_job", {"job_ids": [job]}),
                "history": ("list_jobs", {"finished": True}),
                "coverage": ("list_resources", {}),
                "chain": ("show_chain", {"resource_id": "web"}),
                "plan": ("delete_snapshot", {"snapshot_id": first, "plan_only": True}),
                "roll-back": ("rollback_to_snapshots", {"snapshot_ids": [first], "plan_only": True}),
                "waits": ("delete_snapshot", {"snapshot_id": first}),
                "error": ("show_chain", {"resource_id": HOSTILE + "?"}),
            }
            for name, (tool, arguments) in views.items():
                await host.show(tool, **arguments)
                await check_view(host, name)
                await host.picture(f"{name}-{theme}-{width}")
            shown = await host.card.evaluate("getComputedStyle(document.body).backgroundColor")
            assert shown == ("rgb(255, 255, 255)" if theme == "light" else "rgb(22, 24, 28)")
            await host.page.evaluate("window.dress('dark')")
            await host.until("getComputedStyle(document.body).backgroundColor === 'rgb(22, 24, 28)'")


@pytest.mark.long
@pytest.mark.parametrize("count", [1, 30, 300])
async def test_any_number_of_restore_points_is_shown_whole(lab: Lab, count: int) -> None:
    await lab.add_disk("web")
    fill_zone(lab.home / "zones" / "local", count, 1)
    async with lab.connect() as client:
        listed = await client.call_tool("list_snapshots", {"resource_id": resource_id(0), "limit": 1})
        existing = data_of(listed)["total_count"]
        for theme, viewport in (("light", DESK), ("dark", PHONE)):
            async with stage(client, theme, viewport) as host:
                await host.show("show_chain", resource_id=resource_id(0))
                await host.until(f"document.querySelectorAll('.row').length === {existing}")
                assert "newest" not in await host.card.inner_text("main")
                await check_view(host, str(count))
                await host.picture(f"{count}-{theme}")
                await host.card.click("details[open] li:first-child button")
                taken = await host.card.locator(".lost").count()
                assert f"would take {taken} restore point" in await host.card.inner_text("main")
                await check_view(host, f"{count}, chosen")
                await host.picture(f"{count}-{theme}-chosen")


@pytest.mark.long
async def test_coverage_leads_to_a_chain_and_back(lab: Lab) -> None:
    await lab.add_disk("web")
    await lab.add_disk(HOSTILE, file_name="hostile")
    async with lab.connect() as client:
        await back_up(client, "web", "first")
        async with stage(client, script=bridged_host()) as host:
            assert "1 disk without a good restore point" in await host.show("list_resources")
            await host.card.click(".disk:has-text('web')")
            await host.card.wait_for_selector(".row")
            await host.card.click("text=All disks")
            await host.card.wait_for_selector(".disks")


@pytest.mark.long
@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_a_decision_shows_by_itself_and_nothing_is_approved_here(lab: Lab, mode: str) -> None:
    await lab.add_disk("web")
    await app.build_guard(lab.settings).set_pin("482913")
    async with lab.connect(mode) as client:
        first = await back_up(client, "web", "first")
        async with stage(client, script=bridged_host()) as host:
            asked = await host.call("delete_snapshot", {"snapshot_id": first})
            said = await host.show_result(asked)
            approval = asked["structuredContent"]["approval_id"]
            assert f"approve {approval}" in said
            assert await host.card.locator("code").count() == 1
            await host.card.click("text=Open the approval page")
            await host.page.wait_for_function("window.opened.length === 1")
            assert not re.search("^(Approve|Yes|Delete)$", said, re.MULTILINE)
            await app.build_guard(lab.settings).deny(approval)
            await host.card.wait_for_selector("text=denied by")


@pytest.mark.long
async def test_an_approved_act_is_followed_to_its_end(lab: Lab) -> None:
    await lab.add_disk("web")
    guard = app.build_guard(lab.settings)
    await guard.set_pin("482913")
    async with lab.connect() as client:
        first = await back_up(client, "web", "first")
        async with stage(client, script=bridged_host()) as host:
            asked = await host.call("delete_snapshot", {"snapshot_id": first})
            await host.show_result(asked)
            await guard.approve(asked["structuredContent"]["approval_id"], pin="482913")
            await host.card.wait_for_selector("text=approved by")
            started = await host.call("delete_snapshot", {"snapshot_id": first})
            assert started["structuredContent"]["status"] == "started"
            await host.card.wait_for_selector("h1:has-text('Done')")
            assert host.called.count("wait_for_job") >= 1
        async with stage(client, script=bridged_host()) as host:
            await host.show_result(started)
            await host.card.wait_for_selector("h1:has-text('Done')")


@pytest.mark.long
async def test_a_running_job_is_followed_to_its_end(lab: Lab) -> None:
    await lab.add_disk("web", 256 * MIB)
    async with lab.connect() as client, stage(client, script=bridged_host()) as host:
        made = await host.call("create_snapshots", {"resource_ids": ["web"], "name": "x"})
        await host.show("list_jobs")
        await host.picture("progress")
        await host.card.wait_for_selector("h1:has-text('Done')")
        assert made["structuredContent"]["job_id"] in await host.card.inner_text("main")


WRONG = {
    "a plan that is text": {"status": "plan", "message": "m", "plan": "text"},
    "no node": {"lines": [], "zone": "z"},
    "no disk": {"resources": [None], "zone": "z"},
    "no job": {"jobs": [None]},
    "nothing": None,
}


@pytest.mark.parametrize("kind", ["a plan that is text", *map(long, list(WRONG)[1:])])
async def test_an_answer_of_another_kind_replaces_the_earlier_one(lab: Lab, kind: str) -> None:
    await lab.add_disk("web")
    async with lab.connect() as client:
        first = await back_up(client, "web", "first")
        async with stage(client) as host:
            assert first in await host.show("delete_snapshot", snapshot_id=first, plan_only=True)
            said = await host.show_result({"content": [], "structuredContent": WRONG[kind], "_meta": {"nodes": [None]}})
            assert first not in said


class ShowsApps(ClientExtension):
    identifier = EXTENSION_ID

    def settings(self) -> dict[str, Any]:
        return {"mimeTypes": [APP_MIME_TYPE]}


@pytest.mark.parametrize("mode", ["auto", long("legacy")])
async def test_every_host_is_told_of_it_alike_and_only_those_that_show_pages_list_it(lab: Lab, mode: str) -> None:
    """The list of tools may be cached for all, so it is the same for all."""
    async with lab.connect(mode) as client:
        plain = (await client.list_tools()).tools
        assert URI not in [str(one.uri) for one in (await client.list_resources()).resources]
    async with lab.connect(mode, extensions=[ShowsApps()]) as client:
        assert (await client.list_tools()).tools == plain
        assert {tool.name for tool in plain if tool.meta == META} == TOOLS
        assert URI in [str(one.uri) for one in (await client.list_resources()).resources]


def test_the_page_calls_only_what_reads_and_nothing_outside() -> None:
    called = set(re.findall(r'name: "(\w+)", arguments', page())) | set(re.findall(r'look\("(\w+)"', page()))
    reading = {function.__name__ for function, _, hints in ALL_TOOLS if hints is READ}
    assert called == {"wait_for_job", "show_chain"}
    assert called <= reading
    assert "unsafe" not in page()
    assert "innerHTML" not in page()
    assert "http://" not in page().replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in page()
