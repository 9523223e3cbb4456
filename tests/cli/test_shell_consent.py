"""What destroys from a shell wants the person's PIN: through real processes on pseudo-terminals (GUARD.md, "The shell")."""

import os
import pty
import select
import signal
import subprocess
import termios
from pathlib import Path

import anyio.to_thread
import pytest

from snapshot_mcp.guard import Guard, Policy
from snapshot_mcp.providers.local import LocalZone
from tests.cli.commands import Shell
from tests.cli.shell import COMMAND, environment, run
from tests.disks import back_up, change, ids, make_image
from tests.guard.test_terminal import type_to
from tests.marks import long
from tests.patience import PATIENCE_SECONDS

pytestmark = pytest.mark.anyio

PIN = "483920"


class Desk:
    """A disk with two restore points, and a person at a terminal."""

    def __init__(self, home: Path, zone: LocalZone, disk: Path, points: list[str]) -> None:
        self.home, self.zone, self.disk, self.points = home, zone, disk, points
        self.guard = Guard(home, Policy())
        self.before = disk.read_bytes()

    async def type(self, *words: str, answers: list[tuple[str, str]] | None = None) -> tuple[int, str]:
        environ = environment(self.home, TERM="dumb", COLUMNS="200")
        return await anyio.to_thread.run_sync(lambda: type_to([*COMMAND, *words], environ, answers or []))

    async def is_untouched(self) -> bool:
        there = await ids(self.zone)
        is_open = [one for one in await self.guard.list_approvals() if one.expires_at]
        return set(self.points) <= there and self.disk.read_bytes() == self.before and not is_open


@pytest.fixture
async def desk(local_zone: LocalZone, tmp_path: Path) -> Desk:
    disk = make_image(tmp_path / "db.img")
    added = await local_zone.add_resource(disk, "db")
    points = [await back_up(local_zone, added.id, "monday")]
    change(disk, 4096)
    points.append(await back_up(local_zone, added.id, "tuesday"))
    return Desk(tmp_path / "home", local_zone, disk, points)


ACTS = [("delete", "delete"), long("restore", "roll back")]


def words_of(act: str, snapshot_id: str) -> list[str]:
    return [act, snapshot_id, *(["--in-place"] if act == "restore" else [])]


@pytest.mark.parametrize(("act", "word"), ACTS)
async def test_without_a_pin_it_says_to_set_one_or_let_the_assistant_ask(desk: Desk, act: str, word: str) -> None:
    for status, said in (
        await desk.type(*words_of(act, desk.points[1])),
        await anyio.to_thread.run_sync(lambda: piped(desk.home, words_of(act, desk.points[1]))),
    ):
        assert (status, "Set one with" in said, "let the assistant ask you" in said) == (1, True, True), said
        assert ("--to-volume" in said) == (act == "restore")
    assert await desk.is_untouched()


def piped(home: Path, words: list[str], stdin: str = "") -> tuple[int, str]:
    done = run(words, environment(home), stdin=stdin)
    return done.returncode, done.stderr.decode()


@pytest.mark.parametrize(("act", "word"), ACTS)
async def test_a_program_without_the_pin_destroys_nothing(desk: Desk, act: str, word: str) -> None:
    """In a pseudo-terminal it may answer what it likes; in a pipe it is not asked; no option answers."""
    await desk.guard.set_pin(PIN)
    words = words_of(act, desk.points[1])
    status, said = await desk.type(*words, answers=[("to agree", word), ("PIN", "000111")])
    assert (status, "That is not the PIN" in said) == (1, True), said
    status, said = await anyio.to_thread.run_sync(lambda: piped(desk.home, words, f"{word}\n{PIN}\n"))
    assert (status, "needs a terminal" in said) == (1, True)
    for option in ("--yes", "--force", "--pin-stdin"):
        await Shell(desk.home, in_process=True)(*words, option, status=2)
    assert await desk.is_untouched()


@pytest.mark.long
async def test_guessing_locks_the_terminal(desk: Desk) -> None:
    await desk.guard.set_pin(PIN)
    for guess in range(7):
        status, said = await desk.type(
            "delete", desk.points[1], answers=[("to agree", "delete"), ("PIN", f"11122{guess}")]
        )
        assert status == 1
    assert "locked" in said
    assert await desk.is_untouched()


async def test_the_person_deletes_and_recovers(desk: Desk) -> None:
    await desk.guard.set_pin(PIN)
    status, said = await desk.type("delete", desk.points[1], answers=[("to agree", "no")])
    assert (status, "Not confirmed: nothing was done." in said) == (1, True), said
    assert await desk.is_untouched()
    status, said = await desk.type("delete", desk.points[1], "--wait", answers=[("to agree", "delete"), ("PIN", PIN)])
    assert (status, "Outcome: successful." in said, PIN in said) == (0, True, False), said
    assert "recover SNAPSHOT`" in said
    assert desk.points[1] not in await ids(desk.zone)
    status, said = await desk.type("recover", desk.points[1], "--wait")
    assert (status, desk.points[1] in await ids(desk.zone)) == (0, True), said


@pytest.mark.long
async def test_the_person_rolls_back(desk: Desk) -> None:
    await desk.guard.set_pin(PIN)
    _, planned = await desk.type("restore", desk.points[0], "--in-place", "--plan")
    assert "safety snapshot" in planned
    words = ["restore", desk.points[0], "--in-place", "--wait"]
    status, said = await desk.type(*words, answers=[("to agree", "roll back"), ("PIN", PIN)])
    assert (status, "Outcome: successful." in said) == (0, True), said
    assert desk.disk.read_bytes() != desk.before


@pytest.mark.parametrize("number", [long(signal.SIGINT), long(signal.SIGKILL)])
async def test_a_command_that_ends_while_it_asks_leaves_nothing(desk: Desk, number: signal.Signals) -> None:
    await desk.guard.set_pin(PIN)
    status, is_echoing = await anyio.to_thread.run_sync(lambda: interrupted(desk, number))
    assert status == (130 if number == signal.SIGINT else -number)
    assert is_echoing or number == signal.SIGKILL
    assert await desk.is_untouched()


def interrupted(desk: Desk, number: signal.Signals) -> tuple[int, bool]:
    """End `delete` at the entry of the PIN; return its status, and whether the terminal still shows what is typed."""
    terminal, inside = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "delete", desk.points[1]],
        env=environment(desk.home),
        stdin=inside,
        stdout=inside,
        stderr=inside,
        preexec_fn=lambda: (os.setsid(), os.close(os.open(os.ttyname(0), os.O_RDWR))),  # its controlling terminal
    )
    shown = ""
    for prompt, answer in (("to agree", b"delete\n"), ("PIN:", b"")):
        while prompt not in shown:
            assert select.select([terminal], [], [], PATIENCE_SECONDS)[0], shown
            shown += os.read(terminal, 4096).decode(errors="replace")
        os.write(terminal, answer)
    process.send_signal(number)
    status = process.wait(PATIENCE_SECONDS)
    is_echoing = bool(termios.tcgetattr(inside)[3] & termios.ECHO)
    os.close(inside)
    os.close(terminal)
    return status, is_echoing


@pytest.mark.long
async def test_an_odd_answer_is_no_yes(desk: Desk) -> None:
    await desk.guard.set_pin(PIN)
    status, said = await desk.type("delete", desk.points[0], answers=[("to agree", "\x04")])
    assert status == 1, said
    assert await desk.is_untouched()
