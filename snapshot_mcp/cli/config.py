"""`snapshot-mcp config HOST`: print a host's entry on stdout and what to do with it on stderr, or write it into its file."""

import argparse
import re
from urllib.parse import urlsplit

from snapshot_mcp.cli.out import say, warn
from snapshot_mcp.contract.errors import BadRequest
from snapshot_mcp.contract.text import encodable

TOKEN_VARIABLE = "SNAPSHOT_TOKEN"
"""A host's variable with the caller's token. Not `SNAPSHOT_MCP_…`: those are settings, and unknown ones are errors."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    from snapshot_mcp.hosts.entries import HOSTS

    parser.add_argument("host", choices=HOSTS, metavar="HOST", help=", ".join(HOSTS))
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--write", action="store_true", help="put it into the host's own file, and keep a copy of the old one"
    )
    how.add_argument("--link", action="store_true", help="print the host's install link instead")
    parser.add_argument("--http", metavar="URL", default="", help="use a server that runs already, with serve --http")
    parser.add_argument(
        "--token-variable",
        metavar="NAME",
        default=TOKEN_VARIABLE,
        help="with --http: the host's variable that holds your token (%(default)s; '' for none)",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command. Raises BadRequest, also where a host's file is in a home directory that this user does not have."""
    try:
        return _run(args)
    except RuntimeError as error:
        if "home directory" not in str(error):
            raise
        message = "This user has no home directory, where a host keeps its settings."
        raise BadRequest(message, hint="Set HOME to the folder of the person who uses the host.") from None


def _run(args: argparse.Namespace) -> int:
    from snapshot_mcp.hosts import files
    from snapshot_mcp.hosts.entries import HOSTS, Remote, claude_code_line
    from snapshot_mcp.hosts.launch import NAME, this_launch

    host, launch, remote = HOSTS[args.host], this_launch(), None
    if odd := next((one for one in (*launch.words, *launch.environ.values()) if encodable(one) != one), ""):
        message = f"The path {encodable(odd)!r} is not UTF-8 text, so a host's configuration cannot hold it."
        raise BadRequest(message, hint="Use another path: SNAPSHOT_MCP_HOME names the data folder.")
    if args.http:
        remote = Remote(*_checked(args.http, args.token_variable))
        if host.over_http is None:
            raise BadRequest(
                f"{host.title} starts programs; its file has no place for a URL.", hint="Leave --http out."
            )
    entry = host.remote_entry(remote) if remote else host.entry(launch)
    notes = _notes(args.host, launch, remote)
    if args.link:
        link = host.link(entry)
        if not link:
            why = "takes no link to a program of this installation" if args.host == "goose" else "has no install link"
            raise BadRequest(f"{host.title} {why}.", hint="Use --write, or paste what is printed without it.")
        if entry.get("envs"):
            notes.append(f"{host.title}'s link holds no variables: {', '.join(entry['envs'])} left out.")
        say(link)
    elif args.write:
        done = files.write(host, entry)
        say(f"{NAME} {'is now' if done.is_changed else 'was already'} in {done.path}")
        if done.kept:
            say(f"The old file is kept as {done.kept}")
        notes.append(host.after)
    elif args.host == "claude-code":
        warn("Run this in a terminal:")
        say(claude_code_line(None if remote else launch, remote))
    else:
        warn(f"Add this to {host.file()}, or run it again with --write. {host.after}")
        say(*files.printed(host, entry).splitlines())
    warn(*notes)
    return 0


def _checked(url: str, variable: str) -> tuple[str, str]:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username or parts.query or parts.fragment:
        raise BadRequest(
            "The URL must be like http://127.0.0.1:8765/mcp, without a user, a password or a query.",
            hint="A server that was started with serve --http prints it.",
        )
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{,63}|", variable) or re.fullmatch(r"[0-9a-f]{20,}", variable):
        raise BadRequest("--token-variable is the name of a variable, never the token itself.")
    if variable.startswith("SNAPSHOT_MCP_"):
        raise BadRequest("Names with SNAPSHOT_MCP_ are settings of the server.", hint="Choose another variable.")
    return url, variable


def _notes(name: str, launch: object, remote: object) -> list[str]:
    from snapshot_mcp.hosts.entries import HOSTS, Remote
    from snapshot_mcp.hosts.launch import Launch

    if isinstance(remote, Remote):
        if not remote.variable:
            return []
        if not HOSTS[name].reference:
            return [
                f"{HOSTS[name].title} reads no variables here: if the server wants a token, add its header yourself."
            ]
        return [f"If the server wants a token, start the host with your token in {remote.variable}."]
    assert isinstance(launch, Launch)
    if launch.left_out:
        return [
            f"Left out, because they describe a provider with its secret: {', '.join(launch.left_out)}. "
            "Describe the zone in config.toml instead, as [zones.NAME]."
        ]
    return []
