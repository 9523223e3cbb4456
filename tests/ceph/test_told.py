"""What a client is told of a zone on Ceph, and a person at a terminal."""

import json
from pathlib import Path

import pytest
from mcp import Client

from snapshot_mcp import app
from snapshot_mcp.contract.provider import SHARED_FATE
from snapshot_mcp.settings import load_settings
from tests.ceph.bench import Bench
from tests.ceph.subject import POOL

pytestmark = pytest.mark.anyio


def configured(bench: Bench, folder: Path) -> dict[str, str]:
    config = folder / "config.toml"
    place = f'pool = "{POOL}"\nnamespace = "{bench.namespace}"\nconf = "{bench.site.conf}"\n'
    config.write_text(f'[zones.vms]\nprovider = "ceph"\n{place}', encoding="utf-8")
    config.chmod(0o600)
    return {"SNAPSHOT_MCP_CONFIG": str(config), "SNAPSHOT_MCP_HOME": str(folder / "home")}


async def test_no_client_is_sent_to_register_a_disk_and_the_zone_names_the_shared_fate(
    bench: Bench, tmp_path: Path
) -> None:
    async with Client(app.build_server(load_settings(configured(bench, tmp_path)))) as client:
        told = str((await client.call_tool("list_resources", {})).content)
        assert "found by itself" in told
        assert "zone add" not in told
        (page,) = (await client.read_resource("zone://vms")).contents
        assert json.loads(page.text)["shared_fate"] == SHARED_FATE
