"""The approval page in a real browser: approve, deny, wrong PIN, expired; on a phone's width and with the keyboard alone
(GUARD.md, "Consent")."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from snapshot_mcp.guard import Guard
from snapshot_mcp.guard.page import approval_page
from tests.accessibility import violations
from tests.guard.conftest import Bench, nobody

playwright = pytest.importorskip("playwright.async_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed")]

PIN = "483920"
PHONE = {"width": 360, "height": 740}


@asynccontextmanager
async def browser() -> AsyncIterator[Any]:
    async with playwright.async_playwright() as engine:
        chromium = await engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield chromium
        finally:
            await chromium.close()


async def open_link(page: Any, link: str) -> None:
    """The browser holds the end of an undecided page back, so it is there before it is whole."""
    await page.goto(link, wait_until="commit")
    await page.wait_for_selector("h1")


async def chain(bench: Bench, guard: Guard, count: int, name: str = "nightly") -> tuple[str, str, str]:
    """A pending deletion of all but the full one of `count`: link, approval, snapshot."""
    disk = await bench.add_disk("pg-data")
    ids = [(await bench.back_up(disk, f"{name} {number}")).snapshot_id for number in range(count)]
    outcome = await guard.delete_snapshot(bench.zone, ids[1], nobody())
    return outcome.approval_link, outcome.approval_id, ids[1]


async def test_a_person_decides_in_a_browser(bench: Bench, tmp_path: Path) -> None:
    guard = bench.guard()
    await guard.set_pin(PIN)
    async with approval_page(guard), browser() as chromium:
        link, approval_id, snapshot_id = await chain(bench, guard, 9)
        page = await chromium.new_page(viewport=PHONE)
        problems: list[str] = []
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        await open_link(page, link)
        await page.screenshot(path=tmp_path / "phone.png", full_page=True)
        assert await page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        assert await page.evaluate("getComputedStyle(document.querySelector('main')).maxWidth") == "672px"
        assert "Delete 8 restore points" in await page.inner_text("h1")
        assert await page.locator(".chain li").count() == 8

        await page.fill("#name", "pg-data")
        await page.fill("#pin", "000000")
        await page.click("button[value=approve]")
        assert "That is not the PIN" in await page.inner_text("[role=alert]")
        assert (await guard.get_approval(approval_id)).state == "pending"
        problems.clear()

        await page.keyboard.press("Tab")
        for _ in range(12):
            focused = await page.evaluate("document.activeElement.id || document.activeElement.value || ''")
            if focused == "name":
                await page.keyboard.type("pg-data")
            if focused == "pin":
                await page.keyboard.type(PIN)
            if focused == "approve":
                break
            await page.keyboard.press("Tab")
        await page.keyboard.press("Enter")
        await page.wait_for_selector(".granted")
        assert (await guard.get_approval(approval_id)).door == "page"
        await page.set_viewport_size({"width": 1200, "height": 800})
        await page.screenshot(path=tmp_path / "approved.png", full_page=True)
        assert (await guard.delete_snapshot(bench.zone, snapshot_id, nobody())).status == "started"
        assert problems == []


@pytest.mark.long
async def test_denied_expired_and_without_a_pin(bench: Bench, tmp_path: Path) -> None:
    guard = bench.guard()
    async with approval_page(guard), browser() as chromium:
        link, approval_id, snapshot_id = await chain(bench, guard, 2, "<b>bold</b> & “quoted”")
        page = await chromium.new_page(viewport=PHONE, color_scheme="dark")
        await open_link(page, link)
        await page.screenshot(path=tmp_path / "no-pin.png", full_page=True)
        assert await page.locator("button").count() == 1
        assert "No PIN is set" in await page.inner_text("main")
        assert "<b>bold</b>" in await page.inner_text(".chain")
        await page.click("button[value=deny]")
        await page.wait_for_selector(".denied")
        assert (await guard.get_approval(approval_id)).state == "denied"

        bench.clock.turn(11 * 60)
        again = await guard.delete_snapshot(bench.zone, snapshot_id, nobody())
        await open_link(page, again.approval_link)
        bench.clock.turn(25 * 3600)
        await page.click("button[value=deny]")
        assert "expired" in await page.inner_text("main")
        await page.goto(again.approval_link)
        assert await page.locator("button").count() == 0


async def test_a_page_shows_a_decision_of_elsewhere_and_keeps_what_is_being_typed_until_then(
    bench: Bench, tmp_path: Path
) -> None:
    """Without a script; a roll-back is drawn, with hostile names, on a phone's width."""
    guard = bench.guard()
    await guard.set_pin(PIN, phrase="blue bicycle")
    disk = await bench.add_disk('"><svg onload=alert(1)>')
    first = await bench.back_up(disk, "</svg><script>alert(1)</script>")
    await bench.back_up(disk, "later")
    async with approval_page(guard), browser() as chromium:
        outcome = await guard.rollback_to_snapshots(bench.zone, [first.snapshot_id], nobody())
        page = await chromium.new_page(viewport=PHONE)
        dialogs: list[str] = []
        page.on("dialog", lambda dialog: dialogs.append(dialog.message))
        problems: list[str] = []
        page.on("console", lambda message: problems.append(message.text))
        await open_link(page, outcome.approval_link)
        assert await page.locator("svg").count() == 1
        assert await page.locator("svg .lost").count() == 1
        assert await page.locator("svg script, figure script").count() == 0
        assert await page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        assert "blue bicycle" in await page.inner_text(".phrase")
        await page.screenshot(path=tmp_path / "roll-back.png", full_page=True)
        await page.fill("#pin", "half a PI")
        await bench.back_up(disk, "a change of the zone")
        await guard.set_pin(PIN, PIN, phrase="blue bicycle")
        assert await page.input_value("#pin") == "half a PI"
        await page.click("button[value=approve]")
        await page.wait_for_selector("text=That is not the PIN")
        await page.fill("#pin", "half a PI")
        problems.clear()  # the status of the answer
        await guard.approve(outcome.approval_id, PIN)
        await page.wait_for_selector(".granted")
        assert (await guard.rollback_to_snapshots(bench.zone, [first.snapshot_id], nobody())).status == "started"
        await page.wait_for_selector(".spent")
        await page.click("text=All that waits for you")
        await page.wait_for_selector("text=Nothing is waiting for you")
        assert (dialogs, problems) == ([], [])


@pytest.mark.long
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_every_state_of_the_page_is_accessible(bench: Bench, scheme: str) -> None:
    """A deletion, a roll-back, a wrong PIN, the list, and what was decided."""
    guard = bench.guard()
    await guard.set_pin(PIN, phrase="blue bicycle")
    async with approval_page(guard), browser() as chromium:
        link, _, _ = await chain(bench, guard, 3)
        disk = await bench.add_disk("web")
        first = await bench.back_up(disk, "first")
        rollback = await guard.rollback_to_snapshots(bench.zone, [first.snapshot_id], nobody())
        page = await chromium.new_page(viewport=PHONE, color_scheme=scheme)
        for shown in (link, rollback.approval_link):
            await open_link(page, shown)
            assert await violations(page) == []
        await page.fill("#pin", "000000")
        await page.click("button[value=approve]")
        await page.wait_for_selector("[role=alert]")
        assert await violations(page) == []
        await open_link(page, link)
        await page.click("button[value=deny]")
        await page.wait_for_selector(".denied")
        assert await violations(page) == []
        await page.click("text=All that waits for you")
        await page.wait_for_selector("text=Roll")
        assert await violations(page) == []
