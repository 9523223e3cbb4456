"""Commands as a shell runs them: with redirections, as another user, with any bytes in their arguments."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.patience import PATIENCE_SECONDS

COMMAND = [sys.executable, "-m", "snapshot_mcp"]


def environment(home: Path | None, **variables: str) -> dict[str, str]:
    """This process's variables without our own settings; the settings file is an empty one."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("SNAPSHOT_MCP_")}
    own = {"SNAPSHOT_MCP_CONFIG": os.devnull} | ({"SNAPSHOT_MCP_HOME": str(home)} if home else {})
    return {**kept, **own, "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONUNBUFFERED": "", **variables}


def run(
    words: Sequence[str | bytes], environ: dict[str, str], before: Sequence[str] = (), stdin: str = ""
) -> "subprocess.CompletedProcess[bytes]":
    """Run a command; `before` is what it is run by (`unshare`, `setpriv`)."""
    return subprocess.run(
        [*before, *COMMAND, *words],
        env=environ,
        input=stdin.encode(),
        capture_output=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )


def run_in_shell(line: str, home: Path, **variables: str) -> "subprocess.CompletedProcess[bytes]":
    """Run a line of bash; `$RUN` is the command, and the status of a pipe is the command's own."""
    environ = environment(home, RUN=" ".join(COMMAND), **variables)
    return subprocess.run(
        ["bash", "-c", f"{line}; exit ${{PIPESTATUS[0]}}"],
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
