"""What the guard needs of whoever calls it: a name, and a way to put a question to the person behind it.

The guard knows no MCP. The server gives it a `Client` for each call.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

from snapshot_mcp.guard.plan.question import Answer, Question


@dataclass(frozen=True, slots=True)
class UrlAnswer:
    """Whether the person agreed to open the approval page; never that anything was approved."""

    outcome: Literal["accepted", "declined", "cancelled", "unanswered"]


class Client(Protocol):
    """The caller of one guarded call. `principal` is "local" on stdio, the token's client id over HTTP.

    `name` and `version` are the client's own words, cleaned, for the audit. `ask` and `open_url` may leave by an exception of
    the server's own (a round that ends with a question); nothing is held open while they wait. `said_no`: a person has
    answered `KEEP` to this very call, now or in an earlier round. `seconds_left`: how long the call may still take before
    its host gives it up.
    """

    @property
    def principal(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def said_no(self) -> bool: ...
    @property
    def seconds_left(self) -> float: ...
    @property
    def can_ask(self) -> bool: ...
    @property
    def can_open_url(self) -> bool: ...

    async def ask(self, question: Question) -> Answer: ...

    async def open_url(self, approval_id: str, message: str, url: str) -> UrlAnswer: ...
