"""The guard: nothing is destroyed without a person's consent to the exact consequences, as of that moment (GUARD.md).

It depends neither on MCP nor on a provider: the server passes it a `Client`, a `Zone` and the request. `guard.py` is its front;
its rooms are plan/ ← consent/ ← carry/, and page/.
"""

from typing import TYPE_CHECKING

from snapshot_mcp.guard.carry.outcome import NOT_DONE as NOT_DONE
from snapshot_mcp.guard.carry.outcome import GuardedOutcome as GuardedOutcome
from snapshot_mcp.guard.carry.outcome import Status as Status
from snapshot_mcp.guard.consent.client import Client as Client
from snapshot_mcp.guard.consent.client import UrlAnswer as UrlAnswer
from snapshot_mcp.guard.consent.states import Door as Door
from snapshot_mcp.guard.consent.states import State as State
from snapshot_mcp.guard.guard import Guard as Guard
from snapshot_mcp.guard.plan.policy import Policy as Policy
from snapshot_mcp.guard.plan.policy import Protect as Protect
from snapshot_mcp.guard.plan.policy import tighten_policy as tighten_policy
from snapshot_mcp.guard.plan.question import Question as Question
from snapshot_mcp.guard.plan.question import QuestionAnswer as QuestionAnswer

if TYPE_CHECKING:
    # For annotations only: these are imported by the first guarded call.
    from snapshot_mcp.guard.consent.approval import Approval as Approval
    from snapshot_mcp.guard.consent.journal import Deed as Deed
    from snapshot_mcp.guard.plan.person import PersonAct as PersonAct
