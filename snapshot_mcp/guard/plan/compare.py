"""Whether a consent given to one plan covers another one. Pure."""

from snapshot_mcp.guard.plan.plan import DeletionLoss, Head, Overwrite, Plan, RollbackLoss


def is_no_worse(now: Plan, consented: Plan) -> bool:
    """Whether a consent given to `consented` covers `now`: the same act, and it would destroy no more."""
    match now.loss, consented.loss:
        case DeletionLoss() as ours, DeletionLoss() as theirs:
            return _is_deletion_no_worse(ours, theirs)
        case RollbackLoss() as ours, RollbackLoss() as theirs:
            return _is_rollback_no_worse(ours, theirs) and _heads_moved_by_creates_only(now.heads, consented.heads)
        case _:
            return False


def _is_deletion_no_worse(now: DeletionLoss, consented: DeletionLoss) -> bool:
    allowed = {(one.snapshot_id, one.time) for one in consented.snapshots}
    return (
        (now.zone, now.location, now.snapshot_id, now.resource_id, now.epoch)
        == (consented.zone, consented.location, consented.snapshot_id, consented.resource_id, consented.epoch)
        and {(one.snapshot_id, one.time) for one in now.snapshots} <= allowed
        and now.takes_last_good_copy <= consented.takes_last_good_copy
        and now.is_whole_chain <= consented.is_whole_chain
        and now.undo_seconds >= consented.undo_seconds
    )


def _is_rollback_no_worse(now: RollbackLoss, consented: RollbackLoss) -> bool:
    before = {one.resource_id: one for one in consented.overwrites}
    return (
        (now.zone, now.location) == (consented.zone, consented.location)
        and now.has_safety_snapshot >= consented.has_safety_snapshot
        and {one.resource_id for one in now.overwrites} == before.keys()
        and all(_is_overwrite_no_worse(one, before[one.resource_id]) for one in now.overwrites)
    )


def _is_overwrite_no_worse(now: Overwrite, consented: Overwrite) -> bool:
    sizes, consented_sizes = (now.size_before, now.size_after), (consented.size_before, consented.size_after)
    return (
        (now.snapshot_id, now.since, now.epoch) == (consented.snapshot_id, consented.since, consented.epoch)
        and now.restarts in {"", consented.restarts}
        and consented.identity in {None, now.identity}
        and now.hard_links <= max(1, consented.hard_links)
        and (now.size_before == now.size_after or sizes == consented_sizes)
    )


def _heads_moved_by_creates_only(now: tuple[Head, ...], consented: tuple[Head, ...]) -> bool:
    before = {head.resource_id: head for head in consented}
    return all(head.resource_id in before and _moved_by_creates_only(head, before[head.resource_id]) for head in now)


def _moved_by_creates_only(now: Head, consented: Head) -> bool:
    """Whether all snapshots from the old head to the new one were made since, on the old head or as a new chain."""
    old_head = consented.lineage[0][0] if consented.lineage else None
    for id_, made_at in now.lineage:
        if id_ == old_head:
            return True
        if id_ in consented.known or (consented.newest and (made_at is None or made_at < consented.newest)):
            return False
    return bool(now.lineage) or old_head is None
