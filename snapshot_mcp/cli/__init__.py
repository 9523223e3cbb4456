"""Commands for people. `main` imports only the command that runs, because imports delay every server start.

A command is a module with `add_arguments(parser)` and `run(args) -> int`. An expected error prints its message and hint on
stderr and exits with status 1; wrong usage exits with 2, Ctrl-C and Ctrl-D with 130.
"""

import argparse
import gc
import importlib
import os
import sys
from collections.abc import Sequence

from snapshot_mcp import __version__
from snapshot_mcp.cli import streams

SHELL = {
    "back-up": "back up disks, several at one point in time",
    "snapshots": "list restore points, newest first",
    "disks": "list disks: are all of them backed up?",
    "chain": "draw a disk's restore points as a tree",
    "restore": "bring a restore point back: to a new volume, image or file, or in place",
    "delete": "delete a restore point and everything built on it; wants the PIN",
    "recover": "bring deleted restore points back within their grace period",
    "verify": "read restore points back whole",
    "rename": "change a restore point's name or description",
    "tag": "set a restore point's tags",
    "cancel": "cancel a job that has had no effect yet",
}
"""The tools' acts, for a person without an assistant."""

COMMANDS = {
    "serve": ("snapshot_mcp.cli.serve", "run the MCP server (stdio; this is the default)"),
    "tour": ("snapshot_mcp.cli.tour", "see it work: back up a scratch disk, change it, roll it back"),
    "config": ("snapshot_mcp.cli.config", "into a host: Claude Code, Codex, Gemini CLI, VS Code, Cursor and others"),
    "manifest": (
        "snapshot_mcp.cli.manifest",
        "the files of a package: the MCP registry, plugins, a Gemini extension, MCPB",
    ),
    **{name: ("snapshot_mcp.cli.shell.acts", text) for name, text in SHELL.items()},
    "open": ("snapshot_mcp.cli.open", "serve a restore point read-only over NBD, to take single files out of it"),
    "copy": ("snapshot_mcp.cli.copy", "copies that survive the machine: run, list, check, and their recovery key"),
    "restore-from": ("snapshot_mcp.cli.restore_from", "back from a copy on a new machine: a zone, or one disk"),
    "zone": ("snapshot_mcp.cli.zone", "the embedded zone: add, remove, list, check and purge disks, serve it"),
    "jobs": ("snapshot_mcp.cli.jobs", "what runs and what was done, who asked and who approved"),
    "approvals": ("snapshot_mcp.cli.approvals", "list the requests that wait for a person's approval"),
    "approve": ("snapshot_mcp.cli.approvals", "approve one of them"),
    "deny": ("snapshot_mcp.cli.approvals", "deny one of them"),
    "pin": ("snapshot_mcp.cli.approvals", "set the PIN that proves that you approve"),
    "doctor": ("snapshot_mcp.cli.doctor", "what is wrong with this installation, and the next step; changes nothing"),
    "completion": ("snapshot_mcp.cli.completion", "what makes a shell complete commands, disks and restore points"),
    "audit": ("snapshot_mcp.cli.audit", "the record of what was planned, asked, answered and done"),
}
"""Each command with its module and its help text."""

WITHOUT_SETTINGS = {"tour", "config", "manifest", "doctor", "completion"}
"""Commands that do not read the settings file, or report it themselves."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if argv is None:
            streams.insist_on_utf8()
        streams.settle()
        try:
            return _run(words)
        finally:
            streams.finish()
    except (KeyboardInterrupt, EOFError):
        return streams.end_interrupted()
    except streams.OutputLost as lost:
        return _fail(str(lost))
    except BrokenPipeError:  # of a server's standard output
        streams.lost(OSError())
        return 1


def build_parser(command: str) -> argparse.ArgumentParser:
    """Return the parser; only `command` has its arguments, for the others it knows just the name."""
    from snapshot_mcp.cli.out import Parser

    parser = Parser(prog="snapshot-mcp", description="Volume snapshots for assistants.")
    parser.add_argument("--version", action="version", version=f"snapshot-mcp {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module, text) in COMMANDS.items():
        sub = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        sub.set_defaults(command=name)
        if name == command:
            importlib.import_module(module).add_arguments(sub)
    return parser


def _run(words: list[str]) -> int:
    if not words or (words[0].startswith("-") and words[0] not in {"-h", "--help", "--version"}):
        words.insert(0, "serve")
    if words[0] == "serve":
        gc.disable()
    return _carry_out(build_parser(words[0]).parse_args(words))


def _carry_out(args: argparse.Namespace) -> int:
    from snapshot_mcp.cli.out import warn
    from snapshot_mcp.contract.errors import ZoneError
    from snapshot_mcp.settings import SettingsError

    try:
        if args.command not in WITHOUT_SETTINGS:
            from snapshot_mcp.exposure import describe_exposure

            warn(*(f"snapshot-mcp: {line}" for line in describe_exposure(os.environ)))
        status: int = importlib.import_module(COMMANDS[args.command][0]).run(args)
    except (ZoneError, SettingsError, ExceptionGroup) as raised:
        error = _innermost(raised)
        if isinstance(error, ZoneError | SettingsError):
            return _fail(error.message, error.hint)
        if isinstance(error, streams.OutputLost):
            raise error from None
        raise
    return status


def _innermost(error: Exception) -> Exception:
    """Return the error that a task group wrapped, or the error itself."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        (error,) = error.exceptions
    return error


def _fail(message: str, hint: str = "") -> int:
    """Say why a command failed; return its exit status."""
    from snapshot_mcp.cli.out import warn

    if message:
        warn(f"snapshot-mcp: {message}", *([f"  {hint}"] if hint else []))
    return 1
