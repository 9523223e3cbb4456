"""The approval page: a person with the PIN approves, everybody else is shown out."""

import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from html import unescape
from pathlib import Path

import anyio
import httpx
import pytest

from snapshot_mcp.contract.models import SnapshotUpdate
from snapshot_mcp.contract.states import ResourceType
from snapshot_mcp.guard import Guard, Policy
from snapshot_mcp.guard.page import approval_page
from tests.guard.conftest import Bench, Person, nobody, resize
from tests.patience import PATIENCE_SECONDS

pytestmark = pytest.mark.anyio

PIN = "483920"


@asynccontextmanager
async def served(guard: Guard) -> AsyncIterator[httpx.AsyncClient]:
    async with approval_page(guard), httpx.AsyncClient(timeout=PATIENCE_SECONDS) as browser:
        yield browser


async def waiting(bench: Bench, guard: Guard, *, grave: bool = False) -> tuple[str, str, str]:
    """A pending deletion: its link, its approval's id and its snapshot's."""
    disk = await bench.add_disk("pg-data")
    full = await bench.back_up(disk, "full")
    last = await bench.back_up(disk, "monday")
    target = full if grave else last
    outcome = await guard.delete_snapshot(bench.zone, target.snapshot_id, nobody())
    assert outcome.approval_link in outcome.message
    return outcome.approval_link, outcome.approval_id, target.snapshot_id


def fields_of(page: httpx.Response) -> dict[str, str]:
    return {
        name: unescape(value) for name, value in re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', page.text)
    }


def origin_of(link: str) -> dict[str, str]:
    return {"Origin": "/".join(link.split("/")[:3])}


async def test_a_person_with_the_pin_approves_and_the_call_goes_through(bench: Bench) -> None:
    guard = bench.guard(Policy(consent="human"))
    await guard.set_pin(PIN)
    async with served(guard) as browser:
        link, approval_id, snapshot_id = await waiting(bench, guard)
        page = await browser.get(link)
        assert page.status_code == 200
        assert "“monday”" in page.text
        form = fields_of(page) | {"decision": "approve", "pin": PIN}
        done = await browser.post(link, data=form, headers=origin_of(link), follow_redirects=True)
        assert ">approved<" in done.text
        assert (await guard.get_approval(approval_id)).door == "page"
        outcome = await guard.delete_snapshot(bench.zone, snapshot_id, nobody())
        assert outcome.status == "started"
        used = (await browser.get(link)).text
        assert ">used<" in used
        assert f"It was started as job {outcome.job_id}: end not known yet." in used


async def test_a_person_denies_without_a_pin(bench: Bench) -> None:
    guard = bench.guard()
    async with served(guard) as browser:
        link, _, snapshot_id = await waiting(bench, guard)
        page = await browser.get(link)
        assert 'type="password"' not in page.text
        form = fields_of(page) | {"decision": "deny"}
        assert (await browser.post(link, data=form, headers=origin_of(link))).status_code == 303
        assert (await guard.delete_snapshot(bench.zone, snapshot_id, nobody())).status == "declined"


async def test_an_approval_can_be_taken_back_until_it_is_used(bench: Bench) -> None:
    guard = bench.guard()
    await guard.set_pin(PIN)
    async with served(guard) as browser:
        link, approval_id, snapshot_id = await waiting(bench, guard)
        await guard.approve(approval_id, PIN)
        form = fields_of(await browser.get(link)) | {"decision": "deny"}
        await browser.post(link, data=form, headers=origin_of(link))
        assert (await guard.delete_snapshot(bench.zone, snapshot_id, nobody())).status == "declined"


