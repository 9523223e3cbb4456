"""“Copy it off this machine”, asked of an assistant: one call, and what the operator writes where nothing is set up."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.disks import make_image
from tests.server.lab import Lab

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["auto", "legacy"])
def mode(request: pytest.FixtureRequest) -> str:
    """Both protocol eras."""
    return str(request.param)


@pytest.fixture
def lab(tmp_path: Path, zone_folder: Path) -> Iterator[Lab]:
    yield Lab(tmp_path)
    shutil.rmtree(tmp_path / "home", ignore_errors=True)


@pytest.mark.parametrize("is_set", [True, False])
async def test_one_call_copies_or_says_what_the_operator_writes(
    lab: Lab, mode: str, is_set: bool, tmp_path: Path, nas: dict[str, Any]
) -> None:
    config = tmp_path / "config.toml"
    config.write_text(f'[copies.nas]\nto = "{nas["to"]}"\n' if is_set else "")
    config.chmod(0o600)
    disk = (await lab.register(make_image(tmp_path / "db.img"), "db")).id
    async with lab.connect(mode) as client:
        made = await client.call_tool(
            "create_snapshots", {"resource_ids": ["db"], "name": "off this machine", "wait_seconds": 20}
        )
        text, hint = made.content[0].text, made.structured_content["hint"]
        if not is_set:
            assert "the operator writes [copies.NAME] with `to` into config.toml" in text
            assert "the operator writes [copies.NAME]" in hint
            return
        assert "It is copied elsewhere by itself: nas" in text
        assert "It is copied elsewhere by itself: nas" in hint
        snapshot_id = made.structured_content["snapshot_ids"][0]
        with anyio.fail_after(20):
            while True:
                listed = await client.call_tool("list_snapshots", {"resource_id": disk})
                if "copied: nas" in listed.content[0].text:
                    break
                await anyio.sleep(0.1)
        assert listed.structured_content["snapshots"][0]["copied"].startswith("nas (read back 20")
        chain = await client.call_tool("show_chain", {"resource_id": disk})
        assert "copied: nas" in chain.content[0].text
        covered = await client.call_tool("list_resources", {})
        assert covered.structured_content["resources"][0]["copied"].startswith(snapshot_id)
        planned = await client.call_tool("delete_snapshot", {"snapshot_id": snapshot_id, "plan_only": True})
        assert "Copied elsewhere: nas has 1 of 1, for 30 days after the deletion." in planned.content[0].text
        assert "Copied elsewhere: nas has 1 of 1" in " ".join(planned.structured_content["plan"])
        back = await client.call_tool("rollback_to_snapshots", {"snapshot_ids": [snapshot_id], "plan_only": True})
        assert "Copied elsewhere: nas has 1 of 1" in back.content[0].text
        done = await client.call_tool("list_jobs", {"finished": True})
        assert "copy elsewhere" in done.content[0].text


async def test_no_argument_of_any_tool_names_a_place(lab: Lab) -> None:
    async with lab.connect("auto") as client:
        for tool in (await client.list_tools()).tools:
            names = set(tool.input_schema["properties"])
            assert not names & {"to", "url", "target", "copy", "destination", "endpoint", "path"}, tool.name
