"""What a command prints always arrives or is missed in one line, whatever the terminal, the locale and the reader do."""

import fcntl
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import sleep

import pytest

from tests.cli.shell import COMMAND, environment, run, run_in_shell
from tests.marks import long
from tests.patience import PATIENCE_SECONDS

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX shells")

Odd = tuple[Path, list[str]]

LOCALES = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "C": {"LC_ALL": "C"},
    "C, insisted on": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "utf-8": {"LC_ALL": "C.UTF-8"},
}


@pytest.mark.parametrize("locale", [one if one == "ascii" else long(one) for one in LOCALES])
def test_no_locale_takes_the_list_away(odd_home: Odd, locale: str) -> None:
    """`PYTHONIOENCODING=ascii zone list` with a disk "Ä" was a traceback, and the whole list was gone."""
    home, ids = odd_home
    done = run(["zone", "list"], environment(home, **LOCALES[locale]))
    assert (done.returncode, done.stderr) == (0, b"")
    lines = done.stdout.splitlines()
    assert sorted(line.split()[0].decode() for line in lines) == sorted(ids)
    assert any(b"/\\xff\\xfe.img" in line for line in lines), "the bytes of a path are shown"
    name = {"latin-1": "Ä".encode("latin-1"), "utf-8": "Ä".encode(), "C": "Ä".encode()}.get(locale, b"\\xc4")
    assert any(line.split()[1] == name for line in lines)


@pytest.mark.parametrize(
    ("line", "status", "says"),
    [
        ("$RUN zone list >/dev/full", 1, b"could not be written: No space left on device"),
        ("$RUN --help >/dev/full", 1, b"could not be written: No space left on device"),
        long("$RUN approvals --json >/dev/full", 1, b"could not be written: No space left on device"),
        long("$RUN zone list >&-", 1, b"could not be written: Bad file descriptor"),
        long("$RUN tour --yes >&-", 1, b"could not be written: Bad file descriptor"),
        ("$RUN zone list | true", 1, b""),
        long("$RUN approvals --all | true", 1, b""),
        long("$RUN zone list | head -1", 0, b""),
        long("$RUN zone list <&-", 0, b""),
        long("$RUN zone list 2>&-", 0, b""),
        long("$RUN zone remove vol-none 2>&-", 1, b""),
        long("$RUN zone remove vol-none 2>/dev/full", 1, b""),
        ("$RUN nonsense <&- >&- 2>&-", 2, b""),
        long("$RUN approve ap-none <&-", 1, b"There is no approval"),
        long("$RUN pin <&-", 1, b"needs a terminal"),
    ],
)
def test_output_that_is_lost_is_one_line_and_no_traceback(odd_home: Odd, line: str, status: int, says: bytes) -> None:
    """A reader that goes away, closed standard streams, a full disk: tracebacks, or success."""
    done = run_in_shell(line, odd_home[0])
    assert (done.returncode, b"Traceback" in done.stderr) == (status, False), done.stderr
    messages = [one for one in done.stderr.splitlines() if one.startswith(b"snapshot-mcp:")]
    assert (len(messages), says in done.stderr) == (bool(says), True), done.stderr


def test_a_closed_stream_gives_its_number_to_no_other_file(odd_home: Odd) -> None:
    """The zone's files would become standard output, and be written to."""
    done = run_in_shell("$RUN zone list 2>&1 <&-", odd_home[0])
    assert done.returncode == 0
    script = (
        "import os; from snapshot_mcp.cli import streams; streams.settle();"
        " print([os.fstat(one).st_rdev for one in (0, 1, 2)], file=open(3, 'w'))"
    )
    command = ["bash", "-c", f'exec 3>&1 <&- >&- 2>&-; {sys.executable} -c "{script}"']
    null = Path(os.devnull).stat().st_rdev
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == f"{[null] * 3}\n"


def interrupted(words: list[str], home: Path, is_waiting: Callable[[int], bool]) -> tuple[int, bytes, bytes]:
    """Ctrl-C once a command waits for what it cannot get."""
    process = subprocess.Popen(
        [*COMMAND, *words],
        env=environment(home),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        while process.poll() is None and not is_waiting(process.pid):
            sleep(0.005)
        process.send_signal(signal.SIGINT)
        out, said = process.communicate(timeout=PATIENCE_SECONDS)
    finally:
        process.kill()
    return process.returncode, out, said


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="Linux")
@pytest.mark.long
def test_ctrl_c_ends_a_command_that_waits_for_a_lock(tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)

    def is_waiting(pid: int) -> bool:
        return any("->" in line and f" {pid} " in line for line in Path("/proc/locks").read_text().splitlines())

    assert interrupted(["zone", "keys", "--new", "reader"], tmp_path, is_waiting) == (130, b"", b"")
    os.close(folder)
    assert not (tmp_path / "zone-serve.json").exists()


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="Linux")
def test_ctrl_c_does_not_wait_for_a_thread(odd_home: Odd, tmp_path: Path) -> None:
    """A thread waits up to 30 s for the catalogue's lock, and the exit for the thread."""
    home, ids = odd_home
    catalogue = home / "zones" / "local" / "catalogue.sqlite"
    with sqlite3.connect(catalogue, isolation_level=None) as db:
        db.execute("BEGIN IMMEDIATE")

        def is_waiting(pid: int) -> bool:
            files = [one.readlink() for one in Path(f"/proc/{pid}/fd").iterdir() if one.is_symlink()]
            return catalogue in files

        assert interrupted(["zone", "remove", ids[0]], home, is_waiting) == (130, b"", b"")
        db.execute("ROLLBACK")
    db.close()


def test_ctrl_c_while_a_command_starts_is_quiet(tmp_path: Path) -> None:
    """It imports for a quarter of a second."""

    def has_begun(pid: int) -> bool:
        return "pydantic_core" in Path(f"/proc/{pid}/maps").read_text()

    assert interrupted(["zone", "list"], tmp_path, has_begun) in {(130, b"", b""), (0, b"", b"")}


@pytest.mark.long
def test_ctrl_c_ends_the_rest_face(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "zone", "serve", "--http", "127.0.0.1:0"], env=environment(tmp_path), stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    assert b"zone 'local' at" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    assert (process.wait(PATIENCE_SECONDS), b"Traceback" in rest) == (130, False), rest
    process.stderr.close()
