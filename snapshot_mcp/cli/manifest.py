"""`snapshot-mcp manifest KIND --out FOLDER`: the files that a registry, a plugin host or a bundle wants."""

import argparse
from pathlib import Path

from snapshot_mcp.cli.out import say, warn
from snapshot_mcp.contract.errors import BadRequest
from snapshot_mcp.contract.text import clean_text
from snapshot_mcp.ground.permissions import reason_of

NEXT = {
    "server.json": "Publish it with the MCP registry's own program: mcp-publisher publish",
    "agent-plugin": "Hosts that take Agent Plugins install the folder.",
    "claude-plugin": "Publish the folder as a git repository, then in Claude Code: /plugin marketplace add OWNER/REPOSITORY",
    "gemini": "Try it with: gemini extensions install FOLDER",
    "mcpb": "Pack it with: npx @anthropic-ai/mcpb pack FOLDER",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("kind", choices=NEXT, metavar="KIND", help=", ".join(NEXT))
    parser.add_argument("--out", type=Path, metavar="FOLDER", required=True, help="a new or an empty folder")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from snapshot_mcp.hosts.facts import read_facts
    from snapshot_mcp.hosts.packages import KINDS, write

    folder: Path = args.out
    try:
        if folder.exists() and any(folder.iterdir()):
            raise BadRequest(f"The folder {str(folder)!r} is not empty.", hint="Name a new one; nothing was written.")
        files = KINDS[args.kind](read_facts())
        write(files, folder)
    except OSError as error:
        raise BadRequest(
            f"Cannot write into {str(folder)!r}: {reason_of(error, folder)}.", hint="Name another."
        ) from None
    say(f"{len(files)} file{'' if len(files) == 1 else 's'} in {clean_text(str(folder), 400)}")
    warn(NEXT[args.kind])
    return 0
