"""The person who deletes or overwrites from a shell: the plan, the word or name, and the operator's PIN.

No option, pipe or variable answers for them. Without a PIN nothing is destroyed here, because assistants have shells too.
"""

import getpass
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import anyio

from snapshot_mcp import app
from snapshot_mcp.cli.out import ask, is_answer, say
from snapshot_mcp.cli.person import need_terminal
from snapshot_mcp.contract.errors import BadRequest

if TYPE_CHECKING:
    from snapshot_mcp.settings import Settings


def need_person(settings: "Settings", act: str, otherwise: str = "") -> None:
    """Raise BadRequest unless there is a PIN, and a terminal to enter it; `otherwise` says what needs neither."""
    guard = app.build_guard(settings, has_page=False)
    if not anyio.run(guard.has_pin):
        raise BadRequest(
            f"`{act}` needs the operator's PIN, and none is set: nothing was done.",
            hint=f"Set one with `{guard.command} pin`, or let the assistant ask you. {otherwise}".strip(),
        )
    try:
        need_terminal(act)
    except BadRequest as error:
        raise error.add(hint=otherwise) from None


@contextmanager
def kept_terminal() -> Iterator[None]:
    """Leave the terminal as it was, also when Ctrl-C ends the entry of the PIN, which shows nothing while it is typed."""
    before = None
    with suppress(ImportError, OSError, ValueError):
        import termios

        with suppress(termios.error):
            before = termios.tcgetattr(sys.stdin.fileno())
    try:
        yield
    finally:
        if before is not None:
            termios.tcsetattr(sys.stdin.fileno(), termios.TCSANOW, before)


def ask_person(question: "app.Question") -> "app.QuestionAnswer":
    """Show what would be lost, and ask for the word or name and the PIN; anything else keeps everything. Blocking."""
    say(*question.message.split("\n"))
    word = question.expected_name or question.words[0]
    keep = app.answer_of(question.words[1], "")
    try:
        if not is_answer(ask(f"Type {word} to agree, anything else to cancel:"), word):
            return keep
        pin = getpass.getpass("PIN: ")
    except EOFError:
        return keep
    return app.answer_of(word, pin) if pin else keep
