"""How to approve is said in one place, for the door that exists here.

ARCHITECTURE.md, "The MCP face": “how to approve (the door that exists here, a command that runs as printed)”.
"""

import ast
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest
from mcp import Client

from snapshot_mcp import app
from snapshot_mcp.guard.consent.doors import shell_command
from snapshot_mcp.settings import load_settings
from tests.conftest import end_worker
from tests.guard.test_record import command
from tests.guard.test_terminal import PIN, type_to
from tests.server.lab import Lab, back_up, data_of, text_of

pytestmark = pytest.mark.anyio

PERSON = "For the person, in a terminal of their own:"


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """A home with a blank in its name, so that quoting counts."""
    folder = tmp_path / "a home's folder"
    folder.mkdir()
    yield Lab(folder)
    end_worker(folder / "home" / "zones" / "local")
    shutil.rmtree(folder / "home", ignore_errors=True)


async def needs_approval(lab: Lab, config: str = "", url: str = "") -> tuple[str, dict[str, Any]]:
    """What a guarded tool answers where only a person outside of the conversation can agree: text and structure."""
    if not (lab.home / "zones").exists():
        await lab.add_disk("web")
    (lab.folder / "config.toml").write_text(config, encoding="utf-8")
    async with Client(app.build_server(lab.settings, url=url)) as client:
        rows = data_of(await client.call_tool("list_snapshots", {}))["snapshots"]
        if not rows:
            await back_up(client, "web", "full")
            rows = [{"snapshot_id": await back_up(client, "web", "monday")}]
        result = await client.call_tool("delete_snapshot", {"snapshot_id": rows[0]["snapshot_id"]})
    data = data_of(result)
    assert data["status"] == "needs_approval"
    for line in data["how_to_approve"].splitlines():
        assert line in text_of(result), "text and structure say the same"
    return text_of(result), data


async def test_the_printed_command_runs_as_it_is_printed(lab: Lab, tmp_path: Path) -> None:
    """“The printed `snapshot-mcp approve ID` fails where the server has another home or the command is not on the person's
    path.” The person's shell has none of the server's variables, and is in another folder."""
    _, data = await needs_approval(lab)
    label, line, *_ = data["how_to_approve"].splitlines()
    assert (label, line.endswith(f"approve {data['approval_id']}")) == (PERSON, True)
    environ = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "TERM": "dumb", "COLUMNS": "100"}
    answers = [("Type delete to agree", "delete")]
    status, shown = await anyio.to_thread.run_sync(lambda: type_to(["sh", "-c", line], environ, answers, Path("/")))
    assert (status, "Approved" in shown) == (0, True), shown


@pytest.mark.long
async def test_the_page_is_named_where_a_pin_lets_it_approve(lab: Lab) -> None:
    await app.build_guard(lab.settings).set_pin(PIN)
    _, data = await needs_approval(lab, '[guard]\nconsent = "human"\n')
    assert data["how_to_approve"].splitlines()[0] == PERSON
    assert f"Or on the approval page: {data['approval_link']}" in data["how_to_approve"]
    assert "PIN" not in data["how_to_approve"]


async def test_that_a_pin_is_missing_is_said_first(lab: Lab) -> None:
    """“with no PIN where one is needed it says that first”."""
    _, data = await needs_approval(lab, '[guard]\nconsent = "human"\n')
    first, label, *_ = data["how_to_approve"].splitlines()
    assert first.startswith("This needs a PIN, and none is set")
    assert label == PERSON


APPROVERS = """
[guard]
consent = "human"
[tokens.agent]
token = "token-of-the-agent-0123456789"
roles = ["operator"]
[tokens.anna]
token = "token-of-anna-0123456789-abc"
roles = ["approver"]
"""


async def test_over_http_with_approvers_their_door_is_named_and_no_other(lab: Lab) -> None:
    """“Over HTTP with approvers enrolled `needs_approval` says that a PIN must be set, names a terminal and the server's own
    loopback link; the approvers' door is not named.”"""
    text, data = await needs_approval(lab, APPROVERS, "http://127.0.0.1:8123/mcp")
    assert f"POST http://127.0.0.1:8123/approvals/{data['approval_id']}" in data["how_to_approve"]
    assert "approver role" in data["how_to_approve"]
    assert "approval_link" not in data
    for wrong in ("PIN", "terminal", "snapshot-mcp approve"):
        assert wrong not in text


async def test_over_http_without_approvers_it_is_the_terminal(lab: Lab) -> None:
    tokens = APPROVERS.replace('roles = ["approver"]', 'roles = ["viewer"]')
    _, data = await needs_approval(lab, tokens, "http://127.0.0.1:8123/mcp")
    assert PERSON in data["how_to_approve"]
    assert "POST" not in data["how_to_approve"]


