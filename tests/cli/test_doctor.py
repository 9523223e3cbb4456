"""`snapshot-mcp doctor`: each line is true, and nothing of the installation is changed."""

import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import anyio
import pytest

from snapshot_mcp import app
from snapshot_mcp.cli import main
from snapshot_mcp.contract.errors import ZoneError
from snapshot_mcp.doctor import Symptom
from snapshot_mcp.guard.consent.pin import FREE_ATTEMPTS
from tests.cli.shell import environment
from tests.cli.test_places import run_as_stranger
from tests.disks import worker_pid
from tests.guard.test_page_process import kill, running
from tests.local.test_reserve import fill_wholly, small
from tests.marks import long
from tests.pages import page_pid
from tests.rest_face import KEY_PAIR
from tests.server.lab import MIB, Lab, back_up, data_of, finish
from tests.strange_zone import answer, error, strange_zone
from tests.whole_way.workers import Nursery

pytestmark = pytest.mark.anyio
__all__ = ["small"]

SECRET = KEY_PAIR.client_secret.get_secret_value()


@pytest.fixture
def lab(tmp_path: Path, zone_folder: Path, nursery: Nursery) -> Lab:
    return Lab(tmp_path, nursery=nursery)


async def examined(lab: Lab) -> list[Symptom]:
    """What the command finds; the home, its files and its folders are as they were before."""
    environ = lab.environ
    before = state_of(lab.folder)
    found = await app.examine(environ)
    assert state_of(lab.folder) == before
    return found