@pytest.mark.long
async def test_what_must_not_approve_does_not(bench: Bench) -> None:
    """Forged Host, Origin and token, a guessed PIN, wrong shapes; each leaves it pending."""
    guard = bench.guard()
    await guard.set_pin(PIN)
    async with served(guard) as browser:
        link, approval_id, _ = await waiting(bench, guard)
        other = await guard.rollback_to_snapshots(bench.zone, [(await bench.snapshots())[0].snapshot_id], nobody())
        home = origin_of(link)
        page = await browser.get(link)
        right = fields_of(page) | {"decision": "approve", "pin": PIN}
        for_other = fields_of(await browser.get(other.approval_link))
        attempts: list[tuple[str, dict[str, str], dict[str, str], int]] = [
            ("host of another name", right, home | {"Host": "evil.example"}, 421),
            ("host of another port", right, home | {"Host": "127.0.0.1:1"}, 403),
            ("host by its name", right, home | {"Host": link.split("/")[2].replace("127.0.0.1", "localhost")}, 403),
            ("no origin", right, {}, 403),
            ("origin null", right, {"Origin": "null"}, 403),
            ("another origin", right, {"Origin": "http://evil.example"}, 403),
            ("another port's origin", right, {"Origin": "http://127.0.0.1:1"}, 403),
            ("a cross-site fetch", right, home | {"Sec-Fetch-Site": "cross-site"}, 403),
            ("no token", right | {"token": ""}, home, 403),
            ("a forged token", right | {"token": "0" * 64}, home, 403),
            ("a token that is no text", right | {"token": "\u20ac"}, home, 403),
            ("another approval's token", right | {"token": for_other["token"]}, home, 403),
            ("another approval's page", right | for_other, home, 403),
            ("another plan's digest", right | {"digest": "0" * 64}, home, 403),
            ("no decision", right | {"decision": ""}, home, 400),
            ("both decisions", right | {"decision": "approve deny"}, home, 400),
            ("no PIN", right | {"pin": ""}, home, 403),
            ("a guessed PIN", right | {"pin": "000000"}, home, 403),
            ("a PIN with a blank", right | {"pin": f"{PIN} "}, home, 403),
            ("too long", right | {"pin": "x" * 5000}, home, 413),
        ]
        for name, form, headers, status in attempts:
            response = await browser.post(link, data=form, headers=headers)
            assert response.status_code == status, name
            assert (await guard.get_approval(approval_id)).state == "pending", name
        as_json = await browser.post(link, json=right, headers=home)
        assert as_json.status_code == 400
        as_query = await browser.post(link, params=right, headers=home)
        assert as_query.status_code == 400
        assert (await browser.get(link, params=right)).status_code == 200
        assert (await browser.get(link, headers={"Host": "evil.example"})).status_code == 421
        assert (await browser.put(link, data=right, headers=home)).status_code == 405
        assert (await guard.get_approval(approval_id)).state == "pending"
        assert bench.destroyed == []


@pytest.mark.long
async def test_guessing_locks_the_link_and_a_token_of_before_the_restart_is_dead(bench: Bench) -> None:
    guard = bench.guard()
    await guard.set_pin(PIN)
    async with served(guard) as browser:
        link, approval_id, _ = await waiting(bench, guard)
        form = fields_of(await browser.get(link)) | {"decision": "approve"}
        codes = [
            (await browser.post(link, data=form | {"pin": f"00000{number}"}, headers=origin_of(link))).status_code
            for number in range(7)
        ]
        assert codes == [403] * 5 + [429] * 2
        locked = await browser.post(link, data=form | {"pin": PIN}, headers=origin_of(link))
        assert (locked.status_code, "locked" in locked.text) == (429, True)
    bench.clock.turn(16 * 60)
    async with served(guard) as browser:
        link = (await guard.link(approval_id)).url
        stale = await browser.post(link, data=form | {"pin": PIN}, headers=origin_of(link))
        assert (stale.status_code, "out of date" in stale.text) == (403, True)
        assert (await guard.get_approval(approval_id)).state == "pending"


