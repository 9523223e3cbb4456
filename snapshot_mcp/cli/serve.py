"""`snapshot-mcp serve`: run the MCP server, on stdio for the host that starts it, or on loopback HTTP."""

import argparse
import sys
from functools import partial

from snapshot_mcp.cli.out import warn


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--http", metavar="HOST:PORT", help="streamable HTTP on a loopback address instead of stdio")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from snapshot_mcp import app, serving
    from snapshot_mcp.settings import SettingsError

    try:
        settings = app.own_settings()
    except SettingsError as error:
        if args.http or sys.stdin.isatty():
            raise
        warn(f"snapshot-mcp: {error.message}")
        serving.serve_stdio(partial(app.build_unusable_server, error))
        return 1
    serving.log_to_stderr()
    if args.http:
        serving.serve_http(settings, args.http)
        return 0
    if sys.stdin.isatty():
        command = app.command(settings.variables)
        warn(
            f"snapshot-mcp: this MCP server is waiting for a host on stdin. Hosts start it themselves: see `{command} config`. "
            f"`{command} tour` shows it at work."
        )
    serving.serve_stdio(partial(app.build_server, settings))
    return 0
