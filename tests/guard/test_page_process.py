"""The approval page outlives the conversation: one process for each home, while something waits (GUARD.md, "The page")."""

import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx
import pytest

from snapshot_mcp import app
from snapshot_mcp.guard.consent.audit import Audit
from snapshot_mcp.guard.consent.database import Database
from tests.guard.conftest import Person
from tests.guard.test_attacks import Ground, Siege, Victim, says, status_of
from tests.guard.test_attacks import ground as ground
from tests.guard.test_attacks import victim as victim
from tests.guard.test_page import fields_of, origin_of
from tests.guard.test_terminal import in_terminal
from tests.guard.test_wire_attacks import connect, environment
from tests.marks import long, modern_first
from tests.pages import page_pid, page_pids
from tests.patience import PATIENCE_SECONDS

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(sys.platform != "linux", reason="/proc")]

PIN = "483920"
PHRASE = "Grünes Fahrrad <b>7</b>"
NOBODY = 61234
"""Another user of the machine."""

as_root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="another user needs root")


async def browse(link: str, decision: str = "", pin: str = PIN) -> httpx.Response:
    """Open a link, and decide there."""
    async with httpx.AsyncClient(timeout=PATIENCE_SECONDS) as browser:
        page = await browser.get(link)
        if not decision:
            return page
        form = fields_of(page) | {"decision": decision, "pin": pin}
        return await browser.post(link, data=form, headers=origin_of(link), follow_redirects=True)


def port_of(link: str) -> int:
    return int(link.split("/")[2].rpartition(":")[2])


def is_listening(port: int) -> bool:
    with closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def ended(home: Path) -> None:
    with anyio.fail_after(PATIENCE_SECONDS):
        while page_pid(home) is not None:
            await anyio.sleep(0.05)


async def running(home: Path) -> int:
    with anyio.fail_after(PATIENCE_SECONDS):
        while (pid := page_pid(home)) is None:
            await anyio.sleep(0.05)
    return pid


async def kill(home: Path) -> None:
    """All of it, as the end of a session or of a container does."""
    await running(home)
    for pid in reversed(page_pids(home)):
        os.kill(pid, signal.SIGKILL)
    await ended(home)


async def command(siege: Siege, *words: str) -> str:
    """A command of a person's, whatever it says."""

    def run() -> str:
        line = [sys.executable, "-m", "snapshot_mcp", *words]
        return subprocess.run(line, env=environment(siege), capture_output=True, text=True, check=False).stdout

    return await anyio.to_thread.run_sync(run)


async def pending(siege: Siege, name: str = "last") -> dict[str, Any]:
    """What a call answers that waits for a person, whose server has ended since."""
    status, data = status_of(await siege.delete(name))
    assert status == "needs_approval"
    return data


@modern_first
async def test_a_link_of_a_conversation_that_is_over_approves_and_then_nothing_listens(
    victim: Victim, mode: str
) -> None:
    """The host is gone with its server; the person approves later; another host repeats the call."""
    siege = victim.siege
    siege.mode, siege.rules = mode, 'consent = "human"'
    await siege.guard.set_pin(PIN, phrase=PHRASE)
    call = {"snapshot_id": victim.last}
    async with connect(siege, "", says(None, "decline")) as client:
        _, data = status_of(await client.call_tool("delete_snapshot", call))
    link = data["approval_link"]
    page = await browse(link)
    assert "Grünes Fahrrad &lt;b&gt;7&lt;/b&gt;" in page.text
    assert ">approved<" in (await browse(link, "approve")).text
    assert status_of(await siege.delete("last", says(None, "decline")))[0] == "started"
    await victim.settle()
    assert await victim.acts() == 1
    await ended(siege.settings.home)
    assert not is_listening(port_of(link))
    assert Audit(Database(siege.settings.home)).verify().problem == ""


