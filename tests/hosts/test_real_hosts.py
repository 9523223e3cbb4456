"""The hosts' own programs take the entry, start the server with it and list it as connected; no login is needed for that."""

import json
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.hosts.programs import npm
from tests.patience import PATIENCE_SECONDS
from tests.server.conftest import lab as lab
from tests.server.lab import Lab
from tests.server.test_processes import SERVE, http_server

pytestmark = pytest.mark.long

PACKAGES = {
    "claude-code": ("@anthropic-ai/claude-code@2", "claude", "Connected"),
    "codex": ("@openai/codex", "codex", "enabled"),
    "gemini": ("@google/gemini-cli", "gemini", "Connected"),
}
CONFIG = [*SERVE[:-1], "config"]


class Shell:
    """A person's shell, with the host's program on its PATH."""

    def __init__(self, lab: Lab, host: str, folder: Path) -> None:
        package, self.program, self.word = PACKAGES[host]
        self.folder = folder
        (folder / ".gemini").mkdir()
        (folder / ".gemini" / "trustedFolders.json").write_text(json.dumps({str(folder): "TRUST_FOLDER"}))
        self.environ = npm(package, self.program) | lab.environ | {"HOME": str(folder)}

    def run(self, *words: str, with_errors: bool = False) -> str:
        done = subprocess.run(
            words,
            env=self.environ,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=6 * PATIENCE_SECONDS,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + (done.stderr if with_errors else "")

    def is_listed(self) -> bool:
        """Whether the host lists the server, and could reach it if it tries."""
        listed = self.run(self.program, "mcp", "list", with_errors=True)  # Gemini CLI writes it there
        return any("snapshot-mcp" in line and self.word in line for line in listed.splitlines())


@pytest.fixture(params=PACKAGES)
def shell(lab: Lab, request: pytest.FixtureRequest, tmp_path: Path) -> Shell:
    folder = tmp_path / "person"
    folder.mkdir()
    return Shell(lab, request.param, folder)


def test_a_host_lists_what_was_written_into_its_file(shell: Shell, lab: Lab, request: pytest.FixtureRequest) -> None:
    host = request.node.callspec.params["shell"]
    shell.run(*CONFIG, host, "--write")
    assert shell.is_listed()
    with http_server(lab) as (url, _):
        shell.run(*CONFIG, host, "--write", "--http", url)
        assert shell.is_listed()
        assert url in shell.run(shell.program, "mcp", "list", with_errors=True)


def test_the_printed_line_adds_it_to_claude_code(lab: Lab, tmp_path: Path) -> None:
    folder = tmp_path / "person"
    folder.mkdir()
    shell = Shell(lab, "claude-code", folder)
    shell.run(*shlex.split(shell.run(*CONFIG, "claude-code")))
    assert "Connected" in shell.run("claude", "mcp", "get", "snapshot-mcp")
    shell.run("claude", "mcp", "remove", "snapshot-mcp", "-s", "user")
    with http_server(lab) as (url, _):
        shell.run(*shlex.split(shell.run(*CONFIG, "claude-code", "--http", url)))
        assert url in shell.run("claude", "mcp", "get", "snapshot-mcp")
