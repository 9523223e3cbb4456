"""`snapshot-mcp approvals`, `approve ID`, `deny ID`, `pin`: the human's side of the guard.

Meant for a terminal that no assistant types into. An approval shows the plan, takes the same word or name as the question
through a host, and then the PIN, which is read from the terminal itself, never from an argument or the environment.
`--pin-stdin` reads it from a pipe instead, for a password manager; there the PIN alone is the proof, so one must be set.
"""

import argparse
import getpass
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio

from snapshot_mcp.cli.person import need_terminal, user_name
from snapshot_mcp.contract.errors import BadRequest, NotFound
from snapshot_mcp.contract.models import format_time
from snapshot_mcp.contract.text import clean_text

if TYPE_CHECKING:
    from snapshot_mcp.app import Approval, Guard

Run = Callable[["Guard", argparse.Namespace], int]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    command = parser.get_default("command")
    if command == "approvals":
        parser.add_argument("--all", action="store_true", help="also those that are closed")
        parser.add_argument("--json", action="store_true", help="for a program")
    elif command in {"approve", "deny"}:
        parser.add_argument("approval_id", metavar="ID", help="as the command `approvals` lists it")
    if command == "approve":
        parser.add_argument("--pin-stdin", action="store_true", help="read the PIN from a pipe; nothing else is asked")


def run(args: argparse.Namespace) -> int:
    from snapshot_mcp import app
    from snapshot_mcp.settings import load_settings

    guard = app.build_guard(load_settings(os.environ))
    commands: dict[str, Run] = {"approvals": _list, "approve": _approve, "deny": _deny, "pin": _pin}
    try:
        return commands[args.command](guard, args)
    except NotFound as error:
        raise NotFound(
            f"{error.message.removesuffix('.')} in {str(guard.home)!r}.",
            hint=f"`{guard.command} approvals` lists them; SNAPSHOT_MCP_HOME names another home.",
        ) from None


def _list(guard: "Guard", args: argparse.Namespace) -> int:
    anyio.run(guard.note_all_ends)
    approvals = anyio.run(guard.list_approvals)
    shown = [one for one in approvals if args.all or one.expires_at]
    if args.json:
        print(json.dumps([_to_json(one) for one in shown], indent=2))
        return 0
    if not shown:
        print(f"Nothing waits for you in {str(guard.home)!r}.")
        return 0
    from rich.console import Console

    console = Console(highlight=False)
    for approval in shown:
        _draw(console, approval)
    if any(one.state == "pending" for one in shown):
        console.print("Say yes or no with one of these:")
        console.print(f"{guard.command} approve ID\n{guard.command} deny ID", markup=False, soft_wrap=True)
    return 0


def _approve(guard: "Guard", args: argparse.Namespace) -> int:
    approval = anyio.run(guard.get_approval, args.approval_id)
    if approval.state != "pending":
        raise BadRequest(
            f"Approval {approval.id} is {approval.standing} already; it waits for nothing.", hint=approval.aftermath
        )
    has_pin = anyio.run(guard.has_pin)
    if approval.call.is_strict and not has_pin:
        raise BadRequest("This approval needs a PIN, and none is set.", hint=f"Set one with `{guard.command} pin`.")
    if args.pin_stdin:
        if not has_pin:
            raise BadRequest("There is no PIN to read.", hint=f"Set one with `{guard.command} pin`.")
        _show_plan(approval)
        pin: str | None = sys.stdin.readline().rstrip("\r\n")
    else:
        need_terminal("approve")
        _show_plan(approval)
        if not _agrees(guard, approval):
            return 1
        pin = getpass.getpass("PIN: ") if has_pin else None

    async def grant() -> "Approval":
        return await guard.approve(approval.id, pin, digest=approval.plan.digest, by=user_name())

    granted = anyio.run(grant)
    until = granted.expires_at
    print(f"Approved, until {until:%H:%M} UTC. The assistant can repeat its call now." if until else "Approved.")
    if not has_pin:
        note = f"No PIN is set, so nothing proves that a person was here; `{guard.command} pin` sets one."
        print(note, file=sys.stderr)
    return 0


