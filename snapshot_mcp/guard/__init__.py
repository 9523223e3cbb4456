"""The guard: plan → consent → carry out, policy, approvals, audit (design.md, "The guard").

Nothing is destroyed without a human's yes to the exact consequences, still true when it happens. The guard knows no MCP
and no provider: the server hands it a `Client`, a `Zone` and what was asked for. Its parts are loaded when they are first
named: a server's start pays for none of them, a settings file needs the policy alone.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from snapshot_mcp.guard.client import Answer, Client, Question, UrlAnswer
    from snapshot_mcp.guard.guard import Guard
    from snapshot_mcp.guard.outcome import GuardedOutcome
    from snapshot_mcp.guard.policy import Policy, Protect, tighten_policy
    from snapshot_mcp.guard.states import Door, State

_PARTS = {
    "client": ("Answer", "Client", "Question", "UrlAnswer"),
    "guard": ("Guard",),
    "outcome": ("GuardedOutcome",),
    "policy": ("Policy", "Protect", "tighten_policy"),
    "states": ("Door", "State"),
}

__all__ = [
    "Answer",
    "Client",
    "Door",
    "Guard",
    "GuardedOutcome",
    "Policy",
    "Protect",
    "Question",
    "State",
    "UrlAnswer",
    "tighten_policy",
]


def __getattr__(name: str) -> Any:
    for part, names in _PARTS.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{part}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