async def test_the_last_good_copy_takes_the_disks_name_here_too(bench: Bench) -> None:
    guard = bench.guard()
    await guard.set_pin(PIN)
    async with served(guard) as browser:
        link, approval_id, _ = await waiting(bench, guard, grave=True)
        form = fields_of(await browser.get(link)) | {"decision": "approve", "pin": PIN}
        for name in ({}, {"name": ""}, {"name": "delete"}):
            assert (await browser.post(link, data=form | name, headers=origin_of(link))).status_code == 409
        assert (await guard.get_approval(approval_id)).state == "pending"
        done = await browser.post(link, data=form | {"name": "pg-data"}, headers=origin_of(link))
        assert done.status_code == 303
        assert (await guard.get_approval(approval_id)).state == "granted"


async def test_a_plan_that_changed_after_the_page_was_opened_is_shown_again(bench: Bench) -> None:
    guard = bench.guard()
    await guard.set_pin(PIN)
    async with served(guard) as browser:
        link, approval_id, snapshot_id = await waiting(bench, guard)
        form = fields_of(await browser.get(link)) | {"decision": "approve", "pin": PIN}
        await bench.back_up(bench.disks[0], "on monday")
        await guard.delete_snapshot(bench.zone, snapshot_id, nobody())
        response = await browser.post(link, data=form, headers=origin_of(link))
        assert response.status_code == 409
        assert "has changed" in response.text
        assert "on monday" in response.text
        assert (await guard.get_approval(approval_id)).state == "pending"


async def test_what_is_grave_is_set_off_from_the_rest(bench: Bench) -> None:
    """The marks follow the plan's warnings, whatever the sentences are."""
    disk = await bench.add_disk("web", ResourceType.INSTANCE)
    full = await bench.back_up(disk, "full")
    resize(Path(disk.path or ""), 2)
    Path(disk.path or "").with_suffix(".second").hardlink_to(disk.path or "")
    bench.provider.running.add(disk.id)
    guard = bench.guard()
    async with served(guard) as browser:
        deletion = await guard.delete_snapshot(bench.zone, full.snapshot_id, nobody())
        assert warnings_of((await browser.get(deletion.approval_link)).text) == [
            "This deletes the last good restore point of this disk."
        ]
        roll_back = await guard.rollback_to_snapshots(bench.zone, [full.snapshot_id], nobody(), safety_snapshot=False)
        marked = warnings_of((await browser.get(roll_back.approval_link)).text)
    starts = ("The running machine", "Its size changes", "Its file has 2 names", "NO SAFETY SNAPSHOT")
    assert [line.startswith(start) for line, start in zip(marked, starts, strict=True)] == [True] * 4
    assert set(marked) < set(roll_back.plan)


def warnings_of(page: str) -> list[str]:
    return [unescape(line) for line in re.findall(r'<li class="warn">(.*?)</li>', page)]


async def test_without_the_secret_of_a_link_nothing_is_there(bench: Bench) -> None:
    """Neither the approval nor the list, no decision, and no try of the PIN."""
    guard = bench.guard()
    await guard.set_pin(PIN)
    async with served(guard) as browser:
        link, approval_id, _ = await waiting(bench, guard)
        other = await guard.rollback_to_snapshots(bench.zone, [(await bench.snapshots())[0].snapshot_id], nobody())
        form = fields_of(await browser.get(link)) | {"decision": "approve", "pin": "000000"}
        base, key = link.rsplit("/", 1)
        others_key = other.approval_link.rsplit("/", 1)[1]
        before = len(list(guard.audit.records()))
        said = set()
        for wrong in (
            base,
            f"{base}/",
            f"{base}/{key[:-1]}",
            f"{base}/{key.upper()}",
            f"{base}/{others_key}",
            f"{base}/%e2",
        ):
            for url in (wrong, f"{wrong}/all"):
                said.add((await browser.get(url)).text)
                for decision in ("approve", "deny"):
                    answer = await browser.post(url, data=form | {"decision": decision}, headers=origin_of(link))
                    assert answer.status_code in {404, 405}
                    said.add(answer.text)
        assert len(said) == 1
        assert len(list(guard.audit.records())) == before
        assert (await guard.get_approval(approval_id)).state == "pending"


