"""README's section, followed word for word on a real cluster: the user with its caps, the settings, the commands, the tools."""

import os
import pty
import re
import select
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
from mcp import Client

from snapshot_mcp import app
from snapshot_mcp.settings import load_settings
from tests.ceph.cluster import ceph
from tests.ceph.subject import Site
from tests.cli.shell import COMMAND, environment, run
from tests.disks import MIB, end_process
from tests.patience import PATIENCE_SECONDS
from tests.server.lab import data_of, finish, text_of

pytestmark = pytest.mark.anyio

SECTION = (
    (Path(__file__).parents[2] / "README.md")
    .read_text(encoding="utf-8")
    .split("## A zone on Ceph")[1]
    .split("\n## ")[0]
)
SHARED = "lie in the disk's own pool"


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", SECTION, re.DOTALL)


def answer_in_a_terminal(words: list[str], environ: dict[str, str], answers: dict[str, str], status: int = 0) -> str:
    """Run a command in a terminal; type each answer once its question stands there."""
    master, slave = pty.openpty()
    with subprocess.Popen([*COMMAND, *words], env=environ, stdin=slave, stdout=slave, stderr=slave) as process:
        os.close(slave)
        said, waiting, deadline = "", dict(answers), time.monotonic() + PATIENCE_SECONDS
        while process.poll() is None or select.select([master], [], [], 0)[0]:
            assert time.monotonic() < deadline, said
            if select.select([master], [], [], 0.1)[0]:
                try:
                    said += os.read(master, 4096).decode()
                except OSError:
                    break
            for question in [one for one in waiting if one in said]:
                os.write(master, f"{waiting.pop(question)}\n".encode())
        os.close(master)
        assert process.wait() == status, said
        return said


@pytest.mark.long
async def test_the_section_holds(site: Site, tmp_path: Path) -> None:
    pool = f"vms-{uuid.uuid4().hex[:6]}"
    ceph(site.conf, "ceph", "osd", "pool", "create", pool, "8", "8")
    ceph(site.conf, "rbd", "pool", "init", pool)
    keyring = tmp_path / "client.smcp.keyring"
    (user,) = blocks("sh")
    line = user.replace("client.smcp ", f"client.smcp-{pool} ").replace("pool=vms", f"pool={pool}")
    line = line.replace("/etc/ceph/ceph.client.smcp.keyring", str(keyring))
    subprocess.run(["bash", "-c", line], env=os.environ | {"CEPH_CONF": str(site.conf)}, check=True, timeout=60)
    (settings,) = blocks("toml")
    config = tmp_path / "config.toml"
    told = settings.replace('pool = "vms"', f'pool = "{pool}"').replace('user = "smcp"', f'user = "smcp-{pool}"')
    config.write_text(f'{told}conf = "{site.conf}"\nkeyring = "{keyring}"\n', encoding="utf-8")
    config.chmod(0o600)
    home = tmp_path / "home"
    environ = environment(home, SNAPSHOT_MCP_CONFIG=str(config))
    with site.client.pool(pool) as images:
        images.create_image("db", 8 * MIB)
        images.create_image("web", 8 * MIB)
        with images.open_by_name("db") as image:
            image.write(0, b"original")
        ceph(site.conf, "rbd", "image-meta", "set", f"{pool}/web", "snapshot-mcp.kind", "instance")
        assert {"db", "web"} <= set(run(["zone", "list"], environ).stdout.decode().split())
        async with Client(app.build_server(load_settings(environ))) as client:
            covered = await client.call_tool("list_resources", {})
            assert SHARED in text_of(covered)
            assert {row["kind"] for row in data_of(covered)["resources"]} == {"volume", "instance"}
            first = await client.call_tool(
                "create_snapshots", {"resource_ids": ["db"], "name": "first", "wait_seconds": 30}
            )
            (snapshot,) = data_of(first)["snapshot_ids"]
            assert SHARED in text_of(await client.call_tool("show_chain", {"resource_id": "db"}))
            plan = text_of(await client.call_tool("delete_snapshot", {"snapshot_id": snapshot, "plan_only": True}))
            assert SHARED in plan
            assert "Space freed: at most " in plan
            asked = text_of(await client.call_tool("rollback_to_snapshots", {"snapshot_ids": [snapshot]}))
            assert SHARED in asked
            machine = await client.call_tool(
                "create_snapshots", {"resource_ids": ["web"], "name": "m", "wait_seconds": 30}
            )
            golden = {"snapshot_id": data_of(machine)["snapshot_ids"][0], "image_name": "golden"}
            assert (await finish(client, await client.call_tool("export_to_image", golden)))["status"] == "successful"
        assert "golden" in images.list_images().values()
        said = run(["zone", "check"], environ).stdout.decode()
        assert "2 snapshots" in said
        assert "all verified" in said
        doctor = run(["doctor"], environ).stdout.decode()
        assert f"Ceph pool {pool}" in doctor
        refused = subprocess.run(
            ["rbd", "--conf", site.conf, "rm", f"{pool}/db"], capture_output=True, check=False, timeout=60
        )
        assert refused.returncode != 0
        ceph(site.conf, "rbd", "clone", f"{pool}/db@snapshot-mcp.{snapshot}", f"{pool}/child")
        said = answer_in_a_terminal(["zone", "forget", "db"], environ, {"Type db to agree": "db"}, status=1)
        assert "There is no undo" in said
        assert "an image was cloned from it" in said
        assert "cannot be removed" in run(["zone", "forget", "db"], environ).stdout.decode()
        ceph(site.conf, "rbd", "rm", f"{pool}/child")
        assert "its manager can remove it" in run(["zone", "forget", "db"], environ).stdout.decode()
        assert "no restore point of ours" in run(["zone", "forget", "db"], environ).stdout.decode()
        end_process(home / "zones" / "vms" / "worker.lock")
        images.remove_image("db")
    assert (
        '"operation":"zone forget"' in run(["audit"], environ).stdout.decode().replace(" ", "")
        or "zone forget" in run(["audit"], environ).stdout.decode()
    )


def test_no_other_zone_pays_for_it(tmp_path: Path) -> None:
    """A server without such a zone loads nothing of it but its settings."""
    script = (
        "import sys, os\nfrom snapshot_mcp import app\nfrom snapshot_mcp.settings import load_settings\n"
        "app.build_server(load_settings(os.environ))\n"
        "print(*sorted(one for one in sys.modules if 'ceph' in one or one == 'ctypes'))"
    )
    environ = environment(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", script], env=environ, capture_output=True, text=True, check=True, timeout=60
    )
    assert set(done.stdout.split()) - {"ctypes"} <= {
        "snapshot_mcp.providers.ceph",
        "snapshot_mcp.providers.ceph.settings",
    }
