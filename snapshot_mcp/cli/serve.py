"""`snapshot-mcp serve`: run the MCP server, on stdio for the host that starts it, or on loopback HTTP."""

import argparse
import sys
from functools import partial


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--http", metavar="HOST:PORT", help="streamable HTTP on a loopback address instead of stdio")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from snapshot_mcp import app
    from snapshot_mcp.settings import SettingsError

    try:
        settings = app.own_settings()
    except SettingsError as error:
        if args.http or (sys.stdin and sys.stdin.isatty()):
            raise
        print(f"snapshot-mcp: {error.message}", file=sys.stderr)
        app.serve_stdio(partial(app.build_unusable_server, error))
        return 1
    app.log_to_stderr()
    if args.http:
        app.serve_http(settings, args.http)
        return 0
    if sys.stdin and sys.stdin.isatty():
        command = app.command(settings.variables)
        print(
            f"snapshot-mcp: this MCP server is waiting for a host on stdin. Hosts start it themselves: see `{command} config`. "
            f"`{command} tour` shows it at work.",
            file=sys.stderr,
        )
    app.serve_stdio(partial(app.build_server, settings))
    return 0
