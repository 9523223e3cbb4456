"""The plan: what a destructive call destroys, decided from facts without I/O and without a clock.

*Loss* is what a person consents to. The question and its digest cover only the loss, so it holds nothing that changes by itself.
*Heads* (roll-back) are what the disks' present content grew from; backups move them, so they are compared (`compare.py`).
*Rest* is shown as well, but never compared: what remains and what is freed.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from snapshot_mcp.contract.copied import Copied
from snapshot_mcp.contract.models import Snapshot
from snapshot_mcp.contract.text import encodable
from snapshot_mcp.contract.tree import SnapshotTree, age, taken_at
from snapshot_mcp.guard.plan.facts import DeletionFacts, RollbackFacts, RollbackTarget

CHAIN_LIMIT = 30
"""Available snapshots in a chain before a create starts a new one (CONTRACT.md, "Limit")."""

MANY_SNAPSHOTS = 5
"""From this many on, a person confirms with the disk's name instead of a word (GUARD.md, "Doors")."""

Renames = Mapping[str, tuple[str, datetime]]
"""Recent renames: snapshot id → the former name, and when it was changed."""


class _Frozen(BaseModel):
    # Build the schema with the first plan; a server that only lists its tools does not need it.
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    @field_validator("*")
    @classmethod
    def _can_be_stored(cls, value: Any) -> Any:
        """Replace what no encoder accepts: a plan is hashed, stored and shown whatever a provider tells."""
        return encodable(value) if isinstance(value, str) else value


class Warn(StrEnum):
    """A consequence that a person must not overlook; `wording` has its sentence."""

    LAST_POINTS = "last_points"
    LAST_GOOD_POINT = "last_good_point"
    NO_UNDO = "no_undo"
    RESTART = "restart"
    RESIZE = "resize"
    HARD_LINKS = "hard_links"
    NO_SAFETY_SNAPSHOT = "no_safety_snapshot"


class LostSnapshot(_Frozen):
    """A restore point that would be deleted. `parent_id`: the one it builds on, "" for a full one.

    `consistency`: the zone's word for how consistent its content is. `renamed_from`: its name until `renamed_at`.
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
    """What a deletion destroys. `undo_seconds`: how long afterwards the zone can restore it, 0 for not at all.

    `takes_last_good_copy`: it deletes a good restore point and none remains, or nothing at all remains; `is_none_good`: the
    latter, and there was no good one before.
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
        """Whether a person has to confirm with a typed name."""
        return self.takes_last_good_copy or self.is_whole_chain or len(self.snapshots) >= MANY_SNAPSHOTS

    @property
    def warnings(self) -> tuple[Warn, ...]:
        """What is grave or irreversible about it."""
        last = Warn.LAST_POINTS if self.is_none_good else Warn.LAST_GOOD_POINT
        return (last,) * self.takes_last_good_copy + (Warn.NO_UNDO,) * (not self.undo_seconds)


class Overwrite(_Frozen):
    """A disk that a roll-back overwrites with the snapshot, losing what was written after `since`.

    `restarts`: the running machine that restarts, "" for none. The sizes are the disk's, in bytes.
    `identity`: the zone's opaque identifier of the file or device, None if it gives none; `hard_links`: the number of names of
    its file, 0 if unknown. `consistency`, `renamed_from` and `renamed_at` are the snapshot's, as in `LostSnapshot`.
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
        """Whether a person has to confirm with a typed name."""
        return not self.has_safety_snapshot

    @property
    def warnings(self) -> tuple[Warn, ...]:
        """What is grave about the roll-back as a whole; each overwrite has warnings of its own."""
        return (Warn.NO_SAFETY_SNAPSHOT,) * (not self.has_safety_snapshot)


Loss = Annotated[DeletionLoss | RollbackLoss, Field(discriminator="operation")]


class Head(_Frozen):
    """What a disk's present content grew from: the head and its ancestors with their creation times, and all known snapshots."""

    resource_id: str
    lineage: tuple[tuple[str, datetime | None], ...]
    known: frozenset[str]
    newest: datetime | None


class CopiedCount(_Frozen):
    """How many of the restore points that go, or that are rolled back to, a copy elsewhere has, and for how long."""

    copy_name: str
    number: int
    total: int
    keep_days: int


class Rest(_Frozen):
    """What is shown with the loss but changes by itself, so it never voids a consent.

    `fuzzy_remaining`: restore points that are sound but not counted as good, because they may be inconsistent.
    """

    good_remaining: int
    fuzzy_remaining: int = 0
    newest_good_name: str = ""
    newest_good_id: str = ""
    newest_good_time: datetime | None = None
    newest_good_consistency: str = ""
    frees_bytes: int = 0
    safety_is_full: bool = False
    shares_fate: bool = False
    copies: tuple[CopiedCount, ...] = ()


class Plan(_Frozen):
    """What a destructive call would do."""

    loss: Loss
    heads: tuple[Head, ...] = ()
    rest: Rest

    @property
    def digest(self) -> str:
        """The SHA-256 of the loss, in hex."""
        return hashlib.sha256(self.loss.model_dump_json().encode()).hexdigest()

    @property
    def targets(self) -> tuple[str, ...]:
        """Keys of the targets whose epochs are counted: a deletion's snapshot, a roll-back's disks."""
        if isinstance(self.loss, DeletionLoss):
            return (target_key(self.loss.location, self.loss.snapshot_id),)
        return tuple(target_key(self.loss.location, one.resource_id) for one in self.loss.overwrites)

    @property
    def disks(self) -> tuple[str, ...]:
        """Keys of the disks, which one call at a time may change: two deletions could each spare the other's last good copy."""
        if isinstance(self.loss, DeletionLoss):
            return (target_key(self.loss.location, self.loss.resource_id),)
        return self.targets

    @property
    def ids(self) -> frozenset[str]:
        """Ids of all snapshots and disks that the act concerns."""
        if isinstance(self.loss, DeletionLoss):
            return frozenset({self.loss.resource_id, *(one.snapshot_id for one in self.loss.snapshots)})
        return frozenset(id_ for one in self.loss.overwrites for id_ in (one.resource_id, one.snapshot_id))

    @property
    def epochs(self) -> tuple[int, ...]:
        """The epochs of `targets` when this plan was made."""
        if isinstance(self.loss, DeletionLoss):
            return (self.loss.epoch,)
        return tuple(one.epoch for one in self.loss.overwrites)


def target_key(location: str, id_: str) -> str:
    """Return the key of a snapshot or disk in the zone at `location`."""
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
    return Plan(
        loss=loss,
        rest=_rest(
            [tree],
            going,
            frees_bytes=sum(one.stored_bytes for one in lost),
            shares_fate=facts.shares_fate,
            copies=_copies(lost),
        ),
    )


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
            shares_fate=facts.shares_fate,
            copies=_copies([target.snapshot for target in targets]),
        ),
    )


def _copies(points: Sequence[Snapshot]) -> tuple[CopiedCount, ...]:
    found: dict[str, list[Copied]] = {}
    for one in points:
        for copied in one.copies:
            found.setdefault(copied.copy_name, []).append(copied)
    return tuple(
        CopiedCount(
            copy_name=name, number=len(copies), total=len(points), keep_days=min(one.keep_days for one in copies)
        )
        for name, copies in sorted(found.items())
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
    """Return the head and its ancestors, as far as the zone reports them."""
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
    """Return what a person should know of a snapshot besides its name: its consistency and its recent former name."""
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
