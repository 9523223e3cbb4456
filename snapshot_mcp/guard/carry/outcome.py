"""What a guarded call answers: one shape for everything that can become of it."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

Status = Literal["started", "needs_approval", "declined", "refused", "plan_changed", "safety_running"]


@dataclass(frozen=True, slots=True)
class GuardedOutcome:
    """`plan` is the whole effect, a line each. `job_id` is set once something was started, by this call or an earlier one.

    `started`: the zone has accepted the job. `needs_approval`: a person decides outside of the conversation
    (`approval_id`, `approval_link`, `approval_expires_at`; `how_to_approve` is for them). `declined`: a person said no.
    `refused`: policy, or another call that is carrying out the same. `plan_changed`: more would be lost than was consented to.
    `safety_running`: the safety snapshot (`safety_job_id`) is still being taken; the same call goes on from there.
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
