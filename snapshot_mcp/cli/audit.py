"""`snapshot-mcp audit`: show what was planned, asked, answered and done; `audit verify`: check that it was not altered."""

import argparse
from collections.abc import Iterable
from typing import Any

import anyio

from snapshot_mcp.cli.out import draw, say, say_json, text, warn
from snapshot_mcp.contract.text import clean_text, quoted

SHOWN = 50
DAY, SECOND = len("2026-11-23"), len("2026-11-23T18:07:39")
"""Where the day and the second end in a recorded time."""
NOT_KNOWN_YET = "not known yet"
ACT, ENDED = "act", "ended"
BEGINS = {
    "spent": frozenset({"started", "given back", "not given back", "outcome unknown"}),
    "started": frozenset({ENDED}),
    "outcome unknown": frozenset({ENDED}),
    ACT: frozenset({ENDED}),
}
"""The events that must follow each event; `act` means any that begins an act without an approval."""
LABELS = {
    "answer": "answer",
    "door": "through the",
    "rule": "rule",
    "job_id": "job",
    "status": "status",
    "code": "code",
    "reason": "reason",
    "name": "name",
    "resource_id": "resource_id",
    "snapshot_ids": "snapshots",
    "in_a_row": "consecutive failures:",
    "left_port": "left port",
    "port": "for port",
    "end": "end",
    "approval": "approval",
}
"""The details that are shown of a record, in this order, each with its label."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "action", nargs="?", choices=["show", "verify"], default="show", help="show (default) or verify"
    )
    parser.add_argument("--all", action="store_true", help=f"show all records, not only the last {SHOWN}")
    parser.add_argument("--json", action="store_true", help="print one JSON record per line")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from snapshot_mcp import app

    guard = app.build_guard(app.own_settings())
    if args.action == "verify":
        return _verify(guard.audit.verify())
    anyio.run(guard.note_all_ends)
    records = with_ends(guard.audit.records())
    if args.json:
        for record in records:
            say_json(record, indent=None)
        return 0
    if not records:
        say("The record is empty.")
        return 0
    shown = records if args.all else records[-SHOWN:]
    _draw(shown, hidden=len(records) - len(shown))
    return 0


def with_ends(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the records; that of an act whose end is missing says so in `end`."""
    listed = list(records)
    closed: set[tuple[Any, str]] = set()
    for number, record in reversed(list(enumerate(listed))):
        act, event = record.get(ACT) or record.get("approval"), str(record.get("event"))
        if ACT in record and event != ENDED:
            event = ACT
        if event in BEGINS:
            if (act, event) not in closed:
                listed[number] = record | {"end": NOT_KNOWN_YET}
            closed.discard((act, event))
        closed |= {(act, begin) for begin, ends in BEGINS.items() if event in ends}
    return listed


def _verify(verdict: Any) -> int:
    if verdict.problem:
        warn(f"The record does not verify: {verdict.problem.removesuffix('.')}.")
        return 1
    note = f" ({verdict.note})" if verdict.note else ""
    say(f"All {verdict.records} records are complete and in order{note}.")
    return 0


def _draw(records: list[dict[str, Any]], *, hidden: int) -> None:
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(justify="right", style="dim")
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    day = ""
    for record in records:
        at = str(record.get("at", ""))
        if at[:DAY] != day:
            day = at[:DAY]
            table.add_row("", text(day, "bold"), text("UTC", "dim"), "")
        event = clean_text(record.get("event", ""))
        table.add_row(
            text(str(record.get("sequence", ""))),
            text(at[DAY + 1 : SECOND]),
            text(event, _style(event)),
            text(_details(record)),
        )
    if hidden:
        draw(text(f"… {hidden} older records; --all shows them", "dim"))
    draw(table)


def _details(record: dict[str, Any]) -> str:
    """Return the details of an event in one line: the act, its particulars, its approval, and who did it."""
    parts = []
    if record.get("operation"):
        parts.append(f"{record['operation']} {_arguments(record.get('arguments', {}))} in {record.get('zone', '')}")
    if record.get("status") == "unknown":
        record = record | {"status": "", "reason": "", "end": f"unknown: {record.get('reason', '')}"}
    for key, label in LABELS.items():
        if value := record.get(key):
            parts.append(f"{label} {', '.join(map(str, value)) if isinstance(value, list) else value}")
    principal = record.get("principal", "")
    if (by := record.get("by")) and by != principal:
        parts.append(f"decided by {by}")
    if principal:
        client = f" ({record['client']})" if record.get("client") else ""
        parts.append(f"{'by' if ACT in record else 'asked by'} {principal}{client}")
    return clean_text("; ".join(parts), 400)


def _arguments(arguments: dict[str, Any]) -> str:
    """Return the ids, the path and the names in an act's arguments."""
    ids = arguments.get("snapshot_ids") or [
        arguments[key] for key in ("snapshot_id", "resource_id") if key in arguments
    ]
    shown = [", ".join(map(str, ids))] if ids else []
    for key, word in (
        ("old_path", "from "),
        ("path", "to " if "old_path" in arguments else ""),
        ("equal", "equal "),
        ("old_name", "from "),
        ("name", "to " if "old_name" in arguments else "as "),
    ):
        if key in arguments:
            shown.append(f"{word}{quoted(arguments[key])}")
    return " ".join(shown)


def _style(event: str) -> str:
    if event in {"denied", "declined", "refused", "voided", "outcome unknown"} or "fail" in event or "locked" in event:
        return "red"
    return {"granted": "green", "started": "bold green", "spent": "yellow", "question": "cyan"}.get(event, "")