async def test_the_list_tells_of_the_same_principals_requests_alone(bench: Bench) -> None:
    guard = bench.guard()
    async with served(guard) as browser:
        link, approval_id, snapshot_id = await waiting(bench, guard)
        other = await guard.delete_snapshot(bench.zone, snapshot_id, Person(can_ask=False, principal="agent"))
        for url, own, foreign in (
            (link, approval_id, other.approval_id),
            (other.approval_link, other.approval_id, approval_id),
        ):
            assert f'href="{url.removeprefix(origin_of(link)["Origin"])}/all"' in (await browser.get(url)).text
            listed = (await browser.get(f"{url}/all")).text
            assert (own in listed, foreign in listed) == (True, False)


async def test_hostile_names_are_text_on_the_page(bench: Bench) -> None:
    guard = bench.guard()
    name = '<script>alert(1)</script>"><form action=http://evil.example><img src=x onerror=alert(1)>'
    async with served(guard) as browser:
        link, _, snapshot_id = await waiting(bench, guard)
        await bench.provider.update_snapshot(snapshot_id, SnapshotUpdate(snapshot_name=name))
        await guard.delete_snapshot(bench.zone, snapshot_id, nobody())
        page = await browser.get(link)
        assert "&lt;script&gt;" in page.text
        drawn = await guard.rollback_to_snapshots(bench.zone, [snapshot_id], nobody())
        for text in (page.text, (await browser.get(drawn.approval_link)).text):
            assert "&lt;script&gt;" in text
            for raw in ("<script", "<img", "<form action=http"):
                assert raw not in text


async def test_every_answer_carries_the_strict_headers(bench: Bench) -> None:
    guard = bench.guard()
    async with served(guard) as browser:
        link, _, _ = await waiting(bench, guard)
        origin = origin_of(link)["Origin"]
        for url in (
            link,
            f"{link}/all",
            f"{origin}/",
            f"{origin}/approvals/ap-none",
            f"{origin}/approvals/..%2f..%2fetc",
        ):
            response = await browser.get(url)
            policy = response.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "frame-ancestors 'none'" in policy
            assert "unsafe" not in policy
            assert "script" not in policy
            assert response.headers["cache-control"] == "no-store"
            assert "server" not in response.headers


async def test_nothing_is_served_before_the_first_link_and_nothing_after_the_end(bench: Bench) -> None:
    guard = bench.guard()
    async with served(guard) as browser:
        link, _, _ = await waiting(bench, guard)
        assert (await browser.get(link)).status_code == 200
        assert link.startswith("http://127.0.0.1:")
        assert (await guard.link("ap-x")).url.startswith(origin_of(link)["Origin"])
    async with httpx.AsyncClient(timeout=PATIENCE_SECONDS) as browser:
        with pytest.raises(httpx.TransportError):
            await browser.get(link)
    outcome = await guard.delete_snapshot(bench.zone, (await bench.snapshots())[0].snapshot_id, nobody())
    assert outcome.approval_link == ""


