"""`snapshot-mcp config HOST`: print the configuration for a host on stdout, and where to paste it on stderr."""

import argparse
import json
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from snapshot_mcp.cli.out import say, warn
from snapshot_mcp.contract.errors import BadRequest
from snapshot_mcp.contract.text import encodable
from snapshot_mcp.settings import PREFIX, named_path

NAME = "snapshot-mcp"
HOSTS = ("claude-desktop", "claude-code", "vscode", "cursor")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("host", choices=HOSTS, metavar="HOST", help=", ".join(HOSTS))


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    words, environ = command(), environment()
    if odd := next((one for one in (*words, *environ.values()) if encodable(one) != one), ""):
        message = f"The path {encodable(odd)!r} is not UTF-8 text, so a host's configuration cannot hold it."
        raise BadRequest(message, hint="Use another path: SNAPSHOT_MCP_HOME names the data folder.")
    where, text = snippet(args.host, words, environ)
    warn(where)
    say(*text.splitlines())
    return 0


def command() -> list[str]:
    """Return the command that starts this installation, with its full path: hosts do not use the shell's PATH."""
    beside = Path(sys.executable).parent / (NAME + (".exe" if os.name == "nt" else ""))
    found = str(beside) if beside.is_file() else shutil.which(NAME)
    return [found] if found else [sys.executable, "-m", "snapshot_mcp"]


def environment() -> dict[str, str]:
    """Return the variables with the paths of settings and home, for the host's server; secrets are left out."""
    return {f"{PREFIX}{name}": str(path) for name in ("CONFIG", "HOME") if (path := named_path(os.environ, name))}


def snippet(host: str, words: list[str], environ: dict[str, str]) -> tuple[str, str]:
    """Return where to paste the text, and the text."""
    entry: dict[str, Any] = {"command": words[0]}
    if words[1:]:
        entry["args"] = words[1:]
    if environ:
        entry["env"] = environ
    match host:
        case "claude-code":
            options = [part for key, value in environ.items() for part in ("--env", f"{key}={value}")]
            line = shlex.join(["claude", "mcp", "add", "--scope", "user", NAME, *options, "--", *words])
            return "Run this in a terminal:", line
        case "vscode":
            where = "Add this to .vscode/mcp.json of a workspace (or run “MCP: Open User Configuration”):"
            return where, _json({"servers": {NAME: {"type": "stdio", **entry}}})
        case "cursor":
            where = "Add this to ~/.cursor/mcp.json (or .cursor/mcp.json of a project):"
        case _:
            where = f"Add this to {_claude_desktop_file()} and restart Claude:"
    return where, _json({"mcpServers": {NAME: entry}})


def _claude_desktop_file() -> str:
    mac, windows = "~/Library/Application Support/Claude/", "%APPDATA%\\Claude\\"
    folder = {"darwin": mac, "win32": windows}.get(sys.platform, "~/.config/Claude/")
    return f"{folder}claude_desktop_config.json"


def _json(value: Any) -> str:
    return json.dumps(value, indent=2)
