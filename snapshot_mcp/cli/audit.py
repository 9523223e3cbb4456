"""`snapshot-mcp audit`: what was planned, asked, answered and done, oldest first; `audit verify`: whether it is untouched."""

import argparse
import json
import os
import sys
from typing import Any

from snapshot_mcp.contract.text import clean_text

SHOWN = 50
TIME_CHARACTERS = len("2026-11-23 18:07:39")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action", nargs="?", choices=["show", "verify"], default="show", help="show (default) or verify"
    )
    parser.add_argument("--all", action="store_true", help=f"everything, not only the last {SHOWN} records")
    parser.add_argument("--json", action="store_true", help="a record a line, for a program")


def run(args: argparse.Namespace) -> int:
    from snapshot_mcp import app
    from snapshot_mcp.settings import load_settings

    audit = app.build_guard(load_settings(os.environ)).audit
    if args.action == "verify":
        return _verify(audit.verify())
    records = list(audit.records())
    if args.json:
        for record in records:
            print(json.dumps(record))
        return 0
    if not records:
        print("The record is empty.")
        return 0
    _draw(records if args.all else records[-SHOWN:], hidden=0 if args.all else max(0, len(records) - SHOWN))
    return 0


def _verify(verdict: Any) -> int:
    if verdict.problem:
        print(f"The record was tampered with: {verdict.problem}.", file=sys.stderr)
        return 1
    note = f" ({verdict.note})" if verdict.note else ""
    print(f"All {verdict.records} records are whole and in order{note}.")
    return 0


def _draw(records: list[dict[str, Any]], *, hidden: int) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("#", justify="right", style="dim")
    table.add_column("time (UTC)", no_wrap=True)
    table.add_column("event", no_wrap=True)
    table.add_column("approval", no_wrap=True)
    table.add_column("what", overflow="fold")
    for record in records:
        event = clean_text(record.get("event", ""))
        table.add_row(
            str(record.get("sequence", "")),
            str(record.get("at", ""))[:TIME_CHARACTERS].replace("T", " "),
            Text(event, style=_style(event)),
            clean_text(record.get("approval", "")),
            Text(_details(record)),
        )
    console = Console(highlight=False)
    if hidden:
        console.print(f"… {hidden} older records; --all shows them", style="dim")
    console.print(table)


def _details(record: dict[str, Any]) -> str:
    """What the event is about, in one line: the act, who, and what is particular to it."""
    parts = []
    if record.get("operation"):
        arguments = record.get("arguments", {})
        ids = arguments.get("snapshot_ids") or [arguments.get("snapshot_id", "")]
        parts.append(f"{record['operation']} {', '.join(map(str, ids))} in {record.get('zone', '')}")
    for key in ("answer", "door", "by", "rule", "reason", "job_id", "snapshot_ids", "in_a_row", "principal", "client"):
        value = record.get(key)
        if value and not (key == "by" and value == record.get("principal")):
            shown = ", ".join(map(str, value)) if isinstance(value, list) else value
            parts.append(f"{key.replace('_', ' ')}: {shown}")
    return clean_text("; ".join(parts), 400)


def _style(event: str) -> str:
    if event in {"denied", "refused", "voided", "outcome unknown"} or "fail" in event or "locked" in event:
        return "red"
    return {"granted": "green", "started": "bold green", "spent": "yellow", "question": "cyan"}.get(event, "")
