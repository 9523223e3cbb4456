"""A person at a terminal: who it is, and how they agree to an act that no assistant can ask for.

What is agreed to here is a word that was typed, and the PIN where one is set; both are read from the terminal. No flag and
no pipe agrees: without a terminal nothing happens.
"""

import getpass
import os
import sys
from typing import TYPE_CHECKING

import anyio

from snapshot_mcp.contract.errors import BadRequest, Forbidden

if TYPE_CHECKING:
    from snapshot_mcp.app import Deed, Door, Guard, PersonAct

NO_TERMINAL_HINT = "Run it in a terminal of your own: what is approved here must be a person's answer."


def user_name() -> str:
    """Return who runs this command, as the system knows them: what the environment says anybody can set."""
    try:
        import pwd

        return pwd.getpwuid(os.geteuid()).pw_name
    except (ImportError, KeyError):
        return "local"


def need_terminal(command: str) -> None:
    """Raises: BadRequest where nobody can type."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise BadRequest(f"`{command}` needs a terminal.", hint=NO_TERMINAL_HINT)


def agree(guard: "Guard", act: "PersonAct", deed: "Deed") -> "Door | None":
    """Show the act and take the person's word, and the PIN where one is set; return the door, None where they left it.

    Raises: Forbidden for what a rule forbids; BadRequest without a terminal, or without a PIN where one has to be set;
    WrongPin, PinLocked.
    """
    if act.refusal:
        anyio.run(guard.note_refusal, deed, act.refusal.rule)
        raise Forbidden(act.refusal.message)
    need_terminal(act.operation)
    has_pin = anyio.run(guard.has_pin)
    if act.is_strict and not has_pin:
        message = f"`{act.operation}` needs a PIN in this zone, and none is set."
        raise BadRequest(message, hint=f"Set one with `{guard.command} pin`.")
    print("\n".join([act.title, *act.lines]))
    pin = None
    try:
        has_agreed = input(f"Type {act.word} to agree, anything else to leave it: ").strip() == act.word
        if has_agreed and has_pin:
            has_agreed = bool(pin := getpass.getpass("PIN: "))
    except (KeyboardInterrupt, EOFError):
        anyio.run(guard.note_no, deed)
        raise
    if not has_agreed:
        anyio.run(guard.note_no, deed)
        print("Left as it is: nothing was done.")
        return None
    return anyio.run(guard.prove_person, pin, deed.fields)
