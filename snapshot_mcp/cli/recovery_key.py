"""The recovery key as a person gives it: from a file, from stdin, or typed into a terminal that does not show it."""

import argparse
import getpass
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from snapshot_mcp.contract.errors import BadRequest

if TYPE_CHECKING:
    from snapshot_mcp.copies.keys import RecoveryKey

MAX_CHARACTERS = 4096


def add_key(parser: argparse.ArgumentParser) -> None:
    """Add the argument that names where the key is."""
    parser.add_argument(
        "--key-file", default="", metavar="FILE", help="where the recovery key is; - for stdin; else it is asked for"
    )


def given_key(args: argparse.Namespace) -> "RecoveryKey":
    """Return the key. Raises BadRequest if none is given or it is none."""
    from snapshot_mcp.copies.keys import RecoveryKey

    return RecoveryKey.parse(_text(args.key_file))


def may_ask() -> bool:
    """Return whether there is somebody who can type it."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def _text(file: str) -> str:
    try:
        if file == "-":
            return sys.stdin.read(MAX_CHARACTERS)
        if file:
            with Path(file).open(encoding="utf-8") as opened:
                return opened.read(MAX_CHARACTERS)
    except (OSError, UnicodeDecodeError):
        raise BadRequest(f"The recovery key cannot be read from {file!r}.", hint="Give another --key-file.") from None
    if not may_ask():
        raise BadRequest("The recovery key is needed.", hint="Give it with --key-file FILE, or run this in a terminal.")
    return getpass.getpass("Recovery key: ")
