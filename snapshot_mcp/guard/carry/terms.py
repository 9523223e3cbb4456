"""Builds the terms that a change carries to the zone (`contract.terms`). Pure.

They state what the consented plan allows and what the last look saw; the zone compares them with what it finds.
"""

from collections.abc import Set as AbstractSet

from snapshot_mcp.contract.terms import ResourceTerms, Terms, Uptime
from snapshot_mcp.contract.tree import SnapshotTree
from snapshot_mcp.ground.clock import Moment
from snapshot_mcp.guard.consent.approvals import HELD_SECONDS
from snapshot_mcp.guard.plan.plan import DeletionLoss, Head, RollbackLoss

MUST_STAY = 20
"""Remaining good restore points named in the terms; at least one must still be good, so the newest few suffice."""


def agreed_terms(agreement: str, spent: Moment | None) -> Terms:
    """Return the terms of any change: the approval, and how long after spending its consent it may begin."""
    if spent is None or not spent.boot:
        return Terms(agreement=agreement)
    return Terms(agreement=agreement, not_after=Uptime(boot=spent.boot, seconds=spent.uptime + HELD_SECONDS))


def deletion_terms(terms: Terms, consented: DeletionLoss, now: DeletionLoss, tree: SnapshotTree) -> Terms:
    """Add what a person agreed to (`consented`) and what the last look saw (`now`, `tree`)."""
    going = {one.snapshot_id for one in now.snapshots}
    is_last = consented.takes_last_good_copy
    must_stay = () if is_last else _newest(tree, tree.good - going)
    must_exist = () if is_last or must_stay else _newest(tree, {one.snapshot_id for one in tree.points} - going)
    return terms.model_copy(
        update={
            "may_go": tuple(one.snapshot_id for one in consented.snapshots),
            "must_stay": must_stay,
            "must_exist": must_exist,
            "recovery_seconds": consented.undo_seconds,
        }
    )


def _newest(tree: SnapshotTree, ids: AbstractSet[str]) -> tuple[str, ...]:
    return tuple(one.snapshot_id for one in tree.in_order(ids)[-MUST_STAY:])


def rollback_terms(terms: Terms, now: RollbackLoss, heads: tuple[Head, ...]) -> Terms:
    """Add the disks as the last look saw them, which was found no worse than what was agreed to."""
    resources = {
        one.resource_id: ResourceTerms(identity=one.identity, head_id=head.lineage[0][0] if head.lineage else "")
        for one, head in zip(now.overwrites, heads, strict=True)
    }
    return terms.model_copy(update={"resources": resources})
