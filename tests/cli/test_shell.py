"""The tools' acts as commands, through real processes (README.md, "Without an assistant")."""

import os
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from mcp import Client

from snapshot_mcp import app
from snapshot_mcp.cli.shell.session import FIRST_SECONDS, ShellReply, joined
from snapshot_mcp.cli.shell.words import COMMAND_OF, Words, program
from snapshot_mcp.contract.models import ResourceFilter
from snapshot_mcp.guard import Guard, Policy
from snapshot_mcp.providers.local import LocalZone
from snapshot_mcp.server.build import build_tools
from snapshot_mcp.settings import load_settings
from tests.cli.commands import Shell
from tests.cli.shell import COMMAND
from tests.disks import MIB, back_up, change, finish, make_image, worker_pid
from tests.guard.test_terminal import type_to
from tests.marks import long
from tests.patience import PATIENCE_SECONDS
from tests.rest_face import KEY_PAIR, ZONE_ID, served

pytestmark = pytest.mark.anyio


@pytest.fixture
async def disk(local_zone: LocalZone, tmp_path: Path) -> Path:
    """A registered disk called db."""
    path = make_image(tmp_path / "db.img")
    await local_zone.add_resource(path, "db")
    return path


@pytest.fixture(params=["in this process", long("as a process")])
def in_process(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "in this process")


@pytest.fixture
def shell(tmp_path: Path, in_process: bool) -> Shell:
    return Shell(tmp_path / "home", in_process=in_process)


@asynccontextmanager
async def over_rest(zone: LocalZone, home: Path, *, in_process: bool = False) -> AsyncIterator[Shell]:
    """A shell of another home, whose only zone is a provider's."""
    async with served(zone) as face:
        yield Shell(
            home,
            in_process=in_process,
            SNAPSHOT_MCP_API_URL=face.url,
            SNAPSHOT_MCP_API_CLIENT_ID=KEY_PAIR.client_id,
            SNAPSHOT_MCP_API_CLIENT_SECRET=KEY_PAIR.client_secret.get_secret_value(),
            SNAPSHOT_MCP_ZONE=ZONE_ID,
        )


async def use(shell: Shell, disk: Path) -> str:
    """Back up, look, restore beside, verify, rename, tag; return the restore point."""
    made = await shell.json("back-up", "db", "--name", "monday", "--wait")
    assert (made["status"], made["outcome"], made["made"][0]["type"]) == ("submitted", "successful", "full")
    (snapshot_id,) = made["snapshot_ids"]
    assert f"{snapshot_id}  full  available" in await shell("snapshots", "db")
    assert f"◉ {snapshot_id}" in await shell("chain", "db")
    assert "Outcome: successful." in await shell("verify", snapshot_id, "--wait")
    exported = await shell.json("restore", snapshot_id, "--to-volume", "beside", "--wait")
    assert exported["outcome"] == "successful"
    if path := exported["made"][0].get("path"):
        assert Path(path).read_bytes() == disk.read_bytes()
    assert "is now “tuesday”" in await shell("rename", snapshot_id, "tuesday")
    return str(snapshot_id)


async def test_a_disk_is_backed_up_and_restored_without_an_assistant(shell: Shell, disk: Path) -> None:
    snapshot_id = await use(shell, disk)
    assert "its tags are now “keep”" in await shell("tag", snapshot_id, "keep")
    assert [one["snapshot_id"] for one in (await shell.json("snapshots", "--tag", "keep"))["snapshots"]] == [
        snapshot_id
    ]
    assert "its tags were removed" in await shell("tag", snapshot_id)
    said = await shell("jobs", "--finished")
    assert "backup of" in said
    assert "(shell " in said


async def test_it_works_as_well_over_rest(local_zone: LocalZone, disk: Path, tmp_path: Path, in_process: bool) -> None:
    async with over_rest(local_zone, tmp_path / "other", in_process=in_process) as shell:
        snapshot_id = await use(shell, disk)
        said = await shell("restore", snapshot_id, "--to-file", str(tmp_path / "out.img"), status=1)
    assert "its data lies elsewhere" in said
    assert "--to-volume" in said
    assert not (tmp_path / "out.img").exists()


@pytest.mark.long
async def test_a_person_deletes_over_rest(local_zone: LocalZone, disk: Path, tmp_path: Path) -> None:
    async with over_rest(local_zone, tmp_path / "other") as shell:
        made = await shell.json("back-up", "db", "--wait")
        await Guard(tmp_path / "other", Policy()).set_pin("483920")
        command, answers = (
            [*COMMAND, "delete", *made["snapshot_ids"], "--wait"],
            [("to agree", "db"), ("PIN", "483920")],
        )
        environ = shell.environ | {"TERM": "dumb"}
        status, said = await anyio.to_thread.run_sync(lambda: type_to(command, environ, answers))
        assert (status, "Outcome: successful." in said) == (0, True), said
        assert made["snapshot_ids"][0] not in await shell("snapshots")


