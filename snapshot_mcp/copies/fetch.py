"""Bring parts back from a store: every object is compared with the hashes that a signed manifest leads to, before it counts."""

import io
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from blake3 import blake3

from snapshot_mcp.contract.errors import Damaged, NotFound
from snapshot_mcp.contract.parts import Piece
from snapshot_mcp.copies.keys import RecoveryKey
from snapshot_mcp.copies.library import FoundCopy
from snapshot_mcp.copies.manifest import CopyEntry, Index, index_name, piece_name, unwrap
from snapshot_mcp.copies.seal import PIECE, SEALED_MORE, digest, unseal
from snapshot_mcp.copies.stores import CopyStore, read_small

MAX_INDEX: Final = 64 << 20

Advance = Callable[[int], None]


class Fetcher:
    """Reads parts out of a store."""

    def __init__(self, store: CopyStore, key: RecoveryKey | None, advance: Advance = lambda amount: None) -> None:
        self._store, self._key, self._advance = store, key, advance

    def fetch(self, found: FoundCopy, path: Path) -> None:
        """Write a part into a new file (mode 0600), whole or not at all. Raises Damaged, NotFound, OSError."""
        partial = path.with_name(f".{path.name}.partial")
        with suppress(FileNotFoundError):
            partial.unlink()
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb", buffering=0) as file:
                for number, piece in enumerate(self.pieces(found)):
                    file.write(self._opened(found, number, piece))
                    self._advance(piece.size)
                os.fsync(file.fileno())
            os.link(partial, path, follow_symlinks=False)
        finally:
            with suppress(FileNotFoundError):
                partial.unlink()

    def read_through(self, found: FoundCopy) -> None:
        """Read a part and compare it, writing nothing."""
        for number, piece in enumerate(self.pieces(found)):
            self._opened(found, number, piece)
            self._advance(piece.size)

    def pieces(self, found: FoundCopy) -> list[Piece]:
        """Return the pieces that a part's index names, which add up to the part. Raises Damaged, NotFound."""
        entry, name = found.entry, index_name(found.writer, found.entry.part_id)
        stored = read_small(self._store, name, MAX_INDEX)
        if len(stored) != entry.index_size or blake3(stored).hexdigest() != entry.index_hash:
            raise _damaged(entry, "its index is not the one that was written")
        index = unwrap(Index, stored, self._key, f"The index of {entry.part_id}")
        pieces = index.as_pieces()
        fits = all(one.size <= PIECE and one.stored_size <= one.size + SEALED_MORE for one in pieces)
        if index.part_id != entry.part_id or not fits or sum(one.size for one in pieces) != entry.size:
            raise _damaged(entry, "its index does not fit it")
        if digest(one.hash for one in pieces) != entry.hash:
            raise _damaged(entry, "its index names other pieces")
        return pieces

    def _opened(self, found: FoundCopy, number: int, piece: Piece) -> bytes:
        entry = found.entry
        name = piece_name(found.writer, entry.part_id, number, is_sealed=found.is_sealed)
        try:
            stored = read_small(self._store, name, piece.stored_size)
        except NotFound:
            raise _damaged(entry, f"its piece {number} is missing") from None
        if len(stored) != piece.stored_size or blake3(stored).hexdigest() != piece.stored_hash:
            raise _damaged(entry, f"its piece {number} is not the one that was written")
        content = stored
        if found.is_sealed:
            if self._key is None:
                raise Damaged(f"{entry.part_id} is sealed.", hint="Give the recovery key.")
            opened = io.BytesIO()
            unseal(io.BytesIO(stored), opened, self._key.identity, f"Piece {number} of {entry.part_id}")
            content = opened.getvalue()
        if len(content) != piece.size or blake3(content).hexdigest() != piece.hash:
            raise _damaged(entry, f"its piece {number} holds something else")
        return content


def _damaged(entry: CopyEntry, why: str) -> Damaged:
    return Damaged(f"The copy of {entry.part_id} is damaged: {why}.", hint="Another copy may have it whole.")
