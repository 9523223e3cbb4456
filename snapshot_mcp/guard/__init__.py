"""The guard: plan → consent → carry out, policy, approvals, audit (GUARD.md).

Nothing is destroyed without a human's yes to the exact consequences, still true when it happens. The guard knows no MCP
and no provider: the server hands it a `Client`, a `Zone` and what was asked for.

    guard.py   the front: all that the rest of the program calls
    plan/      what an act would take, whether a rule forbids it, and in which words a person hears of it; pure
    consent/   what people decided, and the record of it
    carry/     guarded calls: deciding what is next, carrying out, taking back
    page/      the approval page
"""

from typing import TYPE_CHECKING

from snapshot_mcp.guard.carry.outcome import GuardedOutcome
from snapshot_mcp.guard.consent.client import Client, UrlAnswer
from snapshot_mcp.guard.consent.states import Door, State
from snapshot_mcp.guard.guard import Guard
from snapshot_mcp.guard.plan.policy import Policy, Protect, tighten_policy
from snapshot_mcp.guard.plan.question import Answer, Question

if TYPE_CHECKING:
    # For annotations: what these are made of is imported with the first guarded call.
    from snapshot_mcp.guard.consent.approval import Approval as Approval
    from snapshot_mcp.guard.consent.journal import Deed as Deed
    from snapshot_mcp.guard.plan.person import PersonAct as PersonAct

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
