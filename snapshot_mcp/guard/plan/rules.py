"""Whether policy forbids a plan. Pure: the facts and the time come in.

A protected name is compared as a person sees it (without invisible characters, compatibility forms folded), so that a
look-alike spelling is no way round.
"""

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from fnmatch import fnmatchcase

from snapshot_mcp.contract.models import Snapshot
from snapshot_mcp.contract.text import quoted
from snapshot_mcp.guard.plan.facts import DeletionFacts, RollbackFacts
from snapshot_mcp.guard.plan.plan import DeletionLoss, Plan, RollbackLoss
from snapshot_mcp.guard.plan.policy import Policy, Protect


@dataclass(frozen=True, slots=True)
class Refusal:
    """`rule` is the setting's name, `reason` what of the plan runs against it."""

    rule: str
    reason: str

    @property
    def message(self) -> str:
        return (
            f"Refused by the rule {self.rule}: {self.reason} Nothing was changed. "
            "No approval can lift a rule; the operator of this server can change it."
        )


READS_ONLY = Refusal("read_only", "this server only reads.")


def refuse(
    policy: Policy, plan: Plan, facts: DeletionFacts | RollbackFacts, now: datetime, deletions_last_hour: int
) -> Refusal | None:
    """Return the first rule that forbids the plan."""
    if policy.read_only:
        return READS_ONLY
    if isinstance(plan.loss, RollbackLoss):
        return _refuse_rollback(policy, plan.loss)
    assert isinstance(facts, DeletionFacts)
    return _refuse_deletion(policy, plan.loss, facts, now, deletions_last_hour)


def refuse_rename(policy: Policy, snapshot: Snapshot) -> Refusal | None:
    """A protected snapshot keeps its name: a new one could end its protection."""
    if policy.read_only:
        return READS_ONLY
    reason = _protected(policy.protect, [snapshot])
    return Refusal("protect", reason) if reason else None


def refuse_purge(policy: Policy, snapshot: Snapshot) -> Refusal | None:
    """A protected snapshot that was deleted before stays recoverable until its grace is over."""
    return refuse_rename(policy, snapshot)


def _refuse_deletion(
    policy: Policy, loss: DeletionLoss, facts: DeletionFacts, now: datetime, deletions_last_hour: int
) -> Refusal | None:
    ids = {one.snapshot_id for one in loss.snapshots}
    going = [one for one in facts.restore_points if one.snapshot_id in ids]
    reason = _protected(policy.protect, going)
    if reason:
        return Refusal("protect", reason)
    if not loss.resource_id and (policy.protect.ids or policy.protect.names):
        return Refusal(
            "protect", "the zone does not say which disk this is a snapshot of, so the disk may be protected."
        )
    if loss.takes_last_good_copy and policy.last_good_copy == "refuse":
        what = (
            "restore points of this disk, though none counts as good"
            if loss.is_none_good
            else "good restore point of this disk"
        )
        return Refusal("last_good_copy", f"it would take the last {what}.")
    if policy.minimum_age_hours:
        newest_allowed = now - timedelta(hours=policy.minimum_age_hours)
        for one in going:
            times = [time for time in (one.create_time, one.snapshot_time) if time]
            if not times or max(times) > newest_allowed:
                return Refusal(
                    "minimum_age_hours",
                    f"snapshot {quoted(one.snapshot_id)} is younger than {policy.minimum_age_hours:g} h.",
                )
    if len(going) > policy.snapshots_per_approval:
        return Refusal(
            "snapshots_per_approval",
            f"{len(going)} snapshots would go at once, more than the {policy.snapshots_per_approval} that are allowed.",
        )
    if deletions_last_hour >= policy.deletions_per_hour:
        return Refusal(
            "deletions_per_hour",
            f"{deletions_last_hour} deletions in the last hour, {policy.deletions_per_hour} are allowed.",
        )
    return None


def _refuse_rollback(policy: Policy, loss: RollbackLoss) -> Refusal | None:
    for one in loss.overwrites:
        if one.resource_id in policy.protect.ids or _matches(one.resource_name, policy.protect.names):
            return Refusal("protect", f"disk {quoted(one.resource_name or one.resource_id)} is protected.")
    if policy.safety_snapshot == "required" and not loss.has_safety_snapshot:
        return Refusal("safety_snapshot", "a roll-back takes a safety snapshot here.")
    if len(loss.overwrites) > policy.snapshots_per_approval:
        return Refusal(
            "snapshots_per_approval",
            f"{len(loss.overwrites)} disks would be overwritten at once, more than the"
            f" {policy.snapshots_per_approval} that are allowed.",
        )
    return None


def _protected(protect: Protect, snapshots: Iterable[Snapshot]) -> str:
    """Why one of them must stay, "" if none."""
    for one in snapshots:
        resource = one.resource
        if {one.snapshot_id, one.root_id, resource.resource_id} & protect.ids:
            return f"snapshot {quoted(one.snapshot_id)} or its disk is protected."
        if _matches(one.snapshot_name, protect.names) or _matches(resource.resource_name, protect.names):
            return f"snapshot {quoted(one.snapshot_name)} or its disk is protected."
        if {_folded(tag) for tag in one.tags} & {_folded(tag) for tag in protect.tags}:
            return f"snapshot {quoted(one.snapshot_id)} carries a protected tag."
    return ""


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(_folded(name), _folded(pattern)) for pattern in patterns)


def _folded(text: str) -> str:
    visible = (one for one in unicodedata.normalize("NFKC", text) if unicodedata.category(one) not in {"Cf", "Cc"})
    return "".join(visible).casefold().strip()
