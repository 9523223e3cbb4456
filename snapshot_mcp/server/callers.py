"""HTTP callers: the tokens that the operator has given out, and what their roles allow.

The operator's file is read again with every request. While it cannot be read, the last known tokens may read but not change
anything. A viewer reads; an operator also changes; an approver also decides over what others want to destroy.
"""

import hmac
import threading
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

import anyio.to_thread
from mcp.server.auth.middleware.auth_context import get_access_token
from mcp.server.auth.provider import AccessToken
from pydantic import SecretStr

OPERATOR = "operator"
APPROVER = "approver"
UNCERTAIN = "uncertain"
"""Scope of every token while the operator's file cannot be read."""


@dataclass(frozen=True, slots=True)
class Caller:
    """A token; its name is the principal of its requests."""

    name: str
    token: SecretStr
    roles: frozenset[str]


@dataclass(frozen=True, slots=True)
class Roll:
    """The tokens at one moment. `problem`: why the operator's file cannot be read; the tokens are then the last known ones."""

    callers: tuple[Caller, ...] = ()
    problem: str = ""

    @property
    def roles(self) -> dict[str, frozenset[str]]:
        """The roles by name."""
        return {caller.name: caller.roles for caller in self.callers}

    def find(self, token: str) -> Caller | None:
        """Return the caller with this token, comparing with all of them in constant time."""
        found = None
        for caller in self.callers:
            if hmac.compare_digest(caller.token.get_secret_value().encode(), token.encode("utf-8", "surrogateescape")):
                found = caller
        return found


class Callers:
    """The tokens of a running server; the SDK's token verifier. `read` returns the current ones and may block.

    A server that was started without tokens is open to every program on this machine, until the file gets its first token;
    from then on it stays closed to callers without one.
    """

    def __init__(self, present: Roll, read: Callable[[], Roll]) -> None:
        self.has_had_tokens = bool(present.callers)
        self._read = read
        self._latest, self._latest_number = present, 0
        self._numbers = count(1)
        self._lock = threading.Lock()

    async def present(self) -> Roll:
        """Return the current tokens."""
        roll, number = await anyio.to_thread.run_sync(self._read_in_order)
        self.has_had_tokens |= bool(roll.callers)
        if number > self._latest_number:
            self._latest, self._latest_number = roll, number
        return roll

    def _read_in_order(self) -> tuple[Roll, int]:
        with self._lock:
            return self._read(), next(self._numbers)

    async def verify_token(self, token: str) -> AccessToken | None:
        """Return the token's name and scopes, None if it is not valid."""
        roll = await self.present()
        caller = roll.find(token)
        if caller is None:
            return None
        scopes = [UNCERTAIN] if roll.problem else sorted(caller.roles)
        return AccessToken(token=token, client_id=caller.name, scopes=scopes)

    def admits(self, token: str) -> bool:
        """Return whether this token ("" for none) was valid when the file was last read."""
        return self._latest.find(token) is not None if token else not self.has_had_tokens


def refuse_role(*, reads_only: bool) -> str:
    """Return why the caller may not call a tool, "" if it may. On a server without tokens every caller is an operator."""
    token = get_access_token()
    if token is None or reads_only or OPERATOR in token.scopes:
        return ""
    if UNCERTAIN in token.scopes:
        return "the operator's settings cannot be read, so changes are not allowed. The operator must correct them."
    return f"the token {token.client_id!r} is read-only. The operator of this server assigns the roles."


def sees_names_of(principal: str) -> bool:
    """Return whether the caller may know that this principal asked for a job, and who approved it."""
    token = get_access_token()
    return token is None or APPROVER in token.scopes or token.client_id == principal