@pytest.mark.long
def test_only_a_visitor_loads_the_templates(tmp_path: Path) -> None:
    """Every server start pays for imports; most never show the page."""
    script = """
import anyio, httpx, pathlib, sys
import snapshot_mcp.server.build
from snapshot_mcp.guard import Guard, Policy
from snapshot_mcp.guard.page import approval_page

async def main() -> None:
    guard = Guard(pathlib.Path(sys.argv[1]), Policy())
    async with approval_page(guard):
        link = (await guard.link("ap-none")).url
        before = "jinja2" in sys.modules
        async with httpx.AsyncClient() as browser:
            answer = await browser.get(link)
        print(before, "jinja2" in sys.modules, answer.status_code)

anyio.run(main)
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=True)
    assert done.stdout.split() == ["False", "True", "404"]


async def test_the_list_shows_what_waits(bench: Bench) -> None:
    guard = bench.guard()
    async with served(guard) as browser:
        link, approval_id, _ = await waiting(bench, guard)
        listed = await browser.get(f"{link}/all")
        assert link.removeprefix(origin_of(link)["Origin"]) in listed.text
        await guard.deny(approval_id)
        assert "Nothing is waiting" in (await browser.get(f"{link}/all")).text


async def test_parallel_first_links_start_one_server(bench: Bench) -> None:
    guard = bench.guard()
    links: set[str] = set()
    async with served(guard):

        async def take() -> None:
            links.add((await guard.link("ap-x")).url)

        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(take)
    assert len(links) == 1


@pytest.mark.parametrize("decision", ["approve", "deny"])
async def test_a_client_that_can_open_the_page_gets_the_decision_in_the_same_call(bench: Bench, decision: str) -> None:
    """mcp_sdk_notes 3.3: URL-mode elicitation; accept means that the page was opened, no more."""
    guard = bench.guard(Policy(consent="human"))
    await guard.set_pin(PIN)
    disk = await bench.add_disk("pg-data")
    await bench.back_up(disk, "full")
    last = await bench.back_up(disk, "monday")

    async with served(guard) as browser:

        async def decides(approval_id: str, link: str) -> None:
            form = fields_of(await browser.get(link)) | {"decision": decision, "pin": PIN}
            assert (await browser.post(link, data=form, headers=origin_of(link))).status_code == 303

        person = Person(can_open_url=True, opens=decides)
        outcome = await guard.delete_snapshot(bench.zone, last.snapshot_id, person)
    assert outcome.status == ("started" if decision == "approve" else "declined")
    assert (len(person.opened), person.questions) == (1, [])


async def test_an_opened_page_is_no_approval(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("snapshot_mcp.guard.carry.calls.PAGE_WAIT_SECONDS", 0.0)
    guard = bench.guard(Policy(consent="human"))
    await guard.set_pin(PIN)
    disk = await bench.add_disk("pg-data")
    only = await bench.back_up(disk, "full")

    async def looks_away(approval_id: str, link: str) -> None:
        return None

    async with served(guard):
        for opens in (looks_away, None):
            person = Person(can_open_url=True, opens=opens)
            outcome = await guard.delete_snapshot(bench.zone, only.snapshot_id, person)
            assert outcome.status == "needs_approval"
    assert bench.destroyed == []


async def test_a_host_that_is_about_to_give_up_is_answered_before_the_person_decides(bench: Bench) -> None:
    """What a call waits for comes out of one time: the page opened late is not waited for, what was decided there counts."""
    guard = bench.guard(Policy(consent="human"))
    await guard.set_pin(PIN)
    disk = await bench.add_disk("pg-data")
    await bench.back_up(disk, "full")
    last = await bench.back_up(disk, "monday")

    async def looks_at_it(approval_id: str, link: str) -> None:
        return None

    async def decided_in_time(approval_id: str, link: str) -> None:
        await guard.approve(approval_id, PIN)

    async with served(guard):
        with anyio.fail_after(PATIENCE_SECONDS):
            late = Person(can_open_url=True, opens=looks_at_it, seconds_left=0)
            assert (await guard.delete_snapshot(bench.zone, last.snapshot_id, late)).status == "needs_approval"
            just = Person(can_open_url=True, opens=decided_in_time, seconds_left=0)
            assert (await guard.delete_snapshot(bench.zone, last.snapshot_id, just)).status == "started"


async def test_without_a_pin_no_page_is_opened(bench: Bench) -> None:
    """It could only deny."""
    guard = bench.guard(Policy(consent="human"))
    disk = await bench.add_disk("pg-data")
    only = await bench.back_up(disk, "full")
    person = Person(can_open_url=True)
    async with served(guard):
        outcome = await guard.delete_snapshot(bench.zone, only.snapshot_id, person)
    assert (outcome.status, person.opened) == ("needs_approval", [])
