"""The guard's view of its caller: a name, and a way to ask the person behind it. The server provides one for each call."""

from dataclasses import dataclass
from typing import Literal, Protocol

from snapshot_mcp.guard.plan.question import Question, QuestionAnswer


@dataclass(frozen=True, slots=True)
class UrlAnswer:
    """Whether the person agreed to open the approval page; it approves nothing."""

    outcome: Literal["accepted", "declined", "cancelled", "unanswered"]


class Client(Protocol):
    """The caller of one guarded call.

    `ask` and `open_url` may raise an exception of the server's own, which ends a round with a question; the guard holds nothing
    open while they wait.
    """

    @property
    def principal(self) -> str:
        """ "local" on stdio, the token's client id over HTTP."""

    @property
    def name(self) -> str:
        """The client program's own name, cleaned, for the audit record."""

    @property
    def version(self) -> str:
        """The client program's own version, cleaned."""

    @property
    def process(self) -> str:
        """A secret of the process whose person makes the call in a terminal, with the PIN; "" for every other caller.

        A consent to such a call is of use to no other process, and is closed with the call.
        """

    @property
    def said_no(self) -> bool:
        """Whether a person answered `KEEP` to this call, now or in an earlier round."""

    @property
    def seconds_left(self) -> float:
        """How long the call may still take before its host gives up."""

    @property
    def can_ask(self) -> bool:
        """Whether the client can put a question to a person."""

    @property
    def can_open_url(self) -> bool:
        """Whether the client can offer a link to a person."""

    async def ask(self, question: Question) -> QuestionAnswer:
        """Put the question to the person."""

    async def open_url(self, approval_id: str, message: str, url: str) -> UrlAnswer:
        """Offer the link to an approval's page to the person."""
