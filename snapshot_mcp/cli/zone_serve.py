"""`snapshot-mcp zone serve --http HOST:PORT`: the embedded zone as the volume-snapshot REST API, for other programs."""

import argparse
import logging
import os
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--http", metavar="HOST:PORT", required=True, help="where to listen; port 0 takes a free one")
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a host name that clients use for it; repeatable",
    )
    parser.add_argument("--tls-cert", type=Path, metavar="FILE", help="certificate (PEM); needed beyond this machine")
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="its private key (PEM)")
    parser.add_argument(
        "--until-stdin-closes",
        action="store_true",
        help="end with the program that started it: when the other side of standard input is closed",
    )


def run(args: argparse.Namespace) -> int:
    from snapshot_mcp import app
    from snapshot_mcp.settings import load_settings

    settings = load_settings(os.environ)
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    app.serve_zone(
        settings,
        args.zone,
        args.http,
        certificate=args.tls_cert,
        key=args.tls_key,
        allowed_hosts=args.allow_host,
        until_stdin_closes=args.until_stdin_closes,
        say=lambda line: print(f"snapshot-mcp: {line}", file=sys.stderr, flush=True),
    )
    return 0
