"""The guard: nothing is destroyed without a human's yes to the exact consequences, still true when it happens.

A guarded call is planned, held against policy, matched with what people have decided about it already, put to a person if
nobody has, planned again, and only then carried out. Each call is a straight coroutine that may be run again from its start:
until the question is answered it changes nothing that a second run would not find.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import anyio

from snapshot_mcp.contract.errors import (
    BadRequest,
    Forbidden,
    NotFound,
    NotUsable,
    OutcomeUnknown,
    QuotaExceeded,
    ResourceBusy,
    StorageFull,
    TooManyRequests,
    Unauthorized,
    Unavailable,
    UnknownZone,
    Unsupported,
    WrongResourceType,
    ZoneError,
)
from snapshot_mcp.contract.models import Job, Snapshot
from snapshot_mcp.contract.text import MESSAGE_CHARACTERS, clean_text
from snapshot_mcp.guard.approvals import PROVEN, Approval, Approvals, Call, Door, SpendRefusal, State
from snapshot_mcp.guard.audit import Audit
from snapshot_mcp.guard.client import Client
from snapshot_mcp.guard.clock import Clock, SystemClock
from snapshot_mcp.guard.database import Database
from snapshot_mcp.guard.errors import GuardBroken, WrongPin
from snapshot_mcp.guard.facts import DeletionFacts, RollbackFacts, gather_deletion_facts, gather_rollback_facts
from snapshot_mcp.guard.outcome import GuardedOutcome
from snapshot_mcp.guard.pin import Pin
from snapshot_mcp.guard.plan import Plan, is_no_worse, plan_deletion, plan_rollback, target_key
from snapshot_mcp.guard.policy import Policy
from snapshot_mcp.guard.rules import Refusal, refuse, refuse_rename
from snapshot_mcp.guard.safety import SafetySnapshot, SafetyState
from snapshot_mcp.guard.threads import in_thread
from snapshot_mcp.guard.wording import is_no, is_yes, plan_lines, question_for
from snapshot_mcp.jobs import Zone

SAFETY_WAIT_SECONDS = 20.0
"""A call waits so long for its safety snapshot; hosts give up after 30 to 60 s."""

DEFINITE_REFUSALS = (
    BadRequest,
    Forbidden,
    NotFound,
    NotUsable,
    QuotaExceeded,
    ResourceBusy,
    StorageFull,
    TooManyRequests,
    Unauthorized,
    Unavailable,
    UnknownZone,
    Unsupported,
    WrongResourceType,
)
"""Answers after which a change has not begun. All others leave it open, and the consent stays spent."""

OnProgress = Callable[[tuple[Job, ...]], Awaitable[None]]


class ApprovalLinks(Protocol):
    """The approval page, started when the first link is wanted."""

    async def link(self, approval_id: str) -> str: ...


@dataclass(frozen=True, slots=True)
class Look:
    """The plan as it is now, and the rule that forbids it, if one does."""

    plan: Plan
    refusal: Refusal | None


class Guard:
    """One home's guard; any number of processes may have one. Nothing is created before the first guarded call."""

    def __init__(
        self,
        folder: Path,
        policy: Policy,
        *,
        clock: Clock | None = None,
        safety_wait_seconds: float = SAFETY_WAIT_SECONDS,
    ) -> None:
        self.policy = policy
        self.links: ApprovalLinks | None = None
        self._clock = clock or SystemClock()
        self._safety_wait_seconds = safety_wait_seconds
        database = Database(folder)
        self.audit = Audit(database)
        self._approvals = Approvals(database, self.audit, self._clock)
        self._pin = Pin(database, self.audit, self._clock)

    # Guarded calls

    async def delete_snapshot(self, zone: Zone, snapshot_id: str, client: Client) -> GuardedOutcome:
        """Delete a snapshot with everything built on it. Raises what the zone answers."""
        return await self._run(_Deletion(self, zone, snapshot_id, client), client)

    async def rollback_to_snapshots(
        self,
        zone: Zone,
        snapshot_ids: Sequence[str],
        client: Client,
        *,
        safety_snapshot: bool = True,
        on_progress: OnProgress | None = None,
    ) -> GuardedOutcome:
        """Overwrite the snapshots' disks with them. `on_progress` hears of the safety snapshot's job."""
        return await self._run(_Rollback(self, zone, snapshot_ids, client, safety_snapshot, on_progress), client)

    def refuse_rename(self, snapshot: Snapshot) -> str:
        """Return why the snapshot must keep its name, "" if it need not: protection may hang on it."""
        refusal = refuse_rename(self.policy, snapshot)
        return refusal.message if refusal else ""

    # The human's side

    async def list_approvals(self) -> tuple[Approval, ...]:
        """Open ones first, newest first."""
        return await in_thread(self._approvals.list_all)

    async def get_approval(self, approval_id: str) -> Approval:
        """Raises: NotFound."""
        return await in_thread(self._approvals.get, approval_id)

    async def approve(
        self,
        approval_id: str,
        pin: str | None,
        *,
        digest: str | None = None,
        door: Door = Door.TERMINAL,
        by: str = "local",
    ) -> Approval:
        """Grant the plan whose `digest` the person saw (None: as it stands). Without a PIN a terminal's word is unproven.

        Raises: NotFound, NotDecidable, WrongPin, PinLocked.
        """
        approval = await self.get_approval(approval_id)
        if door is Door.TERMINAL and not await self.has_pin():
            if approval.call.is_strict:
                raise WrongPin(
                    "This approval needs a PIN, and none is set.", hint="The operator sets one with `snapshot-mcp pin`."
                )
            door = Door.UNPROVEN
        elif door in {Door.TERMINAL, Door.PAGE}:
            await in_thread(lambda: self._pin.check(pin, door=door.value))
        seen = approval.plan.digest if digest is None else digest
        return await in_thread(lambda: self._approvals.grant(approval_id, digest=seen, door=door, by=by))

    async def deny(self, approval_id: str, *, door: Door = Door.TERMINAL, by: str = "local") -> Approval:
        """Deny, or withdraw what was granted and not yet used. Raises: NotFound, NotDecidable."""
        return await in_thread(lambda: self._approvals.deny(approval_id, door=door, by=by))

    async def has_pin(self) -> bool:
        return await in_thread(self._pin.is_set)

    async def set_pin(self, new: str, old: str | None = None, *, by: str = "local") -> None:
        """Raises: BadRequest, WrongPin, PinLocked."""
        await in_thread(lambda: self._pin.set(new, old, by=by))

    # The way of a call

    async def _run(self, act: "_Act", client: Client) -> GuardedOutcome:
        if self.policy.read_only:
            return await self._refused(act, Refusal("read_only", "this server only reads."))
        while True:
            look = await act.look()
            if look.refusal:
                return await self._refused(act, look.refusal, look.plan)
            found = await in_thread(self._approvals.look, act.call, look.plan)
            match found:
                case Approval(state=State.GRANTED):
                    return await self._carry_out(act, found, look)
                case Approval(state=State.PENDING):
                    return await self._needs_approval(act, look.plan, client, found)
                case Approval(state=State.DENIED):
                    return self._declined(look.plan)
                case Approval(state=State.SPENT) if await act.is_under_way(found):
                    return self._under_way(look.plan, found)
            if act.call.is_strict or not client.can_ask:
                return await self._needs_approval(act, look.plan, client)
            decided = await self._ask(act, look.plan, client)
            match decided:
                case Approval(state=State.GRANTED):
                    return await self._carry_out(act, decided, await act.look())
                case Approval(state=State.PENDING):
                    return await self._needs_approval(act, look.plan, client, decided)
                case Approval():
                    return self._declined(look.plan)

    async def _ask(self, act: "_Act", plan: Plan, client: Client) -> Approval | None:
        """Put the question; None when its answer was used up by another call."""
        asked = await in_thread(self._approvals.ask, act.call, plan)
        question = question_for(plan, asked.nonce)
        answer = await client.ask(question)
        if is_yes(question, answer):
            state, said = State.GRANTED, "yes"
        elif is_no(question, answer):
            state, said = State.DENIED, "no"
        else:
            state, said = State.PENDING, "neither yes nor no" if answer.outcome == "answered" else answer.outcome
        return await in_thread(self._approvals.answer, act.call, asked, state, said)

    async def _carry_out(self, act: "_Act", approval: Approval, look: Look) -> GuardedOutcome:
        """Act under a granted approval, if it covers the plan as it is now."""
        stale = await self._stale(act, approval, look)
        if stale:
            return stale
        safety: SafetyState | None = None
        if act.safety is not None:
            safety = await act.safety.ensure(approval)
            if not safety.is_there:
                return self._without_safety(look.plan, approval, safety)
            look = await act.look()
            stale = await self._stale(act, approval, look)
            if stale:
                return stale
        return await self._spend(act, approval, look.plan, safety)

    async def _spend(self, act: "_Act", approval: Approval, plan: Plan, safety: SafetyState | None) -> GuardedOutcome:
        with anyio.CancelScope(shield=True):
            refusal = await in_thread(
                lambda: self._approvals.spend(approval.id, plan, deletions_per_hour=self.policy.deletions_per_hour)
            )
            if refusal:
                return await self._not_spent(act, approval, plan, refusal)
            try:
                job = await act.start()
            except DEFINITE_REFUSALS as error:
                granted = await in_thread(self._approvals.give_back, approval.id, _reason(error))
                error.hint = f"{error.hint} {_kept(granted, self._clock)}".strip()
                raise
            except OutcomeUnknown as error:
                await in_thread(self._approvals.leave_unknown, approval.id, _reason(error))
                raise
            except BaseException as error:
                await in_thread(self._approvals.leave_unknown, approval.id, type(error).__name__)
                raise
            message = act.started_message(job, safety)
            try:
                await in_thread(self._approvals.settle, approval.id, job.job_id)
            except GuardBroken as error:
                message += f" That it was started could not be recorded: {error}"
        return GuardedOutcome(
            status="started",
            message=message,
            plan=plan_lines(plan),
            job_id=job.job_id,
            approval_id=approval.id,
            safety_job_id=safety.job_id if safety else "",
            safety_snapshot_ids=safety.snapshot_ids if safety else (),
        )

    async def _not_spent(self, act: "_Act", approval: Approval, plan: Plan, refusal: SpendRefusal) -> GuardedOutcome:
        if refusal is SpendRefusal.MOVED:
            return await self._plan_changed(act, approval, plan, refusal.value)
        if refusal is SpendRefusal.TOO_MANY:
            return await self._refused(act, Refusal("deletions_per_hour", f"{refusal.value}."), plan)
        current = await in_thread(self._approvals.get, approval.id)
        if refusal is SpendRefusal.NOT_GRANTED and current.state is State.SPENT:
            return self._under_way(plan, current)
        if refusal is SpendRefusal.HELD:
            message = f"Nothing was done: {refusal.value}. The approval is kept; repeat the call in a moment."
        else:
            message = f"Nothing was done: the approval is {current.state} now."
        return GuardedOutcome("refused", message, plan_lines(plan), approval_id=approval.id)

    async def _stale(self, act: "_Act", approval: Approval, look: Look) -> GuardedOutcome | None:
        """The outcome of a call whose approval does not cover what would happen now; None if it does."""
        if look.refusal:
            return await self._refused(act, look.refusal, look.plan)
        if act.call.is_strict and approval.door not in PROVEN:
            return await self._plan_changed(act, approval, look.plan, "a proven approval is needed by now")
        if not is_no_worse(look.plan, approval.plan):
            return await self._plan_changed(act, approval, look.plan, "more would be lost now than was agreed to")
        return None

    # Outcomes

    async def _plan_changed(self, act: "_Act", approval: Approval, plan: Plan, reason: str) -> GuardedOutcome:
        await in_thread(self._approvals.void, approval.id, reason)
        message = f"Nothing was done: {reason}, so the earlier yes does not hold."
        if not act.call.is_strict and act.client.can_ask:
            return GuardedOutcome(
                "plan_changed", f"{message} Repeat the call to put the new plan to the person.", plan_lines(plan)
            )
        opened = await in_thread(self._approvals.open, act.call, plan)
        link = await self._link(opened)
        return _pending_outcome("plan_changed", f"{message} {_how_to_approve(opened, link)}", plan, opened, link)

    async def _needs_approval(
        self, act: "_Act", plan: Plan, client: Client, found: Approval | None = None
    ) -> GuardedOutcome:
        if found is None:
            found = await in_thread(self._approvals.open, act.call, plan)
        if found.state is State.PENDING:
            found = await in_thread(self._approvals.refresh, found, act.call, plan)
        link = await self._link(found)
        message = f"Nothing was done yet: a person has to agree. {_how_to_approve(found, link)}"
        if act.call.is_strict and not await self.has_pin():
            message += " This takes a PIN, which the operator of this server has not set yet (`snapshot-mcp pin`)."
        return _pending_outcome("needs_approval", message, plan, found, link)

    async def _refused(self, act: "_Act", refusal: Refusal, plan: Plan | None = None) -> GuardedOutcome:
        await in_thread(self._approvals.record_refusal, act.call, refusal.rule)
        return GuardedOutcome("refused", refusal.message, plan_lines(plan) if plan else ())

    def _declined(self, plan: Plan) -> GuardedOutcome:
        message = "A person said no to this. Nothing was done, and they will not be asked again for ten minutes."
        return GuardedOutcome("declined", message, plan_lines(plan))

    def _under_way(self, plan: Plan, approval: Approval) -> GuardedOutcome:
        job = f" as job {approval.job_id}; follow it with wait_for_job" if approval.job_id else ""
        return GuardedOutcome(
            "refused",
            f"This was started before under the same approval{job}. It was not started a second time.",
            plan_lines(plan),
            job_id=approval.job_id,
            approval_id=approval.id,
            safety_snapshot_ids=approval.safety.snapshot_ids,
        )

    def _without_safety(self, plan: Plan, approval: Approval, safety: SafetyState) -> GuardedOutcome:
        if safety.is_running:
            return GuardedOutcome(
                "safety_running",
                "The safety snapshot is still being taken; nothing is overwritten yet. Wait for its job with wait_for_job,"
                " then repeat this same call: it goes on under the same approval.",
                plan_lines(plan),
                approval_id=approval.id,
                safety_job_id=safety.job_id,
            )
        return GuardedOutcome(
            "refused",
            f"Nothing was overwritten: {safety.problem} {_kept(safety.approval or approval, self._clock)}".strip(),
            plan_lines(plan),
            approval_id=approval.id,
            safety_job_id=safety.job_id,
        )

    async def _link(self, approval: Approval) -> str:
        return await self.links.link(approval.id) if self.links else ""

    # What the acts need

    async def look_at(
        self, facts: DeletionFacts | RollbackFacts, decide: Callable[[dict[str, int]], Plan], keys: Sequence[str]
    ) -> Look:
        plan = decide(await in_thread(self._approvals.epochs, keys))
        recent = await in_thread(self._approvals.deletions_last_hour)
        return Look(plan, refuse(self.policy, plan, facts, self._clock.read().time, recent))

    def call(self, operation: Any, arguments: dict[str, Any], zone: Zone, client: Client) -> Call:
        return Call(
            operation=operation,
            arguments=tuple(sorted(arguments.items())),
            zone=zone.name,
            location=zone.provider.location,
            principal=client.principal,
            client=clean_text(f"{client.name} {client.version}".strip()),
            is_strict=self.policy.consent == "human" or zone.is_production,
        )

    def safety_snapshot(self, zone: Zone, on_progress: OnProgress | None) -> SafetySnapshot:
        return SafetySnapshot(self._approvals, zone, self._clock, self._safety_wait_seconds, on_progress)