def _deny(guard: "Guard", args: argparse.Namespace) -> int:
    denied = anyio.run(partial(guard.deny, args.approval_id, by=user_name()))
    if denied.job_id:
        print(f"Taken back: {denied.title}. Job {clean_text(denied.job_id)} was cancelled before it had an effect.")
    else:
        print(f"Denied: {denied.title}. It is not carried out.")
    if denied.safety.job_id:  # one of its own; the one that a roll-back takes itself is gone with it
        print("The safety snapshot that was begun for it stays; delete it if you do not need it.")
    print("The assistant cannot ask for it again for ten minutes.")
    return 0


def _pin(guard: "Guard", args: argparse.Namespace) -> int:
    need_terminal("pin")
    old = getpass.getpass("Present PIN: ") if anyio.run(guard.has_pin) else None
    new = getpass.getpass("New PIN (6 characters or more): ")
    if getpass.getpass("Once more: ") != new:
        raise BadRequest("The two are not the same.", hint="Nothing was changed; try again.")
    anyio.run(partial(guard.set_pin, new, old, by=user_name()))
    print("The PIN is set. It is asked for when you approve; tell it to no assistant.")
    return 0


def _agrees(guard: "Guard", approval: "Approval") -> bool:
    """Put the question as a host would; anything but the very word or name keeps everything."""
    question = approval.question
    wanted = question.expected_name or question.words[0]
    answer = input(f"Type {wanted} to agree, anything else to leave it: ").strip()
    if answer == wanted:
        return True
    print(f"Left as it is: not approved, not denied. To say no: {guard.command} deny {approval.id}")
    return False


def _show_plan(approval: "Approval") -> None:
    from rich.console import Console

    _draw(Console(highlight=False), approval)


def _draw(console: Any, approval: "Approval") -> None:
    """One approval as a panel: who wants what, the whole plan, and how long it waits."""
    from rich.panel import Panel
    from rich.text import Text

    client = f" through {approval.call.client}" if approval.call.client else ""
    body = Text("\n".join(approval.lines))
    body.append(f"\n\nAsked by {clean_text(approval.call.principal)}{client}, {_ago(approval.opened.time)}.", "dim")
    if approval.reason:
        body.append(f"\n{approval.standing.capitalize()}: {approval.reason}.", "dim")
    for line in (approval.decision, approval.course):
        if line:
            body.append(f"\n{line}", "dim")
    colour = {"pending": "yellow", "granted": "green"}.get(approval.state, "dim")
    until = f" until {approval.expires_at:%Y-%m-%d %H:%M} UTC" if approval.expires_at else ""
    console.print(
        Panel(
            body,
            title=Text.assemble((approval.id, "bold"), "  ", (f"{approval.standing}{until}", colour)),
            title_align="left",
            border_style=colour,
            padding=(0, 1),
        )
    )


def _to_json(approval: "Approval") -> dict[str, Any]:
    return {
        "id": approval.id,
        "state": approval.state,
        "title": approval.title,
        "plan": list(approval.lines),
        "zone": approval.call.zone,
        "principal": approval.call.principal,
        "client": approval.call.client,
        "opened_at": format_time(approval.opened.time),
        "expires_at": format_time(approval.expires_at),
        "door": approval.door or "",
        "decided_by": approval.decided_by,
        "decided_at": format_time(approval.decided.time) if approval.decided else "",
        "reason": approval.reason,
        "job_id": approval.job_id,
        "job_end": _end_to_json(approval),
    }


def _end_to_json(approval: "Approval") -> dict[str, str] | None:
    """How its job ended; None where nothing was started."""
    if not approval.job_id:
        return None
    return asdict(approval.job_end) if approval.job_end else {"status": "not known yet"}


def _ago(moment: datetime) -> str:
    minutes = int((datetime.now(UTC) - moment).total_seconds() // 60)
    if minutes < 1:
        return "just now"
    return f"{minutes} min ago" if minutes < 120 else f"{minutes // 60} h ago"
