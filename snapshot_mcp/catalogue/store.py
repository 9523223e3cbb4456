"""`Store`: the catalogue's interface to the bytes of a zone's disks, snapshots and images.

A store knows rows and ids. It decides whether a disk can be read or overwritten now, and how large things are; it decides
nothing about chains, deletions, terms or jobs. A disk's identity is opaque to the catalogue.
"""

import sqlite3
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from snapshot_mcp.contract.errors import Damaged, Unsupported

if TYPE_CHECKING:
    from snapshot_mcp.catalogue.database import Catalogue
    from snapshot_mcp.catalogue.room import Room

Row = sqlite3.Row


class DamagedSnapshot(Damaged):
    """The bytes of the snapshot `snapshot_id` are missing or altered."""

    def __init__(self, snapshot_id: str, what: str) -> None:
        super().__init__(
            f"Snapshot {snapshot_id} is damaged: {what}.",
            hint="Restore points that build on it are affected. Take a new full snapshot; the command `zone check` shows which"
            " ones still verify.",
        )
        self.snapshot_id = snapshot_id


class NewerSnapshot(Unsupported):
    """The bytes of the snapshot `snapshot_id` have a format that only a newer version of this program reads. Not damage."""

    def __init__(self, snapshot_id: str, what: str) -> None:
        super().__init__(
            f"Snapshot {snapshot_id} was written by a newer version of snapshot-mcp ({what}), so it was not read.",
            hint="Nothing was changed or marked. Update this installation; until then its disk can only be backed up in full.",
        )
        self.snapshot_id = snapshot_id


class Capacity(NamedTuple):
    """Space where the store keeps snapshots and exports; `free_bytes` is what this process may still use."""

    total_bytes: int
    free_bytes: int


class Sight(NamedTuple):
    """What the store sees of a disk or an image; `problem` says why it cannot be read or is not what it was.

    `place` is where it is, in words for a person; "" where the row's path says that.
    """

    size_bytes: int
    problem: str = ""
    identity: str | None = None
    hard_links: int | None = None
    place: str = ""
    format: str = ""
    """What wraps the disk's content, such as qcow2; "" for nothing."""


class Use(NamedTuple):
    """Who uses a disk: `held_by` as in `Resource.held_by` ("" for nobody, None if unknown)."""

    held_by: str | None
    is_ours: bool = False
    """A job of ours is working on it."""


class Store(Protocol):
    """The hooks. Those that open a disk are called in a transaction, once no job of ours is known to hold it."""

    def check_capture(self, resource: Row, room: "Room", *, is_full: bool, allow_fuzzy: bool) -> None:
        """Count in `room` what a capture of the disk needs. Raises ResourceBusy, NotUsable if it cannot be captured now."""

    def check_overwrite(self, resource: Row, *, is_alone: bool, is_patient: bool) -> str:
        """Return the disk's identity. Raises ResourceBusy, NotUsable if it cannot be rolled back now.

        `is_alone`: no other program may have it open, since a safety snapshot is taken. `is_patient`: wait for a passing reader.
        """

    def check_export(self, snapshot_id: str, room: "Room") -> None:
        """Count in `room` what an export of the snapshot needs."""

    def look_at(self, row: Row, *, is_verbose: bool = False) -> Sight:
        """Look at a disk or an image (a row of `resources` or `images`) without opening it; for its identity if `is_verbose`."""

    def identity_of(self, resource: Row) -> str:
        """Return the identity of the disk that is now in place, "" for none."""

    def is_same_disk(self, before: str, present: str) -> bool:
        """Return whether both identities are of one disk; true if `before` is not an identity of this store."""

    def describe(self, identity: str) -> str:
        """Describe a disk so that a person can tell it from another."""

    def find_uses(self, catalogue: "Catalogue", resources: Sequence[Row]) -> dict[str, Use]:
        """Return who uses each disk, by resource id."""

    def find_states(self, resources: Sequence[Row]) -> dict[str, str]:
        """Return whether the machine of each disk is `running` or `stopped`, or `unknown`, by resource id."""

    def capacity(self) -> Capacity:
        """Return the space where snapshots and exports are kept."""

    def make_room(self) -> bool:
        """Give up what only saves time, because space runs low; return whether there was anything."""

    def remove(self, snapshot_ids: Sequence[str]) -> Collection[str]:
        """Remove the bytes of snapshots durably and in the given order; ignore those without any.

        Return those whose bytes cannot be removed now, which are to be tried again.
        """

    def clean_up(self, request: Mapping[str, Any], whole_ids: Collection[str]) -> None:
        """Remove what a failed job prepared besides snapshots; `whole_ids`: its disks that are not half overwritten."""