def state_of(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Each path below a folder with its size, mode and time of change; the life of a worker and a page goes on."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.name not in {"worker.log", "worker.lock", "page.log", "page.lock", "catalogue.sqlite-shm"}:
            stat = path.lstat()
            found[str(path)] = (stat.st_size, stat.st_mode, stat.st_mtime_ns)
    return found


def lines(found: list[Symptom], state: str) -> str:
    return "\n".join(f"{one.about}: {one.text} {one.next_step}" for one in found if one.state == state)


async def test_a_fresh_machine_is_well_and_stays_empty(lab: Lab) -> None:
    found = await examined(lab)
    assert not lines(found, "WRONG")
    assert "does not exist yet" in lines(found, "ok")
    assert "has no disk" in lines(found, "look")
    assert "zone add PATH" in lines(found, "look")
    assert not lab.home.exists()


async def test_each_disk_is_told_with_its_newest_backup(lab: Lab) -> None:
    await lab.add_disk("web")
    bare = await lab.add_disk("bare\nWRONG  forged")
    async with lab.connect() as client:
        await back_up(client, "web", "first")
        data_of(await client.call_tool("delete_snapshot", {"snapshot_id": (await back_up(client, "web", "second"))}))
    found = await examined(lab)
    assert not lines(found, "WRONG")
    assert "2 good in all; never read back" in lines(found, "ok")
    assert f"({bare.id}): It has no good restore point." in lines(found, "look")
    assert " approve ap-" in lines(found, "look")
    assert "On one drive with their own backups" in lines(found, "look")
    lab.age_snapshots(8 * 86400)
    assert "Newest good backup" in lines(await examined(lab), "look")


async def test_a_clock_that_was_ahead_is_named(lab: Lab) -> None:
    await lab.add_disk("web")
    async with lab.connect() as client:
        await back_up(client, "web", "first")
    lab.age_snapshots(-3600)
    assert "AHEAD of the clock" in lines(await examined(lab), "WRONG")


async def test_a_backup_that_runs_meanwhile_ends_well(lab: Lab) -> None:
    """And what was written by a process that is killed is read, and not put into the catalogue."""
    await lab.add_disk("web", 64 * MIB)
    zone = lab.home / "zones" / "local"
    async with lab.connect() as client:
        made = await client.call_tool("create_snapshots", {"resource_ids": ["web"], "name": "while it is looked at"})
        for _ in range(3):
            found = await app.examine(lab.environ)
            assert not lines(found, "WRONG")
        assert (await finish(client, made))["status"] == "successful"
        pid = worker_pid(zone)
        assert f"worker runs (process {pid})" in lines(await examined(lab), "ok")
    os.kill(pid, signal.SIGKILL)
    found = await examined(lab)
    assert "1 good in all" in lines(found, "ok")


async def test_a_locked_pin_and_a_broken_record_are_named(lab: Lab) -> None:
    guard = app.build_guard(lab.settings)
    await guard.set_pin("482913")
    assert "A PIN is set." in lines(await examined(lab), "ok")
    for _ in range(FREE_ATTEMPTS):
        with pytest.raises(ZoneError):
            await guard.prove_person("000000", {})
    assert "PIN: The PIN is locked" in lines(await examined(lab), "WRONG")
    (lab.home / "audit.head").write_text("nonsense")
    assert "audit verify" in lines(await examined(lab), "WRONG")


@pytest.mark.long
async def test_the_approval_page_is_named_where_there_is_one(lab: Lab, detached_pages: None) -> None:
    await lab.add_disk("web")
    async with lab.connect() as client:
        data_of(await client.call_tool("delete_snapshot", {"snapshot_id": (await back_up(client, "web", "first"))}))
    await running(lab.home)
    assert "page: The approval page listens on port" in lines(await app.examine(lab.environ), "ok")
    await kill(lab.home)
    found = lines(await examined(lab), "look")
    assert "page: The approval page was ended" in found
    assert await anyio.to_thread.run_sync(page_pid, lab.home) is None, "a look changes nothing"


@pytest.mark.parametrize(
    ("canned", "says"),
    [
        (error(401, "X", "no"), "the credentials were not accepted"),
        long(error(503, "X", "no", "Retry-After: 0"), "the zone is unavailable"),
    ],
)
async def test_a_providers_words_are_told_without_a_secret(
    make_remote: Callable[[str], Lab], canned: Any, says: str
) -> None:
    async with strange_zone() as (zone, _):
        zone.answers = {"GET volumes": canned}
        found = await examined(make_remote(zone.proxy.url))
    assert says in lines(found, "WRONG")
    assert SECRET not in repr(found)


async def test_a_dead_provider_is_named_with_its_setting(make_remote: Callable[[str], Lab]) -> None:
    assert "cannot be reached" in lines(await examined(make_remote("http://127.0.0.1:9")), "WRONG")


@pytest.mark.parametrize("minutes", [30, long(-30)])
async def test_a_providers_clock_that_is_off_is_named(make_remote: Callable[[str], Lab], minutes: int) -> None:
    now = format_datetime(datetime.now(UTC) + timedelta(minutes=minutes), usegmt=True)
    async with strange_zone() as (zone, _):
        zone.answers = {"GET volumes": answer({"volumes": [], "total_count": 0}, 200, f"Date: {now}")}
        zone.answers["GET instances"] = answer({"instances": [], "total_count": 0}, 200, f"Date: {now}")
        found = await examined(make_remote(zone.proxy.url))
    assert f"30 min {'ahead of' if minutes > 0 else 'behind'} this machine's" in lines(found, "WRONG")


@pytest.fixture
def make_remote(tmp_path: Path) -> Callable[[str], Lab]:
    """A home whose only zone is the provider at this address."""

    def make(url: str) -> Lab:
        given = {"API_URL": url, "API_CLIENT_ID": KEY_PAIR.client_id, "API_CLIENT_SECRET": SECRET, "ZONE": "ac1"}
        return Lab(tmp_path, {f"SNAPSHOT_MCP_{key}": value for key, value in given.items()})

    return make


async def test_a_disk_that_is_gone_or_replaced_is_wrong(lab: Lab) -> None:
    disk = await lab.add_disk("web")
    async with lab.connect() as client:
        await back_up(client, "web", "first")  # its worker is up, so what changes from here on is not its start
    Path(disk.path or "").unlink()
    found = await examined(lab)
    assert f"disk web ({disk.id})" in lines(found, "WRONG")
    assert f"zone move {disk.id} PATH --zone local" in lines(found, "WRONG")


async def test_a_disk_that_has_become_something_else_is_wrong(lab: Lab) -> None:
    await lab.add_disk("empty")
    await lab.add_disk("packed")
    async with lab.connect() as client:
        await back_up(client, "packed", "first")
    (lab.folder / "empty.img").write_bytes(b"")
    (lab.folder / "packed.img").write_bytes(b"QFI\xfb" + bytes(MIB))
    found = lines(await examined(lab), "WRONG")
    assert "It is empty: 0 bytes." in found
    assert "It is not a raw image any more, but a qcow2 image" in found


def test_unusable_settings_and_exposed_ones_are_told_by_the_command(
    lab: Lab, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in lab.environ.items():
        monkeypatch.setenv(key, value)
    config = lab.folder / "config.toml"
    assert main(["doctor"]) == 0
    assert "All is well." in capsys.readouterr().out
    config.write_text("read_only = 7\n[zones.x]\nprovider = 'local'\n")
    assert main(["doctor", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert not told["is_well"]
    assert "read_only" in told["found"][0]["text"]
    config.write_text(f"[tokens.vera]\ntoken = '{'x' * 24}'\nroles = ['viewer']\n")
    config.chmod(0o644)
    assert main(["doctor"]) == 1
    said = capsys.readouterr().out
    assert "WRONG  settings: " in said
    assert "chmod 600" in said


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that another user reaches; pytest's own are private."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.long
@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
async def test_an_image_that_this_user_cannot_read_is_wrong(public: Path) -> None:
    lab = Lab(public)
    disk = await lab.add_disk("web")
    path = Path(disk.path or "")
    for one in (public, *public.rglob("*")):
        os.chown(one, 4711, 4711)
    os.chown(path, 0, 0)
    path.chmod(0o600)
    done = await anyio.to_thread.run_sync(run_as_stranger, ["doctor"], environment(lab.home))
    assert (done.returncode, b"Traceback" in done.stderr) == (1, False), done.stderr
    assert b"WRONG  disk web" in done.stdout
    (public / "home" / "zones").chmod(0)
    done = await anyio.to_thread.run_sync(run_as_stranger, ["doctor"], environment(lab.home))
    assert (done.returncode, b"Traceback" in done.stderr) == (1, False), done.stderr
    assert b"WRONG  zone local" in done.stdout


@pytest.mark.long
async def test_a_full_disk_is_named_with_what_frees_it(small: Path, nursery: Nursery) -> None:
    lab = Lab(small, nursery=nursery)
    await lab.add_disk("web")
    async with lab.connect() as client:
        await back_up(client, "web", "first")
    fill_wholly(small)
    found = await app.examine(lab.environ)
    assert "none can be made" in lines(found, "WRONG")
    assert "The largest chain is" in lines(found, "WRONG")
    assert (lab.home / ".reserve").exists() or (lab.home / "zones" / "local" / ".reserve").exists()


@pytest.fixture(autouse=True)
def other_temporary_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The copies of databases are not made below what is examined, and are gone afterwards."""
    folder = tmp_path_factory.mktemp("copies")
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    yield
    assert not list(folder.iterdir())