class _Act:
    """One guarded call: how it is planned and how it is started."""

    call: Call
    client: Client
    safety: SafetySnapshot | None = None
    zone: Zone

    async def look(self) -> Look:
        raise NotImplementedError

    async def start(self) -> Job:
        raise NotImplementedError

    def started_message(self, job: Job, safety: SafetyState | None) -> str:
        raise NotImplementedError

    async def is_under_way(self, approval: Approval) -> bool:
        """Whether the job of a spent approval still runs."""
        if not approval.job_id:
            return False
        try:
            return not (await self.zone.provider.get_job(approval.job_id)).is_finished
        except NotFound:
            return False


class _Deletion(_Act):
    def __init__(self, guard: Guard, zone: Zone, snapshot_id: str, client: Client) -> None:
        self.zone = zone
        self.client = client
        self._guard = guard
        self._snapshot_id = snapshot_id
        self.call = guard.call("delete", {"snapshot_id": snapshot_id}, zone, client)

    async def look(self) -> Look:
        facts = await gather_deletion_facts(self.zone.provider, self.zone.name, self._snapshot_id)
        key = target_key(facts.location, self._snapshot_id)
        return await self._guard.look_at(facts, lambda epochs: plan_deletion(facts, epochs), [key])

    async def start(self) -> Job:
        return await self.zone.provider.delete_snapshot(self._snapshot_id)

    def started_message(self, job: Job, safety: SafetyState | None) -> str:
        return f"The deletion is submitted as job {job.job_id}, not done yet. Follow it with wait_for_job."


