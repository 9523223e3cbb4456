"""The commands of copies as a person runs them, real processes and the zone's own worker (README, "A copy that survives …")."""

import json
import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from snapshot_mcp.copies.keys import read_keys
from tests.cli.commands import Shell
from tests.cli.shell import COMMAND, environment
from tests.copies.conftest import KEYS
from tests.disks import MIB, change, make_image, worker_pid
from tests.guard.test_terminal import type_to

pytestmark = pytest.mark.anyio

SECTION = (
    (Path(__file__).parents[2] / "README.md")
    .read_text()
    .partition("### When the machine is gone\n")[2]
    .partition("\n## ")[0]
)
LINES = re.findall(r"^(.+)$", SECTION.partition("```sh\n")[2].partition("```")[0], re.MULTILINE)


def toml(name: str, to: dict[str, Any], **more: Any) -> str:
    rows = "\n".join(f'{key} = "{value}"' for key, value in (to | more).items())
    return f"[copies.{name}]\n{rows}\n"


class Machine:
    """A home with its settings file; commands are processes, as a person's are."""

    def __init__(self, folder: Path, settings: str = "") -> None:
        self.home, self.config = folder / "home", folder / "config.toml"
        folder.mkdir(exist_ok=True)
        self.config.write_text(settings)
        self.config.chmod(0o600)
        self.shell = Shell(self.home, SNAPSHOT_MCP_CONFIG=str(self.config))
        self.here = Shell(self.home, in_process=True, SNAPSHOT_MCP_CONFIG=str(self.config))

    async def back_up(self, name: str) -> str:
        said = await self.here("back-up", "db", "--name", name, "--wait")
        found = re.search(r"ss-[a-z0-9]{8}", said)
        assert found, said
        return found[0]

    async def copied(self, count: int) -> None:
        """Wait until the copy that follows by itself has so many restore points."""
        with anyio.fail_after(20):
            while json.loads((await self.here.run("copy", "list", "--json")).stdout)[0].get("copied") != count:
                await anyio.sleep(0.05)


async def test_the_whole_disaster_in_the_lines_of_readme(tmp_path: Path, nas: dict[str, Any]) -> None:
    """Machine gone, new machine, place and recovery key, disk back, equal to the byte: at most six commands."""
    assert len(LINES) <= 6
    old = Machine(tmp_path / "old", toml("nas", nas, encryption="age"))
    db, key = make_image(tmp_path / "db.img"), tmp_path / "key"
    await old.here("zone", "add", str(db), "--name", "db")
    await old.here("copy", "key", "--out", str(key))
    await old.back_up("one")
    change(db, MIB)
    newest = await old.back_up("two")
    await old.copied(2)
    wanted = db.read_bytes()
    db.unlink()
    (tmp_path / "old").rename(tmp_path / "burnt")

    new = Machine(tmp_path / "new")
    out = tmp_path / "disks" / "db.img"
    out.parent.mkdir()
    disk = ""
    for line in LINES[1:]:
        words = line.split()[1:]
        stands_for = {
            "/mnt/nas/snapshots": str(nas["to"]),
            "/var/disks/db.img": str(out),
            "SNAPSHOT": newest,
            "DISK": disk,
        }
        words = [stands_for.get(word, word) for word in words]
        if words[0] == "restore-from":
            words += ["--key-file", str(key)]
        said = await new.shell(*words)
        disk = next(iter(re.findall(r"vol-[a-z0-9]{8}", said)), disk)
    assert out.read_bytes() == wanted
    await new.back_up("on the new machine")
    listed = await new.here("disks")
    assert "newest good" in listed
    assert "PROBLEM" not in listed


async def test_the_recovery_key_is_shown_once_and_kept_nowhere(tmp_path: Path, nas: dict[str, Any]) -> None:
    machine = Machine(tmp_path / "m", toml("nas", nas, encryption="age"))
    said = await machine.here("copy", "key", status=1)
    assert "needs a terminal" in said
    environ = environment(machine.home, SNAPSHOT_MCP_CONFIG=str(machine.config), TERM="dumb", COLUMNS="300")
    shown: list[str] = []

    def last_six(screen: str) -> str:
        shown.append(re.search(r"AGE-SECRET-KEY-1[0-9A-Z]+\+[A-Z2-7]+", screen)[0])  # type: ignore[index]
        return shown[0][-6:]

    status, _ = await anyio.to_thread.run_sync(
        lambda: type_to([*COMMAND, "copy", "key"], environ, [("last 6 characters", "ABCDEF")])
    )
    assert status == 1
    assert read_keys(machine.home) is None, "a key that was not confirmed is not used"
    status, screen = await anyio.to_thread.run_sync(lambda: _typed(environ, last_six))
    assert status == 0, screen
    kept = b"".join(path.read_bytes() for path in machine.home.rglob("*") if path.is_file())
    identity = shown[0].partition("+")[0]
    assert identity.encode() not in kept
    assert shown[0].encode() not in kept
    said = await machine.here("copy", "key", status=1)
    assert "has keys for its copies already" in said


def _typed(environ: dict[str, str], answer: Any) -> tuple[int, str]:
    """Run `copy key` on a terminal and type what `answer` makes of the screen."""
    import pty

    parent, child = pty.openpty()
    process = subprocess.Popen([*COMMAND, "copy", "key"], env=environ, stdin=child, stdout=child, stderr=child)
    os.close(child)
    screen, has_typed = "", False
    while True:
        try:
            screen += os.read(parent, 4096).decode()
        except OSError:
            break
        if not has_typed and "last 6 characters" in screen:
            has_typed = True
            os.write(parent, f"{answer(screen)}\n".encode())
    os.close(parent)
    return process.wait(20), screen


