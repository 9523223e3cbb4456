"""A wholly full disk does not lock its owner out: what frees space can be done, with a person's yes and the record of it."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapshot_mcp import app
from snapshot_mcp.cli import main
from snapshot_mcp.ground import reserve
from snapshot_mcp.providers.local import LocalZone
from tests.conftest import end_worker
from tests.disks import MIB, make_image, worker_pid
from tests.server.lab import Lab, back_up, data_of, text_of
from tests.server.test_consent import Person

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(os.geteuid() != 0, reason="mounting a filesystem needs root")]
KINDS = {
    "ext4": ["mkfs.ext4", "-q", "-F"],
    "small ext4": ["mkfs.ext4", "-q", "-F"],
    "xfs": ["mkfs.xfs", "-q"],
    "btrfs": ["mkfs.btrfs", "-q"],
}


@pytest.fixture(params=["ext4", *(pytest.param(one, marks=pytest.mark.long) for one in ("small ext4", "xfs", "btrfs"))])
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 400 MiB, or of 40, the whole home of a lab."""
    make = KINDS[request.param]
    if shutil.which(make[0]) is None:
        pytest.skip(f"needs {make[0]}")
    backing, mount_point = tmp_path / "backing", tmp_path / "mounted"
    with backing.open("wb") as file:
        file.truncate((40 if "small" in request.param else 400) * MIB)
    mount_point.mkdir()
    subprocess.run([*make, str(backing)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    subprocess.run(["mount", "-o", "loop", str(backing), str(mount_point)], check=True)
    yield mount_point
    end_worker(mount_point / "home" / "zones" / "local")
    subprocess.run(["umount", "--lazy", str(mount_point)], check=True)


def fill_wholly(folder: Path) -> None:
    """Write until nothing more can be written, root's own share too."""
    with (folder / "filler").open("wb", buffering=0) as file:
        for size in (4 * MIB, 4096, 1):
            try:
                while True:
                    file.write(os.urandom(size))
            except OSError:
                os.sync()
    for number in range(2000):  # what small files find
        try:
            (folder / f"filler-{number}").write_bytes(b"x" * 2000)
        except OSError:
            os.sync()
            return


def unused_bytes(folder: Path) -> int:
    """What is free, with ext4's share for root."""
    found = os.statvfs(folder)
    return found.f_bfree * found.f_frsize


@pytest.mark.parametrize("mode", ["auto", pytest.param("legacy", marks=pytest.mark.long)])
@pytest.mark.long
async def test_list_delete_and_purge_work_on_a_full_disk(small: Path, tmp_path: Path, mode: str) -> None:
    """ "On ext4, XFS and btrfs list, delete and purge of an idle zone all fail"."""
    lab = Lab(small)
    image = make_image(tmp_path / "disk.img", 8 * MIB)
    await lab.register(image, "web")
    async with lab.connect(mode) as client:
        kept = await back_up(client, "web", "kept")
        gone = await back_up(client, "web", "gone", full=True)
        assert (
            data_of(await client.call_tool("delete_snapshot", {"snapshot_id": gone, "plan_only": True}))["status"]
            == "plan"
        )
    for folder in (lab.home, lab.home / "zones" / "local"):
        assert (folder / reserve.NAME).stat().st_blocks * 512 >= reserve.LEAST_BYTES
    end_idle_worker(lab)
    fill_wholly(small)
    async with lab.connect(mode, elicitation_callback=(person := Person("web"))) as client:
        listed = data_of(await client.call_tool("list_snapshots", {}))
        assert [one["snapshot_id"] for one in listed["snapshots"]] == [gone, kept]
        refused = await client.call_tool("create_snapshots", {"resource_ids": ["web"], "name": "no room"})
        assert refused.is_error
        assert "free" in text_of(refused)
        deleted = await client.call_tool("delete_snapshot", {"snapshot_id": gone, "wait_seconds": 50})
        assert data_of(deleted).get("outcome") == "successful", (person.questions, text_of(deleted))
    assert app.build_guard(lab.settings).audit.verify().problem == ""
    before = unused_bytes(small)
    zone = LocalZone(lab.home / "zones" / "local")
    assert await zone.purge() == (gone,)
    await zone.aclose()
    os.sync()
    assert unused_bytes(small) > before + MIB
    (small / "filler").unlink()
    os.sync()
    await lab.register(make_image(tmp_path / "other.img"), "other")
    assert (lab.home / "zones" / "local" / reserve.NAME).exists()


def end_idle_worker(lab: Lab) -> None:
    if pid := worker_pid(lab.home / "zones" / "local"):
        os.kill(pid, 15)
        while worker_pid(lab.home / "zones" / "local"):
            pass


@pytest.mark.long
def test_commands_work_on_a_full_disk(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SNAPSHOT_MCP_HOME", str(small / "home"))
    assert main(["zone", "add", str(make_image(tmp_path / "disk.img")), "--name", "web"]) == 0
    fill_wholly(small)
    assert main(["zone", "list"]) == 0
    assert "web" in capsys.readouterr().out
    assert main(["zone", "check"]) == 0
    assert main(["approvals"]) == 0
