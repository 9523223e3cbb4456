"""The two destructive acts: how each is planned, and how it is started once a person has agreed."""

from collections.abc import Awaitable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Generic, Literal, TypeVar

import anyio
from anyio.to_thread import run_sync as in_thread

from snapshot_mcp.contract.errors import NotFound, Unavailable
from snapshot_mcp.contract.models import MAX_NAME_CHARACTERS, Job
from snapshot_mcp.contract.provider import Feature
from snapshot_mcp.contract.text import clean_text
from snapshot_mcp.ground.clock import Moment
from snapshot_mcp.guard.carry.safety import OnProgress, SafetySnapshot
from snapshot_mcp.guard.carry.steps import Look, SafetyState
from snapshot_mcp.guard.carry.surroundings import Surroundings
from snapshot_mcp.guard.carry.terms import agreed_terms, deletion_terms, rollback_terms
from snapshot_mcp.guard.consent.approval import Approval, Call
from snapshot_mcp.guard.consent.client import Client
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
from snapshot_mcp.guard.plan.rules import refuse
from snapshot_mcp.zones import Zone

LEAST_LOOK_SECONDS = 2.0
"""Minimum time for a look, even if a slow person used up the time of the call: they have agreed by then."""

T = TypeVar("T")
F = TypeVar("F", DeletionFacts, RollbackFacts)


class Act(Generic[F]):
    """One guarded call: what was requested, how it is planned and how it is started."""

    _safety: SafetySnapshot | None = None

    def __init__(
        self,
        surroundings: Surroundings,
        zone: Zone,
        client: Client,
        operation: Literal["delete", "rollback"],
        arguments: dict[str, Any],
    ) -> None:
        self.zone = zone
        self.client = client
        self.surroundings = surroundings
        self.call = Call(
            operation=operation,
            arguments=tuple(sorted(arguments.items())),
            zone=zone.name,
            location=zone.provider.location,
            principal=client.principal,
            client=clean_text(f"{client.name} {client.version}".strip()),
            is_strict=zone.is_production,
            process=client.process,
        )

    @property
    def safety(self) -> SafetySnapshot | None:
        """What takes the safety snapshot, unless none is wanted or the zone takes it in the act's own job."""
        return None if Feature.ONE_HOLD in self.zone.provider.features else self._safety

    async def look(self, spent: Plan | None = None) -> Look:
        """Return what would happen now. Raises: Unavailable if that takes longer than the host waits.

        `spent`: the plan that a consent was just spent on, whose epochs and hourly limit were checked then.
        """
        return await self._bounded(self._look(spent))

    async def _look(self, spent: Plan | None) -> Look:
        facts = await self._gather()
        policy = await self.surroundings.rules(self.zone.name)
        targets = [target_key(facts.location, id_) for id_ in facts.ids]
        history = await in_thread(self.surroundings.records.approvals.history, facts.location, targets)
        epochs = dict(zip(spent.targets, spent.epochs, strict=True)) if spent else history.epochs
        plan = self._plan(facts, epochs, history.renames)
        deletions = 0 if spent else history.deletions_last_hour
        return Look(
            call=replace(self.call, is_strict=self.call.is_strict or policy.consent == "human"),
            plan=plan,
            refusal=refuse(policy, plan, facts, self.surroundings.clock.read().time, deletions),
            trees=facts.trees,
            obstacles=facts.obstacles(safety_snapshot=self._safety is not None),
        )

    async def _gather(self) -> F:
        raise NotImplementedError

    def _plan(self, facts: F, epochs: dict[str, int], renames: Renames) -> Plan:
        raise NotImplementedError

    async def start(self, approval: Approval, look: Look, safety: SafetyState | None, spent: Moment) -> Job:
        """Start what was approved in the zone, as the last `look` saw it.

        `safety`: the snapshot taken before; `spent`: when the consent was spent.
        """
        raise NotImplementedError

    def way_back(self, job: Job, safety: SafetyState | None) -> SafetyState | None:
        """Return the safety snapshot, None if the act takes none."""
        return safety

    async def job_of(self, approval: Approval) -> Job | None:
        """Return the job that a spent approval started; None if there is none or the zone no longer knows it."""
        if not approval.job_id:
            return None
        try:
            return await self._bounded(self.zone.provider.get_job(approval.job_id))
        except NotFound:
            return None

    async def _bounded(self, looking: Awaitable[T]) -> T:
        try:
            with anyio.fail_after(max(LEAST_LOOK_SECONDS, self.client.seconds_left)):
                return await looking
        except TimeoutError:
            raise Unavailable(
                f"Zone {self.zone.name} took too long to report what would be lost now.",
                hint="Nothing was done. Repeat the call when the zone responds faster.",
            ) from None


