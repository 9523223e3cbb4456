"""What was agreed to, in the form that travels with the change (`contract.terms`). Pure.

It says what the consented plan allows, and what the last look saw: what is so after it is for the zone to compare.
"""

from snapshot_mcp.contract.terms import ResourceTerms, Terms
from snapshot_mcp.contract.tree import SnapshotTree
from snapshot_mcp.guard.plan import DeletionLoss, Head, Overwrite, RollbackLoss

MUST_STAY = 20
"""As many of the good restore points that remain are named; one of them must be good, so the newest few say enough."""


def deletion_terms(consented: DeletionLoss, now: DeletionLoss, tree: SnapshotTree) -> Terms:
    """`consented` is what a person agreed to, `now` and `tree` what the last look saw."""
    remaining = tree.good.difference(one.snapshot_id for one in now.snapshots)
    must_stay = () if consented.takes_last_good_copy else tree.in_order(remaining)[-MUST_STAY:]
    return Terms(
        may_go=tuple(one.snapshot_id for one in consented.snapshots),
        must_stay=tuple(one.snapshot_id for one in must_stay),
        recovery_seconds=consented.undo_seconds,
    )


def rollback_terms(now: RollbackLoss, heads: tuple[Head, ...]) -> Terms:
    """The disks as the last look saw them; that it is no worse than what was agreed to is decided before."""
    pairs = zip(now.overwrites, heads, strict=True)
    return Terms(resources={one.resource_id: _resource_terms(one, head) for one, head in pairs})


def _resource_terms(one: Overwrite, head: Head) -> ResourceTerms:
    return ResourceTerms(identity=one.identity, head_id=head.lineage[0][0] if head.lineage else "")
