"""The person at the terminal of a command that carries out a guarded call itself, as the guard's `Client`."""

import secrets
from collections.abc import Callable

from anyio.to_thread import run_sync as in_thread

from snapshot_mcp.guard.consent.client import UrlAnswer
from snapshot_mcp.guard.consent.standing import LOCAL
from snapshot_mcp.guard.plan.question import Question, QuestionAnswer

SECONDS = 60.0
"""How long a look may take; nobody gives up a command but the person."""


class TerminalPerson:
    """Whoever answers `ask` (blocking) with the word or name and the PIN. No other process can use what they agree to."""

    principal = LOCAL
    said_no = False
    seconds_left = SECONDS
    can_ask = True
    can_open_url = False

    def __init__(self, ask: Callable[[Question], QuestionAnswer], name: str, version: str) -> None:
        self._ask = ask
        self.name = name
        self.version = version
        self.process = secrets.token_hex(16)

    async def ask(self, question: Question) -> QuestionAnswer:
        """Put the question to the person; wait as long as they take."""
        return await in_thread(self._ask, question, abandon_on_cancel=True)

    async def open_url(self, approval_id: str, message: str, url: str) -> UrlAnswer:
        """Offer nothing: the person is here."""
        return UrlAnswer("declined")