@pytest.mark.long
async def test_all_servers_and_commands_of_a_home_share_one_page_and_two_homes_have_two(
    victim: Victim, tmp_path: Path, detached_pages: None
) -> None:
    siege = victim.siege
    other = Siege(siege.ground, tmp_path / "other", "auto")
    other.folder.mkdir()
    first, second = await pending(siege), await pending(siege, "full")
    elsewhere = await pending(other)
    assert port_of(first["approval_link"]) == port_of(second["approval_link"]) != port_of(elsewhere["approval_link"])
    assert await running(siege.settings.home) != await running(other.settings.home)
    foreign = first["approval_link"].replace(
        str(port_of(first["approval_link"])), str(port_of(elsewhere["approval_link"]))
    )
    assert (await browse(foreign)).status_code == 404
    assert (await browse(first["approval_link"], "deny")).status_code == 200
    listed = (await browse(second["approval_link"] + "/all")).text
    assert second["approval_id"] in listed
    assert first["approval_id"] not in listed
    assert (await browse(elsewhere["approval_link"])).status_code == 200


LOOKS = {
    "approvals": ("approvals",),
    "deny of an unknown one": ("deny", "ap-none"),
    "the same call": (),
}


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.long
async def test_a_killed_page_is_back_on_its_port_as_soon_as_anybody_looks(
    victim: Victim, look: str, detached_pages: None
) -> None:
    """Its port was free meanwhile, so the links are new ones: who listened there has learnt nothing that counts."""
    siege = victim.siege
    await siege.guard.set_pin(PIN)
    data = await pending(siege)
    link, home = data["approval_link"], siege.settings.home
    await browse(link)
    await kill(home)
    assert not is_listening(port_of(link))
    if words := LOOKS[look]:
        await command(siege, *(data["approval_id"] if word == "ap-none" else word for word in words[:1]), *words[1:])
        if look != "approvals":
            assert page_pid(home) is None, "who asks for what is not there looks at no approval that waits"
            await command(siege, "approve", data["approval_id"])
    else:
        await pending(siege)
    assert (await browse(link)).status_code == 404
    again = (await pending(siege))["approval_link"]
    assert port_of(again) == port_of(link)
    form = fields_of(await browse(again)) | {"decision": "approve", "pin": PIN}
    async with httpx.AsyncClient(timeout=PATIENCE_SECONDS) as browser:
        done = await browser.post(again, data=form, headers=origin_of(again))
    assert done.status_code == 303
    assert (await siege.guard.get_approval(data["approval_id"])).state == "granted"


async def test_a_killed_page_is_back_by_itself_and_its_port_was_never_free(
    victim: Victim, detached_pages: None
) -> None:
    """A form that was open meanwhile still decides."""
    siege = victim.siege
    await siege.guard.set_pin(PIN)
    link = (await pending(siege))["approval_link"]
    form = fields_of(await browse(link)) | {"decision": "approve", "pin": PIN}
    before = await running(siege.settings.home)
    os.kill(before, signal.SIGKILL)
    with pytest.raises(OSError, match="in use"), closing(socket.socket()) as squatter_:
        squatter_.bind(("127.0.0.1", port_of(link)))
    async with httpx.AsyncClient(timeout=PATIENCE_SECONDS) as browser:
        done = await browser.post(link, data=form, headers=origin_of(link))
    assert done.status_code == 303
    assert await running(siege.settings.home) != before


@pytest.mark.long
async def test_a_look_starts_no_page_that_nobody_has_a_link_to(victim: Victim) -> None:
    """The server of this call kept its page to itself; so does a home where nothing waits."""
    siege = victim.siege
    await command(siege, "approvals")
    assert not siege.settings.home.exists()
    await pending(siege)
    await command(siege, "approvals")
    assert page_pid(siege.settings.home) is None


@pytest.mark.long
async def test_the_page_shows_how_the_job_ends_and_stays_while_it_can_be_taken_back(
    victim: Victim, detached_pages: None
) -> None:
    siege = victim.siege
    await siege.guard.set_pin(PIN)
    link = (await pending(siege))["approval_link"]
    await browse(link, "approve")
    assert status_of(await siege.delete("last"))[0] == "started"
    await victim.settle()
    assert "it ended successfully" in (await browse(link)).text


@pytest.mark.long
async def test_many_who_want_a_link_at_once_start_one_page(victim: Victim, detached_pages: None) -> None:
    siege = victim.siege
    data = await pending(siege)
    await kill(siege.settings.home)
    links: set[str] = set()

    async def want() -> None:
        links.add((await siege.guard.link(data["approval_id"])).url)

    async with anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(want)
    (link,) = links
    assert port_of(link) == port_of(data["approval_link"])
    assert (await browse(link)).status_code == 200


