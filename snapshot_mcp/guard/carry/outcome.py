"""The result of a guarded call, in words: what was decided (`steps.py`), as `replies.py` puts it."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

Status = Literal["plan", "started", "needs_approval", "declined", "refused", "plan_changed", "safety_running"]

NEXT_STEPS: dict[Status, str] = {
    "plan": "Only shown: nothing was done and nobody was asked. The call without plan_only asks a person.",
    "started": "Submitted, not done. Call wait_for_job with this job_id.",
    "needs_approval": "Show this to the person and wait. After the approval repeat exactly this call; there is no other way.",
    "declined": "A person said no. Do not ask again or look for another way.",
    "refused": "Nothing was done. Tell the person the reason.",
    "plan_changed": "Nothing was done. Show the new plan; repeating the call asks again.",
    "safety_running": "Nothing is overwritten yet. Wait (wait_for_job with safety_job_id), then repeat exactly this call.",
}
"""What the model should do after each status."""


NOT_DONE = "and is not done yet. Follow it with wait_for_job."
"""Said of a job that was just submitted; whoever waits for it says something else."""


@dataclass(frozen=True, slots=True)
class GuardedOutcome:
    """The result of a guarded call. `plan` is the whole effect, one entry per line.

    `job_id`: the job that this call or an earlier one started. `approval_link`, `how_to_approve` and `approval_expires_at`
    belong to an approval that waits for a person.
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
    frees_bytes: int | None = None
    declined_at: datetime | None = None
    ask_again_at: datetime | None = None

    @property
    def next_step(self) -> str:
        """What the model should do now."""
        return NEXT_STEPS["started" if self.job_id else self.status]
