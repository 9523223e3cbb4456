"""`snapshot-mcp config HOST`: an entry that the host's format takes, that starts the server, and that spoils no file."""

import base64
import io
import json
import os
import shlex
import stat
import tomllib
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import yaml
from mcp import Client, StdioServerParameters

from snapshot_mcp.cli import main
from snapshot_mcp.hosts import jsonc
from snapshot_mcp.hosts.entries import HOSTS
from snapshot_mcp.hosts.launch import Launch, command, this_launch

URL = "http://127.0.0.1:8765/mcp"
SECRET = "the-secret-of-the-provider"

OLD = {
    "json": """{
  // my own note
  "theme": "dark", /* two */
  "PLACE": {
    "other": { "command": "x" }, // keep
  },
}
""",
    "toml": """# my own note
model = "m"  # two

[PLACE.other]
command = "x"  # keep
""",
    "yaml": """# my own note
theme:   dark  # two
PLACE:
    other:
        cmd: x   # keep
        list:
          - a
last: 1
""",
}
READ: dict[str, Any] = {"json": jsonc.read, "toml": tomllib.loads, "yaml": yaml.safe_load}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A person's home folder."""
    for name in ("CLAUDE_CONFIG_DIR", "CODEX_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "APPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "person"))
    monkeypatch.setenv("SNAPSHOT_MCP_HOME", str(tmp_path / "home"))
    return tmp_path / "person"


@dataclass(frozen=True)
class Done:
    """What a command has printed, and its status."""

    returncode: int
    stdout: str
    stderr: str


def run(*words: str, **variables: str) -> Done:
    """Run the command in this process, which is ten times as fast as in one of its own."""
    out, errors = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(errors):
        for name, value in variables.items():
            patch.setenv(name, value)
        status = main(["config", *words])
    return Done(status, out.getvalue(), errors.getvalue())


def entry_in(host: str, text: str) -> dict[str, Any]:
    """The entry that a host finds in a text of its format."""
    place = HOSTS[host].place
    found: dict[str, Any] = READ[HOSTS[host].format](text)[place]["snapshot-mcp"]
    return found


def expected_entry(host: str) -> dict[str, Any]:
    """The entry that a process with these variables prints."""
    return HOSTS[host].entry(this_launch())


def started_by(entry: dict[str, Any]) -> tuple[str, list[str], dict[str, str]]:
    words = [entry.get("command") or entry["cmd"], *entry.get("args", [])]
    return words[0], words[1:], entry.get("env") or entry.get("envs") or {}


@pytest.mark.anyio
async def test_every_entry_starts_the_server(home: Path) -> None:
    """They are the same words and variables for every host, so that one start stands for all."""
    starts = []
    for host in HOSTS:
        done = run(host)
        assert done.returncode == 0, done.stderr
        if host == "claude-code":
            words = shlex.split(done.stdout)
            assert words[:6] == ["claude", "mcp", "add", "--scope", "user", "snapshot-mcp"]
            options, start = words[6 : words.index("--")], words[words.index("--") + 1 :]
            starts.append((start[0], start[1:], dict(one.split("=", 1) for one in options if one != "--env")))
        else:
            starts.append(started_by(entry_in(host, done.stdout)))
            assert str(HOSTS[host].file()) in done.stderr
    assert all(one == starts[0] for one in starts)
    word, arguments, variables = starts[0]
    assert variables == {"SNAPSHOT_MCP_HOME": os.environ["SNAPSHOT_MCP_HOME"]}
    async with Client(StdioServerParameters(command=word, args=arguments, env=variables)) as client:
        assert len((await client.list_tools()).tools) == 14


@pytest.mark.parametrize("host", HOSTS)
def test_the_entry_is_merged_and_all_else_stays(home: Path, host: str) -> None:
    path = HOSTS[host].file()
    assert path.is_relative_to(home)
    path.parent.mkdir(parents=True)
    old = OLD[HOSTS[host].format].replace("PLACE", HOSTS[host].place)
    path.write_text(old)
    path.chmod(0o640)
    done = run(host, "--write")
    assert done.returncode == 0, done.stderr
    new = path.read_text()
    lines = new.splitlines()
    assert all(line in lines for line in old.splitlines()), new
    assert entry_in(host, new) == expected_entry(host)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    (copy,) = path.parent.glob("*.bak")
    assert (copy.read_text(), stat.S_IMODE(copy.stat().st_mode)) == (old, 0o600)
    assert str(copy) in done.stdout
    again = run(host, "--write")
    assert "already" in again.stdout
    assert path.read_text() == new
    assert len(list(path.parent.glob("*.bak"))) == 1


