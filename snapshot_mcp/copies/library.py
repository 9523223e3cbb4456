"""What a store holds, as somebody reads it who has nothing but its place and perhaps the recovery key.

The newest manifest of each writer that is whole and signed by the key counts; what is wrong or missing is said. Nothing that a
store says is believed further than its signature and hashes go.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from snapshot_mcp.contract.errors import Damaged, NotFound, Unsupported
from snapshot_mcp.contract.models import format_time
from snapshot_mcp.contract.text import clean_text
from snapshot_mcp.copies.keys import RecoveryKey
from snapshot_mcp.copies.manifest import (
    HEAD,
    MAX_BODY,
    MAX_UNSIGNED,
    WRITER,
    CopyEntry,
    Manifest,
    number_of,
    read_manifest,
    signer_of,
)
from snapshot_mcp.copies.stores import CopyStore, read_small

MAX_TRIED: Final = 1000
"""Manifests of a writer that are tried, from the newest on, before it is given up; of most only the first bytes are read."""

MAX_FINDINGS: Final = 10


@dataclass(frozen=True, slots=True)
class Shelf:
    """What one writer's newest readable manifest says, and what is wrong with its others."""

    manifest: Manifest
    findings: tuple[str, ...]
    is_behind: bool = False

    @property
    def title(self) -> str:
        """Which writer, manifest and time it is."""
        one = self.manifest
        written = format_time(datetime.fromtimestamp(one.written_at, UTC))
        whose = f"zone {clean_text(one.zone)!r} on {clean_text(one.host)!r}"
        return f"writer {one.writer} ({whose}), manifest {one.number} of {written}"


@dataclass(frozen=True, slots=True)
class FoundCopy:
    """A restore point, and the writer that has it."""

    writer: str
    is_sealed: bool
    entry: CopyEntry


@dataclass(frozen=True, slots=True)
class Library:
    """All that a store holds. `foreign`: writers that another key signed, or that cannot be read at all."""

    shelves: tuple[Shelf, ...]
    foreign: tuple[str, ...]

    @property
    def is_behind(self) -> bool:
        """Whether a newer manifest than the one that was read is there and cannot be used: restore points may be missing."""
        return any(shelf.is_behind for shelf in self.shelves)

    def found(self) -> dict[str, list[FoundCopy]]:
        """Return the restore points by id, each with all writers that have it: first those where it is not deleted."""
        merged: dict[str, list[FoundCopy]] = {}
        for shelf in self.shelves:
            for entry in shelf.manifest.entries:
                one = FoundCopy(shelf.manifest.writer, shelf.manifest.is_sealed, entry)
                merged.setdefault(entry.part_id, []).append(one)
        return {one: sorted(copies, key=lambda copy: copy.entry.until is not None) for one, copies in merged.items()}


def read_library(store: CopyStore, key: RecoveryKey | None) -> Library:
    """Read what a store holds. Raises NotFound if no writer was ever there, Damaged if none can be read."""
    numbers: dict[str, list[int]] = {}
    for held in store.list(""):
        writer = held.name.partition("/")[0]
        if WRITER.fullmatch(writer):
            of_writer = numbers.setdefault(writer, [])
            if (number := number_of(held.name)) is not None:
                of_writer.append(number)
    if not numbers:
        raise NotFound("No copy of a zone is there.", hint="Check the place: it ends where `to` in [copies.NAME] ends.")
    shelves, foreign = [], []
    for writer, of_writer in sorted(numbers.items()):
        shelf, why = _read_shelf(store, writer, sorted(of_writer, reverse=True), key)
        if shelf:
            shelves.append(shelf)
        else:
            foreign.append(f"writer {writer}: {why}")
    if not shelves:
        needs = any("sealed" in one for one in foreign)
        hint = "Give the recovery key." if needs and key is None else "Check the recovery key, and the place."
        raise Damaged(f"Nothing there can be read ({'; '.join(foreign[:5])}).", hint=hint)
    shelves.sort(key=lambda one: one.manifest.written_at, reverse=True)
    return Library(tuple(shelves), tuple(foreign))


def _read_shelf(store: CopyStore, writer: str, numbers: list[int], key: RecoveryKey | None) -> tuple[Shelf | None, str]:
    """Return the newest manifest of a writer that is whole, with what is wrong with newer ones; or why there is none."""
    findings: list[str] = []
    why = "it has parts and no manifest"
    for number in numbers[:MAX_TRIED]:
        name = f"{writer}/manifests/{number:09d}"
        try:
            manifest = _read_one(store, name, key)
        except (Damaged, NotFound, Unsupported) as error:
            why = error.message
            findings.append(f"manifest {number} of {writer} cannot be used: {why}")
            continue
        gaps = [one for one in range(manifest.first, manifest.number) if one not in numbers]
        if gaps:
            findings.append(f"manifests of {writer} that are missing: {_ranges(gaps)}")
        return Shelf(manifest, tuple(findings[:MAX_FINDINGS]), is_behind=number != numbers[0]), ""
    return None, why


def _read_one(store: CopyStore, name: str, key: RecoveryKey | None) -> Manifest:
    if key and signer_of(read_small(store, name, HEAD)[:HEAD]) != key.public:  # before a long one is read
        raise Damaged("It is signed by another key, or by none.")
    limit = MAX_BODY if key else MAX_UNSIGNED
    content = read_small(store, name, limit)
    if len(content) > limit:
        raise Damaged("It is longer than a manifest can be.")
    return read_manifest(name, content, key)


def _ranges(numbers: list[int]) -> str:
    """Return numbers in words: `3, 5 to 9`."""
    return ", ".join(str(low) if low == high else f"{low} to {high}" for low, high in _runs(numbers))


def _runs(numbers: list[int]) -> Iterator[tuple[int, int]]:
    start = previous = numbers[0]
    for number in numbers[1:]:
        if number != previous + 1:
            yield start, previous
            start = number
        previous = number
    yield start, previous
