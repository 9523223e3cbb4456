"""Facts that a plan is made from, as data (`gather.py` reads them), and the obstacles to a roll-back among them."""

from dataclasses import dataclass
from functools import cached_property

from snapshot_mcp.contract.errors import NotUsable, ResourceBusy, ZoneError
from snapshot_mcp.contract.models import Instance, Snapshot, Volume
from snapshot_mcp.contract.states import ResourceType
from snapshot_mcp.contract.text import MESSAGE_CHARACTERS, clean_text, quoted
from snapshot_mcp.contract.tree import SnapshotTree

Disk = Volume | Instance


@dataclass(frozen=True)
class DeletionFacts:
    """What a deletion touches. `restore_points`: all existing snapshots of the disk and of the chain, `snapshot` too.

    `shares_fate`: restore points are lost with what the disk is stored in.
    """

    zone: str
    location: str
    snapshot: Snapshot
    restore_points: tuple[Snapshot, ...]
    recovery_seconds: int
    shares_fate: bool = False

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of the targets whose epochs are counted."""
        return (self.snapshot.snapshot_id,)

    @property
    def trees(self) -> tuple[SnapshotTree, ...]:
        """The disk's restore points."""
        return (self.tree,)

    def obstacles(self, *, safety_snapshot: bool) -> tuple[ZoneError, ...]:
        """Return nothing: no zone reports an obstacle to a deletion in advance."""
        return ()

    @cached_property
    def tree(self) -> SnapshotTree:
        """The restore points by what they build on."""
        return SnapshotTree(self.restore_points)


@dataclass(frozen=True)
class RollbackTarget:
    """A disk to overwrite. `host`: the running machine that would restart, "" for none. `in_the_way`: why the disk is busy."""

    snapshot: Snapshot
    resource: Disk
    resource_type: ResourceType
    host: str
    restore_points: tuple[Snapshot, ...]
    in_the_way: ResourceBusy | None = None

    @cached_property
    def tree(self) -> SnapshotTree:
        """The restore points by what they build on."""
        return SnapshotTree(self.restore_points)


@dataclass(frozen=True, slots=True)
class RollbackFacts:
    """What a roll-back touches."""

    zone: str
    location: str
    targets: tuple[RollbackTarget, ...]
    shares_fate: bool = False

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of the targets whose epochs are counted."""
        return tuple(one.resource.id for one in self.targets)

    @property
    def trees(self) -> tuple[SnapshotTree, ...]:
        """Each disk's restore points."""
        return tuple(one.tree for one in self.targets)

    def obstacles(self, *, safety_snapshot: bool) -> tuple[ZoneError, ...]:
        """Return why the zone would refuse a roll-back now; empty if it reports no reason."""
        found: list[ZoneError | None] = []
        for target in self.targets:
            found += [target.in_the_way, unwritable(target.resource)]
            if safety_snapshot:
                found.append(without_way_back(target.resource))
        return tuple(one for one in found if one is not None)


def without_way_back(disk: Disk) -> NotUsable | None:
    """Return why no sound safety snapshot of the disk can be taken, None if the zone reports no reason.

    A `pending` disk is half overwritten or not complete yet, so its content is not a state to return to.
    """
    if disk.status != "pending":
        return None
    why = clean_text(disk.problem or "an operation on it is unfinished", MESSAGE_CHARACTERS).rstrip(".")
    return NotUsable(
        f"No sound safety snapshot of disk {label_of(disk)} can be taken: {why}.",
        hint="Nothing was done. To roll back without a safety snapshot, which a person has to agree to, repeat the call with"
        " safety_snapshot=false.",
    )


def unwritable(disk: Disk) -> NotUsable | None:
    """Return why the disk cannot be overwritten at all: the zone identifies its disks, but not this one."""
    if not disk.problem or disk.identity is not None or disk.status == "pending":
        return None
    why = clean_text(disk.problem, MESSAGE_CHARACTERS).rstrip(".")
    return NotUsable(
        f"Disk {label_of(disk)} cannot be rolled back: {why}.",
        hint="Nothing was done. export_to_volume restores the snapshot into a new volume.",
    )


def label_of(disk: Disk) -> str:
    """Return the disk's name and id as messages show them."""
    return f"{quoted(disk.name)} ({clean_text(disk.id)})" if disk.name else clean_text(disk.id)
