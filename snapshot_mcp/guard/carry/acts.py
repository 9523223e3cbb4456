"""The two acts that destroy: how each is planned, and how it is started once a person has agreed."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, TypeVar

import anyio
from anyio.to_thread import run_sync as in_thread

from snapshot_mcp.contract.errors import NotFound, Unavailable, ZoneError
from snapshot_mcp.contract.models import MAX_NAME_CHARACTERS, Job
from snapshot_mcp.contract.provider import Feature
from snapshot_mcp.contract.text import clean_text
from snapshot_mcp.contract.tree import SnapshotTree
from snapshot_mcp.guard.carry.safety import OnProgress, SafetySnapshot, SafetyState
from snapshot_mcp.guard.carry.terms import agreed_terms, deletion_terms, rollback_terms
from snapshot_mcp.guard.consent.approval import Approval, Call
from snapshot_mcp.guard.consent.approvals import Approvals
from snapshot_mcp.guard.consent.client import Client
from snapshot_mcp.guard.consent.clock import Clock, Moment
from snapshot_mcp.guard.plan.facts import DeletionFacts, RollbackFacts
from snapshot_mcp.guard.plan.gather import gather_deletion_facts, gather_rollback_facts
from snapshot_mcp.guard.plan.plan import (
    DeletionLoss,
    Plan,
    Renames,
    RollbackLoss,
    plan_deletion,
    plan_rollback,
    target_key,
)
from snapshot_mcp.guard.plan.policy import Policy
from snapshot_mcp.guard.plan.rules import Refusal, refuse
from snapshot_mcp.jobs import Zone

LEAST_LOOK_SECONDS = 2.0
"""A look may take so long even where a slow person has used up the time of the call: they have agreed by then."""

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class Look:
    """The plan and the rules as they are now, the rule that forbids it, if one does, and what its disks can be restored from.

    `obstacles`: the errors that the zone would answer now, whatever a person says.
    """

    plan: Plan
    policy: Policy
    refusal: Refusal | None
    trees: tuple[SnapshotTree, ...] = ()
    obstacles: tuple[ZoneError, ...] = ()

    @property
    def good(self) -> frozenset[str]:
        return frozenset[str]().union(*(tree.good for tree in self.trees))


Rules = Callable[[str], Awaitable[Policy]]
"""The operator's rules for a zone, as they are by now."""

RenamesOf = Callable[[str], Awaitable[Renames]]
"""What was renamed of late in the zone at a location, as far as it went through here."""


async def no_renames(location: str) -> Renames:
    return {}


class Planner:
    """What an act needs to be planned: the rules, the epochs, the time, what was renamed."""

    def __init__(
        self,
        rules: Rules,
        approvals: Approvals,
        clock: Clock,
        safety_wait_seconds: float,
        renames: RenamesOf = no_renames,
    ) -> None:
        self._rules = rules
        self._approvals = approvals
        self._clock = clock
        self._safety_wait_seconds = safety_wait_seconds
        self._renames = renames

    async def look_at(
        self,
        facts: DeletionFacts | RollbackFacts,
        decide: Callable[[dict[str, int], Renames], Plan],
        keys: Sequence[str],
        spent: Plan | None,
    ) -> Look:
        """`spent`: the plan that a consent was just spent for, whose epochs and number in the hour were checked with that."""
        policy = await self._rules(facts.zone)
        renames = await self._renames(facts.location)
        if spent is not None:
            plan, recent = decide(dict(zip(spent.targets, spent.epochs, strict=True)), renames), 0
        else:
            plan = decide(await in_thread(self._approvals.epochs, keys), renames)
            recent = await in_thread(self._approvals.deletions_last_hour)
        trees = (facts.tree,) if isinstance(facts, DeletionFacts) else tuple(one.tree for one in facts.targets)
        return Look(plan, policy, refuse(policy, plan, facts, self.now, recent), trees)

    @property
    def now(self) -> datetime:
        return self._clock.read().time

    def call(self, operation: Any, arguments: dict[str, Any], zone: Zone, client: Client) -> Call:
        return Call(
            operation=operation,
            arguments=tuple(sorted(arguments.items())),
            zone=zone.name,
            location=zone.provider.location,
            principal=client.principal,
            client=clean_text(f"{client.name} {client.version}".strip()),
        )

    def safety_snapshot(self, zone: Zone, client: Client, on_progress: OnProgress | None) -> SafetySnapshot:
        def wait_seconds() -> float:
            return min(self._safety_wait_seconds, client.seconds_left)

        return SafetySnapshot(self._approvals, zone, self._clock, wait_seconds, on_progress)


