"""The two acts that destroy: how each is planned, and how it is started once a person has agreed."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from snapshot_mcp.contract.errors import NotFound
from snapshot_mcp.contract.models import Job
from snapshot_mcp.contract.text import clean_text
from snapshot_mcp.guard.approval import Approval, Call
from snapshot_mcp.guard.approvals import Approvals
from snapshot_mcp.guard.client import Client
from snapshot_mcp.guard.clock import Clock
from snapshot_mcp.guard.facts import DeletionFacts, RollbackFacts, gather_deletion_facts, gather_rollback_facts
from snapshot_mcp.guard.plan import Plan, good_ids, plan_deletion, plan_rollback, target_key
from snapshot_mcp.guard.policy import Policy
from snapshot_mcp.guard.rules import Refusal, refuse
from snapshot_mcp.guard.safety import OnProgress, SafetySnapshot, SafetyState
from snapshot_mcp.guard.threads import in_thread
from snapshot_mcp.jobs import Zone


@dataclass(frozen=True, slots=True)
class Look:
    """The plan and the rules as they are now, the rule that forbids it, if one does, and what its disks can be restored from."""

    plan: Plan
    policy: Policy
    refusal: Refusal | None
    good: frozenset[str] = frozenset()


Rules = Callable[[str], Awaitable[Policy]]
"""The operator's rules for a zone, as they are by now."""


class Planner:
    """What an act needs to be planned: the rules, the epochs, the time."""

    def __init__(self, rules: Rules, approvals: Approvals, clock: Clock, safety_wait_seconds: float) -> None:
        self._rules = rules
        self._approvals = approvals
        self._clock = clock
        self._safety_wait_seconds = safety_wait_seconds

    async def look_at(
        self,
        facts: DeletionFacts | RollbackFacts,
        decide: Callable[[dict[str, int]], Plan],
        keys: Sequence[str],
        spent: Plan | None,
    ) -> Look:
        """`spent`: the plan that a consent was just spent for, whose epochs and number in the hour were checked with that."""
        policy = await self._rules(facts.zone)
        if spent is not None:
            plan, recent = decide(dict(zip(spent.targets, spent.epochs, strict=True))), 0
        else:
            plan = decide(await in_thread(self._approvals.epochs, keys))
            recent = await in_thread(self._approvals.deletions_last_hour)
        lists = (
            [facts.restore_points]
            if isinstance(facts, DeletionFacts)
            else [one.restore_points for one in facts.targets]
        )
        return Look(
            plan,
            policy,
            refuse(policy, plan, facts, self._clock.read().time, recent),
            frozenset().union(*map(good_ids, lists)),
        )

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
    """One guarded call: how it is planned and how it is started."""

    call: Call
    client: Client
    safety: SafetySnapshot | None = None
    zone: Zone

    async def look(self, spent: Plan | None = None) -> Look:
        """What would happen now; from here on the call is as strict as the rules are."""
        look = await self._look(spent)
        self.call = replace(self.call, is_strict=look.policy.consent == "human" or self.zone.is_production)
        return look

    async def _look(self, spent: Plan | None) -> Look:
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
        return await self._planner.look_at(facts, lambda epochs: plan_deletion(facts, epochs), [key], spent)

    async def start(self) -> Job:
        return await self.zone.provider.delete_snapshot(self._snapshot_id)

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
        self.safety = planner.safety_snapshot(zone, client, on_progress) if safety_snapshot else None
        arguments = {"snapshot_ids": tuple(sorted(snapshot_ids)), "safety_snapshot": safety_snapshot}
        self.call = planner.call("rollback", arguments, zone, client)

    async def _look(self, spent: Plan | None) -> Look:
        facts = await gather_rollback_facts(self.zone.provider, self.zone.name, self._snapshot_ids)
        keys = [target_key(facts.location, target.resource.id) for target in facts.targets]
        return await self._planner.look_at(
            facts, lambda epochs: plan_rollback(facts, epochs, safety_snapshot=self._has_safety), keys, spent
        )

    async def start(self) -> Job:
        return await self.zone.provider.apply_snapshots(self._snapshot_ids)

    def started_message(self, job: Job, safety: SafetyState | None) -> str:
        message = (
            f"The roll-back is submitted as job {clean_text(job.job_id)}, not done yet. Follow it with wait_for_job."
        )
        if safety:
            ids = ", ".join(map(clean_text, safety.snapshot_ids))
            what = "snapshot" if len(safety.snapshot_ids) == 1 else "snapshots"
            message += f" The way back is to roll back to the safety {what} {ids}."
        return message
