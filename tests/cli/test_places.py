"""The main job wherever it is run: it works, or one line says why not."""

import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.cli.conftest import make_disk
from tests.cli.shell import COMMAND, environment, run
from tests.marks import long
from tests.patience import PATIENCE_SECONDS

IS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0
needs_root = pytest.mark.skipif(not (IS_ROOT and shutil.which("unshare")), reason="needs root and unshare")

NAMESPACES = ["unshare", "--mount", "--pid", "--fork", "--net", "--ipc", "--uts", "--user", "--map-root-user"]
STRANGER = ["setpriv", "--reuid=4711", "--regid=4711", "--clear-groups"]
LOCALES = {
    "C": {"LC_ALL": "C"},
    "C, insisted on": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    "UTF-8": {"LC_ALL": "C.UTF-8"},
    "Latin-1": {"LC_ALL": "de_DE.ISO-8859-1", "PYTHONIOENCODING": "latin-1"},
}


def has_told_all(done: "subprocess.CompletedProcess[bytes]") -> bool:
    return done.returncode == 0 and b"Everything is correct to the byte." in done.stdout


def run_as_stranger(words: list[str], environ: dict[str, str]) -> "subprocess.CompletedProcess[bytes]":
    """Run a command as a user without a passwd entry and without `HOME`."""
    environ = {key: value for key, value in environ.items() if key not in {"HOME", "SNAPSHOT_MCP_CONFIG", "USER"}}
    environ["PYTHONPATH"] = os.pathsep.join([environ["PYTHONPATH"], *sys.path])
    command = ["setsid", "--wait", *STRANGER, python_of_all(), "-m", "snapshot_mcp", *words]
    return subprocess.run(command, env=environ, cwd="/", capture_output=True, timeout=120, check=False)


def python_of_all() -> str:
    """This Python, or one of its version that another user may run too."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for path in (sys.executable, *(f"{folder}/{version}" for folder in ("/usr/bin", "/usr/local/bin"))):
        code = "import sys, pydantic_core; sys.exit(sys.executable == '')"
        variables = environment(None) | {"PYTHONPATH": os.pathsep.join(sys.path)}
        again = ["sh", "-c", '"$0" -c "$1"', path, code]  # its children must run it too
        if not subprocess.run([*STRANGER, *again], env=variables, capture_output=True, check=False).returncode:
            return path
    pytest.skip("not configured: no Python that another user may run")


@pytest.mark.long
@pytest.mark.parametrize("locale", LOCALES)
def test_the_tour_under_four_locales(tmp_path: Path, locale: str) -> None:
    done = run(["tour", "--yes"], environment(None, TMPDIR=str(tmp_path), **LOCALES[locale]))
    assert has_told_all(done), done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


@needs_root
@pytest.mark.long
def test_the_tour_in_new_namespaces_and_without_a_terminal(tmp_path: Path) -> None:
    done = run(["tour", "--yes"], environment(None, TMPDIR=str(tmp_path)), NAMESPACES)
    assert has_told_all(done), done.stdout + done.stderr


@needs_root
@pytest.mark.long
def test_the_tour_of_a_user_without_name_and_home() -> None:
    """A uid without a passwd entry, no HOME; in a shell of its own session."""
    done = run_as_stranger(["tour", "--yes"], environment(None))
    assert has_told_all(done), done.stdout + done.stderr


@needs_root
@pytest.mark.parametrize("words", [["zone", "list"], long(["approvals"]), long(["jobs"]), long(["tour"])])
def test_without_a_home_the_setting_is_named(words: list[str]) -> None:
    """A traceback, even with SNAPSHOT_MCP_HOME set."""
    done = run_as_stranger(words, environment(None))
    said = done.stderr.decode()
    assert (done.returncode, "Traceback" in said) == (1, False), said
    if words != ["tour"]:
        assert (
            said
            == "snapshot-mcp: This user has no home directory: set SNAPSHOT_MCP_HOME to a folder for the data, or HOME.\n"
        )


@needs_root
def test_without_a_home_the_one_that_is_set_is_used() -> None:
    done = run_as_stranger(["zone", "list"], environment(Path("/no-such-folder/home")))
    assert (done.returncode, b"No disk is registered" in done.stdout) == (0, True), done.stderr


READ_ONLY = (
    "zone list",
    "zone check",
    "zone add {disk}",
    "zone remove vol-x",
    "approvals",
    "deny ap-x",
    "audit",
    "jobs",
)


@needs_root
@pytest.mark.long
def test_a_home_on_a_read_only_filesystem(tmp_path: Path) -> None:
    home, disk = tmp_path / "home", make_disk(tmp_path / "disk.img")
    assert run(["zone", "add", str(disk)], environment(home)).returncode == 0
    assert run(["zone", "keys", "--new", "reader"], environment(home)).returncode == 0
    mount = f"mount --bind {home} {home}; mount -o remount,ro,bind {home}"
    for line in (*READ_ONLY, "zone keys --new reader"):
        command = f"{mount}; {' '.join(COMMAND)} {line.format(disk=disk)}"
        done = run_apart(command, home)
        assert (done.returncode, b"Traceback" in done.stderr) == (1, False), (line, done.stderr)
        assert b"is on a read-only filesystem" in done.stderr, (line, done.stderr)
    assert run_apart(f"{mount}; {' '.join(COMMAND)} zone keys", home).returncode == 0


@needs_root
@pytest.mark.long
def test_without_proc_the_disks_are_listed_all_the_same(tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "disk.img")
    assert run(["zone", "add", str(disk)], environment(tmp_path / "home")).returncode == 0
    done = run_apart(f"mount -t tmpfs none /proc; {' '.join(COMMAND)} zone list", tmp_path / "home")
    assert (done.returncode, str(disk).encode() in done.stdout) == (0, True), done.stderr


def test_a_face_whose_standard_input_nobody_holds_ends_at_once(tmp_path: Path) -> None:
    """`--until-stdin-closes </dev/null` was a traceback."""
    words = ["zone", "serve", "--http", "127.0.0.1:0", "--until-stdin-closes"]
    command = [*COMMAND, *words]
    done = subprocess.run(
        command, env=environment(tmp_path), stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE_SECONDS
    )
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False), done.stderr


def run_apart(line: str, home: Path) -> "subprocess.CompletedProcess[bytes]":
    """Run a line of sh with mounts of its own."""
    command = ["unshare", "--mount", "sh", "-c", line]
    return subprocess.run(
        command, env=environment(home), stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE_SECONDS
    )


@needs_root
@pytest.mark.long
@pytest.mark.parametrize("words", [["codex", "--write"], ["vscode"], ["goose"]])
def test_config_without_a_home_directory_is_one_line(words: list[str]) -> None:
    done = run_as_stranger(["config", *words], environment(Path("/no-such-folder/home")))
    assert (done.returncode, b"Traceback" in done.stderr) == (1, False), done.stderr
    assert b"has no home directory" in done.stderr


def test_jobs_of_a_newer_zone_are_not_called_none(tmp_path: Path) -> None:
    assert run(["zone", "add", str(make_disk(tmp_path / "disk.img"))], environment(tmp_path / "home")).returncode == 0
    with closing(sqlite3.connect(tmp_path / "home" / "zones" / "local" / "catalogue.sqlite")) as db:
        db.execute("PRAGMA user_version = 99")
    done = run(["jobs"], environment(tmp_path / "home"))
    assert done.returncode == 1
    assert b"newer version" in done.stderr
