"""`snapshot-mcp zone keys`: list, create and remove the key pairs of `zone serve`.

A new pair is printed once, as JSON on stdout; the list shows no secrets. A running `zone serve` applies changes at once.
"""

import argparse

from snapshot_mcp.cli.out import say, say_json, warn

ROLES = ("reader", "writer", "full")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    change = parser.add_mutually_exclusive_group()
    change.add_argument(
        "--new",
        choices=ROLES,
        metavar="ROLE",
        help="create a key pair and print it: a reader reads; a writer also backs up, exports, renames, recovers and"
        " cancels; full also deletes and rolls back",
    )
    change.add_argument(
        "--remove", metavar="CLIENT_ID", help="remove a key pair; its tokens and streams are revoked at once"
    )


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from snapshot_mcp import app

    file = app.key_file(app.own_settings())
    if args.new:
        pair = file.add(args.new)
        say_json(pair.to_json(), indent=None)
        warn(f"snapshot-mcp: {pair.client_id} ({pair.role}) is in {file.path}; its secret is not shown again.")
    elif args.remove:
        warn(f"snapshot-mcp: {args.remove} ({file.remove(args.remove).role}) is removed from {file.path}.")
    else:
        say(*[f"{pair.client_id}  {pair.role}" for pair in file.list_pairs()] or ["There are no key pairs."])
    return 0
