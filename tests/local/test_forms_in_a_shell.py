"""`zone add --format … --base …` and the lists, as a person and a model see them."""

from contextlib import aclosing
from pathlib import Path

import pytest
from mcp import Client

from snapshot_mcp import app
from snapshot_mcp.cli import main
from snapshot_mcp.providers.local.formats import Form
from tests.disks import MIB
from tests.qemu import create, needs_qemu

pytestmark = needs_qemu


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SNAPSHOT_MCP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SNAPSHOT_MCP_CONFIG", "")
    return tmp_path


def test_the_chain_is_shown_and_added_when_the_person_names_it(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = create(home / "base.qcow2", 3 * MIB)
    image = create(home / "disk.qcow2", None, base)
    assert main(["zone", "add", str(image)]) != 0
    assert "--format qcow2" in capsys.readouterr().err
    assert main(["zone", "add", str(image), "--format", "qcow2"]) != 0
    said = " ".join(capsys.readouterr().err.split())
    assert f"is based on '{base}' (qcow2), which was not read" in said
    assert f"add --base {base}" in said
    assert main(["zone", "add", str(image), "--format", "qcow2", "--base", str(base), "--name", "web"]) == 0
    out = capsys.readouterr().out
    assert "web  3.0 MiB qcow2  " in out
    assert f"based on {base}, which is only read" in out
    assert main(["zone", "list"]) == 0
    assert "web  3.0 MiB qcow2  " in capsys.readouterr().out


def test_without_qemus_tools_the_package_is_named(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = create(home / "disk.qcow2", MIB)
    monkeypatch.setenv("PATH", str(home))
    assert main(["zone", "add", str(image), "--format", "qcow2"]) != 0
    assert "apt install qemu-utils" in capsys.readouterr().err


@pytest.mark.anyio
async def test_a_model_sees_the_size_of_the_disk_and_its_format(home: Path) -> None:
    settings = app.own_settings()
    async with aclosing(app.open_local_zone(settings, "")) as zone:
        await zone.add_resource(create(home / "disk.qcow2", 7 * MIB), "web", form=Form("qcow2"))
    async with Client(app.build_server(settings)) as client:
        found = await client.call_tool("list_resources", {})
    assert found.structured_content
    (row,) = found.structured_content["resources"]
    assert "7.0 MiB qcow2" in str(found.content)
    assert (row["disk_bytes"], row["format"]) == (7 * MIB, "qcow2")
