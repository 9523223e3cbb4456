"""`snapshot-mcp zone serve --http HOST:PORT`: serve a zone of ours as the volume-snapshot REST API."""

import argparse
from pathlib import Path

from snapshot_mcp.cli.out import warn


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "--http", metavar="HOST:PORT", required=True, help="address to listen on; port 0 picks a free one"
    )
    names = "host name that clients use for this service; repeatable"
    parser.add_argument("--allow-host", action="append", default=[], metavar="NAME", help=names)
    parser.add_argument(
        "--tls-cert", type=Path, metavar="FILE", help="certificate (PEM); required except on loopback addresses"
    )
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="its private key (PEM)")
    end = "exit when standard input closes, so with the program that started it"
    parser.add_argument("--until-stdin-closes", action="store_true", help=end)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from snapshot_mcp import app, serving

    settings = app.own_settings()
    serving.log_to_stderr()
    serving.serve_zone(
        settings,
        args.zone,
        args.http,
        certificate=args.tls_cert,
        key=args.tls_key,
        allowed_hosts=args.allow_host,
        until_stdin_closes=args.until_stdin_closes,
        say=lambda line: warn(f"snapshot-mcp: {line}"),
    )
    return 0
