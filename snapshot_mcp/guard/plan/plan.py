"""The plan: what a destructive call takes, decided from facts without I/O and without a clock.

*Loss* is what a person consents to: the question and its digest hold it alone, so it contains nothing that moves by itself.
*Heads* are what the loss of a roll-back stood on and what backups move; they are kept with a consent and compared (`compare.py`).
*Rest* is shown beside them: what remains, what is gained.
"""

import hashlib
from collections.abc import Collection, Mapping
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from snapshot_mcp.contract.models import Snapshot
from snapshot_mcp.contract.tree import SnapshotTree, age, taken_at
from snapshot_mcp.guard.plan.facts import DeletionFacts, RollbackFacts, RollbackTarget

CHAIN_LIMIT = 30
"""Available snapshots in a chain before a create starts a new one (CONTRACT.md, "Limit")."""

MANY_SNAPSHOTS = 5
"""From here on a yes takes the disk's name, not a word (GUARD.md, "Doors")."""

Renames = Mapping[str, tuple[str, datetime]]
"""What was renamed of late: snapshot id → the name before, and when it ended."""


class _Frozen(BaseModel):
    # Built when the first plan is made: a server that only lists its tools pays nothing for it.
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class Warn(StrEnum):
    """What a person must not overlook; `wording` has the sentence for each."""

    LAST_POINTS = "last_points"
    LAST_GOOD_POINT = "last_good_point"
    NO_UNDO = "no_undo"
    RESTART = "restart"
    RESIZE = "resize"
    HARD_LINKS = "hard_links"
    NO_SAFETY_SNAPSHOT = "no_safety_snapshot"


class LostSnapshot(_Frozen):
    """One restore point that goes; `parent_id` is the one it builds on, "" for a full one.

    `consistency` is the zone's word for how far it is one state. `renamed_from` is the name that it had until `renamed_at`.
    """

    snapshot_id: str
    parent_id: str
    name: str
    time: datetime | None
    size_bytes: int
    consistency: str = ""
    renamed_from: str = ""
    renamed_at: datetime | None = None


class DeletionLoss(_Frozen):
    """What a deletion takes. `undo_seconds`: for so long after it the zone can bring it back, 0 for never.

    `takes_last_good_copy`: a good one goes and none remains, or nothing at all remains; `is_none_good`: the latter, and none
    was good before.
    """

    operation: Literal["delete"] = "delete"
    zone: str
    location: str
    snapshot_id: str
    resource_id: str
    resource_name: str
    snapshots: tuple[LostSnapshot, ...]
    is_whole_chain: bool
    takes_last_good_copy: bool
    is_none_good: bool = False
    undo_seconds: int
    epoch: int

    @property
    def is_grave(self) -> bool:
        """Whether a yes takes a typed name."""
        return self.takes_last_good_copy or self.is_whole_chain or len(self.snapshots) >= MANY_SNAPSHOTS

    @property
    def warnings(self) -> tuple[Warn, ...]:
        """What is grave or final about it."""
        last = Warn.LAST_POINTS if self.is_none_good else Warn.LAST_GOOD_POINT
        return (last,) * self.takes_last_good_copy + (Warn.NO_UNDO,) * (not self.undo_seconds)


class Overwrite(_Frozen):
    """One disk that a roll-back overwrites with the snapshot: what was written since `since` goes.

    `restarts`: the running machine that restarts, "" for none. The sizes are the disk's, in bytes; equal means unchanged.
    `identity` says which disk it is, in a form that only the zone can read, None where it does not say; `hard_links` how many
    names its file has (0: unknown). `consistency`, `renamed_from` and `renamed_at` are the snapshot's, as in `LostSnapshot`.
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
    identity: str | None = None
    hard_links: int = 0
    consistency: str = ""
    renamed_from: str = ""
    renamed_at: datetime | None = None

    @property
    def warnings(self) -> tuple[Warn, ...]:
        """What else happens to the disk or its machine."""
        return (
            (Warn.RESTART,) * bool(self.restarts)
            + (Warn.RESIZE,) * (self.size_before != self.size_after)
            + (Warn.HARD_LINKS,) * (self.hard_links > 1)
        )


class RollbackLoss(_Frozen):
    """What a roll-back overwrites."""

    operation: Literal["rollback"] = "rollback"
    zone: str
    location: str
    overwrites: tuple[Overwrite, ...]
    has_safety_snapshot: bool

    @property
    def is_grave(self) -> bool:
        """Whether a yes takes a typed name."""
        return not self.has_safety_snapshot

    @property
    def warnings(self) -> tuple[Warn, ...]:
        """What is grave about the whole; each overwrite has its own."""
        return (Warn.NO_SAFETY_SNAPSHOT,) * (not self.has_safety_snapshot)


Loss = Annotated[DeletionLoss | RollbackLoss, Field(discriminator="operation")]


class Head(_Frozen):
    """Where a disk's present content grew from: the head and its ancestors with the times they were made at, and every
    snapshot known then."""

    resource_id: str
    lineage: tuple[tuple[str, datetime | None], ...]
    known: frozenset[str]
    newest: datetime | None


class Rest(_Frozen):
    """What is shown beside the loss: it moves by itself and voids nothing.

    `fuzzy_remaining`: those that could be restored from but are not counted as good, because they may be a mixture.
    """

    good_remaining: int
    fuzzy_remaining: int = 0
    newest_good_name: str = ""
    newest_good_id: str = ""
    newest_good_time: datetime | None = None
    newest_good_consistency: str = ""
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


def plan_deletion(facts: DeletionFacts, epochs: Mapping[str, int], renames: Renames | None = None) -> Plan:
    """Plan the deletion of a snapshot with everything that was built on it (CONTRACT.md, "A chain is a tree")."""
    snapshot, tree = facts.snapshot, facts.tree
    going = {snapshot.snapshot_id, *tree.descendants(snapshot.snapshot_id)}
    lost = tree.in_order(going)
    leaves_nothing = len(lost) == len(tree.points)
    loss = DeletionLoss(
        zone=facts.zone,
        location=facts.location,
        snapshot_id=snapshot.snapshot_id,
        resource_id=snapshot.resource.resource_id,
        resource_name=snapshot.resource.resource_name,
        snapshots=tuple(_lost(one, tree, renames or {}) for one in lost),
        is_whole_chain=snapshot.is_full,
        takes_last_good_copy=not tree.good - going and (bool(tree.good) or leaves_nothing),
        is_none_good=leaves_nothing and not tree.good,
        undo_seconds=facts.recovery_seconds,
        epoch=epochs.get(target_key(facts.location, snapshot.snapshot_id), 0),
    )
    return Plan(loss=loss, rest=_rest([tree], going, frees_bytes=sum(one.stored_bytes for one in lost)))


def plan_rollback(
    facts: RollbackFacts, epochs: Mapping[str, int], renames: Renames | None = None, *, safety_snapshot: bool
) -> Plan:
    """Plan a roll-back of each target's disk to its snapshot."""
    targets = sorted(facts.targets, key=lambda target: target.resource.id)
    return Plan(
        loss=RollbackLoss(
            zone=facts.zone,
            location=facts.location,
            overwrites=tuple(_overwrite(one, facts.location, epochs, renames or {}) for one in targets),
            has_safety_snapshot=safety_snapshot,
        ),
        heads=tuple(_head(target) for target in targets),
        rest=_rest(
            [target.tree for target in targets],
            safety_is_full=safety_snapshot and any(_starts_chain(target.tree) for target in targets),
        ),
    )


