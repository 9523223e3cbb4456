"""The server as hosts run it: a process on stdio, and loopback HTTP."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from time import sleep

import anyio
import httpx
import pytest
from mcp import Client, StdioServerParameters

from tests.marks import legacy_first, long, modern_first
from tests.patience import PATIENCE_SECONDS
from tests.server.lab import MIB, Lab, back_up, data_of, finish

SERVE = [sys.executable, "-m", "snapshot_mcp", "serve"]


def parameters(lab: Lab) -> StdioServerParameters:
    return StdioServerParameters(command=SERVE[0], args=SERVE[1:], env={**os.environ, **lab.environ})


@contextmanager
def http_server(lab: Lab, address: str = "127.0.0.1:0") -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server process on HTTP; yields its URL once it listens."""
    process = subprocess.Popen(
        [*SERVE, "--http", address], env={**os.environ, **lab.environ}, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        line = process.stderr.readline()
        match = re.search(r"http://\S+", line)
        assert match, line
        yield match[0], process
    finally:
        process.terminate()
        process.wait(PATIENCE_SECONDS)
        process.stderr.close()


@pytest.mark.anyio
@legacy_first
async def test_a_backup_over_stdio(lab: Lab, mode: str) -> None:
    await lab.add_disk("web", 4 * MIB)
    async with Client(parameters(lab), mode=mode) as client:
        assert client.server_info is None or client.server_info.name == "snapshot-mcp"
        assert len((await client.list_tools()).tools) == 14
        snapshot_id = await back_up(client, "web", "x")
        refused = await client.call_tool("delete_snapshot", {"snapshot_id": snapshot_id})
        assert data_of(refused)["status"] == "needs_approval"


@pytest.mark.anyio
async def test_a_backup_goes_on_when_the_conversation_ends(lab: Lab) -> None:
    """Closing the conversation never stops a backup."""
    await lab.add_disk("web", 128 * MIB)
    async with Client(parameters(lab)) as client:
        made = data_of(await client.call_tool("create_snapshots", {"resource_ids": ["web"], "name": "x"}))
    async with Client(parameters(lab)) as client:
        waited = data_of(await client.call_tool("wait_for_job", {"job_ids": [made["job_id"]]}))
    assert waited["outcome"] == "successful"


@pytest.mark.anyio
@modern_first
@pytest.mark.long
async def test_a_cancelled_wait_leaves_the_job_alone(lab: Lab, mode: str) -> None:
    await lab.add_disk("web", 128 * MIB)
    async with Client(parameters(lab), mode=mode) as client:
        made = data_of(await client.call_tool("create_snapshots", {"resource_ids": ["web"], "name": "x"}))
        with anyio.move_on_after(0.05):
            await client.call_tool("wait_for_job", {"job_ids": [made["job_id"]]})
        waited = data_of(await client.call_tool("wait_for_job", {"job_ids": [made["job_id"]]}))
    assert waited["outcome"] == "successful"


@pytest.mark.anyio
@modern_first
@pytest.mark.long
async def test_a_backup_over_http_and_a_quick_end(lab: Lab, mode: str) -> None:
    await lab.add_disk("web")
    with http_server(lab) as (url, process):
        async with Client(url, mode=mode) as client:
            made = await client.call_tool("create_snapshots", {"resource_ids": ["web"], "name": "x"})
            assert (await finish(client, made))["status"] == "successful"
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE_SECONDS)


