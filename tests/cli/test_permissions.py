"""What mere permissions prevent is said in words: which file, whose it is, who runs, and the next step."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from snapshot_mcp.providers.local import LocalZone
from tests.cli.conftest import make_disk
from tests.cli.shell import environment, run
from tests.disks import back_up, worker_pid
from tests.patience import PATIENCE_SECONDS

pytestmark = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0 or not shutil.which("setpriv"), reason="needs root and setpriv"
)

NOBODY = 65534
POWERLESS = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
"""As root without what makes it root: a user like others, who can still run this Python."""
WHO = "this process runs as root"


def give_away(path: Path, mode: int) -> str:
    """Give a file to another user; return how it is described."""
    path.chmod(mode)
    os.chown(path, NOBODY, NOBODY)
    return f"{str(path)!r} belongs to nobody, mode {mode:04o}; {WHO}"


def say(words: list[str], home: Path, **variables: str) -> str:
    """What a command that must fail says."""
    done = run(words, environment(home, **variables), POWERLESS)
    said = done.stderr.decode()
    assert (done.returncode, "Traceback" in said, "[Errno" in said) == (1, False, False), said
    return said


@pytest.mark.long
def test_a_home_of_another_user(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    whose = give_away(home, 0o700)
    assert whose in say(["zone", "list"], home)
    assert whose in say(["zone", "list"], home / "below")


@pytest.mark.long
def test_a_home_that_may_only_be_looked_at(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    whose = give_away(home, 0o755)
    disk = make_disk(tmp_path / "disk.img")
    for words in (["zone", "add", str(disk)], ["zone", "keys", "--new", "reader"]):
        assert whose in say(words, home)
    assert run(["zone", "list"], environment(home), POWERLESS).returncode == 0


def test_a_settings_file_that_may_not_be_read(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.touch()
    whose = give_away(config, 0o600)
    said = say(["zone", "list"], tmp_path / "home", SNAPSHOT_MCP_CONFIG=str(config))
    assert f"Permission denied ({whose})." in said
    assert f"Run snapshot-mcp as nobody, or give root access to {config}" in said


@pytest.mark.long
def test_a_record_and_a_key_file_of_another_user(tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert run(["zone", "keys", "--new", "reader"], environment(home)).returncode == 0
    (tmp_path / "disk.img").write_bytes(bytes(4096))
    assert run(["zone", "add", str(tmp_path / "disk.img")], environment(home)).returncode == 0  # makes the record
    for name, words in (("zone-serve.json", ["zone", "keys"]), ("guard.sqlite", ["approvals"])):
        assert give_away(home / name, 0o600) in say(words, home)


SCRIPT = """
import anyio, sys
from pathlib import Path
from snapshot_mcp.contract.errors import ZoneError
from snapshot_mcp.providers.local import LocalZone
from tests.disks import finish

async def main(folder, act, what):
    zone = LocalZone(Path(folder))
    try:
        job = await getattr(zone, act)(*eval(what))
        ended = await finish(zone, job)
        print(ended.status, ended.error)
    except ZoneError as error:
        print(error)
    finally:
        await zone.aclose()

anyio.run(main, *sys.argv[1:])
"""


def act(folder: Path, name: str, *arguments: object) -> str:
    """What the zone says, or its worker in the job that fails."""
    command = [*POWERLESS, sys.executable, "-c", SCRIPT, str(folder), name, repr(arguments)]
    done = subprocess.run(
        command, env=environment(None), capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )
    assert "[Errno" not in done.stdout + done.stderr
    assert done.returncode == 0, done.stderr
    return done.stdout


async def make_zone(folder: Path, disk: Path) -> tuple[str, str]:
    """A zone with a snapshot, and without a worker, which would run with root's powers."""
    zone = LocalZone(folder)
    volume = await zone.add_resource(make_disk(disk))
    snapshot_id = await back_up(zone, volume.id)
    await zone.aclose()
    pid = worker_pid(folder)
    assert pid
    os.kill(pid, signal.SIGKILL)
    while worker_pid(folder):
        await anyio.sleep(0.01)
    return volume.id, snapshot_id


@pytest.mark.long
def test_a_zones_files_and_the_texts_of_its_failed_jobs(tmp_path: Path) -> None:
    """The failure said "[Errno 13]"; a snapshot that this user may not read was marked as damaged."""
    home, disk = tmp_path / "home", tmp_path / "disk.img"
    folder = home / "zones" / "local"
    volume_id, snapshot_id = anyio.run(make_zone, folder, disk)
    assert give_away(disk, 0o600) in act(folder, "create_snapshots", [volume_id], "name")
    volumes = folder / "volumes"
    volumes.chmod(0o500)
    exported = act(folder, "create_volume", snapshot_id, "copy")
    assert exported.startswith("failed")
    assert f"{str(volumes)!r} belongs to root, mode 0500; {WHO}" in exported
    assert f"Run: chmod u+rwX {volumes}" in exported
    file = folder / "snapshots" / f"{snapshot_id}.snap"
    whose = give_away(file, 0o600)
    checked = run(["zone", "check"], environment(home), POWERLESS)
    assert (checked.returncode, b"DAMAGED" in checked.stdout) == (1, False), checked.stdout
    assert whose in checked.stdout.decode()
    os.chown(file, 0, 0)
    assert run(["zone", "check"], environment(home), POWERLESS).returncode == 0
    catalogue = folder / "catalogue.sqlite"
    assert give_away(catalogue, 0o444) in act(folder, "create_volume", snapshot_id, "copy")