@pytest.mark.long
async def test_its_settings_are_the_homes_and_not_those_of_the_host_that_started_it(
    victim: Victim, monkeypatch: pytest.MonkeyPatch, detached_pages: None
) -> None:
    siege = victim.siege
    monkeypatch.setenv("SNAPSHOT_MCP_CONSENT", "human")
    monkeypatch.setenv("SNAPSHOT_MCP_HOME", "/nowhere")
    monkeypatch.setenv("SNAPSHOT_MCP_NONSENSE", "a page that read it would not start")
    await pending(siege)
    pid = await running(siege.settings.home)
    found = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    own = {one for one in found if one.startswith(b"SNAPSHOT_MCP_")}
    config = siege.folder / "config.toml"
    assert own == {
        b"SNAPSHOT_MCP_HOME=" + os.fsencode(siege.settings.home),
        b"SNAPSHOT_MCP_CONFIG=" + os.fsencode(config),
    }


@pytest.mark.long
async def test_it_reads_the_roles_again_before_it_grants(victim: Victim, detached_pages: None) -> None:
    """Who asked has lost the role meanwhile; the page runs on (GUARD.md, "Policy")."""
    siege = victim.siege
    rules = siege.rules = '[tokens.agent]\ntoken = "token-of-the-agent-0123456789"\nroles = ["operator"]'
    guard = siege.guard
    await guard.set_pin(PIN)
    async with app.build_zones(siege.settings) as zones:
        agent = Person(can_ask=False, principal="agent")
        link = (await guard.delete_snapshot(zones.get("local"), victim.last, agent)).approval_link
        siege.rules = ""
        siege.write()
        refused = await browse(link, "approve")
        assert (refused.status_code, "cannot be granted" in refused.text) == (409, True)
        siege.rules = rules
        siege.write()
        assert ">approved<" in (await browse(link, "approve")).text


@pytest.mark.long
async def test_with_unusable_settings_it_refuses_to_start(victim: Victim, detached_pages: None) -> None:
    siege = victim.siege
    data = await pending(siege)
    home = siege.settings.home
    guard = siege.guard
    await kill(home)
    (siege.folder / "config.toml").write_text("nonsense = 1\n")
    await guard.link(data["approval_id"])
    with anyio.fail_after(PATIENCE_SECONDS):
        while "nonsense" not in (home / "page.log").read_text() or is_listening(port_of(data["approval_link"])):
            await anyio.sleep(0.05)


@pytest.mark.parametrize("what", ["no interpreter", long("a log that cannot be written")])
async def test_where_no_process_can_be_detached_the_page_stays_in_the_server_and_says_so(
    victim: Victim, what: str, monkeypatch: pytest.MonkeyPatch, detached_pages: None
) -> None:
    siege = victim.siege
    await siege.guard.set_pin(PIN)
    home = siege.settings.home
    if what == "no interpreter":
        monkeypatch.setattr(sys, "executable", "/nowhere/python")
    else:
        (home / "page.log").mkdir(parents=True)
    async with siege.connect() as client:
        _, data = status_of(await client.call_tool("delete_snapshot", {"snapshot_id": victim.last}))
        assert "it ends with the server that gave the link" in data["how_to_approve"]
        assert ">approved<" in (await browse(data["approval_link"], "approve")).text
        assert page_pid(home) is None
    assert not is_listening(port_of(data["approval_link"]))


@pytest.mark.long
async def test_it_makes_way_for_a_newer_version_which_takes_its_port(victim: Victim, detached_pages: None) -> None:
    """The database is of a format that this version does not know: the page ends, and its port stays noted."""
    siege = victim.siege
    link = (await pending(siege))["approval_link"]
    home = siege.settings.home
    await running(home)
    with closing(sqlite3.connect(home / "guard.sqlite")) as database:
        (version,) = database.execute("PRAGMA user_version").fetchone()
        database.execute(f"PRAGMA user_version = {version + 1}")
    await ended(home)
    with closing(sqlite3.connect(home / "guard.sqlite")) as database:
        database.execute(f"PRAGMA user_version = {version}")
    assert port_of((await pending(siege))["approval_link"]) == port_of(link)


