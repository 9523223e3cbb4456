"""`snapshot-mcp serve`: the MCP server, on stdio for a host that starts it, or on loopback HTTP."""

import argparse
import logging
import os
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--http", metavar="HOST:PORT", help="streamable HTTP on a loopback address instead of stdio")


def run(args: argparse.Namespace) -> int:
    from snapshot_mcp import app
    from snapshot_mcp.settings import load_settings

    settings = load_settings(os.environ)
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    if args.http:
        app.serve_http(settings, args.http)
        return 0
    if sys.stdin.isatty():
        command = app.command(settings.variables)
        print(
            f"snapshot-mcp: an MCP server waits on stdin now. A host starts it by itself: see `{command} config`; "
            f"`{command} tour` shows it at work.",
            file=sys.stderr,
        )
    app.serve_stdio(settings)
    return 0
