"""`snapshot-mcp jobs`: what runs, or with `--finished` what was done, how it ended, who asked and who approved."""

import argparse

import anyio

from snapshot_mcp.cli.out import say, say_json, warn
from snapshot_mcp.contract.errors import ZoneError
from snapshot_mcp.contract.text import MESSAGE_CHARACTERS, clean_text, quoted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--finished", action="store_true", help="show what was done in the last day")
    parser.add_argument("--since", default="", metavar="TIME", help="since when: 24h (default), 7d or a UTC time")
    parser.add_argument("--zone", default="", metavar="NAME", help="only this zone")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    return anyio.run(_run, args)


async def _run(args: argparse.Namespace) -> int:
    from datetime import UTC, datetime

    from snapshot_mcp import app
    from snapshot_mcp.history.entry import parse_since

    settings = app.own_settings()
    since, failed = parse_since(args.since, datetime.now(UTC)), None
    async with app.build_zones(settings) as zones:
        try:
            zone = zones.get(args.zone).name if args.zone else ""
            recalled = await app.build_history(settings, zones).recall(since, zone)
        except ZoneError as error:
            failed = error
    if failed:
        raise failed
    wants_all = bool(args.finished or args.since)
    shown = [one for one in recalled.entries if wants_all or one.status == "working"]
    if args.json:
        say_json([one.as_dict() for one in shown])
    else:
        say(*(one.in_words() for one in shown))
        if not shown:
            say("No job in that time." if wants_all else "Nothing runs. --finished shows what was done.")
        if wants_all and recalled.total_count > len(shown):
            say(f"Only the newest {len(shown)} of {recalled.total_count}; give a later --since.")
    if recalled.problem:
        reason = clean_text(recalled.problem, MESSAGE_CHARACTERS)
        warn(f"snapshot-mcp: who asked and approved may be missing: {reason}")
    for name, trouble in recalled.errors.items():
        reason = clean_text(trouble.message, MESSAGE_CHARACTERS)
        warn(f"snapshot-mcp: zone {quoted(name)} did not answer: {reason}")
    return 1 if recalled.errors else 0
