"""Bring parts back from a store: every object is compared with the hashes that a signed manifest leads to, before it counts."""

import io
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Final

from blake3 import blake3

from snapshot_mcp.contract.errors import Damaged, NotFound, Unavailable, ZoneError
from snapshot_mcp.contract.parts import Piece
from snapshot_mcp.copies.keys import RecoveryKey
from snapshot_mcp.copies.library import FoundCopy
from snapshot_mcp.copies.manifest import CopyEntry, Index, index_name, piece_name, unwrap
from snapshot_mcp.copies.seal import MAX_PIECE, SEALED_MORE, HashingWriter, digest, unseal
from snapshot_mcp.copies.stores import CopyStore, read_small

MAX_INDEX: Final = 64 << 20

PIECES_AT_ONCE: Final = 4
"""A store answers each request after a while, and whoever restores waits."""

Advance = Callable[[int], None]
Write = Callable[[bytes], object]


class Fetcher:
    """Reads parts out of a store. `is_durable`: what is fetched has to survive the machine's power, which a scratch has not."""

    def __init__(
        self,
        store: CopyStore,
        key: RecoveryKey | None,
        advance: Advance = lambda amount: None,
        *,
        is_durable: bool = True,
    ) -> None:
        self._store, self._key, self._advance, self._is_durable = store, key, advance, is_durable

    def fetch(self, found: FoundCopy, path: Path) -> None:
        """Write a part into a new file (mode 0600), whole or not at all. Raises Damaged, NotFound, OSError."""
        partial = path.with_name(f".{path.name}.partial")
        with suppress(FileNotFoundError):
            partial.unlink()
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb", buffering=0):
                self._read_all(found, lambda offset: _Place(descriptor, offset).write)
                if self._is_durable:
                    os.fsync(descriptor)
            os.link(partial, path, follow_symlinks=False)
        finally:
            with suppress(FileNotFoundError):
                partial.unlink()

    def fetch_any(self, copies: Sequence[FoundCopy], path: Path) -> None:
        """Write a part into a new file from the first of these copies that is whole; raise what the first one raised."""
        first: ZoneError | None = None
        for one in copies:
            try:
                return self.fetch(one, path)
            except (Damaged, NotFound, Unavailable) as error:
                first = first or error
        assert first is not None
        raise first

    def read_through(self, found: FoundCopy) -> None:
        """Read a part and compare it, writing nothing."""
        self._read_all(found, lambda offset: len)

    def _read_all(self, found: FoundCopy, place: Callable[[int], Write]) -> None:
        """Read the pieces of a part, several at once; what `place` returns for a piece's offset gets its bytes."""
        pieces = self.pieces(found)
        offsets = itertools.accumulate((one.size for one in pieces), initial=0)

        def read(task: tuple[int, int, Piece]) -> int:
            number, offset, piece = task
            self._read(found, number, piece, place(offset))
            return piece.size

        with ThreadPoolExecutor(PIECES_AT_ONCE, thread_name_prefix="fetch") as pool:
            for size in pool.map(read, zip(itertools.count(), offsets, pieces, strict=False)):
                self._advance(size)

    def pieces(self, found: FoundCopy) -> list[Piece]:
        """Return the pieces that a part's index names, which add up to the part. Raises Damaged, NotFound."""
        entry, name = found.entry, index_name(found.writer, found.entry.part_id)
        stored = read_small(self._store, name, MAX_INDEX)
        if len(stored) != entry.index_size or blake3(stored).hexdigest() != entry.index_hash:
            raise _damaged(entry, "its index is not the one that was written")
        index = unwrap(Index, stored, self._key, f"The index of {entry.part_id}")
        pieces = index.as_pieces()
        fits = all(one.size <= MAX_PIECE and _fits(one, is_sealed=found.is_sealed) for one in pieces)
        if index.part_id != entry.part_id or not fits or sum(one.size for one in pieces) != entry.size:
            raise _damaged(entry, "its index does not fit it")
        if digest(one.hash for one in pieces) != entry.hash:
            raise _damaged(entry, "its index names other pieces")
        return pieces

    def _read(self, found: FoundCopy, number: int, piece: Piece, write: Write) -> None:
        """Pass a piece's bytes on. They count once this has returned; a sealed one is opened only if it is what was stored."""
        if not found.is_sealed:
            for chunk in self._stored(found, number, piece):
                write(chunk)
            return
        entry = found.entry
        if self._key is None:
            raise Damaged(f"{entry.part_id} is sealed.", hint="Give the recovery key.")
        stored = io.BytesIO(b"".join(self._stored(found, number, piece)))
        opened = HashingWriter(write)
        unseal(stored, opened, self._key.identity, f"Piece {number} of {entry.part_id}")
        if opened.size != piece.size or opened.hash.hexdigest() != piece.hash:
            raise _damaged(entry, f"its piece {number} holds something else")

    def _stored(self, found: FoundCopy, number: int, piece: Piece) -> Iterator[bytes]:
        """Yield what is stored for a piece; it ends with Damaged unless all of it is what was written."""
        entry, hashed, size = found.entry, blake3(), 0
        try:
            for chunk in self._store.get(piece_name(found.writer, entry.part_id, number, is_sealed=found.is_sealed)):
                size += len(chunk)
                if size > piece.stored_size:
                    break
                hashed.update(chunk)
                yield chunk
        except NotFound:
            raise _damaged(entry, f"its piece {number} is missing") from None
        if size != piece.stored_size or hashed.hexdigest() != piece.stored_hash:
            raise _damaged(entry, f"its piece {number} is not the one that was written")


class _Place:
    """A stretch of a file that is written in order."""

    def __init__(self, descriptor: int, offset: int) -> None:
        self._descriptor, self._offset = descriptor, offset

    def write(self, content: bytes) -> None:
        view = memoryview(content)
        while view:
            written = os.pwrite(self._descriptor, view, self._offset)
            self._offset += written
            view = view[written:]


def _fits(piece: Piece, *, is_sealed: bool) -> bool:
    if is_sealed:
        return piece.stored_size <= piece.size + SEALED_MORE
    return (piece.stored_size, piece.stored_hash) == (piece.size, piece.hash)


def _damaged(entry: CopyEntry, why: str) -> Damaged:
    return Damaged(f"The copy of {entry.part_id} is damaged: {why}.", hint="Another copy may have it whole.")
