"""`snapshot-mcp zone keys`: who may use the REST API of `zone serve`, and as what.

A new pair is printed once, as JSON on stdout; a list never shows a secret. A running `zone serve` follows at once.
"""

import argparse
import json
import os
import sys

ROLES = ("reader", "writer", "full")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    change = parser.add_mutually_exclusive_group()
    change.add_argument(
        "--new",
        choices=ROLES,
        metavar="ROLE",
        help="make a key pair and print it: a reader looks; a writer also backs up, exports, renames, recovers and"
        " cancels; full also deletes and rolls back",
    )
    change.add_argument("--remove", metavar="CLIENT_ID", help="remove a key pair; its tokens and streams end at once")


def run(args: argparse.Namespace) -> int:
    from snapshot_mcp import app
    from snapshot_mcp.settings import load_settings

    settings = load_settings(os.environ)
    if args.new:
        pair, path = app.add_service_key(settings, args.new)
        print(json.dumps(pair))
        _say(f"{pair['client_id']} ({pair['role']}) is in {path}; its secret is not shown again.")
    elif args.remove:
        role, path = app.remove_service_key(settings, args.remove)
        _say(f"{args.remove} ({role}) is removed from {path}.")
    else:
        keys = app.list_service_keys(settings)
        print("\n".join(f"{client_id}  {role}" for client_id, role in keys) or "There is no key pair.")
    return 0


def _say(line: str) -> None:
    print(f"snapshot-mcp: {line}", file=sys.stderr)
