"""The guard: plan → consent → carry out, policy, approvals, audit (design.md, "The guard").

Nothing is destroyed without a human's yes to the exact consequences, still true when it happens. The guard knows no MCP
and no provider: the server hands it a `Client`, a `Zone` and what was asked for.
"""

from snapshot_mcp.guard.client import Answer, Client, Question, UrlAnswer
from snapshot_mcp.guard.guard import Guard
from snapshot_mcp.guard.outcome import GuardedOutcome
from snapshot_mcp.guard.policy import Policy, Protect, tighten_policy
from snapshot_mcp.guard.states import Door, State

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
