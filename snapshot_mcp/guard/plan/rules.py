"""Decides whether policy forbids a plan. Pure: the facts and the time are passed in.

Protected names are compared as a person sees them (no invisible characters, compatibility forms folded), so a look-alike
spelling does not evade a rule.
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
    """`rule` is the name of the setting, `reason` how the plan violates it."""

    rule: str
    reason: str

    @property
    def message(self) -> str:
        """The refusal in full, for the caller."""
        return (
            f"Refused by the rule {self.rule}: {self.reason} Nothing was changed. "
            "No approval overrides a rule; only the operator of this server can change it."
        )


READS_ONLY = Refusal("read_only", "this server is read-only.")


def refuse(
    policy: Policy, plan: Plan, facts: DeletionFacts | RollbackFacts, now: datetime, deletions_last_hour: int
) -> Refusal | None:
    """Return the first rule that forbids the plan, None if none does."""
    if policy.read_only:
        return READS_ONLY
    if isinstance(plan.loss, RollbackLoss):
        return _refuse_rollback(policy, plan.loss)
    assert isinstance(facts, DeletionFacts)
    return _refuse_deletion(policy, plan.loss, facts, now, deletions_last_hour)


def refuse_protected(policy: Policy, snapshot: Snapshot) -> Refusal | None:
    """Return why the snapshot must keep its name, which may protect it, and, if deleted, stay recoverable."""
    if policy.read_only:
        return READS_ONLY
    reason = _protected(policy.protect, [snapshot])
    return Refusal("protect", reason) if reason else None


def refuse_disk(policy: Policy, resource_id: str, name: str) -> Refusal | None:
    """Return why the file of a disk or an image must be kept."""
    if policy.read_only:
        return READS_ONLY
    if resource_id in policy.protect.ids or _matches(name, policy.protect.names):
        return Refusal("protect", f"{quoted(name)} ({resource_id}) is protected.")
    return None


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
            "protect", "the zone does not report which disk this is a snapshot of, and the disk may be protected."
        )
    if loss.takes_last_good_copy and policy.last_good_copy == "refuse":
        last = "restore points of this disk" if loss.is_none_good else "good restore point of this disk"
        return Refusal("last_good_copy", f"it would delete the last {last}.")
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
            f"{len(going)} snapshots would be deleted at once; at most {policy.snapshots_per_approval} are allowed.",
        )
    if deletions_last_hour >= policy.deletions_per_hour:
        return Refusal(
            "deletions_per_hour",
            f"{deletions_last_hour} deletions in the last hour; at most {policy.deletions_per_hour} are allowed.",
        )
    return None


def _refuse_rollback(policy: Policy, loss: RollbackLoss) -> Refusal | None:
    for one in loss.overwrites:
        if one.resource_id in policy.protect.ids or _matches(one.resource_name, policy.protect.names):
            return Refusal("protect", f"disk {quoted(one.resource_name or one.resource_id)} is protected.")
    if policy.safety_snapshot == "required" and not loss.has_safety_snapshot:
        return Refusal("safety_snapshot", "a roll-back must take a safety snapshot first.")
    if len(loss.overwrites) > policy.snapshots_per_approval:
        return Refusal(
            "snapshots_per_approval",
            f"{len(loss.overwrites)} disks would be overwritten at once; at most"
            f" {policy.snapshots_per_approval} are allowed.",
        )
    return None


def _protected(protect: Protect, snapshots: Iterable[Snapshot]) -> str:
    """Return why one of them must be kept, "" if none."""
    for one in snapshots:
        resource = one.resource
        if {one.snapshot_id, one.root_id, resource.resource_id} & protect.ids:
            return f"snapshot {quoted(one.snapshot_id)} or its disk is protected."
        if _matches(one.snapshot_name, protect.names) or _matches(resource.resource_name, protect.names):
            return f"snapshot {quoted(one.snapshot_name)} or its disk is protected."
        if {_folded(tag) for tag in one.tags} & {_folded(tag) for tag in protect.tags}:
            return f"snapshot {quoted(one.snapshot_id)} has a protected tag."
    return ""


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(_folded(name), _folded(pattern)) for pattern in patterns)


def _folded(text: str) -> str:
    visible = (one for one in unicodedata.normalize("NFKC", text) if unicodedata.category(one) not in {"Cf", "Cc"})
    return "".join(visible).casefold().strip()
