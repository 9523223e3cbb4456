"""The person at the terminal: who it is, and how they confirm an act that no assistant can request.

A person confirms with a typed word, and the PIN if one is set, both read from the terminal. No flag or pipe can confirm:
without a terminal nothing happens.
"""

import getpass
import os
import sys
from typing import TYPE_CHECKING

import anyio

from snapshot_mcp.cli.out import ask, is_answer, say
from snapshot_mcp.contract.errors import BadRequest, Forbidden

if TYPE_CHECKING:
    from snapshot_mcp.app import Deed, Door, Guard, PersonAct

NO_TERMINAL_HINT = "Run it in your own terminal: only a person may answer here."


def user_name() -> str:
    """Return the user's name from the system, not from the environment, which anybody can set."""
    try:
        import pwd

        return pwd.getpwuid(os.geteuid()).pw_name
    except (ImportError, KeyError):
        return "local"


def need_terminal(command: str) -> None:
    """Raise BadRequest if there is no terminal."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise BadRequest(f"`{command}` needs a terminal.", hint=NO_TERMINAL_HINT)


def agree(guard: "Guard", act: "PersonAct", deed: "Deed") -> "Door | None":
    """Show an act and have the person confirm it; return the door, None if they did not.

    Raises Forbidden if a rule forbids the act, BadRequest without a terminal or without a required PIN, WrongPin, PinLocked.
    """
    if act.refusal:
        anyio.run(guard.note_refusal, deed, act.refusal.rule)
        raise Forbidden(act.refusal.message)
    need_terminal(act.operation)
    has_pin = anyio.run(guard.has_pin)
    if act.is_strict and not has_pin:
        message = f"`{act.operation}` needs a PIN in this zone, and none is set."
        raise BadRequest(message, hint=f"Set one with `{guard.command} pin`.")
    say(act.title, *act.lines)
    pin = None
    try:
        has_agreed = is_answer(ask(f"Type {act.word} to agree, anything else to cancel:"), act.word)
        if has_agreed and has_pin:
            has_agreed = bool(pin := getpass.getpass("PIN: "))
    except (KeyboardInterrupt, EOFError):
        anyio.run(guard.note_no, deed)
        raise
    if not has_agreed:
        anyio.run(guard.note_no, deed)
        say("Not confirmed: nothing was done.")
        return None
    return anyio.run(guard.prove_person, pin, deed.fields)