@pytest.mark.long
async def test_it_ends_when_its_home_is_taken_away(victim: Victim, detached_pages: None) -> None:
    siege = victim.siege
    await pending(siege)
    home = siege.settings.home
    pid = await running(home)
    home.rename(home.with_name("away"))
    with anyio.fail_after(PATIENCE_SECONDS):
        while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
            await anyio.sleep(0.05)


@pytest.mark.long
async def test_the_phrase_is_chosen_with_the_pin(victim: Victim, detached_pages: None) -> None:
    siege = victim.siege
    home = siege.settings.home
    chosen = [("New PIN", PIN), ("Repeat the new PIN", PIN), ("Phrase", "blue bicycle")]
    status, shown = await in_terminal(home, ["pin"], *chosen)
    assert (status, "on a page without it, enter nothing" in shown) == (0, True)
    link = (await pending(siege))["approval_link"]
    assert "blue bicycle" in (await browse(link)).text
    assert "blue bicycle" in (await browse(f"{link}/all")).text
    for typed, expected in (("", "blue bicycle"), ("-", "")):
        changed = [("Current PIN", PIN), ("New PIN", PIN), ("Repeat the new PIN", PIN), ("Phrase", typed)]
        assert (await in_terminal(home, ["pin"], *changed))[0] == 0
        assert await siege.guard.phrase() == expected
    assert "a page that does not show it is false" in (await browse(link)).text


# Another user of this machine

STRANGER = """
import encodings.idna, encodings.latin_1, http.client, json, os, socket, stringprep, sys
os.setgroups([]); os.setgid({uid}); os.setuid({uid})
port, approval_id, home = int(sys.argv[1]), sys.argv[2], sys.argv[3]
found = []
for line in open("/proc/net/tcp"):
    words = line.split()
    if words[3] == "0A" and words[1].startswith("0100007F"):
        found.append(int(words[1].split(":")[1], 16))
told = {{"sees the port": port in found, "answers": [], "texts": "", "files": [], "squats": True}}
def ask(method, path, body=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {{"Origin": f"http://127.0.0.1:{{port}}", "Content-Type": "application/x-www-form-urlencoded"}}
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    told["answers"].append(answer.status)
    told["texts"] += answer.read().decode()
for key in ("", "/", "/all", "/" + "0" * 64, "/" + "0" * 64 + "/all", "/%c3%a9", "/" + "a" * 4000):
    ask("GET", f"/approvals/{{approval_id}}{{key}}")
    ask("POST", f"/approvals/{{approval_id}}{{key}}", "decision=deny&token=x&digest=x")
for path in ("/", "/approvals", "/approvals/", "/all", "/favicon.ico"):
    ask("GET", path)
for number in range(20):
    body = f"decision=approve&token=x&digest=x&pin=00000{{number}}"
    ask("POST", f"/approvals/{{approval_id}}/" + "0" * 64, body)
for name in ("guard.sqlite", "page.lock", "page.log", "audit.key"):
    try:
        open(f"{{home}}/{{name}}").read()
        told["files"].append(name)
    except PermissionError:
        pass
try:
    with socket.socket() as squat:
        squat.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        squat.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        squat.bind(("127.0.0.1", port))
        squat.listen()
except OSError:
    told["squats"] = False
print(json.dumps(told))
"""

SQUATTER = """
import os, socket, sys
os.setgroups([]); os.setgid({uid}); os.setuid({uid})
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("there", flush=True)
while True:
    connection, _ = listener.accept()
    seen = connection.recv(65536).split()[1].decode()
    page = "<h1>Delete?</h1><form method=post><input name=pin type=password></form>"
    connection.sendall(f"HTTP/1.0 200 OK\\r\\nContent-Type: text/html\\r\\n\\r\\n{{page}}".encode())
    connection.close()
    print(seen, flush=True)
"""


