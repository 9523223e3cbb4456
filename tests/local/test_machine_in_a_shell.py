"""A running machine as a person and a model see it: `zone add --qmp`, its state, and a roll-back that nobody is asked about."""

from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from mcp import Client
from mcp.types import ElicitResult

from snapshot_mcp import app
from snapshot_mcp.cli import main
from snapshot_mcp.contract.states import ResourceType
from tests.disks import MIB, make_image
from tests.machines import BareMachine, needs_machines

pytestmark = needs_machines


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SNAPSHOT_MCP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SNAPSHOT_MCP_CONFIG", "")
    return tmp_path


def test_a_running_machine_is_added_backed_up_and_not_rolled_back(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_image(home / "db.img", 4 * MIB)
    with BareMachine(home / "machine", (path, "raw")) as machine:
        words = ["zone", "add", str(path), "--name", "db", "--instance"]
        assert main([*words, "--qmp", str(home / "nothing"), "--agent", str(home / "agent")]) != 0
        said = capsys.readouterr().err
        assert "nothing answers at" in said
        assert "a monitor of its own for snapshot-mcp" in said
        assert main([*words, "--qmp", str(machine.socket)]) == 0
        assert f"backed up while it runs, through {machine.socket}" in capsys.readouterr().out
        assert main(["back-up", "db", "--wait"]) == 0
        assert "consistent as after a power cut (instant)" in " ".join(capsys.readouterr().out.split())
        assert main(["restore", "db", "--in-place"]) != 0
        capsys.readouterr()


@pytest.mark.anyio
@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_a_model_sees_that_it_runs_and_asks_nobody_for_its_roll_back(home: Path, mode: Any) -> None:
    path = make_image(home / "db.img", 4 * MIB)
    settings = app.own_settings()
    asked = []

    async def ask(*_: Any) -> ElicitResult:
        asked.append(1)
        return ElicitResult(action="accept", content={})

    with BareMachine(home / "machine", (path, "raw")) as machine:
        async with aclosing(app.open_local_zone(settings, "")) as zone:
            form = app.disk_form("", (), str(machine.socket))
            disk = (await zone.add_resource(path, "db", ResourceType.INSTANCE, form)).id
            other = make_image(home / "other.img", MIB)
            await zone.add_resource(other, "other", ResourceType.INSTANCE)
            gone = make_image(home / "gone.img", MIB)
            await zone.add_resource(gone, "gone", ResourceType.INSTANCE)
            gone.unlink()
        async with Client(app.build_server(settings), mode=mode, elicitation_callback=ask) as client:
            taken = await client.call_tool(
                "create_snapshots", {"resource_ids": [disk], "name": "now", "wait_seconds": 30}
            )
            assert taken.structured_content, taken.content
            (snapshot_id,) = taken.structured_content["snapshot_ids"]
            listed = await client.call_tool("list_resources", {"kind": "instance"})
            assert listed.structured_content
            states = {row["name"]: row["status"] for row in listed.structured_content["resources"]}
            assert states == {"db": "running", "other": "stopped", "gone": "unknown"}
            only = await client.call_tool("list_resources", {"kind": "instance", "status": ["running"]})
            assert only.structured_content, only.content
            assert [row["name"] for row in only.structured_content["resources"]] == ["db"]
            answer = await client.call_tool("rollback_to_snapshots", {"snapshot_ids": [snapshot_id]})
    assert answer.is_error
    said = str(answer.content)
    assert "is running, so its disk cannot be rolled back" in said
    assert "system_powerdown" in said
    assert str(machine.socket) in said
    assert not asked
