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

    def verify_part(self, part_id: str) -> None:
        """Read a part back whole and record the result. Raises Damaged, Unsupported."""

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
    """What is known here of a copy: the writer's name there, its last manifest, and the one that it may have been writing.

    `keep_days`: how long what is deleted stays there, as of the last run.
    """

    writer: str
    number: int
    intended: int
    first: int
    content: str
    keep_days: int


@dataclass(frozen=True, slots=True)
class SentPart:
    """A part that a copy holds whole: since when, and until when it stays there after its deletion (seconds since 1970).

    `index_hash`, `index_size`: of the stored object that names its pieces. `listed_in`: the manifest that names it, 0 for none.
    """

    part_id: str
    size: int
    hash: str
    stored_bytes: int
    index_size: int
    index_hash: str
    sent_at: int
    until: int | None = None
    listed_in: int = 0


class Ledger(Protocol):
    """What a zone remembers of its copies, durably."""

    def state(self, copy: str, place: str) -> CopyState:
        """Return what is known of a copy at this place; a copy that has moved begins anew."""

    def start_anew(self, copy: str, place: str) -> CopyState:
        """Forget what was sent and take a new writer's name."""

    def pieces(self, copy: str, part_id: str) -> dict[int, Piece]:
        """Return the pieces of a part, by number."""

    def note_piece(self, copy: str, part_id: str, number: int, piece: Piece) -> None:
        """Record a piece: about to be stored, or verified."""

    def forget_part(self, copy: str, part_id: str, numbers: Collection[int] | None = None) -> None:
        """Record that a part is not whole there, and that these pieces (None: all) are not there."""

    def sent(self, copy: str) -> dict[str, SentPart]:
        """Return the parts that are whole there, by id."""

    def note_sent(self, copy: str, part: SentPart) -> None:
        """Record that a part is whole there."""

    def note_until(self, copy: str, untils: Mapping[str, int | None]) -> None:
        """Record until when deleted parts stay there; None for those that were recovered."""

    def intend(self, copy: str, number: int) -> None:
        """Record that a manifest of this number is about to be written."""

    def note_listed(self, copy: str, number: int, first: int, content: str, part_ids: Collection[str]) -> None:
        """Record that a manifest of this number was written, and names these parts."""

    def note_run(self, copy: str, problem: str, keep_days: int) -> None:
        """Record how a run ended: "" for well."""

    def note_checked(self, copy: str, *, is_restored: bool, problem: str) -> None:
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
