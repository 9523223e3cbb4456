"""`snapshot-mcp approvals`, `approve ID`, `deny ID`, `pin`: the guard's commands for a person.

They belong in a terminal that no assistant controls. `approve` shows the plan and asks for the same word or name as a host
does, then for the PIN, which is read from the terminal, never from an argument or the environment. `--pin-stdin` reads it
from a pipe, for a password manager; then the PIN is the only proof, so one must be set.
"""

import argparse
import getpass
import sys
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio

from snapshot_mcp.cli.out import ask, draw, is_answer, say, say_json, text, warn
from snapshot_mcp.cli.person import need_terminal, user_name
from snapshot_mcp.contract.errors import BadRequest, NotFound
from snapshot_mcp.contract.models import format_time
from snapshot_mcp.contract.text import age_in_words, clean_text, quoted

if TYPE_CHECKING:
    from snapshot_mcp.app import Approval, Guard

Run = Callable[["Guard", argparse.Namespace], int]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    command = parser.get_default("command")
    if command == "approvals":
        parser.add_argument("--all", action="store_true", help="include closed ones")
        parser.add_argument("--json", action="store_true", help="print JSON")
    elif command in {"approve", "deny"}:
        parser.add_argument("approval_id", metavar="ID", help="as the command `approvals` lists it")
    if command == "approve":
        parser.add_argument("--pin-stdin", action="store_true", help="read the PIN from a pipe, and ask nothing else")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from snapshot_mcp import app

    guard = app.build_guard(app.own_settings())
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
        say_json([_to_json(one) for one in shown])
        return 0
    if not shown:
        say(f"No approval is waiting in {str(guard.home)!r}.")
        return 0
    for approval in shown:
        _draw(approval)
    if any(one.state == "pending" for one in shown):
        say("To approve or deny one:", f"{guard.command} approve ID", f"{guard.command} deny ID")
    return 0


def _approve(guard: "Guard", args: argparse.Namespace) -> int:
    approval = anyio.run(guard.get_approval, args.approval_id)
    if approval.state != "pending":
        raise BadRequest(
            f"Approval {approval.id} is already {approval.state_in_words} and cannot be approved.",
            hint=approval.what_next,
        )
    has_pin = anyio.run(guard.has_pin)
    if approval.call.is_strict and not has_pin:
        raise BadRequest("This approval needs a PIN, but none is set.", hint=f"Set one with `{guard.command} pin`.")
    if args.pin_stdin:
        if not has_pin:
            raise BadRequest("--pin-stdin needs a PIN, but none is set.", hint=f"Set one with `{guard.command} pin`.")
        _draw(approval)
        pin: str | None = sys.stdin.readline().rstrip("\r\n")
    else:
        need_terminal("approve")
        _draw(approval)
        if not _agrees(guard, approval):
            return 1
        pin = getpass.getpass("PIN: ") if has_pin else None

    async def grant() -> "Approval":
        return await guard.approve(approval.id, pin, digest=approval.plan.digest, by=user_name())

    granted = anyio.run(grant)
    until = granted.expires_at
    say(f"Approved, until {until:%H:%M} UTC. The assistant can repeat its call now." if until else "Approved.")
    if not has_pin:
        note = f"No PIN is set, so nothing proves that a person approved; `{guard.command} pin` sets one."
        warn(note)
    return 0


def _deny(guard: "Guard", args: argparse.Namespace) -> int:
    denied = anyio.run(partial(guard.deny, args.approval_id, by=user_name()))
    if denied.job_id:
        say(f"Withdrawn: {denied.title}. Job {clean_text(denied.job_id)} was cancelled before it had an effect.")
    else:
        say(f"Denied: {denied.title}. It will not be carried out.")
    if denied.safety.job_id:  # a separate one; the one that a roll-back takes itself is removed with it
        say("The safety snapshot that was started for it remains; delete it if you do not need it.")
    say("The assistant cannot request it again for ten minutes.")
    return 0


def _pin(guard: "Guard", args: argparse.Namespace) -> int:
    need_terminal("pin")
    old = getpass.getpass("Current PIN: ") if anyio.run(guard.has_pin) else None
    new = getpass.getpass("New PIN (6 characters or more): ")
    if getpass.getpass("Repeat the new PIN: ") != new:
        raise BadRequest("The two PINs differ.", hint="Nothing was changed; try again.")
    phrase = _ask_phrase(anyio.run(guard.phrase))
    anyio.run(partial(guard.set_pin, new, old, by=user_name(), phrase=phrase))
    say("The PIN is set. You enter it when you approve; never give it to an assistant.")
    if anyio.run(guard.phrase):
        say("The approval page shows your phrase: on a page without it, enter nothing.")
    return 0


def _ask_phrase(present: str) -> str | None:
    """Ask for the words by which the person knows their approval page; None keeps those that there are."""
    if not present:
        return ask("Phrase that your approval page shows, so that you know a false one (optional, Enter for none):")
    typed = ask(f"Phrase that your approval page shows (Enter keeps {quoted(present)}, - for none):")
    return None if not typed else "" if typed == "-" else typed


def _agrees(guard: "Guard", approval: "Approval") -> bool:
    """Ask the question as a host does; any answer but the exact word or name leaves the approval pending."""
    question = approval.question
    wanted = question.expected_name or question.words[0]
    if is_answer(ask(f"Type {wanted} to agree, anything else to cancel:"), wanted):
        return True
    say(f"Still pending: neither approved nor denied. To say no: {guard.command} deny {approval.id}")
    return False


def _draw(approval: "Approval") -> None:
    """Print an approval as a panel: who requests what, the whole plan, and when it expires."""
    from rich.panel import Panel
    from rich.text import Text

    client = f" through {approval.call.client}" if approval.call.client else ""
    age = age_in_words(approval.opened.time, datetime.now(UTC))
    notes = ["", f"Asked by {clean_text(approval.call.principal)}{client}, {age}."]
    if approval.reason:
        notes.append(f"{approval.state_in_words.capitalize()}: {approval.reason}.")
    notes += [line for line in (approval.decision, approval.course) if line]
    colour = {"pending": "yellow", "granted": "green"}.get(approval.state, "dim")
    until = f" until {approval.expires_at:%Y-%m-%d %H:%M} UTC" if approval.expires_at else ""
    draw(
        Panel(
            Text("\n").join([*(text(line) for line in approval.lines), *(text(note, "dim") for note in notes)]),
            title=Text.assemble((approval.id, "bold"), "  ", (f"{approval.state_in_words}{until}", colour)),
            title_align="left",
            border_style=colour,
            padding=(0, 1),
        )
    )


def _to_json(approval: "Approval") -> dict[str, Any]:
    return {
        **approval.to_json(),
        "door": approval.door or "",
        "decided_by": approval.decided_by,
        "decided_at": format_time(approval.decided.time) if approval.decided else "",
        "reason": approval.reason,
        "job_id": approval.job_id,
        "job_end": _end_to_json(approval),
    }


def _end_to_json(approval: "Approval") -> dict[str, str] | None:
    """Return how the approval's job ended, None if none was started."""
    if not approval.job_id:
        return None
    return asdict(approval.job_end) if approval.job_end else {"status": "not known yet"}