class Act:
    """One guarded call: how it is planned and how it is started. `earlier` is the job of the same call that ended before."""

    call: Call
    client: Client
    zone: Zone
    earlier: Job | None = None

    @property
    def safety(self) -> SafetySnapshot | None:
        """What takes the safety snapshot before the act, where it needs one that the zone does not take itself."""
        return None

    async def look(self, spent: Plan | None = None) -> Look:
        """What would happen now; from here on the call is as strict as the rules are. Raises: Unavailable when it takes
        longer than the host waits."""
        look = await self._bounded(self._look(spent))
        self.call = replace(self.call, is_strict=look.policy.consent == "human" or self.zone.is_production)
        return look

    async def _look(self, spent: Plan | None) -> Look:
        raise NotImplementedError

    async def start(self, approval: Approval, look: Look, safety: SafetyState | None, spent: Moment) -> Job:
        """Ask the zone for what was approved, as the last `look` saw it.

        `safety` is what was taken before, `spent` when the consent was spent.
        """
        raise NotImplementedError

    def way_back(self, job: Job, safety: SafetyState | None) -> SafetyState | None:
        """The safety snapshot: the one that was taken before, or the one that the job takes."""
        return safety

    def started_message(self, job: Job, safety: SafetyState | None) -> str:
        raise NotImplementedError

    async def job_of(self, approval: Approval) -> Job | None:
        """The job that a spent approval started; None for none, and for one that the zone does not know any more."""
        if not approval.job_id:
            return None
        try:
            return await self._bounded(self.zone.provider.get_job(approval.job_id))
        except NotFound:
            return None

    @property
    def _has_terms(self) -> bool:
        return Feature.TERMS in self.zone.provider.features

    async def _bounded(self, looking: Awaitable[Found]) -> Found:
        try:
            with anyio.fail_after(max(LEAST_LOOK_SECONDS, self.client.seconds_left)):
                return await looking
        except TimeoutError:
            raise Unavailable(
                f"Zone {self.zone.name} took too long to say what would be lost now.",
                hint="Nothing was done. Repeat the call when the zone answers faster.",
            ) from None


class Deletion(Act):
    def __init__(self, planner: Planner, zone: Zone, snapshot_id: str, client: Client) -> None:
        self.zone = zone
        self.client = client
        self._planner = planner
        self._snapshot_id = snapshot_id
        self.call = planner.call("delete", {"snapshot_id": snapshot_id}, zone, client)

    async def _look(self, spent: Plan | None) -> Look:
        facts = await gather_deletion_facts(self.zone.provider, self.zone.name, self._snapshot_id)
        key = target_key(facts.location, self._snapshot_id)
        return await self._planner.look_at(
            facts, lambda epochs, renames: plan_deletion(facts, epochs, renames), [key], spent
        )

    async def start(self, approval: Approval, look: Look, safety: SafetyState | None, spent: Moment) -> Job:
        if not self._has_terms:
            return await self.zone.provider.delete_snapshot(self._snapshot_id)
        agreed, now = approval.plan.loss, look.plan.loss
        assert isinstance(agreed, DeletionLoss)
        assert isinstance(now, DeletionLoss)
        terms = deletion_terms(agreed_terms(approval.id, spent), agreed, now, look.trees[0])
        return await self.zone.provider.delete_snapshot(self._snapshot_id, terms=terms)

    def started_message(self, job: Job, safety: SafetyState | None) -> str:
        return f"The deletion is submitted as job {clean_text(job.job_id)}, not done yet. Follow it with wait_for_job."


