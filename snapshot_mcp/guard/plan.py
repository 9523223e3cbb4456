"""The plan: what a destructive call takes, decided from facts without I/O and without a clock.

*Loss* is what a person consents to: the question and its digest hold it alone, so it contains nothing that moves by itself.
*Basis* is what the loss stood on and what backups move (the head); it is kept with a consent and compared. *Rest* is shown
beside them: what remains, what is gained. `is_no_worse` decides whether a consent still holds.
"""

import hashlib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from snapshot_mcp.contract.models import Snapshot
from snapshot_mcp.guard.facts import DeletionFacts, RollbackFacts, RollbackTarget, has_told_parent

CHAIN_LIMIT = 30
"""Available snapshots in a chain before a create starts a new one (contract.md, "Limit")."""

MANY_SNAPSHOTS = 5
"""From here on a yes takes the disk's name, not a word (design.md, "Consent")."""

_DAWN = datetime.min.replace(tzinfo=UTC)


class _Frozen(BaseModel):
    # Built when the first plan is made: a server that only lists its tools pays nothing for it.
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class LostSnapshot(_Frozen):
    """One restore point that goes; `parent_id` is the one it builds on, "" for a full one."""

    snapshot_id: str
    parent_id: str
    name: str
    time: datetime | None
    size_bytes: int


class DeletionLoss(_Frozen):
    """What a deletion takes. `undo_seconds`: for so long after it the zone can bring it back, 0 for never."""

    operation: Literal["delete"] = "delete"
    zone: str
    location: str
    snapshot_id: str
    resource_id: str
    resource_name: str
    snapshots: tuple[LostSnapshot, ...]
    is_whole_chain: bool
    takes_last_good_copy: bool
    undo_seconds: int
    epoch: int

    @property
    def is_grave(self) -> bool:
        return self.takes_last_good_copy or self.is_whole_chain or len(self.snapshots) >= MANY_SNAPSHOTS


class Overwrite(_Frozen):
    """One disk that a roll-back overwrites with the snapshot: what was written since `since` goes.

    `restarts`: the running machine that restarts, "" for none. The sizes are the disk's, in bytes; equal means unchanged.
    """

    resource_id: str
    resource_name: str
    snapshot_id: str
    snapshot_name: str
    since: datetime | None
    restarts: str
    size_before: int
    size_after: int
    epoch: int


class RollbackLoss(_Frozen):
    operation: Literal["rollback"] = "rollback"
    zone: str
    location: str
    overwrites: tuple[Overwrite, ...]
    has_safety_snapshot: bool

    @property
    def is_grave(self) -> bool:
        return not self.has_safety_snapshot


Loss = Annotated[DeletionLoss | RollbackLoss, Field(discriminator="operation")]


class Head(_Frozen):
    """Where a disk's present content grew from: the head and its ancestors with the times they were made at, and every
    snapshot known then."""

    resource_id: str
    lineage: tuple[tuple[str, datetime | None], ...]
    known: frozenset[str]
    newest: datetime | None


class Rest(_Frozen):
    """What is shown beside the loss: it moves by itself and voids nothing."""

    good_remaining: int
    newest_good_name: str = ""
    newest_good_id: str = ""
    newest_good_time: datetime | None = None
    frees_bytes: int = 0
    safety_is_full: bool = False


class Plan(_Frozen):
    loss: Loss
    heads: tuple[Head, ...] = ()
    rest: Rest

    @property
    def digest(self) -> str:
        """Of the loss alone."""
        return hashlib.sha256(self.loss.model_dump_json().encode()).hexdigest()

    @property
    def targets(self) -> tuple[str, ...]:
        """What the guard counts epochs of: a deletion's snapshot, a roll-back's disks."""
        if isinstance(self.loss, DeletionLoss):
            return (target_key(self.loss.location, self.loss.snapshot_id),)
        return tuple(target_key(self.loss.location, one.resource_id) for one in self.loss.overwrites)

    @property
    def disks(self) -> tuple[str, ...]:
        """What one call at a time may change: two deletions of one disk share its last good copy."""
        if isinstance(self.loss, DeletionLoss):
            return (target_key(self.loss.location, self.loss.resource_id),)
        return self.targets

    @property
    def ids(self) -> frozenset[str]:
        """Every snapshot and disk that the act is about."""
        if isinstance(self.loss, DeletionLoss):
            return frozenset({self.loss.resource_id, *(one.snapshot_id for one in self.loss.snapshots)})
        return frozenset(id_ for one in self.loss.overwrites for id_ in (one.resource_id, one.snapshot_id))

    @property
    def epochs(self) -> tuple[int, ...]:
        """The epochs of `targets` that this plan was made at."""
        if isinstance(self.loss, DeletionLoss):
            return (self.loss.epoch,)
        return tuple(one.epoch for one in self.loss.overwrites)


