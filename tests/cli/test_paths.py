"""Paths are bytes: what is not UTF-8 works throughout, and is shown without loss."""

import os
import re
import subprocess
from pathlib import Path

import anyio
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client

from snapshot_mcp.ground.shell import quote
from tests.cli.conftest import make_disk
from tests.cli.shell import COMMAND, environment, run
from tests.server.lab import back_up, data_of, finish, text_of


@pytest.mark.parametrize("word", [b"plain", b"it's", b"\xff", b"a\n\x1b[31m'\\", "\u202eÄ".encode(), b" $(x) `y`", b""])
def test_a_printed_command_runs_as_it_is_printed(word: bytes) -> None:
    quoted = quote(os.fsdecode(word))
    assert quoted.isprintable()
    said = subprocess.run(["bash", "-c", f"printf %s {quoted}"], capture_output=True, check=True)
    assert said.stdout == word


async def use(home: Path, mode: str) -> str:
    """The main job through a real server; return the answer to a deletion."""
    server = StdioServerParameters(command=COMMAND[0], args=COMMAND[1:], env=environment(home))
    async with Client(stdio_client(server), mode=mode) as client:
        (row,) = data_of(await client.call_tool("list_resources", {}))["resources"]
        assert row["path"].endswith("/disk-\\xfe.img")
        snapshot_id = await back_up(client, row["resource_id"], "one")
        exported = await client.call_tool("export_to_volume", {"snapshot_id": snapshot_id, "volume_name": "copy"})
        assert (await finish(client, exported))["status"] == "successful"
        rolled_back = await client.call_tool(
            "rollback_to_snapshots", {"snapshot_ids": [snapshot_id], "plan_only": True}
        )
        assert not rolled_back.is_error
        return text_of(await client.call_tool("delete_snapshot", {"snapshot_id": snapshot_id}))


@pytest.mark.long
@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_a_home_and_a_disk_whose_paths_are_not_utf_8(tmp_path: Path, mode: str) -> None:
    """Registering was refused, and the server ended when it had to print its home."""
    home = tmp_path / os.fsdecode(b"home-\xff")
    disk = make_disk(tmp_path / os.fsdecode(b"disk-\xfe.img"))
    added = run(["zone", "add", os.fsencode(disk)], environment(home))
    assert (added.returncode, b"/disk-\\xfe.img" in added.stdout) == (0, True), added.stderr
    again = run(["zone", "add", os.fsencode(disk)], environment(home))
    assert (again.returncode, b"is already registered" in again.stderr) == (1, True)
    said = anyio.run(use, home, mode)
    (deny,) = re.findall(r"^(SNAPSHOT_MCP_HOME=.*) approve (ap-\w+)$", said, re.MULTILINE)
    denied = subprocess.run(
        ["bash", "-c", f"{deny[0]} deny {deny[1]}"], env=environment(None), capture_output=True, check=False
    )
    assert (denied.returncode, b"Denied" in denied.stdout) == (0, True), denied.stderr
    pasted = run(["config", "vscode"], environment(home))
    assert (pasted.returncode, b"is not UTF-8 text" in pasted.stderr) == (1, True)
