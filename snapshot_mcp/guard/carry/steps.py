"""What a guarded call does next and how it ends, decided from what is known about it (GUARD.md, "A call"). Pure."""

from dataclasses import dataclass
from enum import Enum

from snapshot_mcp.contract.errors import ZoneError
from snapshot_mcp.contract.models import Job
from snapshot_mcp.contract.tree import SnapshotTree
from snapshot_mcp.guard.carry.outcome import Status
from snapshot_mcp.guard.consent.approval import Approval, Call
from snapshot_mcp.guard.consent.client import Client
from snapshot_mcp.guard.consent.states import State
from snapshot_mcp.guard.plan.plan import Plan
from snapshot_mcp.guard.plan.rules import Refusal


@dataclass(frozen=True, slots=True)
class Look:
    """The plan as it is now, the rule that forbids it, if one does, and what its disks can be restored from.

    `call`: what was asked for, as strict as the rules are now. `obstacles`: the errors that the zone would answer now,
    whatever a person says.
    """

    call: Call
    plan: Plan
    refusal: Refusal | None = None
    trees: tuple[SnapshotTree, ...] = ()
    obstacles: tuple[ZoneError, ...] = ()

    @property
    def good(self) -> frozenset[str]:
        """The ids of the good restore points."""
        return frozenset[str]().union(*(tree.good for tree in self.trees))


@dataclass(frozen=True, slots=True)
class Found:
    """What people have decided about the call so far.

    `ended_id`: a spent approval whose job is known to be over; what it did may have come after the look, so the call looks
    again. `ended_job` is that job, None where the zone does not know it any more.
    """

    approval: Approval | None = None
    ended_id: str = ""
    ended_job: Job | None = None

    @property
    def known(self) -> Approval:
        """The approval, where the step is about one."""
        assert self.approval is not None
        return self.approval


class Step(Enum):
    """What a call does next."""

    REFUSE = "a rule forbids it"
    DECLINE = "a person said no of late"
    FOLLOW_SPENT = "the same call was agreed to before: see what became of that"
    RECORD_NO = "a person has just said no"
    CARRY_OUT = "a person has agreed"
    REPORT_OBSTACLE = "the zone would refuse it: nobody is asked in vain"
    WAIT_OUTSIDE = "an approval waits for a person"
    OPEN_APPROVAL = "only a person outside of the conversation can decide"
    ASK = "ask through the client"


@dataclass(frozen=True, slots=True)
class SafetyState:
    """How far a roll-back's safety snapshot is.

    `is_there`: it is the way back. `is_running`: look again later. Else `problem` says why there is none."""

    is_there: bool = False
    is_running: bool = False
    job_id: str = ""
    snapshot_ids: tuple[str, ...] = ()
    problem: str = ""
    approval: Approval | None = None


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
    plan: Plan | None = None
    approval: Approval | None = None
    refusal: Refusal | None = None
    job: Job | None = None
    earlier: Job | None = None
    safety: SafetyState | None = None
    reason: str = ""

    @property
    def waiting(self) -> Approval | None:
        """The approval that waits for a person outside of the conversation."""
        return self.approval if self.ending in {Ending.WAITS, Ending.CHANGED} else None


def next_step(found: Found, client: Client, look: Look) -> Step:
    """Return the first step that applies; the order is what makes a later one safe.

    A rule comes before every consent, a no before every yes, and a yes before an obstacle, because it says what becomes of it.
    """
    state = found.approval.state if found.approval else None
    if look.refusal:
        return Step.REFUSE
    if state is State.DENIED:
        return Step.DECLINE
    if state is State.SPENT and found.known.id != found.ended_id:
        return Step.FOLLOW_SPENT
    if client.said_no:
        return Step.RECORD_NO
    if state is State.GRANTED:
        return Step.CARRY_OUT
    if look.obstacles:
        return Step.REPORT_OBSTACLE
    if state is State.PENDING:
        return Step.WAIT_OUTSIDE
    if look.call.is_strict or not client.can_ask:
        return Step.OPEN_APPROVAL
    return Step.ASK
