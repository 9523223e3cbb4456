"""Commands of the shell as a test runs them: as processes in pipes, or in this process, which costs a second less each."""

import io
import json
import os
import re
import subprocess
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest

from snapshot_mcp.cli import main
from snapshot_mcp.cli.shell.words import COMMAND_OF
from tests.cli.shell import environment, run

TOOL = re.compile("|".join(COMMAND_OF))


class Shell:
    """Commands in a home. What they say names no tool."""

    def __init__(self, home: Path, *, in_process: bool = False, **variables: str) -> None:
        self.environ = environment(home, **variables)
        self.in_process = in_process

    async def __call__(self, *words: str, status: int = 0) -> str:
        """Run a command that ends with this status; return what it says on the stream that belongs to that."""
        done = await self.run(*words)
        said = (done.stdout if status in {0, 3} else done.stderr).decode()
        assert done.returncode == status, (words, done.stdout.decode(), done.stderr.decode())
        assert not TOOL.search(said), said
        return said

    async def run(self, *words: str) -> "subprocess.CompletedProcess[bytes]":
        """Run a command, whatever comes of it."""
        return await anyio.to_thread.run_sync(
            lambda: self._run_here(words) if self.in_process else run(words, self.environ)
        )

    async def json(self, *words: str, status: int = 0) -> Any:
        """Run a command with `--json` and return what it prints."""
        done = await self.run(*words, "--json")
        assert done.returncode == status, (words, done.stdout.decode(), done.stderr.decode())
        return json.loads(done.stdout)

    def _run_here(self, words: tuple[str, ...]) -> "subprocess.CompletedProcess[bytes]":
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            for name in [one for one in os.environ if one.startswith("SNAPSHOT_MCP_")]:
                patch.delenv(name)
            for name, value in self.environ.items():
                patch.setenv(name, value)
            try:
                status = main(words)
            except SystemExit as ended:
                status = int(ended.code or 0)
        return subprocess.CompletedProcess(words, status, out.getvalue().encode(), err.getvalue().encode())
