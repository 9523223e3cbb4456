"""Send one part, piece by piece. Each is recorded before it is stored and again once it was read back from the store.

An object that was recorded is read back before another takes its place, whatever the store lists: what counts is not overwritten.
"""

import os
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import replace
from types import TracebackType
from typing import Any, BinaryIO, Final, Self

from blake3 import blake3

from snapshot_mcp.contract.errors import Damaged, NotFound, Unavailable
from snapshot_mcp.contract.parts import CopyState, Ledger, Part, Parts, Piece, SentPart
from snapshot_mcp.copies.limits import Bandwidth, refuse_over
from snapshot_mcp.copies.manifest import Index, index_name, part_folder, piece_name, wrap
from snapshot_mcp.copies.seal import PIECE, HashingReader, digest, seal
from snapshot_mcp.copies.settings import CopySettings
from snapshot_mcp.copies.stores import CopyStore

PIECES_AT_ONCE: Final = 2
POLL_SECONDS: Final = 0.25
"""How often the end of a piece is looked for, and whether the job was cancelled meanwhile."""


class StorePlace:
    """What one writer has in a store, by name, as it was listed and has been changed since; and what all have together."""

    def __init__(self, store: CopyStore, writer: str) -> None:
        self.store, self._writer = store, writer
        self._all: dict[str, int] = {}
        self.held: dict[str, int] = {}

    @property
    def writer(self) -> str:
        """The writer's name."""
        return self._writer

    @writer.setter
    def writer(self, name: str) -> None:
        self._writer = name
        self.held = {one: size for one, size in self._all.items() if one.startswith(f"{name}/")}

    @property
    def total_bytes(self) -> int:
        """What everybody has there."""
        return sum(self._all.values())

    def look(self) -> None:
        """List all that is there, once."""
        self._all = {one.name: one.size for one in self.store.list("")}

    def holds(self, name: str, size: int) -> bool:
        """Return whether an object of this size was listed."""
        return self.held.get(name) == size

    def note(self, name: str, size: int) -> None:
        """Record that an object was stored."""
        self.held[name] = self._all[name] = size

    def remove(self, names: Collection[str]) -> None:
        """Remove objects."""
        if names := list(names):
            self.store.remove(names)
            for name in names:
                self.held.pop(name, None)
                self._all.pop(name, None)

    def remove_part(self, part_id: str) -> None:
        """Remove all objects of a part."""
        self.remove([name for name in self.held if name.startswith(part_folder(self.writer, part_id))])

    def piece(self, part_id: str, number: int, *, is_sealed: bool) -> str:
        """Return the name of a piece's object."""
        return piece_name(self.writer, part_id, number, is_sealed=is_sealed)

    def reads_back(self, name: str, size: int, hashed: str) -> bool:
        """Return whether an object is there and has these bytes."""
        digested, found = blake3(), 0
        with suppress(NotFound):
            for chunk in self.store.get(name):
                digested.update(chunk)
                found += len(chunk)
                if found > size:
                    return False
        return found == size and digested.hexdigest() == hashed

    def time(self) -> float:
        """Return the time by the store's own clock, in seconds since 1970."""
        name = f"{self.writer}/time"
        self.store.put(name, b"?")
        times = [one.changed_at for one in self.store.list(f"{self.writer}/") if one.name == name]
        self.store.remove([name])
        return max(times, default=0.0)


