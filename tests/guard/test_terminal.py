"""The terminal's half of the second door, through the real commands (GUARD.md, "Consent")."""

import os
import pty
import re
import select
import subprocess
import sys
from pathlib import Path

import anyio.to_thread
import pytest

from snapshot_mcp.guard import Policy
from tests.guard.conftest import Bench, nobody
from tests.marks import long
from tests.patience import PATIENCE_SECONDS

pytestmark = pytest.mark.anyio

PIN = "483920"


def run(home: Path, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """The command as a program runs it: without a terminal."""
    command = [sys.executable, "-m", "snapshot_mcp", *words]
    return subprocess.run(command, env=environment(home), input=stdin, capture_output=True, text=True, check=False)


def environment(home: Path) -> dict[str, str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("SNAPSHOT_MCP_")}
    return clean | {"SNAPSHOT_MCP_HOME": str(home), "COLUMNS": "100", "TERM": "dumb"}


def type_into(
    home: Path, words: list[str], answers: list[tuple[str, str]], extra: dict[str, str] | None = None
) -> tuple[int, str]:
    """The command on a terminal of its own; each answer is typed once its prompt is there."""
    command = [sys.executable, "-m", "snapshot_mcp", *words]
    return type_to(command, environment(home) | (extra or {}), answers)


def type_to(
    command: list[str], environ: dict[str, str], answers: list[tuple[str, str]], folder: Path | None = None
) -> tuple[int, str]:
    terminal, inside = pty.openpty()
    process = subprocess.Popen(
        command, env=environ, cwd=folder, stdin=inside, stdout=inside, stderr=inside, start_new_session=True
    )
    os.close(inside)
    shown = ""
    for prompt, answer in answers:
        while prompt not in shown:
            assert select.select([terminal], [], [], PATIENCE_SECONDS)[0], f"no {prompt!r} in {shown!r}"
            shown += os.read(terminal, 4096).decode(errors="replace")
        shown = shown.split(prompt, 1)[1]
        os.write(terminal, f"{answer}\n".encode())
    try:
        while chunk := os.read(terminal, 4096):
            shown += chunk.decode(errors="replace")
    except OSError:
        pass
    os.close(terminal)
    return process.wait(), shown


async def in_terminal(home: Path, words: list[str], *answers: tuple[str, str]) -> tuple[int, str]:
    return await anyio.to_thread.run_sync(lambda: type_into(home, words, list(answers)))


async def waiting(bench: Bench, policy: Policy | None = None) -> tuple[str, str]:
    """A pending deletion that takes the word only: its approval's id and its snapshot's."""
    disk = await bench.add_disk("pg-data")
    await bench.back_up(disk, "full")
    last = await bench.back_up(disk, "monday")
    outcome = await bench.guard(policy).delete_snapshot(bench.zone, last.snapshot_id, nobody())
    return outcome.approval_id, last.snapshot_id


async def test_a_person_approves_with_the_word_and_the_call_goes_through(bench: Bench) -> None:
    approval_id, snapshot_id = await waiting(bench)
    listed = await anyio.to_thread.run_sync(lambda: run(bench.home, "approvals"))
    assert approval_id in listed.stdout
    assert "“monday”" in listed.stdout
    status, shown = await in_terminal(bench.home, ["approve", approval_id], ("Type delete to agree", "delete"))
    assert (status, "Approved" in shown) == (0, True), shown
    assert (await bench.guard().get_approval(approval_id)).door == "terminal without a PIN"
    assert (await bench.guard().delete_snapshot(bench.zone, snapshot_id, nobody())).status == "started"


@pytest.mark.parametrize("answer", ["yes", long(""), long("keep")])
@pytest.mark.long
async def test_any_other_word_leaves_it(bench: Bench, answer: str) -> None:
    approval_id, _ = await waiting(bench)
    status, shown = await in_terminal(bench.home, ["approve", approval_id], ("agree", answer))
    assert (status, "Still pending" in shown) == (1, True)
    assert (await bench.guard().get_approval(approval_id)).state == "pending"


@pytest.mark.long
async def test_without_a_terminal_nothing_is_approved_and_no_pin_is_set(bench: Bench) -> None:
    """A model that can start programs gets no further than one that cannot, unless it imitates a terminal."""
    approval_id, _ = await waiting(bench)
    for words in (["approve", approval_id], ["pin"]):
        result = await anyio.to_thread.run_sync(lambda words=words: run(bench.home, *words, stdin="delete\ndelete\n"))
        assert (result.returncode, "needs a terminal" in result.stderr) == (1, True)
    piped = await anyio.to_thread.run_sync(lambda: run(bench.home, "approve", approval_id, "--pin-stdin", stdin="\n"))
    assert (piped.returncode, "none is set" in piped.stderr) == (1, True)
    assert (await bench.guard().get_approval(approval_id)).state == "pending"
    assert not await bench.guard().has_pin()


@pytest.mark.long
async def test_that_a_pin_is_missing_is_said_before_anything_is_typed(bench: Bench) -> None:
    approval_id, _ = await waiting(bench, Policy(consent="human"))
    status, shown = await in_terminal(bench.home, ["approve", approval_id])
    assert (status, "needs a PIN, but none is set" in shown, " pin`" in shown) == (1, True, True)


@pytest.mark.long
async def test_who_comes_too_late_hears_what_became_of_it(bench: Bench) -> None:
    approval_id, snapshot_id = await waiting(bench)
    await bench.guard().approve(approval_id, None)
    outcome = await bench.guard().delete_snapshot(bench.zone, snapshot_id, nobody())
    for command in ("approve", "deny"):
        said = await anyio.to_thread.run_sync(lambda command=command: run(bench.home, command, approval_id))
        assert (said.returncode, f"Approval {approval_id} is already used" in said.stderr) == (1, True)
        assert f"started as job {outcome.job_id}" in said.stderr


async def test_with_a_pin_the_terminal_proves_a_person(bench: Bench) -> None:
    approval_id, _ = await waiting(bench)
    status, shown = await in_terminal(
        bench.home, ["pin"], ("New PIN", PIN), ("Repeat the new PIN", PIN), ("Phrase", "")
    )
    assert (status, PIN in shown) == (0, False), shown
    status, shown = await in_terminal(bench.home, ["approve", approval_id], ("agree", "delete"), ("PIN", "999111"))
    (wrong,) = [one for one in bench.guard().audit.records() if one["event"] == "PIN wrong"]
    assert wrong["approval"] == approval_id
    assert (status, "it is locked: 4" in shown) == (1, True)
    status, shown = await in_terminal(bench.home, ["approve", approval_id], ("agree", "delete"), ("PIN", PIN))
    assert (status, PIN in shown) == (0, False)
    assert (await bench.guard().get_approval(approval_id)).door == "terminal"


@pytest.mark.long
async def test_a_password_manager_can_pipe_the_pin(bench: Bench) -> None:
    approval_id, _ = await waiting(bench)
    await bench.guard().set_pin(PIN)
    wrong = await anyio.to_thread.run_sync(lambda: run(bench.home, "approve", approval_id, "--pin-stdin", stdin="x\n"))
    assert wrong.returncode == 1
    right = await anyio.to_thread.run_sync(
        lambda: run(bench.home, "approve", approval_id, "--pin-stdin", stdin=f"{PIN}\n")
    )
    assert right.returncode == 0, right.stderr
    assert (await bench.guard().get_approval(approval_id)).state == "granted"


@pytest.mark.long
async def test_changing_the_pin_needs_the_old_one(bench: Bench) -> None:
    await bench.guard().set_pin(PIN)
    for old, expected in (("000111", 1), (PIN, 0)):
        status, _ = await in_terminal(
            bench.home,
            ["pin"],
            ("Current PIN", old),
            ("New PIN", "new-secret"),
            ("Repeat the new PIN", "new-secret"),
            ("Phrase", ""),
        )
        assert status == expected


async def test_denying_needs_no_terminal_and_no_pin(bench: Bench) -> None:
    approval_id, snapshot_id = await waiting(bench)
    denied = await anyio.to_thread.run_sync(lambda: run(bench.home, "deny", approval_id))
    assert denied.returncode == 0
    assert (await bench.guard().delete_snapshot(bench.zone, snapshot_id, nobody())).status == "declined"
    again = await anyio.to_thread.run_sync(lambda: run(bench.home, "deny", approval_id))
    assert (again.returncode, "nothing to deny" in again.stderr) == (1, True)


@pytest.mark.long
async def test_nothing_waits_in_an_empty_home(tmp_path: Path) -> None:
    listed = await anyio.to_thread.run_sync(lambda: run(tmp_path / "none", "approvals"))
    assert (listed.returncode, listed.stdout) == (0, f"No approval is waiting in '{tmp_path / 'none'}'.\n")
    unknown = await anyio.to_thread.run_sync(lambda: run(tmp_path / "none", "approve", "ap-x"))
    assert unknown.returncode == 1
    assert unknown.stderr.startswith(f"snapshot-mcp: There is no approval “ap-x” in '{tmp_path / 'none'}'.")
    assert not (tmp_path / "none").exists()


async def test_a_plan_that_changed_while_a_person_read_it_is_not_approved(bench: Bench) -> None:
    """The yes is to what was shown."""
    disk = await bench.add_disk("pg-data")
    await bench.back_up(disk, "full")
    last = await bench.back_up(disk, "monday")
    guard = bench.guard()
    outcome = await guard.delete_snapshot(bench.zone, last.snapshot_id, nobody())
    shown = await guard.get_approval(outcome.approval_id)
    await bench.back_up(disk, "on monday")
    again = await guard.delete_snapshot(bench.zone, last.snapshot_id, nobody())
    assert again.approval_id == outcome.approval_id
    with pytest.raises(Exception, match="has changed since it was shown"):
        await guard.approve(shown.id, None, digest=shown.plan.digest)
    assert re.search("on monday", "\n".join((await guard.get_approval(shown.id)).lines))