async def test_without_wait_a_change_is_submitted_and_said_to_be(shell: Shell, disk: Path) -> None:
    said = await shell("back-up", "db")
    assert "Submitted, not done." in said
    assert "jobs`" in said


async def test_a_job_that_fails_has_a_status_of_its_own(shell: Shell, disk: Path) -> None:
    disk.rename(disk.with_suffix(".away"))
    done = await shell.run("back-up", "db", "--wait")
    assert done.returncode in {1, 3}, done
    assert b"successful" not in done.stdout


async def test_errors_name_what_is_near(shell: Shell, disk: Path) -> None:
    said = await shell("back-up", "dbb", status=1)
    assert "There is no disk or machine “dbb”" in said
    assert "Similar names" in said
    wrong = await shell.json("back-up", "dbb", status=1)
    assert wrong["code"] == "not_found"
    for words, near in (
        (["bakc-up", "db"], "back-up"),
        (["back-up", "db", "--wiat"], "--wait"),
        (["zone", "lst"], "list"),
    ):
        assert f"Did you mean {near}?" in await shell(*words, status=2)


async def test_a_restore_says_where_to_and_recommends_the_way_without_loss(shell: Shell) -> None:
    for words in (["restore", "ss-1"], ["restore", "ss-1", "ss-2", "--to-volume", "x"]):
        await shell(*words, status=2)
    assert "--to-volume NAME restores beside the disk" in await shell("restore", "ss-1", status=2)
    assert "recommended" in await shell("restore", "--help")
    assert "--to-volume" in await shell("restore", "ss-1", "--in-place", status=1)


async def test_a_read_only_home_is_told_so(tmp_path: Path, disk: Path, in_process: bool) -> None:
    shell = Shell(tmp_path / "home", in_process=in_process, SNAPSHOT_MCP_READ_ONLY="true")
    done = await shell.run("back-up", "db")
    assert done.returncode == 1
    assert b"read-only" in done.stderr
    assert b"Traceback" not in done.stderr


async def test_names_of_others_are_not_taken_for_tools(local_zone: LocalZone, disk: Path, shell: Shell) -> None:
    (volume,) = (await local_zone.list_volumes(ResourceFilter())).items
    await back_up(local_zone, volume.id, "show_chain")
    done = await shell.run("snapshots")
    assert "“show_chain”" in done.stdout.decode()


async def test_what_a_command_says_is_what_the_tool_says(shell: Shell, point: str) -> None:
    """Word for word, but for the commands that stand for tools; the structure with every field."""
    words = Words(program())
    async with Client(app.build_server(load_settings(shell.environ))) as host:
        listed = await host.call_tool("list_snapshots", {"limit": 100})
        drawn = await host.call_tool("show_chain", {"resource_id": "db"})
        wrong = await host.call_tool("show_chain", {"resource_id": "nothing"})
    (said,) = listed.content
    assert await shell("snapshots") == "".join(f"{words.line(line)}\n" for line in said.text.splitlines())
    assert await shell.json("chain", "db") == words.structure(drawn.structured_content)
    (said,) = wrong.content
    assert words.line(said.text.removeprefix("show_chain failed: ")) in await shell("chain", "nothing", status=1)


def test_every_tool_has_a_command() -> None:
    assert COMMAND_OF.keys() == {one.name for one in build_tools()}
    words = Words("snapshot-mcp")
    assert words.line("Call wait_for_job until it has ended.") == "Run `snapshot-mcp jobs` until it has ended."
    assert words.line("The image is in list_resources with kind image.").endswith("`snapshot-mcp disks --kind image`.")
    assert words.structure({"hint": "show_chain", "name": "show_chain"}) == {
        "hint": "`snapshot-mcp chain DISK`",
        "name": "show_chain",
    }


def test_an_end_that_cannot_be_learned_is_neither_a_success_nor_said_to_be_nothing() -> None:
    started = {"status": "started", "job_id": "j-1", "outcome": "still_running", "message": "Submitted as job j-1."}
    first = ShellReply(("Submitted as job j-1.",), started)
    assert first.is_running
    lost = joined(first, ShellReply(("Zone far does not answer.",), {}, "unavailable"))
    assert (lost.status, lost.is_running, lost.code) == (3, False, "")
    assert "Job j-1 was started" in lost.lines[-1]
    ended = {"outcome": "failed", "hint": "", "jobs": [{"error": "disk full"}]}
    failed = joined(first, ShellReply(("Outcome: failed.",), ended))
    assert (failed.status, failed.structure["error"], failed.structure["hint"]) == (3, "disk full", "")
    earlier = ShellReply((), {"status": "refused", "job_id": "j-0"})
    assert (earlier.status, earlier.is_running) == (1, False)