@pytest.mark.parametrize("host", HOSTS)
def test_a_new_file_is_for_its_owner_and_an_old_entry_is_replaced(home: Path, host: str) -> None:
    """What a person has added to the entry stays, what says how the server is reached does not."""
    path = HOSTS[host].file()
    path.parent.parent.mkdir(parents=True, exist_ok=True)
    assert run(host, "--write").returncode == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = path.read_text()
    kind = HOSTS[host].format
    mine = {"json": '"mine": true, "url": "old", "command"', "toml": 'mine = true\nurl = "old"\ncommand'}
    mine["yaml"] = "mine: true\n    uri: old\n    cmd"
    word = "cmd" if kind == "yaml" else '"command"' if kind == "json" else "command"
    path.write_text(text.replace(word, mine[kind], 1))
    assert run(host, "--write").returncode == 0
    assert entry_in(host, path.read_text()) == {**entry_in(host, text), "mine": True}


BROKEN = {
    "json": ["{", '{"PLACE": 1}', '{"PLACE": {"snapshot-mcp": {}, "snapshot-mcp": {}}}', "\udcff", "[]"],
    "toml": ["a = ", "PLACE = 1", "\udcff", "PLACE = [1]"],
    "yaml": ["a: [", "PLACE: [1]", "\udcff", "a: 1\n---\nb: 2\n", "{a: 1}"],
}


@pytest.mark.parametrize("host", ["cursor", "codex", "goose"])
def test_a_file_that_cannot_be_merged_is_refused_and_stays(home: Path, host: str) -> None:
    path = HOSTS[host].file()
    path.parent.mkdir(parents=True)
    for text in BROKEN[HOSTS[host].format]:
        content = text.replace("PLACE", HOSTS[host].place).encode(errors="surrogateescape")
        path.write_bytes(content)
        done = run(host, "--write")
        assert done.returncode == 1, text
        assert "was not changed" in done.stderr
        assert "Traceback" not in done.stderr
        assert path.read_bytes() == content
        assert list(path.parent.iterdir()) == [path]


def test_a_link_to_a_file_stays_a_link(home: Path) -> None:
    """People keep such files under version control."""
    path = HOSTS["cursor"].file()
    path.parent.mkdir(parents=True)
    real = home / "dotfiles.json"
    real.write_text("{}")
    path.symlink_to(real)
    assert run("cursor", "--write").returncode == 0
    assert path.is_symlink()
    assert entry_in("cursor", real.read_text())


def test_secrets_and_what_needs_them_are_left_out_and_named(home: Path) -> None:
    variables = {
        "SNAPSHOT_MCP_API_URL": "https://user:pass@provider.example",
        "SNAPSHOT_MCP_API_CLIENT_ID": "me",
        "SNAPSHOT_MCP_API_CLIENT_SECRET": SECRET,
        "SNAPSHOT_MCP_ZONE": "pek3",
        "SNAPSHOT_MCP_READ_ONLY": "true",
        "SNAPSHOT_MCP_CONFIG": "somewhere/config.toml",
    }
    for host in HOSTS:
        done = run(host, **variables)
        shown = done.stdout + done.stderr
        assert SECRET not in shown
        assert "pass" not in done.stdout
        for name in ("URL", "CLIENT_ID", "CLIENT_SECRET"):
            assert f"SNAPSHOT_MCP_API_{name}" in done.stderr
            assert f"SNAPSHOT_MCP_API_{name}" not in done.stdout
        assert "SNAPSHOT_MCP_READ_ONLY" in done.stdout
        assert str(Path("somewhere/config.toml").absolute()) in done.stdout
        assert run(host, "--write", **variables).returncode == 0
        assert SECRET not in HOSTS[host].file().read_text()


def test_over_http_the_token_is_a_variable_of_the_host(home: Path) -> None:
    for host, about in HOSTS.items():
        done = run(host, "--http", URL, SNAPSHOT_TOKEN=SECRET)
        if about.over_http is None:
            assert done.returncode == 1
            continue
        assert URL in done.stdout
        assert SECRET not in done.stdout + done.stderr
        assert ("SNAPSHOT_TOKEN" in done.stdout) == bool(about.reference), host
        assert "token" in done.stderr
        assert "Authorization" not in run(host, "--http", URL, "--token-variable", "").stdout
        assert run(host, "--http", URL, "--write").returncode == 0
        assert URL in about.file().read_text()