class Rollback(Act):
    def __init__(
        self,
        planner: Planner,
        zone: Zone,
        snapshot_ids: Sequence[str],
        client: Client,
        safety_snapshot: bool,
        on_progress: OnProgress | None,
    ) -> None:
        self.zone = zone
        self.client = client
        self._planner = planner
        self._snapshot_ids = tuple(snapshot_ids)
        self._has_safety = safety_snapshot
        self._safety = planner.safety_snapshot(zone, client, on_progress)
        arguments = {"snapshot_ids": tuple(sorted(snapshot_ids)), "safety_snapshot": safety_snapshot}
        self.call = planner.call("rollback", arguments, zone, client)

    @property
    def safety(self) -> SafetySnapshot | None:
        """A zone with one hold takes it in the job of the roll-back."""
        needs_own = self._has_safety and Feature.ONE_HOLD not in self.zone.provider.features
        return self._safety if needs_own else None

    async def _look(self, spent: Plan | None) -> Look:
        facts = await gather_rollback_facts(self.zone.provider, self.zone.name, self._snapshot_ids)
        keys = [target_key(facts.location, target.resource.id) for target in facts.targets]
        look = await self._planner.look_at(
            facts,
            lambda epochs, renames: plan_rollback(facts, epochs, renames, safety_snapshot=self._has_safety),
            keys,
            spent,
        )
        return replace(look, obstacles=facts.obstacles(safety_snapshot=self._has_safety))

    async def start(self, approval: Approval, look: Look, safety: SafetyState | None, spent: Moment) -> Job:
        loss = look.plan.loss
        assert isinstance(loss, RollbackLoss)
        options: dict[str, Any] = {}
        if self._has_terms:
            options["terms"] = rollback_terms(agreed_terms(approval.id, spent), loss, look.plan.heads)
        if self._has_safety and safety is None:
            options["safety_snapshot_name"] = safety_name(loss, self._planner.now)
        return await self.zone.provider.apply_snapshots(self._snapshot_ids, **options)

    def way_back(self, job: Job, safety: SafetyState | None) -> SafetyState | None:
        if safety is not None or not self._has_safety:
            return safety
        told = job.details.get("safety_snapshots")
        ids = list(told.values() if isinstance(told, dict) else ())[: len(self._snapshot_ids)]
        return SafetyState(is_there=True, snapshot_ids=tuple(clean_text(one) for one in ids if isinstance(one, str)))

    def started_message(self, job: Job, safety: SafetyState | None) -> str:
        message = (
            f"The roll-back is submitted as job {clean_text(job.job_id)}, not done yet. Follow it with wait_for_job."
        )
        if safety is None:
            return message
        ids = ", ".join(map(clean_text, safety.snapshot_ids))
        what = "snapshot" if len(safety.snapshot_ids) == 1 else "snapshots"
        if safety.job_id:
            return f"{message} The way back is to roll back to the safety {what} {ids}."
        if not ids:
            return f"{message} But the zone does not name the safety snapshot that the job was to take: tell the person at once."
        return (
            f"{message} The same job first takes the safety {what} {ids}: to roll back to that is the way back. If the job"
            " fails before it overwrites anything, there is none and nothing was changed."
        )


def safety_name(loss: RollbackLoss, now: datetime) -> str:
    """The name that the zone gives a roll-back's safety snapshots; the time tells it from that of an earlier one."""
    names = dict.fromkeys(one.snapshot_name or one.snapshot_id for one in loss.overwrites)
    when = f" at {now:%Y-%m-%d %H:%M:%S}"
    return clean_text(f"before roll-back to {', '.join(names)}", MAX_NAME_CHARACTERS - len(when)) + when
