"""Every command of the table runs as it stands there, in a pipe and on a terminal (README.md, "Without an assistant")."""

import json
import os
import re
import shlex
import signal
from collections.abc import Callable
from pathlib import Path

import anyio.to_thread
import pytest

from snapshot_mcp.contract.states import ResourceType
from snapshot_mcp.guard import Guard, Policy
from snapshot_mcp.providers.local import LocalZone
from tests.cli.shell import COMMAND, environment, run
from tests.disks import back_up, make_image, worker_pid
from tests.guard.test_terminal import type_to
from tests.marks import long

pytestmark = pytest.mark.anyio

SECTION = (
    (Path(__file__).parents[2] / "README.md")
    .read_text()
    .partition("## Without an assistant\n")[2]
    .partition("\n## ")[0]
)
TABLE = [line[len("snapshot-mcp ") :] for line in re.findall(r"^\| `(snapshot-mcp [^`]+)` \|", SECTION, re.MULTILINE)]
BLOCK = re.findall(r"^snapshot-mcp (.+)$", SECTION.partition("```sh\n")[2].partition("```")[0], re.MULTILINE)
PIN = "483920"
WORDS = {"delete": "delete", "--in-place": "roll back"}
"""What a person types before the PIN, by what is in the command."""

Runs = Callable[[list[str], dict[str, str]], tuple[int, str]]


def in_pipe(words: list[str], environ: dict[str, str]) -> tuple[int, str]:
    done = run(words, environ)
    return done.returncode, (done.stdout + done.stderr).decode()


def on_terminal(words: list[str], environ: dict[str, str]) -> tuple[int, str]:
    word = next((WORDS[one] for one in words if one in WORDS), "")
    return type_to([*COMMAND, *words], environ, [("to agree", word), ("PIN", PIN)] if word else [])


@pytest.mark.parametrize("runs", [in_pipe, on_terminal])
@pytest.mark.parametrize("line", [TABLE[0], *map(long, TABLE[1:])])
async def test_every_command_of_the_table_runs(
    line: str, runs: Runs, local_zone: LocalZone, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    home = tmp_path / "home"
    environ = environment(home, TERM="dumb", COLUMNS="200")
    await Guard(home, Policy()).set_pin(PIN)
    kind = ResourceType.INSTANCE if "image" in line else ResourceType.VOLUME
    disk = await local_zone.add_resource(make_image(tmp_path / "db.img"), "db", kind)
    await back_up(local_zone, disk.id, "first")
    second = await back_up(local_zone, disk.id, "second")
    if line.startswith("recover"):
        await local_zone.delete_snapshot(second)
    if line.startswith("cancel") and (worker := worker_pid(local_zone.folder)):
        os.kill(worker, signal.SIGSTOP)  # so that the job waits
        request.addfinalizer(lambda: os.kill(worker, signal.SIGCONT))
    job = await local_zone.create_snapshots([disk.id], "third") if line.startswith("cancel") else None
    stands_for = {"DISK": "db", "SNAPSHOT": second, "NAME": "new", "PATH": str(tmp_path / "out.img"), "TAG": "keep"}
    stands_for |= {"JOB": job.job_id if job else ""}
    filled = re.sub(
        r"[A-Z]{3,}", lambda found: stands_for[found[0]], line.replace("[", "").replace("]", "").replace("…", "")
    )
    status, said = await anyio.to_thread.run_sync(lambda: runs(shlex.split(filled), environ))
    if runs is in_pipe and any(one in WORDS for one in filled.split()):
        assert (status, "needs a terminal" in said) == (1, True), said
    else:
        assert status == 0, said


@pytest.mark.long
async def test_the_first_lines_of_the_section_run_one_after_another(local_zone: LocalZone, tmp_path: Path) -> None:
    disk = make_image(tmp_path / "db.img")
    await local_zone.add_resource(disk, "db")
    environ, snapshot_id = environment(tmp_path / "home"), ""
    for line in BLOCK:
        words = [snapshot_id if one.startswith("ss-") else one for one in shlex.split(line)]
        done = await anyio.to_thread.run_sync(lambda words=words: run([*words, "--json"], environ))
        assert done.returncode == 0, done
        told = json.loads(done.stdout)
        snapshot_id = snapshot_id or told["snapshot_ids"][0]
    assert Path(told["made"][0]["path"]).read_bytes() == disk.read_bytes()


def test_the_table_has_every_command() -> None:
    from snapshot_mcp.cli import SHELL

    assert {line.split()[0] for line in TABLE} == {*SHELL, "jobs"}