def target_key(location: str, id_: str) -> str:
    return f"{location} {id_}"


def plan_deletion(facts: DeletionFacts, epochs: Mapping[str, int]) -> Plan:
    """Plan the deletion of a snapshot with everything that was built on it (contract.md, "A chain is a tree")."""
    snapshot, points = facts.snapshot, facts.restore_points
    going = _with_descendants(snapshot, points)
    lost = [one for one in points if one.snapshot_id in going]
    good = good_ids(points)
    remaining = [one for one in points if one.snapshot_id in good - going]
    newest = next(reversed(_in_order(remaining)), None)
    loss = DeletionLoss(
        zone=facts.zone,
        location=facts.location,
        snapshot_id=snapshot.snapshot_id,
        resource_id=snapshot.resource.resource_id,
        resource_name=snapshot.resource.resource_name,
        snapshots=tuple(_lost(one) for one in _in_order(lost)),
        is_whole_chain=snapshot.is_full,
        takes_last_good_copy=bool(good) and not remaining,
        undo_seconds=facts.recovery_seconds,
        epoch=epochs.get(target_key(facts.location, snapshot.snapshot_id), 0),
    )
    rest = Rest(
        good_remaining=len(remaining),
        newest_good_name=newest.snapshot_name if newest else "",
        newest_good_id=newest.snapshot_id if newest else "",
        newest_good_time=_time(newest) if newest else None,
        frees_bytes=sum(one.stored_bytes for one in lost),
    )
    return Plan(loss=loss, rest=rest)


def plan_rollback(facts: RollbackFacts, epochs: Mapping[str, int], *, safety_snapshot: bool) -> Plan:
    """Plan a roll-back of each target's disk to its snapshot."""
    targets = sorted(facts.targets, key=lambda target: target.resource.id)
    overwrites = tuple(
        Overwrite(
            resource_id=target.resource.id,
            resource_name=target.resource.name,
            snapshot_id=target.snapshot.snapshot_id,
            snapshot_name=target.snapshot.snapshot_name,
            since=_time(target.snapshot),
            restarts=target.host,
            size_before=target.resource.byte_size,
            size_after=target.snapshot.virtual_size_bytes or target.resource.byte_size,
            epoch=epochs.get(target_key(facts.location, target.resource.id), 0),
        )
        for target in targets
    )
    newest = next(reversed(_in_order([one for target in targets for one in _good(target.restore_points)])), None)
    return Plan(
        loss=RollbackLoss(
            zone=facts.zone, location=facts.location, overwrites=overwrites, has_safety_snapshot=safety_snapshot
        ),
        heads=tuple(_head(target) for target in targets),
        rest=Rest(
            good_remaining=sum(len(good_ids(target.restore_points)) for target in targets),
            newest_good_name=newest.snapshot_name if newest else "",
            newest_good_id=newest.snapshot_id if newest else "",
            newest_good_time=_time(newest) if newest else None,
            safety_is_full=safety_snapshot and any(_starts_chain(target.restore_points) for target in targets),
        ),
    )


def good_ids(points: Iterable[Snapshot]) -> frozenset[str]:
    """Those that can be restored from: available, all ancestors available, nothing known damaged (design.md, "Good")."""
    by_id = {one.snapshot_id: one for one in points}
    good: dict[str, bool] = {}
    for one in by_id.values():
        path: list[str] = []
        current: Snapshot | None = one
        while current is not None and current.snapshot_id not in good:
            sound = current.is_available and not current.is_damaged and has_told_parent(current)
            parent = current.parent
            if not sound or current.snapshot_id in path or (parent is not None and parent not in by_id):
                good[current.snapshot_id] = False
            elif parent is None:
                good[current.snapshot_id] = True
            else:
                path.append(current.snapshot_id)
                current = by_id[parent]
        for id_ in reversed(path):
            good[id_] = good[by_id[id_].parent or id_]
    return frozenset(id_ for id_, is_good in good.items() if is_good)