@as_root
async def test_another_user_of_the_machine_sees_denies_locks_and_counts_nothing(
    victim: Victim, detached_pages: None
) -> None:
    siege = victim.siege
    siege.rules = 'consent = "human"'
    await siege.guard.set_pin(PIN, phrase="blue bicycle")
    data = await pending(siege)
    link, home = data["approval_link"], siege.settings.home
    siege.folder.chmod(0o755)
    before = len(list(Audit(Database(home)).records()))

    def stranger() -> dict[str, Any]:
        words = [str(port_of(link)), data["approval_id"], str(home)]
        code = STRANGER.format(uid=NOBODY)
        # not measured: it may not write the file of the measurement
        environ = {key: value for key, value in os.environ.items() if not key.startswith("COV")}
        command = [sys.executable, "-c", code, *words]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
        assert not done.stderr, done.stderr
        told: dict[str, Any] = json.loads(done.stdout)
        return told

    told = await anyio.to_thread.run_sync(stranger)
    assert told["sees the port"]
    assert set(told["answers"]) <= {404, 405, 307}
    for secret in (data["approval_id"], "pg-data", "monday", "PIN", "Delete", "blue bicycle"):
        assert secret not in told["texts"]
    assert (told["files"], told["squats"]) == ([], False)
    assert len(list(Audit(Database(home)).records())) == before
    assert (await siege.guard.get_approval(data["approval_id"])).state == "pending"
    assert ">approved<" in (await browse(link, "approve")).text, "the person is not locked out"
    assert status_of(await siege.delete("last"))[0] == "started"


@contextmanager
def squatter(port: int) -> Iterator[subprocess.Popen[str]]:
    """Another user's program on a port that has become free."""
    code = SQUATTER.format(uid=NOBODY)
    with subprocess.Popen([sys.executable, "-c", code, str(port)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "there\n"
            yield process
        finally:
            process.kill()


@as_root
@pytest.mark.long
async def test_a_false_page_on_a_squatted_port_is_known_and_what_it_learns_is_worthless(
    victim: Victim, detached_pages: None
) -> None:
    """Killed, squatted, imitated: the page moves, says so, and its earlier secrets open nothing."""
    siege = victim.siege
    await siege.guard.set_pin(PIN, phrase="blue bicycle")
    data = await pending(siege)
    link, home = data["approval_link"], siege.settings.home
    await kill(home)
    with squatter(port_of(link)) as process:
        assert "blue bicycle" not in (await browse(link)).text
        assert process.stdout is not None
        learned = process.stdout.readline().strip()
        assert learned in link
        assert data["approval_id"] in await command(siege, "approvals")
        again = await pending(siege)
        moved = again["approval_link"]
        assert port_of(moved) != port_of(link)
        assert f"Another program listens on port {port_of(link)}" in again["how_to_approve"]
        assert (await browse(f"http://127.0.0.1:{port_of(moved)}{learned}")).status_code == 404
        page = (await browse(moved)).text
        assert "blue bicycle" in page
        assert f"Another program listens on port {port_of(link)}" in page
        assert ">approved<" in (await browse(moved, "approve")).text
        assert f"left port {port_of(link)}; for port {port_of(moved)}" in await command(siege, "audit")
    (record,) = [one for one in Audit(Database(home)).records() if one["event"] == "page moved"]
    assert (record["left_port"], record["port"]) == (port_of(link), port_of(moved))


@pytest.mark.long
async def test_wrong_pins_lock_their_link_and_leave_the_terminal_and_after_a_pause_the_others(
    ground: Ground, tmp_path: Path
) -> None:
    siege = Siege(ground, tmp_path, "auto")
    await siege.guard.set_pin(PIN)
    async with siege.connect() as client:
        links = []
        for name in ("monday", "tuesday"):
            _, data = status_of(await client.call_tool("delete_snapshot", {"snapshot_id": siege[name]}))
            links.append((data["approval_link"], data["approval_id"]))
        (locked, _), (other, other_id) = links
        for number in range(5):
            assert (await browse(locked, "approve", f"00000{number}")).status_code == 403
        said = await browse(locked, "approve")
        assert (said.status_code, "This link is locked" in said.text) == (429, True)
        with anyio.fail_after(PATIENCE_SECONDS):
            while (answer := await browse(other, "approve")).status_code == 429:
                assert re.search("Try again in 1 s", answer.text)
                await anyio.sleep(0.1)
        assert (await siege.guard.get_approval(other_id)).state == "granted"
        assert (await browse(locked, "approve")).status_code == 429
    assert not await siege.guard.is_pin_locked()