@pytest.mark.parametrize(
    "words",
    [
        ("cursor", "--http", "127.0.0.1:8765"),
        ("cursor", "--http", "http://me:secret@127.0.0.1/mcp"),
        ("cursor", "--http", f"{URL}?token=secret"),
        ("cursor", "--http", URL, "--token-variable", "s3cret value"),
        ("cursor", "--http", URL, "--token-variable", "SNAPSHOT_MCP_TOKEN"),
        ("cursor", "--http", URL, "--token-variable", "a3f5" * 12),
        ("codex", "--link"),
    ],
)
def test_wrong_options_are_explained(home: Path, words: tuple[str, ...]) -> None:
    done = run(*words)
    assert done.returncode == 1
    assert "secret" not in done.stderr
    assert "snapshot-mcp: " in done.stderr


def test_links_hold_the_entry(home: Path) -> None:
    """Decoded as the hosts document it."""
    assert {name for name in HOSTS if run(name, "--link").returncode == 0} == {"vscode", "cursor", "lmstudio"}
    expected = expected_entry("cursor")
    packed = json.loads(unquote(run("vscode", "--link").stdout.strip().partition("?")[2]))
    assert packed == {"name": "snapshot-mcp", "type": "stdio", **expected}
    for name in ("cursor", "lmstudio"):
        query = parse_qs(urlsplit(run(name, "--link").stdout.strip()).query)
        assert query["name"] == ["snapshot-mcp"]
        assert json.loads(base64.b64decode(query["config"][0])) == expected


def test_goose_has_a_link_only_to_a_program_that_it_starts(home: Path) -> None:
    done = run("goose", "--link")
    assert "takes no link to a program of this installation" in done.stderr
    goose = HOSTS["goose"]
    query = parse_qs(urlsplit(goose.link(goose.entry(Launch(("uvx", "snapshot-mcp"))))).query)
    assert (query["cmd"], query["arg"]) == (["uvx"], ["snapshot-mcp"])


def test_writing_again_keeps_what_a_person_has_set_and_the_comments_behind_it(home: Path) -> None:
    codex = HOSTS["codex"].file()
    codex.parent.mkdir(parents=True)
    codex.write_text(
        '[mcp_servers.snapshot-mcp]\ncommand = "old"\nstartup_timeout_sec = 90  # a slow disk\n\n'
        '# my work profile, do not touch\n[profiles.work]\nmodel = "m"\n'
    )
    assert run("codex", "--write").returncode == 0
    text = codex.read_text()
    assert "# my work profile, do not touch\n[profiles.work]" in text
    assert "startup_timeout_sec = 90  # a slow disk" in text
    assert "old" not in text
    goose = HOSTS["goose"].file()
    goose.parent.mkdir(parents=True)
    goose.write_text("extensions:\n  snapshot-mcp:\n    cmd: old\n    enabled: false\n    timeout: 900\n")
    assert run("goose", "--write").returncode == 0
    entry = yaml.safe_load(goose.read_text())["extensions"]["snapshot-mcp"]
    assert (entry["enabled"], entry["timeout"]) == (False, 900)


def test_where_settings_and_data_are_elsewhere_the_entry_says_so(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No host passes such variables on, and without them the server would have another home and no rules."""
    monkeypatch.delenv("SNAPSHOT_MCP_HOME")
    places = {"XDG_CONFIG_HOME": str(home / "c"), "XDG_DATA_HOME": str(home / "d")}
    for name, value in places.items():
        monkeypatch.setenv(name, value)
    assert places.items() <= dict(this_launch().environ).items()
    monkeypatch.setenv("SNAPSHOT_MCP_HOME", "/data")
    assert "XDG_DATA_HOME" not in this_launch().environ


@pytest.mark.parametrize(
    ("prefix", "words"),
    [
        ("/home/me/.cache/uv/archive-v0/AbC-d", ["uvx", "snapshot-mcp"]),
        ("/var/cache/uv/environments-v2/snapshot-mcp-1a2b", ["uvx", "snapshot-mcp"]),
        ("/home/me/.local/pipx/.cache/0d1e", ["pipx", "run", "snapshot-mcp"]),
        ("/home/me/.cache/pipx/0d1e", ["pipx", "run", "snapshot-mcp"]),
    ],
)
def test_a_cached_environment_is_never_named(prefix: str, words: list[str]) -> None:
    assert command(prefix, f"{prefix}/bin/python") == words


def test_an_environment_of_pipx_is_started_by_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pipx makes the environment anew with a new Python; its command stays where it is."""
    venv, program = tmp_path / "pipx" / "venvs" / "snapshot-mcp", tmp_path / "bin" / "snapshot-mcp"
    for one in (venv / "bin" / "snapshot-mcp", program):
        one.parent.mkdir(parents=True)
        one.touch()
    monkeypatch.setenv("PIPX_BIN_DIR", str(program.parent))
    assert command(str(venv), str(venv / "bin" / "python")) == [str(program)]
    assert command(str(tmp_path), str(venv / "bin" / "python")) == [str(venv / "bin" / "snapshot-mcp")]