class PartSender:
    """Sends the parts of one run. `advance` is called with the bytes done; what it raises ends the sending soon."""

    def __init__(
        self,
        copy: str,
        settings: CopySettings,
        place: StorePlace,
        parts: Parts,
        ledger: Ledger,
        state: CopyState,
        recipient: str,
        advance: Callable[[int], None],
    ) -> None:
        self._copy, self._settings, self._place, self._parts = copy, settings, place, parts
        self._ledger, self._id, self._recipient, self._advance = ledger, state.copy_id, recipient, advance
        self._bandwidth = Bandwidth(settings.bandwidth)
        self._pool = ThreadPoolExecutor(PIECES_AT_ONCE + 1, thread_name_prefix="copy")
        self.sent_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Wait for the threads; after an error they are told to stop."""
        if error:
            self._bandwidth.stop()
        self._pool.shutdown(cancel_futures=True)

    def send(self, part: Part) -> SentPart:
        """Send one part. It counts only if what is here was read back whole as well.

        Raises NotFound, Damaged, Unsupported (this part cannot be sent), StorageFull, Unavailable, and what `advance` raises.
        """
        known = self._fitting(part)
        more = part.size_bytes - sum(piece.size for piece in known.values())
        refuse_over(self._settings.ceiling, self._place.total_bytes, more, self._copy)
        fresh: set[int] = set()
        try:
            with closing(os.fdopen(self._parts.open_part(part.part_id), "rb", buffering=0)) as file:
                checked = self._pool.submit(self._parts.verify_part, part.part_id, self._bandwidth.refuse_stopped)
                self._send_pieces(part, file, known, fresh)
            self._await(checked)
        except (Damaged, NotFound):
            self._take_back(part, fresh)
            raise
        return self._finish(part, is_changed=bool(fresh))

    def is_there(self, one: SentPart) -> bool:
        """Return whether all objects of a part that was sent are there, by reading those that are doubted."""
        pieces = self._ledger.pieces(self._id, one.part_id)
        if not pieces or not self._place.reads_back(self._index(one.part_id), one.index_size, one.index_hash):
            return False
        return all(self._is_settled(one.part_id, number, piece) for number, piece in pieces.items())

    def _fitting(self, part: Part) -> dict[int, Piece]:
        """Return the recorded pieces of a part; those that a version with longer or shorter pieces sent are given up."""
        known = self._ledger.pieces(self._id, part.part_id)
        others = [at for at, one in known.items() if one.size != min(PIECE, part.size_bytes - at * PIECE)]
        if others:
            self._ledger.doubt(self._id, part.part_id, [])
            self._ledger.forget_pieces(self._id, part.part_id, others)
            self._place.remove([self._name(part.part_id, at) for at in others])
        return {at: one for at, one in known.items() if at not in others}

    def _send_pieces(self, part: Part, file: Any, known: Mapping[int, Piece], fresh: set[int]) -> None:
        under_way: list[tuple[int, Piece, Future[None]]] = []
        for number, offset in enumerate(range(0, part.size_bytes, PIECE)):
            size = min(PIECE, part.size_bytes - offset)
            if (piece := known.get(number)) and self._is_settled(part.part_id, number, piece):
                self._advance(size)
                continue
            done = self._stored(part, *under_way.pop(0)) if len(under_way) == PIECES_AT_ONCE else {}
            file.seek(offset)
            piece, stored = self._sealed(file, size)
            fresh.add(number)
            self._ledger.note_pieces(self._id, part.part_id, done | {number: piece})
            under_way.append((number, piece, self._pool.submit(self._store, part.part_id, number, piece, stored)))
        while under_way:
            self._ledger.note_pieces(self._id, part.part_id, self._stored(part, *under_way.pop(0)))

    def _sealed(self, file: BinaryIO, size: int) -> tuple[Piece, bytes]:
        source = HashingReader(file, size)
        stored = seal(source, self._recipient)
        if source.size != size:
            raise Damaged("its file is shorter than it was.", hint="Check the zone.")
        hashed = source.hash.hexdigest()
        stored_hash = blake3(stored).hexdigest() if self._recipient else hashed
        return Piece(size, hashed, len(stored), stored_hash, is_verified=False), stored

    def _is_settled(self, part_id: str, number: int, piece: Piece) -> bool:
        """Return whether a piece is there whole: it was read back before and is listed, or is read back now."""
        name = self._name(part_id, number)
        if piece.is_verified and self._place.holds(name, piece.stored_size):
            return True
        if not self._place.reads_back(name, piece.stored_size, piece.stored_hash):
            return False
        self._place.note(name, piece.stored_size)
        self._ledger.note_pieces(self._id, part_id, {number: replace(piece, is_verified=True)})
        return True

    def _store(self, part_id: str, number: int, piece: Piece, stored: bytes) -> None:
        name = self._name(part_id, number)
        self._place.store.put(name, stored, self._bandwidth.wait)
        if not self._place.reads_back(name, piece.stored_size, piece.stored_hash):
            raise Unavailable(
                f"What was just stored for {part_id} was read back as something else.",
                hint="The store or the way to it changes bytes. Nothing counts as copied there.",
            )

    def _stored(self, part: Part, number: int, piece: Piece, future: Future[None]) -> dict[int, Piece]:
        """Wait until a piece is stored and was read back; return it as it is to be recorded, with the next one."""
        self._await(future)
        self._place.note(self._name(part.part_id, number), piece.stored_size)
        self.sent_bytes += piece.stored_size
        self._advance(piece.size)
        return {number: replace(piece, is_verified=True)}

    def _await(self, future: Future[None]) -> None:
        while True:
            try:
                return future.result(POLL_SECONDS)
            except TimeoutError:
                if future.done():
                    raise
                self._advance(0)

    def _finish(self, part: Part, *, is_changed: bool) -> SentPart:
        """Store the index of a part whose pieces are all there, unless it is there already."""
        before = self._ledger.sent(self._id).get(part.part_id)
        name = self._index(part.part_id)
        pieces = [piece for _, piece in sorted(self._ledger.pieces(self._id, part.part_id).items())]
        if before and not is_changed and self._place.reads_back(name, before.index_size, before.index_hash):
            self._place.note(name, before.index_size)
            return replace(before, is_whole=True)
        rows = tuple((one.size, one.hash, one.stored_size, one.stored_hash) for one in pieces)
        stored = wrap(Index(part_id=part.part_id, pieces=rows), self._recipient)
        hashed = blake3(stored).hexdigest()
        self._place.store.put(name, stored)
        if not self._place.reads_back(name, len(stored), hashed):
            raise Unavailable(f"The index of {part.part_id} was read back as something else.")
        self._place.store.settle(part_folder(self._place.writer, part.part_id))
        self._place.note(name, len(stored))
        return SentPart(
            part_id=part.part_id,
            size=part.size_bytes,
            hash=digest(one.hash for one in pieces),
            stored_bytes=len(stored) + sum(one.stored_size for one in pieces),
            index_size=len(stored),
            index_hash=hashed,
            sent_at=0,
            about="",
        )

    def _take_back(self, part: Part, fresh: Collection[int]) -> None:
        """Remove what this run sent of a part that is damaged here; what was there before may be the only good one."""
        self._ledger.forget_pieces(self._id, part.part_id, fresh)
        self._place.remove([self._name(part.part_id, number) for number in fresh])

    def _name(self, part_id: str, number: int) -> str:
        return self._place.piece(part_id, number, is_sealed=bool(self._recipient))

    def _index(self, part_id: str) -> str:
        return index_name(self._place.writer, part_id)
