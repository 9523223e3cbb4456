"""A server whose settings cannot be read: hosts show only "connection closed" of a server that does not start.

It has its tools, and each call says what is wrong. Nothing is read from any zone.
"""

from typing import Any

from mcp.shared.exceptions import MCPError
from mcp.types import INTERNAL_ERROR

from snapshot_mcp.server.toolbox import error_result

CODE = "unusable_settings"

NEEDS_A_ZONE = {
    "resources/read",
    "resources/subscribe",
    "subscriptions/listen",
    "prompts/get",
    "completion/complete",
}
"""Requests beside tool calls that are answered with the problem; lists and the handshake are answered as ever."""


def answer_with(problem: str) -> Any:
    """Build a middleware that answers every request for something of a zone with the problem."""
    text = f"The settings of this server cannot be used: {problem} Correct them, then restart this server in the host."

    async def answer(ctx: Any, call_next: Any) -> Any:
        if ctx.method == "tools/call":
            return error_result(CODE, f"{text} Nothing was done.")
        if ctx.method in NEEDS_A_ZONE:
            raise MCPError(INTERNAL_ERROR, text)
        return await call_next(ctx)

    return answer
