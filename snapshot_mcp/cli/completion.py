"""`snapshot-mcp completion SHELL`: the line that makes bash, zsh or fish complete commands, options, disks and restore points.

The shells ask `completion words -- WORDS…` for what may stand at the place of the last word. Names come from other people and
some shells insert what they get as it is, so only what every shell takes for plain letters is offered.
"""

import argparse
import re
from contextlib import suppress
from typing import Any

import anyio

from snapshot_mcp.cli.out import say

SCRIPTS = {
    "bash": """\
_snapshot_mcp() {
  local IFS=$'\\n'
  COMPREPLY=($(snapshot-mcp completion words -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
}
complete -o default -F _snapshot_mcp snapshot-mcp""",
    "zsh": """\
_snapshot_mcp() {
  compadd -- ${(f)"$(snapshot-mcp completion words -- "${(@)words[2,CURRENT]}" 2>/dev/null)"}
}
compdef _snapshot_mcp snapshot-mcp""",
    "fish": """\
complete -c snapshot-mcp -a '(snapshot-mcp completion words -- (commandline -opc)[2..-1] (commandline -ct) 2>/dev/null)'""",
}
"""What each shell reads: `source <(snapshot-mcp completion bash)`."""

PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@+-]*")
SECONDS = 3.0
"""How long a zone may take to list its disks; nobody waits longer for a Tab."""

MAX_WORDS = 100

LISTED_BY = {
    "DISK": ("list_resources", "resources", ("name", "resource_id", "id")),
    "SNAPSHOT": ("list_snapshots", "snapshots", ("snapshot_id",)),
    "JOB": ("list_jobs", "jobs", ("job_id",)),
}
"""By what an argument's help calls it: the tool that lists them, its list, and the fields that name one."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("shell", choices=[*SCRIPTS, "words"], metavar="SHELL", help="bash, zsh or fish")
    parser.add_argument("words", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    if args.shell in SCRIPTS:
        say(*SCRIPTS[args.shell].split("\n"))
    else:
        say(*complete(args.words[args.words[:1] == ["--"] :] or [""]))
    return 0


def complete(words: list[str]) -> list[str]:
    """Return what may stand at the place of the last word."""
    from snapshot_mcp.cli import COMMANDS, build_parser

    *before, begun = words
    if not before:
        return [one for one in COMMANDS if one.startswith(begun)]
    if before[0] not in COMMANDS:
        return []
    parser = _parser_of(build_parser(before[0]), before)
    if begun.startswith("-"):
        return [one for action in parser._actions for one in action.option_strings if one.startswith(begun)]
    found = _choices(parser)
    if not found:
        kinds = [action.metavar for action in parser._actions if not action.option_strings and action.metavar]
        found = [one for kind in kinds if isinstance(kind, str) and kind in LISTED_BY for one in _listed(kind, before)]
    return [one for one in dict.fromkeys(found) if one.startswith(begun)][:MAX_WORDS]


def _parser_of(parser: argparse.ArgumentParser, words: list[str]) -> argparse.ArgumentParser:
    """Return the parser of the command that the words have come to."""
    for word in words:
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction) and word in action.choices:
                parser = action.choices[word]
                break
    return parser


def _choices(parser: argparse.ArgumentParser) -> list[str]:
    return [
        str(one)
        for action in parser._actions
        if not action.option_strings and action.choices and action.metavar != argparse.SUPPRESS
        for one in action.choices
    ]


def _listed(kind: str, before: list[str]) -> list[str]:
    """Return the plain names of what the zone has, nothing if it does not answer soon or the settings are wrong."""
    from snapshot_mcp.contract.errors import ZoneError
    from snapshot_mcp.settings import SettingsError

    tool, rows, fields = LISTED_BY[kind]
    arguments: dict[str, Any] = {} if kind == "JOB" else {"limit": MAX_WORDS}
    if "--zone" in before[:-1]:
        arguments["zone"] = before[before.index("--zone") + 1]
    elif kind == "SNAPSHOT" and before[0] == "recover":
        arguments["status"] = ["deleted"]

    async def look() -> list[dict[str, Any]]:
        from snapshot_mcp import app
        from snapshot_mcp.cli.shell.session import open_session

        with anyio.move_on_after(SECONDS):
            async with open_session(app.own_settings()) as session:
                return list((await session.call(tool, arguments)).structure.get(rows) or ())
        return []

    names: list[str] = []
    with suppress(ZoneError, SettingsError, ExceptionGroup):
        names = [str(row[field]) for row in anyio.run(look) for field in fields if row.get(field)]
    return [one for one in names if PLAIN.fullmatch(one)]