@pytest.mark.long
async def test_commands_that_find_nothing_name_the_home_they_looked_in(lab: Lab) -> None:
    """“`approve` and `approvals` that find nothing name the home they looked in.”"""
    for words in (["approve", "ap-x"], ["deny", "ap-x"], ["approvals"]):
        done = await command(lab, *words)
        assert str(lab.home) in (done.stdout + done.stderr).replace('"', "")


def test_the_program_that_was_started_is_the_one_that_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its own path, absolute and quoted; else by the interpreter that runs it."""
    program = tmp_path / "my bin" / "snapshot-mcp"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert shell_command(str(program), sys.executable, {}) == f"'{program}'"
    monkeypatch.chdir(tmp_path)
    assert shell_command("my bin/snapshot-mcp", sys.executable, {}) == f"'{program}'"
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    assert shell_command("snapshot-mcp", sys.executable, {}) == f"'{program}'"
    for other in ("", "-c", str(tmp_path / "snapshot_mcp" / "__main__.py"), "/usr/bin/pytest"):
        assert shell_command(other, "/venv/bin/python", {}) == "/venv/bin/python -m snapshot_mcp"
    assert shell_command("-c", "/venv/bin/python", {"SNAPSHOT_MCP_HOME": "/a b"}).startswith(
        "SNAPSHOT_MCP_HOME='/a b' "
    )


def test_the_home_is_named_where_it_is_not_the_default(lab: Lab) -> None:
    config = {"SNAPSHOT_MCP_CONFIG": lab.environ["SNAPSHOT_MCP_CONFIG"]}
    assert load_settings(config).variables == config
    assert load_settings({"SNAPSHOT_MCP_HOME": "/srv/x"}).variables == {"SNAPSHOT_MCP_HOME": "/srv/x"}


OTHER = {"PATH": "/usr/bin:/bin", "TERM": "dumb", "COLUMNS": "200"}
"""A shell that does not find the program."""


@pytest.mark.long
async def test_every_printed_command_names_this_program_and_home(lab: Lab) -> None:
    """`deny ap-…` in the terminal, hints of `zone` and of the tools named a bare `snapshot-mcp`, which ran nowhere or in
    another home."""
    async with lab.connect() as client:
        said = {"list_resources": text_of(await client.call_tool("list_resources", {}))}
    words = ("zone list", "zone remove vol-x", "zone keys --remove key-x", "deny ap-x", "zone purge", "pin", "tour")
    for line in words:
        done = await command(lab, *line.split())
        said[line] = done.stdout + done.stderr
    await lab.add_disk("web")
    _, data = await needs_approval(lab)
    environ = OTHER | lab.environ | {"HOME": str(lab.folder)}
    program = shell_command("", sys.executable, lab.settings.variables)
    for line, answers in ((f"approve {data['approval_id']}", [("Type delete", "no")]), ("serve", [("stdin", "\x04")])):
        words_of_line = [sys.executable, "-m", "snapshot_mcp", *line.split()]
        _, said[line] = await anyio.to_thread.run_sync(type_to, words_of_line, environ, answers)
    assert {line: text for line, text in said.items() if BARE.search(text)} == {}
    shown = "\n".join(said.values()).replace("\r\n", "\n")
    for one in ("zone add PATH", "zone list` shows", "zone keys` lists", "approvals` lists", "tour` shows"):
        assert f"{program} {one}" in shown
    assert f"{program} deny {data['approval_id']}" in shown
    assert f"{sys.executable} -m snapshot_mcp tour --yes" in said["tour"]


BARE = re.compile(r"(?<!\$ )snapshot-mcp (zone|serve|config|tour|approvals|approve|deny|pin|audit)\b")
"""A command that pretends to run as it is printed; what follows a prompt is a transcript."""


@pytest.mark.long
def test_no_text_of_the_program_prints_a_bare_command() -> None:
    """The texts that go over the wire, too: no path is right on another machine."""
    folder = Path(app.__file__).parent
    found = {
        f"{path.relative_to(folder)}:{node.lineno}"
        for path in folder.rglob("*.py")
        for node in texts_of(ast.parse(path.read_text(encoding="utf-8")))
        if BARE.search(node.value) and node.value != "snapshot-mcp tour"  # its headline
    }
    assert found == set()
    assert [one.name for one in (folder.parent / "prompts").glob("*.md") if BARE.search(one.read_text())] == []


def texts_of(tree: ast.Module) -> Iterator[ast.Constant]:
    """The string constants that are no docstrings."""
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            yield node
