"""`Parts`: the immutable parts that a zone's restore points are made of, for a copy that survives the machine. Blocking.

A zone with `Feature.PARTS` has them. The narrow waist between `copies`, which never sees a provider, and a store of files.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Part:
    """One restore point as one immutable run of bytes.

    `parents`: what it builds on, root first. `taken_at`: seconds since 1970. `is_whole`: it may be copied, nothing of it is known
    to be damaged. `deleted_at`: when a deletion that was agreed to took it, None otherwise; `is_gone`: its bytes are not here.
    """

    part_id: str
    size_bytes: int
    parents: tuple[str, ...]
    resource_id: str
    resource_name: str
    resource_type: str
    name: str
    description: str
    tags: tuple[str, ...]
    taken_at: float
    consistency: str
    disk_bytes: int
    is_whole: bool
    deleted_at: int | None = None
    is_gone: bool = False


class Parts(Protocol):
    """The parts of one zone."""

    @property
    def zone(self) -> str:
        """The zone's name."""

    def list_parts(self) -> list[Part]:
        """Return all parts that are here, and those whose deletion is recorded, parents before children."""

    def open_part(self, part_id: str) -> int:
        """Return a descriptor of a part's bytes, which stay readable even if it is deleted. Raises NotFound."""

    def disks(self) -> list[str]:
        """Return the ids and names of the zone's disks."""

    def verify_part(self, part_id: str, advance: Callable[[int], None]) -> None:
        """Read a part back whole and record the result. Raises Damaged, Unsupported, and what `advance` raises."""

    def adopt_parts(self, parts: Collection[Part]) -> list[str]:
        """Take in parts whose bytes were put in their places (`place_of`), as they are described; return what is wrong."""

    def place_of(self, part_id: str) -> str:
        """Return the path of a part's bytes."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a part as one object of a copy: its bytes, and the bytes that are stored for them. Hashes are BLAKE3."""

    size: int
    hash: str
    stored_size: int
    stored_hash: str
    is_verified: bool = True


@dataclass(frozen=True, slots=True)
class CopyState:
    """What is known here of a copy at one place for one key: the writer's name there, and its last manifest.

    `copy_id`: what the ledger knows it by. `intended`: the manifest that was to be written last. `keep_days`: how long what is
    deleted stays there, as of the last run that ended well. `manifest_size`, `manifest_hash`: of the last manifest's object.
    """

    copy_id: int
    writer: str
    number: int
    intended: int
    first: int
    content: str
    manifest_size: int
    manifest_hash: str
    keep_days: int


@dataclass(frozen=True, slots=True)
class SentPart:
    """A part that was sent whole. `about`: its entry in a manifest, as JSON; it stays there whatever becomes of it here.

    `index_hash`, `index_size`: of the stored object that names its pieces. `deleted_at`, `until`: of the recorded deletion that
    took it here, and when its days there end. `is_whole`: its objects were there when they were last looked for.
    `listed_in`: the manifest that names it, 0 for none. Times are in seconds since 1970.
    """

    part_id: str
    size: int
    hash: str
    stored_bytes: int
    index_size: int
    index_hash: str
    sent_at: int
    about: str
    deleted_at: int | None = None
    until: int | None = None
    is_whole: bool = True
    listed_in: int = 0


class Ledger(Protocol):
    """What a zone remembers of its copies, durably: by name, place and key (whom it is sealed for, "" for nobody)."""

    def find(self, copy: str, place: str, key: str) -> CopyState | None:
        """Return what is known, None for a copy that was never there."""

    def open(self, copy: str, place: str, key: str, keep_days: int) -> CopyState:
        """Return what is known of the copy that this name means from now on; begin one that is not known."""

    def start_anew(self, copy_id: int) -> CopyState:
        """Forget what was sent and take a new writer's name."""

    def pieces(self, copy_id: int, part_id: str) -> dict[int, Piece]:
        """Return the pieces of a part, by number."""

    def note_pieces(self, copy_id: int, part_id: str, pieces: Mapping[int, Piece]) -> None:
        """Record pieces by number: about to be stored, or verified."""

    def doubt(self, copy_id: int, part_id: str, numbers: Collection[int]) -> None:
        """Record that a part is not whole there, and that these pieces have to be read back before they count again."""

    def forget_pieces(self, copy_id: int, part_id: str, numbers: Collection[int]) -> None:
        """Forget pieces that are not there."""

    def forget_part(self, copy_id: int, part_id: str) -> None:
        """Forget a part that was removed there."""

    def sent(self, copy_id: int) -> dict[str, SentPart]:
        """Return the parts that were sent whole, by id."""

    def note_sent(self, copy_id: int, *parts: SentPart) -> None:
        """Record parts that are whole there, or what has become known of them."""

    def intend(self, copy_id: int, number: int) -> None:
        """Record that a manifest of this number is about to be written."""

    def note_listed(self, state: CopyState, part_ids: Collection[str]) -> None:
        """Record the manifest that was written, and that it names these parts and no others."""

    def note_run(self, copy_id: int, problem: str, keep_days: int) -> None:
        """Record a run that ended, with what a person should look at, "" for nothing."""

    def note_trouble(self, copy: str, problem: str) -> None:
        """Record of the copy of this name, also of one that never ran, that it could not run."""

    def note_checked(self, copy_id: int, *, is_restored: bool, problem: str) -> None:
        """Record that all that was sent was read back, or restored."""


class Copier(Protocol):
    """Carries out copies for a zone's worker."""

    def names(self) -> tuple[str, ...]:
        """Return the copies that are set up for this zone, as the operator's file has it now."""

    def carry_out(
        self,
        copy: str,
        parts: Parts,
        ledger: Ledger,
        start: Callable[[str, int], None],
        advance: Callable[[int], None],
    ) -> dict[str, object]:
        """Bring a copy up to date; return what the job's `extra` says. Raises ZoneError."""
