"""Measure how much of a restore point's content a file holds: which of its chunks have the same hash.

Only chunks that hold data count, because empty space is the same on every disk; of an empty disk all count. Everything is read
that the next backup would read too, so no sample is needed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from snapshot_mcp.providers.local.capture import WINDOW_SIZE, Advance, in_order
from snapshot_mcp.providers.local.snapshot_file.format import PLACE, ZERO_PLACE, Header, hash_of
from snapshot_mcp.providers.local.snapshot_file.reader import Chain
from snapshot_mcp.providers.local.source import Source


@dataclass(frozen=True, slots=True)
class Likeness:
    """How many of a restore point's chunks were compared with a file's, and how many are equal."""

    equal_chunks: int = 0
    compared_chunks: int = 0

    @property
    def is_alike(self) -> bool:
        """Return whether at least half of the chunks are equal."""
        return 0 < self.compared_chunks <= 2 * self.equal_chunks

    def __str__(self) -> str:
        percent = 100 * self.equal_chunks // max(1, self.compared_chunks)  # rounded down: 100 % means all
        return f"{self.equal_chunks} of {self.compared_chunks} chunks ({percent} %)"


class _Stretch(NamedTuple):
    """A run of a disk's chunks, and the restore point's map of them."""

    start: int
    end: int
    places: bytes


def measure_likeness(source: Source, chain: Chain, advance: Advance) -> Likeness:
    """Compare an open file with a restore point. Raises DamagedSnapshot (its map), OSError (the file)."""
    of_data = _measure(source, chain.header, _with_data(chain), advance)
    return of_data if of_data.compared_chunks else _measure_zeros(source, chain.header, advance)


def _with_data(chain: Chain) -> Iterator[_Stretch]:
    header = chain.header
    for region in range(header.region_count):
        places = chain.places(region)
        for start, end, part in header.split(region, max(WINDOW_SIZE, header.chunk_size)):
            yield _Stretch(start, end, places[part])


def _measure(source: Source, header: Header, stretches: Iterator[_Stretch], advance: Advance) -> Likeness:
    def compare(stretch: _Stretch) -> tuple[int, int]:
        found = [_is_equal(source, header, stretch, number) for number in _numbers_with_data(stretch.places)]
        return sum(found), len(found)

    equal = compared = 0
    for stretch, (same, all_of_it) in in_order(compare, stretches):
        equal, compared = equal + same, compared + all_of_it
        advance(stretch.end - stretch.start)
    return Likeness(equal, compared)


def _numbers_with_data(places: bytes) -> Iterator[int]:
    if places == ZERO_PLACE * (len(places) // PLACE.size):
        return
    for number, at in enumerate(range(0, len(places), PLACE.size)):
        if places[at : at + PLACE.size] != ZERO_PLACE:
            yield number


def _is_equal(source: Source, header: Header, stretch: _Stretch, number: int) -> bool:
    start = stretch.start + number * header.chunk_size
    data = source.read(min(header.chunk_size, stretch.end - start), start)
    place = stretch.places[number * PLACE.size : (number + 1) * PLACE.size]
    return place.endswith(hash_of(data))  # a place ends with its chunk's hash


def _measure_zeros(source: Source, header: Header, advance: Advance) -> Likeness:
    """Count the chunks of an empty disk that are empty in the file too."""
    equal = compared = 0
    for region in range(header.region_count):
        start, end = header.bounds_of(region)
        is_hole = next(source.data_extents(start, end), None) is None
        compared += header.chunks_in(region)
        equal += header.chunks_in(region) if is_hole else _count_zeros(source, header, start, end)
        advance(end - start)
    return Likeness(equal, compared)


def _count_zeros(source: Source, header: Header, start: int, end: int) -> int:
    step = header.chunk_size
    return sum(not source.read(min(step, end - at), at).strip(b"\0") for at in range(start, end, step))
