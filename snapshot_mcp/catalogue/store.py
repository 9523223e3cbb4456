"""`Store`: what keeps the bytes of a zone's disks, snapshots and images, as the catalogue's rules see it.

A store knows rows and ids. It decides whether a disk can be read or overwritten now, and how large things are; it takes no
decision about chains, deletions, terms or jobs. What it calls a disk's identity is opaque to the catalogue.
"""

import sqlite3
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from snapshot_mcp.contract.errors import Damaged

if TYPE_CHECKING:
    from snapshot_mcp.catalogue.database import Catalogue
    from snapshot_mcp.catalogue.room import Room

Row = sqlite3.Row


class DamagedSnapshot(Damaged):
    """A snapshot's bytes are missing or altered; `snapshot_id` is whose."""

    def __init__(self, snapshot_id: str, what: str) -> None:
        super().__init__(
            f"Snapshot {snapshot_id} is damaged: {what}.",
            hint="Restore points that build on it are affected. Take a new full snapshot; the command `zone check` shows which"
            " ones still verify.",
        )
        self.snapshot_id = snapshot_id


class Capacity(NamedTuple):
    """Room where the store keeps what it makes; `free_bytes` is what this process may still take."""

    total_bytes: int
    free_bytes: int


class Sight(NamedTuple):
    """What the store finds of a disk or an image; `problem` says why it cannot be read or is not what it was."""

    size_bytes: int
    problem: str = ""
    identity: str | None = None
    hard_links: int | None = None


class Use(NamedTuple):
    """Who has a disk: `held_by` as in `Resource.held_by` ("" for nobody, None where that cannot be told)."""

    held_by: str | None
    is_ours: bool = False
    """A job of ours is working on it."""


class Store(Protocol):
    """The hooks. Those that look at a disk are called in a transaction, after its claims: no job of ours has it then."""

    def check_capture(self, resource: Row, room: "Room", *, is_full: bool, allow_fuzzy: bool) -> None:
        """Make sure that the disk can be captured now, and count in `room` what that will take.

        Raises ResourceBusy, NotUsable.
        """

    def check_overwrite(self, resource: Row, *, is_alone: bool, is_patient: bool) -> str:
        """Make sure that the disk can be rolled back now, and return its identity.

        `is_alone`: nobody else may have it open, as a safety snapshot is taken. `is_patient`: a passing reader may be waited
        for. Raises ResourceBusy, NotUsable.
        """

    def check_export(self, snapshot_id: str, room: "Room") -> None:
        """Count in `room` what an export of the snapshot takes."""

    def look_at(self, row: Row, *, is_verbose: bool = False) -> Sight:
        """Look at a disk or an image (a row of `resources` or `images`) without disturbing who has it.

        Its identity is looked for only with `is_verbose`.
        """

    def identity_of(self, resource: Row) -> str:
        """Return the identity of the disk that is there now, "" where there is none."""

    def is_same_disk(self, before: str, present: str) -> bool:
        """Whether both identities are of one disk; also where `before` is not an identity that could tell."""

    def describe(self, identity: str) -> str:
        """Describe a disk to a person who has to tell it from another one."""

    def find_uses(self, catalogue: "Catalogue", resources: Sequence[Row]) -> dict[str, Use]:
        """Return by id who has each disk."""

    def capacity(self) -> Capacity:
        """Return how much room there is where snapshots and exports are kept."""

    def remove(self, snapshot_ids: Sequence[str]) -> None:
        """Remove the bytes of snapshots durably, in the given order; one that has none is no error."""

    def clean_up(self, request: Mapping[str, Any], whole_ids: Collection[str]) -> None:
        """Remove what a failed job has prepared beside its snapshots; `whole_ids`: its disks that are not half overwritten."""
