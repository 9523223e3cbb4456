"""Decides what a guarded call does next and how it ends, from what is known about it (GUARD.md, "A call"). Pure."""

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
    """The plan as of now, the rule that forbids it, if any, and its disks' restore points.

    `call`: what was requested, as strict as the rules are now. `obstacles`: errors that the zone would answer now, whatever a
    person decides.
    """

    call: Call
    plan: Plan
    refusal: Refusal | None = None
    trees: tuple[SnapshotTree, ...] = ()
    obstacles: tuple[ZoneError, ...] = ()

    @property
    def good(self) -> frozenset[str]:
        """Ids of the good restore points."""
        return frozenset[str]().union(*(tree.good for tree in self.trees))


@dataclass(frozen=True, slots=True)
class Found:
    """What people have decided about the call so far.

    `ended_id`: a spent approval whose job is known to have ended, possibly after the look, so the call looks again.
    `ended_job`: that job, None if the zone no longer knows it.
    """

    approval: Approval | None = None
    ended_id: str = ""
    ended_job: Job | None = None

    @property
    def known(self) -> Approval:
        """The approval, in a step that has one."""
        assert self.approval is not None
        return self.approval


class NextStep(Enum):
    """What a call does next."""

    REFUSE = "a rule forbids it"
    DECLINE = "a person said no recently"
    FOLLOW_SPENT = "the same call was approved before: check what became of it"
    RECORD_NO = "a person has just said no"
    CARRY_OUT = "a person has agreed"
    REPORT_OBSTACLE = "the zone would refuse it, so nobody is asked"
    WAIT_OUTSIDE = "an approval waits for a person"
    OPEN_APPROVAL = "only a person outside the conversation can decide"
    ASK = "ask through the client"


@dataclass(frozen=True, slots=True)
class SafetyState:
    """The state of a roll-back's safety snapshot: ready (`is_there`), not ready yet (`is_running`), or missing (`problem`)."""

    is_there: bool = False
    is_running: bool = False
    job_id: str = ""
    snapshot_ids: tuple[str, ...] = ()
    problem: str = ""
    approval: Approval | None = None


class Ending(Enum):
    """How a call can end: its status, and what distinguishes endings of one status."""

    STARTED = ("started", "")
    WAITS = ("needs_approval", "")
    DECLINED = ("declined", "")
    FORBIDDEN = ("refused", "by a rule")
    UNDER_WAY = ("refused", "another call is carrying it out or has started it")
    NOT_SPENT = ("refused", "the consent could not be spent")
    NO_SAFETY = ("refused", "no safety snapshot could be taken")
    CHANGED = ("plan_changed", "")
    SAFETY_RUNNING = ("safety_running", "")

    @property
    def status(self) -> Status:
        """The status that the caller gets."""
        status: Status = self.value[0]
        return status


@dataclass(frozen=True, slots=True)
class Decided:
    """What was decided about a call.

    `approval`: the one in question, or the one that now waits for a person. `refusal` belongs to `FORBIDDEN`. `job` was just
    started; `earlier` is the ended job of the same call. `reason` says why, if the ending does not.
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
        """The approval that waits for a person outside the conversation."""
        return self.approval if self.ending in {Ending.WAITS, Ending.CHANGED} else None


def next_step(found: Found, client: Client, look: Look) -> NextStep:
    """Return the first step that applies; the order is what makes a later one safe.

    A rule precedes every consent, a no every yes, and a yes an obstacle, whose message then says how long the yes is kept.
    """
    state = found.approval.state if found.approval else None
    if look.refusal:
        return NextStep.REFUSE
    if state is State.DENIED:
        return NextStep.DECLINE
    if state is State.SPENT and found.known.id != found.ended_id:
        return NextStep.FOLLOW_SPENT
    if client.said_no:
        return NextStep.RECORD_NO
    if state is State.GRANTED:
        return NextStep.CARRY_OUT
    if look.obstacles:
        return NextStep.REPORT_OBSTACLE
    if state is State.PENDING:
        return NextStep.WAIT_OUTSIDE
    if look.call.process or (client.can_ask and not look.call.is_strict):
        return NextStep.ASK
    return NextStep.OPEN_APPROVAL