@pytest.mark.anyio
@pytest.mark.long
async def test_http_refuses_foreign_hosts_and_origins(lab: Lab) -> None:
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
    headers = {"Accept": "application/json, text/event-stream"}
    with http_server(lab) as (url, _):
        async with httpx.AsyncClient(timeout=PATIENCE_SECONDS) as client:
            host = await client.post(url, json=body, headers={**headers, "Host": "evil.example"})
            origin = await client.post(url, json=body, headers={**headers, "Origin": "http://evil.example"})
    assert host.status_code == 421
    assert origin.status_code == 403


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("0.0.0.0:8000", "not on this machine's loopback interface"),
        long("example.com:80", "not on this machine's loopback interface"),
        long("8000", "not HOST:PORT"),
        long("127.0.0.1:x", "not HOST:PORT"),
    ],
)
@pytest.mark.long
def test_http_on_another_interface_is_refused_in_words(lab: Lab, address: str, expected: str) -> None:
    done = subprocess.run(
        [*SERVE, "--http", address],
        env={**os.environ, **lab.environ},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 1
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.anyio
async def test_listing_tools_needs_no_provider_and_creates_no_file(lab: Lab) -> None:
    """Listing tools needs neither network nor credentials (ARCHITECTURE.md, "The MCP face")."""
    lab.extra |= {
        "SNAPSHOT_MCP_API_URL": "https://nowhere.invalid",
        "SNAPSHOT_MCP_API_CLIENT_ID": "a",
        "SNAPSHOT_MCP_API_CLIENT_SECRET": "b",
        "SNAPSHOT_MCP_ZONE": "ac1",
    }
    async with Client(parameters(lab)) as client:
        assert len((await client.list_tools()).tools) == 14
    assert not lab.home.exists()


@pytest.mark.long
def test_wrong_settings_are_two_lines_and_no_traceback(lab: Lab) -> None:
    environ = {**os.environ, **lab.environ, "SNAPSHOT_MCP_READONLY": "1"}
    done = subprocess.run(SERVE, env=environ, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("snapshot-mcp: Unknown setting SNAPSHOT_MCP_READONLY.")
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_help_lists_the_commands_without_importing_the_server() -> None:
    script = "import sys; from snapshot_mcp.cli import build_parser; build_parser('').format_help(); print('mcp' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=True
    )
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("host", ["claude-desktop", "claude-code", long("vscode"), long("cursor")])
def test_config_prints_what_to_paste(lab: Lab, host: str) -> None:
    import json
    import shlex

    done = subprocess.run(
        [sys.executable, "-m", "snapshot_mcp", "config", host],
        env={**os.environ, **lab.environ},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=True,
    )
    if host == "claude-code":
        words = shlex.split(done.stdout)
        assert words[:5] == ["claude", "mcp", "add", "--scope", "user"]
        command = words[words.index("--") + 1]
    else:
        entry = json.loads(done.stdout)["servers" if host == "vscode" else "mcpServers"]["snapshot-mcp"]
        command = entry["command"]
        assert entry["env"]["SNAPSHOT_MCP_HOME"] == str(lab.home)
    assert Path(command).is_file()


@pytest.mark.long  # `.ci/run` ends with it
@pytest.mark.parametrize("way", [[], ["--over-rest"]], ids=["embedded", "over REST"])
def test_the_tour_runs_by_itself_and_leaves_nothing(way: list[str], tmp_path: Path) -> None:
    """The main job as README shows it, over each of its ways."""
    environ = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "snapshot_mcp", "tour", "--yes", *way],
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Everything is correct to the byte." in done.stdout
    assert done.stdout.count("all 268,435,456 bytes are equal") >= 2
    assert "2 deleted: it and the safety snapshot built on it" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_a_tour_that_is_killed_outright_leaves_no_server_behind(tmp_path: Path) -> None:
    """It cannot clean up, so the REST face sees by its standard input that the tour has ended."""
    command = [sys.executable, "-m", "snapshot_mcp", "tour", "--yes", "--over-rest"]
    with subprocess.Popen(command, env={**os.environ, "TMPDIR": str(tmp_path)}, stdout=subprocess.DEVNULL) as tour:
        try:
            while not (found := [match for log in tmp_path.rglob("zone-serve.log") if (match := served_at(log))]):
                assert tour.poll() is None
                sleep(0.05)
            ask_health(found[0])
        finally:
            tour.kill()
    with pytest.raises(OSError, match=r"refused|reset"):  # noqa: PT012
        for _ in range(600):
            ask_health(found[0])
            sleep(0.1)


def served_at(log: Path) -> tuple[str, int] | None:
    match = re.search(r"at http://([\d.]+):(\d+)/", log.read_text())
    return (match[1], int(match[2])) if match else None


def ask_health(address: tuple[str, int]) -> None:
    with closing(HTTPConnection(*address, timeout=30)) as connection:
        connection.request("GET", "/healthz")
        assert connection.getresponse().status == 200


@pytest.mark.long
def test_the_tour_without_a_terminal_names_yes() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "snapshot_mcp", "tour"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 1
    assert "--yes" in done.stderr


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="a pseudo-terminal")
def test_a_person_answers_the_tour_and_closes_the_terminal(tmp_path: Path) -> None:
    """One question is answered on a terminal; at the next the terminal goes away, and nothing stays behind."""
    person, terminal = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "snapshot_mcp", "tour"],
        env={**os.environ, "TMPDIR": str(tmp_path), "TERM": "dumb"},
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        process_group=0,
    )
    os.close(terminal)
    shown = b""
    for answer in (b"perhaps\n", b"ROLL BACK\n", b""):
        seen = len(shown)
        while b"your answer: " not in shown[seen:]:
            read = os.read(person, 65536)
            assert read, shown.decode()
            shown += read
        os.write(person, answer)
    os.close(person)
    process.send_signal(signal.SIGHUP)  # as the kernel does to a terminal's own session
    assert process.wait(PATIENCE_SECONDS) != 0
    assert b"Type keep or roll back." in shown
    assert b"Compare it with the original" in shown
    assert list(tmp_path.iterdir()) == []


@pytest.mark.anyio
@pytest.mark.long
async def test_bad_json_on_stdin_does_not_end_the_server(lab: Lab) -> None:
    done = subprocess.run(
        SERVE,
        input="this is no JSON\n",
        env={**os.environ, **lab.environ},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 0
    assert "Traceback" not in done.stdout