class _Rollback(_Act):
    def __init__(
        self,
        guard: Guard,
        zone: Zone,
        snapshot_ids: Sequence[str],
        client: Client,
        safety_snapshot: bool,
        on_progress: OnProgress | None,
    ) -> None:
        self.zone = zone
        self.client = client
        self._guard = guard
        self._snapshot_ids = tuple(snapshot_ids)
        self._has_safety = safety_snapshot
        self.safety = guard.safety_snapshot(zone, on_progress) if safety_snapshot else None
        arguments = {"snapshot_ids": tuple(sorted(snapshot_ids)), "safety_snapshot": safety_snapshot}
        self.call = guard.call("rollback", arguments, zone, client)

    async def look(self) -> Look:
        facts = await gather_rollback_facts(self.zone.provider, self.zone.name, self._snapshot_ids)
        keys = [target_key(facts.location, target.resource.id) for target in facts.targets]
        return await self._guard.look_at(
            facts, lambda epochs: plan_rollback(facts, epochs, safety_snapshot=self._has_safety), keys
        )

    async def start(self) -> Job:
        return await self.zone.provider.apply_snapshots(self._snapshot_ids)

    def started_message(self, job: Job, safety: SafetyState | None) -> str:
        message = f"The roll-back is submitted as job {job.job_id}, not done yet. Follow it with wait_for_job."
        if safety:
            ids = ", ".join(safety.snapshot_ids)
            message += f" The way back is to roll back to the safety snapshot {ids}."
        return message


def _pending_outcome(status: Any, message: str, plan: Plan, approval: Approval, link: str) -> GuardedOutcome:
    return GuardedOutcome(
        status,
        message,
        plan_lines(plan),
        approval_id=approval.id,
        approval_link=link,
        approval_expires_at=approval.expires_at,
    )


def _how_to_approve(approval: Approval, link: str) -> str:
    page = f" or open {link}" if link else ""
    return (
        f"Tell them what the plan says, and that they can run `snapshot-mcp approve {approval.id}` in a terminal of their"
        f" own{page}; this is theirs to do, not yours. Then repeat this same call."
    )


def _kept(approval: Approval, clock: Clock) -> str:
    """What became of the consent after a refusal."""
    expires_at = approval.expires_at
    if expires_at is None or expires_at <= datetime.now(UTC) or not approval.is_alive(clock.read()):
        return "The approval's time is over; a repeated call asks anew."
    return f"The approval is kept until {expires_at:%H:%M} UTC; repeat the same call until then."


def _reason(error: ZoneError) -> str:
    return clean_text(f"{error.code}: {error.message}", MESSAGE_CHARACTERS)