async def test_without_a_recovery_key_nothing_is_sent_and_every_list_says_so(
    tmp_path: Path, nas: dict[str, Any]
) -> None:
    machine = Machine(tmp_path / "m", toml("nas", nas, encryption="age"))
    await machine.here("zone", "add", str(make_image(tmp_path / "db.img")), "--name", "db")
    await machine.back_up("one")
    said = await machine.here("copy", "run", status=3)
    assert "snapshot-mcp copy key" in said
    assert list(Path(nas["to"]).iterdir()) == []
    for words in (("snapshots",), ("disks",), ("chain", "db")):
        assert "there is no recovery key yet" in await machine.here(*words), words
    assert "there is no recovery key yet" in (await machine.here.run("doctor")).stdout.decode()
    await machine.here("copy", "key", "--out", str(tmp_path / "key"))
    assert "1 restore point sent" in await machine.here("copy", "run")
    assert "recovery key" not in await machine.here("snapshots")
    assert "copied: nas" in await machine.here("snapshots")
    assert "copied: nas" in await machine.here("chain", "db")
    assert "copied ss-" in await machine.here("disks")


async def test_check_says_two_words(tmp_path: Path, nas: dict[str, Any]) -> None:
    machine = Machine(tmp_path / "m", toml("nas", nas, encryption="age"))
    await machine.here("zone", "add", str(make_image(tmp_path / "db.img")), "--name", "db")
    await machine.here("copy", "key", "--out", str(tmp_path / "key"))
    await machine.back_up("one")
    await machine.here("copy", "run")
    assert "holds what was sent: 1 restore points" in await machine.here("copy", "check")
    assert "restores: 1 restore points" in await machine.here(
        "copy", "check", "--restore", "--key-file", str(tmp_path / "key")
    )
    row = (await machine.here.json("copy", "list"))[0]
    assert row["checked_at"]
    assert row["restored_at"]
    piece = next(Path(nas["to"]).glob("w-*/parts/*/000000.age"))
    content = bytearray(piece.read_bytes())
    content[-1] ^= 1
    piece.write_bytes(content)
    assert "is NOT as it was sent" in (await machine.here.run("copy", "check")).stdout.decode()
    assert "missing or changed" in await machine.here("disks")
    await machine.here("copy", "run")
    assert "holds what was sent" in await machine.here("copy", "check")
    assert not list((machine.home / "copies").glob(".check-*"))


async def test_no_secret_of_a_store_is_shown_or_logged(tmp_path: Path, bucket: dict[str, Any]) -> None:
    machine = Machine(tmp_path / "m", toml("cloud", bucket, encryption="none"))
    await machine.here("zone", "add", str(make_image(tmp_path / "db.img")), "--name", "db")
    await machine.back_up("one")
    said = [await machine.here("copy", "run")]
    machine.config.write_text(toml("cloud", bucket | {"to": "s3://no-such-bucket/x"}, encryption="none"))
    said.append(await machine.here("copy", "run", status=3))
    assert "NoSuchBucket" in said[1]
    closed = bucket | {"endpoint": "http://127.0.0.1:9"}
    machine.config.write_text(toml("cloud", closed, encryption="none"))
    said += [await machine.here("copy", "run", status=3), await machine.here("copy", "list", "--json")]
    assert "can be reached" in said[2]
    said += [path.read_text(errors="replace") for path in machine.home.rglob("*.log")]
    files = b"".join(path.read_bytes() for path in machine.home.rglob("*") if path.is_file())
    assert KEYS["secret_access_key"] not in "".join(said)
    assert KEYS["secret_access_key"].encode() not in files


async def test_a_worker_that_is_killed_in_the_middle_of_a_copy_goes_on(tmp_path: Path, nas: dict[str, Any]) -> None:
    """What was whole is not sent again: each object that was there whole is the same file afterwards."""
    machine = Machine(tmp_path / "m", toml("nas", nas, bandwidth="24MiB/s"))
    image = tmp_path / "db.img"
    image.write_bytes(os.urandom(70 * MIB))
    await machine.here("zone", "add", str(image), "--name", "db")
    await machine.back_up("one")
    folder, zone = Path(nas["to"]), machine.home / "zones" / "local"
    with anyio.fail_after(30):
        while len(list(folder.glob("w-*/parts/*/0*"))) < 2:
            await anyio.sleep(0.01)
    pid = worker_pid(zone)
    assert pid
    os.kill(pid, signal.SIGKILL)
    before = {path: path.stat().st_ino for path in folder.glob("w-*/parts/*/0*")}
    machine.config.write_text(toml("nas", nas))
    await machine.here("copy", "run")
    await machine.copied(1)
    assert {path: path.stat().st_ino for path in before} == before
    assert "holds what was sent" in await machine.here("copy", "check")


async def test_a_settings_file_that_is_broken_meanwhile_costs_the_copy_and_not_the_backup(
    tmp_path: Path, nas: dict[str, Any]
) -> None:
    machine = Machine(tmp_path / "m", toml("nas", nas))
    await machine.here("zone", "add", str(make_image(tmp_path / "db.img")), "--name", "db")
    await machine.back_up("one")
    await machine.copied(1)
    whole, worker = machine.config.read_text(), worker_pid(machine.home / "zones" / "local")
    empty = Shell(machine.home, in_process=True)
    machine.config.write_text("[copies.nas]\nto = 7\n")
    change(tmp_path / "db.img", MIB)
    await empty("back-up", "db", "--name", "two", "--wait")
    assert worker == worker_pid(machine.home / "zones" / "local")
    machine.config.write_text(whole)
    await machine.back_up("three")
    await machine.copied(3)