async def test_completion_offers_plain_words_only(
    local_zone: LocalZone, disk: Path, tmp_path: Path, shell: Shell
) -> None:
    await local_zone.add_resource(make_image(tmp_path / "x.img"), "$(touch pwned)")
    assert (await shell("completion", "words", "--", "ba")).split() == ["back-up"]
    assert "--wait" in (await shell("completion", "words", "--", "back-up", "db", "--")).split()
    offered = (await shell("completion", "words", "--", "chain", "")).split("\n")
    assert "db" in offered
    assert not [one for one in offered if "$" in one]


@pytest.mark.long
async def test_a_real_bash_completes(shell: Shell) -> None:
    script = await shell("completion", "bash")
    line = f"{script}\nCOMP_WORDS=(snapshot-mcp bac); COMP_CWORD=1; _snapshot_mcp; echo ${{COMPREPLY[@]}}"
    words = f'snapshot-mcp() {{ {" ".join(COMMAND)} "$@"; }}\n'
    done = await anyio.to_thread.run_sync(
        lambda: subprocess.run(["bash", "-c", words + line], env=shell.environ, capture_output=True, check=True)
    )
    assert done.stdout.split() == [b"back-up"]


@pytest.mark.long
async def test_ctrl_c_ends_the_wait_and_not_the_job(local_zone: LocalZone, shell: Shell, disk: Path) -> None:
    worker = worker_pid(local_zone.folder)
    assert worker
    os.kill(worker, signal.SIGSTOP)
    try:
        process = subprocess.Popen([*COMMAND, "back-up", "db", "--wait"], env=shell.environ, stderr=subprocess.PIPE)
        with anyio.fail_after(PATIENCE_SECONDS):
            while not await local_zone.list_unfinished_jobs():
                await anyio.sleep(0.05)
        await anyio.sleep(FIRST_SECONDS + 0.5)
        process.send_signal(signal.SIGINT)
        _, said = await anyio.to_thread.run_sync(process.communicate)
    finally:
        os.kill(worker, signal.SIGCONT)
    (job,) = await local_zone.list_unfinished_jobs() or [None]
    assert process.returncode == 130, said
    assert b" goes on: " in said
    if job:
        assert (await finish(local_zone, job)).is_successful


# To a file


@pytest.fixture
async def point(local_zone: LocalZone, disk: Path) -> str:
    page = await local_zone.list_volumes(ResourceFilter())
    return await back_up(local_zone, page.items[0].id, "monday")


async def test_a_file_is_created_whole_and_never_overwritten(
    shell: Shell, disk: Path, point: str, tmp_path: Path
) -> None:
    before = disk.read_bytes()
    change(disk, 4096)
    out = tmp_path / "out.img"
    assert "every byte verified" in await shell("restore", point, "--to-file", str(out))
    assert out.read_bytes() == before
    assert out.stat().st_mode & 0o777 == 0o600
    said = await shell("restore", point, "--to-file", str(disk), status=1)
    assert "nothing is overwritten" in said
    assert disk.read_bytes() != before


async def test_a_file_follows_no_link_and_stays_out_of_the_home(shell: Shell, point: str, tmp_path: Path) -> None:
    inside, link, dangling = tmp_path / "real", tmp_path / "link", tmp_path / "dangling"
    inside.mkdir()
    link.symlink_to(inside)
    dangling.symlink_to(inside / "target")
    for path, why in (
        (link / "out.img", "symbolic link"),
        (dangling, "nothing is overwritten"),
        (tmp_path / "home" / "zones" / "x.img", "among the files of snapshot-mcp"),
        (tmp_path / "none" / "x.img", "No file can be created"),
    ):
        assert why in await shell("restore", point, "--to-file", str(path), status=1)
    assert not list(inside.iterdir())


@pytest.mark.long
async def test_what_a_kill_leaves_of_a_file_cannot_be_read(local_zone: LocalZone, shell: Shell, tmp_path: Path) -> None:
    disk, out = make_image(tmp_path / "large.img", 256 * MIB), tmp_path / "out.img"
    added = await local_zone.add_resource(disk, "large")
    point = await back_up(local_zone, added.id, "monday")
    process = subprocess.Popen([*COMMAND, "restore", point, "--to-file", str(out)], env=shell.environ)
    with anyio.fail_after(PATIENCE_SECONDS):
        while not out.exists():
            await anyio.sleep(0.001)
    process.kill()
    await anyio.to_thread.run_sync(process.wait)
    mode = out.stat().st_mode & 0o777
    assert mode == 0o200 or out.read_bytes() == disk.read_bytes()


async def test_a_damaged_restore_point_leaves_no_file(
    local_zone: LocalZone, shell: Shell, point: str, tmp_path: Path
) -> None:
    (path,) = (local_zone.folder / "snapshots").glob(f"{point}*")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.chmod(0o600)
    path.write_bytes(content)
    said = await shell("restore", point, "--to-file", str(tmp_path / "out.img"), status=1)
    assert "damaged" in said
    assert not (tmp_path / "out.img").exists()
