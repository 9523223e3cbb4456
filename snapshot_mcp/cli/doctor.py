"""`snapshot-mcp doctor`: a line for each thing that was looked at, with the next step. It changes nothing."""

import argparse
import os

import anyio

from snapshot_mcp import __version__
from snapshot_mcp.cli.out import say, say_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Run the command; the exit status is 1 if something is wrong."""
    from snapshot_mcp import app
    from snapshot_mcp.exposure import describe_exposure

    found = anyio.run(app.examine, os.environ)
    exposed = describe_exposure(os.environ)
    wrong_count = sum(one.state == "WRONG" for one in found) + len(exposed)
    if args.json:
        lines = [{"about": "settings", "state": "wrong", "text": one, "next": ""} for one in exposed]
        say_json(
            {"version": __version__, "is_well": not wrong_count, "found": [*lines, *(one.as_dict() for one in found)]}
        )
        return int(wrong_count > 0)
    say(*(f"WRONG  settings: {line}" for line in exposed))
    for one in found:
        say(f"{one.state:<5}  {one.about}: {one.text}", *([f"       {one.next_step}"] if one.next_step else []))
    say("", "All is well." if not wrong_count else f"{wrong_count} wrong: see above.")
    return int(wrong_count > 0)
