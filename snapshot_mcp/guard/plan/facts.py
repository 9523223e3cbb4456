"""The facts that a plan is made from, as data (`gather.py` reads them), and what of them is in the way of a roll-back."""

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
    """`restore_points`: every snapshot of the same resource and of the same chain that is not gone, `snapshot` among them."""

    zone: str
    location: str
    snapshot: Snapshot
    restore_points: tuple[Snapshot, ...]
    recovery_seconds: int

    @property
    def ids(self) -> tuple[str, ...]:
        """What the guard counts epochs of."""
        return (self.snapshot.snapshot_id,)

    @property
    def trees(self) -> tuple[SnapshotTree, ...]:
        """What the disk can be restored from."""
        return (self.tree,)

    def obstacles(self, *, safety_snapshot: bool) -> tuple[ZoneError, ...]:
        """Nothing is in the way of a deletion that the zone would say beforehand."""
        return ()

    @cached_property
    def tree(self) -> SnapshotTree:
        return SnapshotTree(self.restore_points)


@dataclass(frozen=True)
class RollbackTarget:
    """One disk that would be overwritten. `host` is the name of the running machine that restarts with it, "" for none.

    `in_the_way` is the error that a roll-back would end with just now, because something has the disk.
    """

    snapshot: Snapshot
    resource: Disk
    resource_type: ResourceType
    host: str
    restore_points: tuple[Snapshot, ...]
    in_the_way: ResourceBusy | None = None

    @cached_property
    def tree(self) -> SnapshotTree:
        return SnapshotTree(self.restore_points)


@dataclass(frozen=True, slots=True)
class RollbackFacts:
    zone: str
    location: str
    targets: tuple[RollbackTarget, ...]

    @property
    def ids(self) -> tuple[str, ...]:
        """What the guard counts epochs of."""
        return tuple(one.resource.id for one in self.targets)

    @property
    def trees(self) -> tuple[SnapshotTree, ...]:
        """What each disk can be restored from."""
        return tuple(one.tree for one in self.targets)

    def obstacles(self, *, safety_snapshot: bool) -> tuple[ZoneError, ...]:
        """Why it cannot be now, whatever a person says; empty if it can, as far as the zone says."""
        found: list[ZoneError | None] = []
        for target in self.targets:
            found += [target.in_the_way, unwritable(target.resource)]
            if safety_snapshot:
                found.append(without_way_back(target.resource))
        return tuple(one for one in found if one is not None)


def without_way_back(disk: Disk) -> NotUsable | None:
    """Why no sound safety snapshot of the disk can be taken, as an error; None if one can, as far as the zone says.

    A disk that is `pending` is half overwritten, or not made yet: what it holds is no state to go back to.
    """
    if disk.status != "pending":
        return None
    why = clean_text(disk.problem or "what was begun on it is not finished", MESSAGE_CHARACTERS).rstrip(".")
    return NotUsable(
        f"No sound safety snapshot of disk {label_of(disk)} can be taken: {why}.",
        hint="Nothing was done. A roll-back without one needs a person's yes to that: repeat the call with"
        " safety_snapshot=false.",
    )


def unwritable(disk: Disk) -> NotUsable | None:
    """Why the disk cannot be overwritten at all, as an error: a zone that knows its disks does not know this one."""
    if not disk.problem or disk.identity is not None or disk.status == "pending":
        return None
    why = clean_text(disk.problem, MESSAGE_CHARACTERS).rstrip(".")
    return NotUsable(
        f"Disk {label_of(disk)} cannot be rolled back: {why}.",
        hint="Nothing was done. export_to_volume restores the snapshot into a new volume.",
    )


def label_of(disk: Disk) -> str:
    return f"{quoted(disk.name)} ({clean_text(disk.id)})" if disk.name else clean_text(disk.id)