def is_no_worse(now: Plan, consented: Plan) -> bool:
    """Whether a consent given to `consented` covers `now`: the same act, and nothing more would be lost by it."""
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
        and (now.size_before == now.size_after or sizes == consented_sizes)
    )


def _heads_moved_by_creates_only(now: tuple[Head, ...], consented: tuple[Head, ...]) -> bool:
    before = {head.resource_id: head for head in consented}
    return all(head.resource_id in before and _moved_by_creates_only(head, before[head.resource_id]) for head in now)


def _moved_by_creates_only(now: Head, consented: Head) -> bool:
    """Whether everything between the old head and the new one was made since: on the old head, or as a new chain."""
    old_head = consented.lineage[0][0] if consented.lineage else None
    for id_, made_at in now.lineage:
        if id_ == old_head:
            return True
        if id_ in consented.known or (consented.newest and (made_at is None or made_at < consented.newest)):
            return False
    return bool(now.lineage) or old_head is None


def _head(target: RollbackTarget) -> Head:
    by_id = {one.snapshot_id: one for one in target.restore_points}
    current = next((one for one in target.restore_points if one.is_head), None)
    lineage: dict[str, datetime | None] = {}
    while current is not None and current.snapshot_id not in lineage:
        lineage[current.snapshot_id] = current.create_time
        current = by_id.get(current.parent or "")
    return Head(
        resource_id=target.resource.id,
        lineage=tuple(lineage.items()),
        known=frozenset(by_id),
        newest=max((one.create_time for one in target.restore_points if one.create_time), default=None),
    )


def _starts_chain(points: tuple[Snapshot, ...]) -> bool:
    """Whether the next create is a full one: no head, its chain at the limit, or damage below the head."""
    head = next((one for one in points if one.is_head), None)
    if head is None:
        return True
    root_id = head.snapshot_id if head.is_full else head.root_id
    chain = [one for one in points if root_id in (one.snapshot_id, one.root_id) and one.is_available]
    return len(chain) >= CHAIN_LIMIT or head.snapshot_id not in good_ids(points)


def _with_descendants(snapshot: Snapshot, points: Iterable[Snapshot]) -> frozenset[str]:
    children: dict[str, list[str]] = {}
    for one in points:
        if one.parent is not None:
            children.setdefault(one.parent, []).append(one.snapshot_id)
        if snapshot.is_full and one.root_id == snapshot.snapshot_id != one.snapshot_id:
            children.setdefault(snapshot.snapshot_id, []).append(one.snapshot_id)
    going: set[str] = set()
    waiting = [snapshot.snapshot_id]
    while waiting:
        id_ = waiting.pop()
        if id_ not in going:
            going.add(id_)
            waiting += children.get(id_, ())
    return frozenset(going)


def _good(points: tuple[Snapshot, ...]) -> list[Snapshot]:
    good = good_ids(points)
    return [one for one in points if one.snapshot_id in good]


def _lost(one: Snapshot) -> LostSnapshot:
    return LostSnapshot(
        snapshot_id=one.snapshot_id,
        parent_id=one.parent or "",
        name=one.snapshot_name,
        time=_time(one),
        size_bytes=one.stored_bytes,
    )


def _in_order(snapshots: list[Snapshot]) -> list[Snapshot]:
    """Oldest first; of one second, what is built on another after it."""
    by_id = {one.snapshot_id: one for one in snapshots}

    def depth(one: Snapshot) -> int:
        above: set[str] = set()
        while one.parent in by_id and one.snapshot_id not in above:
            above.add(one.snapshot_id)
            one = by_id[one.parent or ""]
        return len(above)

    return sorted(snapshots, key=lambda one: (_time(one) or _DAWN, depth(one), one.snapshot_id))


def _time(one: Snapshot) -> datetime | None:
    return one.snapshot_time or one.create_time
