"""Who may come in over HTTP: the tokens that the operator has given out, as the operator's file says by now.

They are looked up again with every request. While the file cannot be read, the tokens of the last one that could may look and
change nothing.
"""

import hmac
import threading
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

import anyio.to_thread
from mcp.server.auth.provider import AccessToken
from pydantic import SecretStr

OPERATOR = "operator"
APPROVER = "approver"
UNCERTAIN = "uncertain"
"""The scope of every token while the operator's file cannot be read."""


@dataclass(frozen=True, slots=True)
class Caller:
    """One token: its name is the principal of what it asks for."""

    name: str
    token: SecretStr
    roles: frozenset[str]


@dataclass(frozen=True, slots=True)
class Roll:
    """The tokens at one moment. `problem`: why the operator's file cannot be read; they are those of the last good one then."""

    callers: tuple[Caller, ...] = ()
    problem: str = ""

    @property
    def roles(self) -> dict[str, frozenset[str]]:
        """The roles by name."""
        return {caller.name: caller.roles for caller in self.callers}

    def find(self, token: str) -> Caller | None:
        """Compare with every token, so that the time tells nothing."""
        found = None
        for caller in self.callers:
            if hmac.compare_digest(caller.token.get_secret_value().encode(), token.encode("utf-8", "surrogateescape")):
                found = caller
        return found


class Callers:
    """The tokens under a running server; the SDK's token verifier. `read` returns the present ones and may block.

    A server that was started without tokens is open to every program of this machine. It closes when the file gets its first
    token; one that has had tokens never opens again.
    """

    def __init__(self, present: Roll, read: Callable[[], Roll]) -> None:
        self.has_had_tokens = bool(present.callers)
        self._read = read
        self._latest, self._latest_number = present, 0
        self._numbers = count(1)
        self._lock = threading.Lock()

    async def present(self) -> Roll:
        """Return the tokens as they are now."""
        roll, number = await anyio.to_thread.run_sync(self._read_in_order)
        self.has_had_tokens |= bool(roll.callers)
        if number > self._latest_number:
            self._latest, self._latest_number = roll, number
        return roll

    def _read_in_order(self) -> tuple[Roll, int]:
        with self._lock:
            return self._read(), next(self._numbers)

    async def verify_token(self, token: str) -> AccessToken | None:
        roll = await self.present()
        caller = roll.find(token)
        if caller is None:
            return None
        scopes = [UNCERTAIN] if roll.problem else sorted(caller.roles)
        return AccessToken(token=token, client_id=caller.name, scopes=scopes)

    def admits(self, token: str) -> bool:
        """Whether what this token opened may stay open, by the latest look at the file; "" is a caller without one."""
        return self._latest.find(token) is not None if token else not self.has_had_tokens
