"""What becomes of a guarded call: decided as data (`Decided`), answered in words (`GuardedOutcome`, by `replies.py`)."""

from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from snapshot_mcp.contract.models import Job
    from snapshot_mcp.guard.carry.safety import SafetyState
    from snapshot_mcp.guard.consent.approval import Approval
    from snapshot_mcp.guard.plan.plan import Plan
    from snapshot_mcp.guard.plan.rules import Refusal

Status = Literal["started", "needs_approval", "declined", "refused", "plan_changed", "safety_running"]

NEXT_STEPS: dict[Status, str] = {
    "started": "Submitted, not done. Call wait_for_job with this job_id.",
    "needs_approval": "Show this to the person and wait. After the approval repeat exactly this call; there is no other way.",
    "declined": "A person said no. Do not ask again or look for another way.",
    "refused": "Nothing was done. Tell the person the reason.",
    "plan_changed": "Nothing was done. Show the new plan; repeating the call asks again.",
    "safety_running": "Nothing is overwritten yet. Wait (wait_for_job with safety_job_id), then repeat exactly this call.",
}
"""What the model does after each status."""


class Ending(Enum):
    """How a call can end; the value is its status and what tells endings of one status apart."""

    STARTED = ("started", "")
    WAITS = ("needs_approval", "")
    DECLINED = ("declined", "")
    FORBIDDEN = ("refused", "by a rule")
    UNDER_WAY = ("refused", "another call is carrying it out, or has started it")
    NOT_SPENT = ("refused", "the consent could not be used just now")
    NO_SAFETY = ("refused", "no safety snapshot, the way back, could be taken")
    CHANGED = ("plan_changed", "")
    SAFETY_RUNNING = ("safety_running", "")

    @property
    def status(self) -> Status:
        """What the caller is told."""
        status: Status = self.value[0]
        return status


@dataclass(frozen=True, slots=True)
class Decided:
    """What was decided about a call.

    `approval`: the one that it is about, or that waits for a person by now. `refusal` goes with `FORBIDDEN`. `job` was started
    just now; `earlier` is the ended job of the same call, agreed to before. `reason` is why, where the ending does not say it.
    """

    ending: Ending
    plan: "Plan | None" = None
    approval: "Approval | None" = None
    refusal: "Refusal | None" = None
    job: "Job | None" = None
    earlier: "Job | None" = None
    safety: "SafetyState | None" = None
    reason: str = ""

    @property
    def waiting(self) -> "Approval | None":
        """The approval that waits for a person outside of the conversation."""
        return self.approval if self.ending in {Ending.WAITS, Ending.CHANGED} else None


@dataclass(frozen=True, slots=True)
class GuardedOutcome:
    """What a guarded call answers. `plan` is the whole effect, a line each.

    `job_id` is set once something was started, by this call or an earlier one. `approval_link`, `how_to_approve` and
    `approval_expires_at` go with an approval that waits for a person.
    """

    status: Status
    message: str
    plan: tuple[str, ...] = ()
    job_id: str = ""
    approval_id: str = ""
    approval_link: str = ""
    how_to_approve: str = ""
    approval_expires_at: datetime | None = None
    safety_job_id: str = ""
    safety_snapshot_ids: tuple[str, ...] = ()

    @property
    def next_step(self) -> str:
        """What the model does now."""
        return NEXT_STEPS["started" if self.job_id else self.status]