def _head(target: RollbackTarget) -> Head:
    tree = target.tree
    return Head(
        resource_id=target.resource.id,
        lineage=tuple((one.snapshot_id, one.create_time) for one in _lineage(tree)),
        known=frozenset(one.snapshot_id for one in tree.points),
        newest=max((one.create_time for one in tree.points if one.create_time), default=None),
    )


def _lineage(tree: SnapshotTree) -> tuple[Snapshot, ...]:
    """The head and what it builds on, as far as the zone says so."""
    if tree.head is None:
        return ()
    lineage = [tree.head]
    for above in tree.ancestors(tree.head.snapshot_id):
        if not tree.is_placed(lineage[-1].snapshot_id):
            break
        lineage.append(above)
    return tuple(lineage)


def _starts_chain(tree: SnapshotTree) -> bool:
    """Whether the next create is a full one: no head, its chain at the limit, or damage below the head."""
    head = tree.head
    if head is None:
        return True
    available = sum(one.is_available for one in tree.chain_of(head.snapshot_id))
    return available >= CHAIN_LIMIT or head.snapshot_id not in tree.sound


def _lost(one: Snapshot, tree: SnapshotTree, renames: Renames) -> LostSnapshot:
    return LostSnapshot(
        snapshot_id=one.snapshot_id,
        parent_id=tree.parent_id(one.snapshot_id) or "",
        name=one.snapshot_name,
        time=taken_at(one),
        size_bytes=one.stored_bytes,
        **_looks(one, renames),
    )


def _overwrite(target: RollbackTarget, location: str, epochs: Mapping[str, int], renames: Renames) -> Overwrite:
    resource, snapshot = target.resource, target.snapshot
    return Overwrite(
        resource_id=resource.id,
        resource_name=resource.name,
        snapshot_id=snapshot.snapshot_id,
        snapshot_name=snapshot.snapshot_name,
        since=taken_at(snapshot),
        restarts=target.host,
        size_before=resource.byte_size,
        size_after=snapshot.virtual_size_bytes or resource.byte_size,
        epoch=epochs.get(target_key(location, resource.id), 0),
        identity=resource.identity,
        hard_links=max(0, resource.hard_links or 0),
        **_looks(snapshot, renames),
    )


def _looks(one: Snapshot, renames: Renames) -> dict[str, Any]:
    """What a person should know of a snapshot beside its name: how far it is one state, and what it was called lately."""
    old_name, renamed_at = renames.get(one.snapshot_id, ("", None))
    return {"consistency": one.consistency or "", "renamed_from": old_name, "renamed_at": renamed_at}


def _rest(trees: Collection[SnapshotTree], going: Collection[str] = (), **fields: Any) -> Rest:
    good = [tree.in_order(tree.good.difference(going)) for tree in trees]
    newest = max((points[-1] for points in good if points), key=age, default=None)
    if newest is not None:
        fields |= {
            "newest_good_name": newest.snapshot_name,
            "newest_good_id": newest.snapshot_id,
            "newest_good_time": taken_at(newest),
            "newest_good_consistency": newest.consistency or "",
        }
    fuzzy_remaining = sum(len(tree.sound - tree.good.union(going)) for tree in trees)
    return Rest(good_remaining=sum(map(len, good)), fuzzy_remaining=fuzzy_remaining, **fields)