class Deletion(Act[DeletionFacts]):
    """The deletion of a snapshot with everything that was built on it."""

    def __init__(self, surroundings: Surroundings, zone: Zone, snapshot_id: str, client: Client) -> None:
        super().__init__(surroundings, zone, client, "delete", {"snapshot_id": snapshot_id})
        self._snapshot_id = snapshot_id

    async def _gather(self) -> DeletionFacts:
        return await gather_deletion_facts(self.zone.provider, self.zone.name, self._snapshot_id)

    def _plan(self, facts: DeletionFacts, epochs: dict[str, int], renames: Renames) -> Plan:
        return plan_deletion(facts, epochs, renames)

    async def start(self, approval: Approval, look: Look, safety: SafetyState | None, spent: Moment) -> Job:
        """Delete the snapshot."""
        if Feature.TERMS not in self.zone.provider.features:
            return await self.zone.provider.delete_snapshot(self._snapshot_id)
        agreed, now = approval.plan.loss, look.plan.loss
        assert isinstance(agreed, DeletionLoss)
        assert isinstance(now, DeletionLoss)
        terms = deletion_terms(agreed_terms(approval.id, spent), agreed, now, look.trees[0])
        return await self.zone.provider.delete_snapshot(self._snapshot_id, terms=terms)


class Rollback(Act[RollbackFacts]):
    """The roll-back of disks, each to one snapshot."""

    def __init__(
        self,
        surroundings: Surroundings,
        zone: Zone,
        snapshot_ids: Sequence[str],
        client: Client,
        safety_snapshot: bool,
        on_progress: OnProgress | None,
    ) -> None:
        arguments = {"snapshot_ids": tuple(sorted(snapshot_ids)), "safety_snapshot": safety_snapshot}
        super().__init__(surroundings, zone, client, "rollback", arguments)
        self._snapshot_ids = tuple(snapshot_ids)
        self._safety = SafetySnapshot(surroundings, zone, client, on_progress) if safety_snapshot else None

    async def _gather(self) -> RollbackFacts:
        return await gather_rollback_facts(self.zone.provider, self.zone.name, self._snapshot_ids)

    def _plan(self, facts: RollbackFacts, epochs: dict[str, int], renames: Renames) -> Plan:
        return plan_rollback(facts, epochs, renames, safety_snapshot=self._safety is not None)

    async def start(self, approval: Approval, look: Look, safety: SafetyState | None, spent: Moment) -> Job:
        """Overwrite the disks."""
        loss = look.plan.loss
        assert isinstance(loss, RollbackLoss)
        options: dict[str, Any] = {}
        if Feature.TERMS in self.zone.provider.features:
            options["terms"] = rollback_terms(agreed_terms(approval.id, spent), loss, look.plan.heads)
        if self._safety and safety is None:
            options["safety_snapshot_name"] = safety_name(loss, self.surroundings.clock.read().time)
        return await self.zone.provider.apply_snapshots(self._snapshot_ids, **options)

    def way_back(self, job: Job, safety: SafetyState | None) -> SafetyState | None:
        """Return the safety snapshot, taken before or by the job."""
        if safety or not self._safety:
            return safety
        taken = job.details.get("safety_snapshots")
        ids = list(taken.values() if isinstance(taken, dict) else ())[: len(self._snapshot_ids)]
        return SafetyState(is_there=True, snapshot_ids=tuple(clean_text(one) for one in ids if isinstance(one, str)))


AnyAct = Deletion | Rollback


def safety_name(loss: RollbackLoss, now: datetime) -> str:
    """Return the name for a roll-back's safety snapshots; the time makes it unique."""
    names = dict.fromkeys(one.snapshot_name or one.snapshot_id for one in loss.overwrites)
    when = f" at {now:%Y-%m-%d %H:%M:%S}"
    return clean_text(f"before roll-back to {', '.join(names)}", MAX_NAME_CHARACTERS - len(when)) + when
