"""Bring a copy up to date: what is whole here and not there is sent, parents before children, and named in a new manifest.

A part is sent in pieces. Each is recorded before it is stored and again once it was read back from the store, so a run that was
killed goes on where it was. COPIES.md, "A run", has the order of all steps, and why.
"""

import os
import socket
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO, Final

from blake3 import blake3

from snapshot_mcp.contract.errors import Damaged, NotFound, NotUsable, Unavailable, Unsupported, ZoneError
from snapshot_mcp.contract.parts import CopyState, Ledger, Part, Parts, Piece, SentPart
from snapshot_mcp.copies.deleting import Deleting
from snapshot_mcp.copies.keys import MachineKeys
from snapshot_mcp.copies.limits import Bandwidth, refuse_over
from snapshot_mcp.copies.manifest import (
    CopyEntry,
    Index,
    Manifest,
    content_hash,
    index_name,
    manifest_name,
    number_of,
    part_folder,
    piece_name,
    wrap,
    write_manifest,
)
from snapshot_mcp.copies.seal import PIECE, HashingReader, digest, seal
from snapshot_mcp.copies.settings import CopySettings
from snapshot_mcp.copies.stores import CopyStore

PIECES_AT_ONCE: Final = 2
LIST_EVERY_SECONDS: Final = 300.0
"""How long a long run goes on before what is whole is named in a manifest."""

KEPT_MANIFESTS: Final = 100


@dataclass(slots=True)
class Outcome:
    """What a run did; `findings` are for a person: what the store lost, what is damaged here."""

    sent: list[str] = field(default_factory=list)
    sent_bytes: int = 0
    removed: list[str] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)


class Run:
    """One run of one copy of one zone."""

    def __init__(
        self,
        copy: str,
        settings: CopySettings,
        store: CopyStore,
        keys: MachineKeys | None,
        parts: Parts,
        ledger: Ledger,
        start: Callable[[str, int], None],
        advance: Callable[[int], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.copy, self.settings, self.store, self.keys = copy, settings, store, keys
        self.parts, self.ledger, self.start, self.advance, self.clock = parts, ledger, start, advance, clock
        self.is_sealed = settings.is_sealed
        self.recipient = keys.recipient if keys and self.is_sealed else ""
        self.outcome = Outcome()
        self.bandwidth = Bandwidth(settings.bandwidth)
        self.held: dict[str, int] = {}
        self.state: CopyState
        self._listed_at = time.monotonic()
        if self.is_sealed and not keys:
            raise NotUsable(
                f"Copy {copy!r} is encrypted, and there is no recovery key yet.",
                hint="A person makes it: `snapshot-mcp copy key`. Nothing is sent before that.",
            )

    def carry_out(self) -> Outcome:
        """Do all that is due; what is whole is named in a manifest even if the run fails later."""
        self.state = self.ledger.state(self.copy, self.settings.place)
        self.start("comparing", 0)
        self.store.prepare(is_known=self.state.number > 0)
        self._compare()
        all_parts = {part.part_id: part for part in self.parts.list_parts() if self._takes(part)}
        deleting = Deleting(self.copy, self.settings, self.store, self.ledger, self.clock)
        deleting.note(all_parts, self.state.keep_days)
        todo = self._todo(all_parts)
        self.start("copying", sum(part.size_bytes for part in todo))
        try:
            self._send_all(todo, all_parts)
        except ZoneError:
            with suppress(ZoneError):  # the first error is the one to tell
                self._list(all_parts)
            raise
        going = deleting.due(all_parts, self._store_time)
        self._list(all_parts, leaving_out=set(going))
        deleting.remove(self.state.writer, going, self.held)
        self.outcome.removed = sorted(going)
        return self.outcome

    def _takes(self, part: Part) -> bool:
        disks = self.settings.disks
        return not disks or part.resource_id in disks or part.resource_name in disks

    def _compare(self) -> None:
        """Compare what the store lists with what was recorded: replay and loss are found here."""
        self.held = {one.name: one.size for one in self._listing()}
        numbers = {number for name in self.held if (number := number_of(name))}
        state = self.state
        if numbers and max(numbers) > max(state.number, state.intended):
            self.outcome.findings.append(
                f"The copy was written to after what is recorded here ended (manifest {max(numbers)}; here {state.number}):"
                " this zone's catalogue was put back. What is there stays; from here on it is another writer's."
            )
            self.state = self.ledger.start_anew(self.copy, self.settings.place)
            self.held = {}
            return
        if state.number and state.number not in numbers:
            newest = max(numbers, default=0)
            self.outcome.findings.append(
                f"The store was rolled back or emptied: manifest {state.number} was written there, and the newest is now"
                f" {newest or 'none'}. What is missing is sent again."
            )
        lost = [one for one in self.ledger.sent(self.copy).values() if not self._is_there(one)]
        for one in lost:
            known = self._pieces(one.part_id).items()
            gone = [at for at, piece in known if not self._holds(one.part_id, at, piece)]
            self.ledger.forget_part(self.copy, one.part_id, gone)
        if lost:
            self.outcome.findings.append(f"The store has lost objects of {_named([one.part_id for one in lost])}.")

    def _listing(self) -> Iterator[Any]:
        return self.store.list(f"{self.state.writer}/")

    def _store_time(self) -> float:
        """Return the time by the store's own clock, in seconds since 1970."""
        name = f"{self.state.writer}/time"
        self.store.put(name, b"?")
        times = [one.changed_at for one in self._listing() if one.name == name]
        self.store.remove([name])
        return max(times, default=0.0)

    def _pieces(self, part_id: str) -> dict[int, Piece]:
        return self.ledger.pieces(self.copy, part_id)

    def _holds(self, part_id: str, number: int, piece: Piece) -> bool:
        return self.held.get(self._name(part_id, number)) == piece.stored_size

    def _name(self, part_id: str, number: int) -> str:
        return piece_name(self.state.writer, part_id, number, is_sealed=self.is_sealed)

    def _is_there(self, one: SentPart) -> bool:
        if self.held.get(index_name(self.state.writer, one.part_id)) != one.index_size:
            return False
        pieces = self._pieces(one.part_id)
        return bool(pieces) and all(self._holds(one.part_id, number, piece) for number, piece in pieces.items())

    def _todo(self, all_parts: dict[str, Part]) -> list[Part]:
        """Return what is to be sent, parents before children; a damaged ancestor keeps its children here."""
        sent = self.ledger.sent(self.copy)
        able = {part.part_id for part in all_parts.values() if part.is_whole and not part.is_gone}
        wanted = [part for part in all_parts.values() if part.part_id in able and part.deleted_at is None]
        chosen: dict[str, Part] = {}
        for part in sorted(wanted, key=lambda one: (one.taken_at, len(one.parents))):
            chain = [*part.parents, part.part_id]
            if all(one in able or one in sent for one in chain):
                chosen |= {one: all_parts[one] for one in chain if one not in sent and one not in chosen}
        return list(chosen.values())

    def _send_all(self, todo: list[Part], all_parts: dict[str, Part]) -> None:
        spoilt: set[str] = set()
        with ThreadPoolExecutor(PIECES_AT_ONCE + 1, thread_name_prefix="copy") as pool:
            for part in todo:
                if not spoilt.isdisjoint(part.parents):
                    continue
                try:
                    self._send(part, pool)
                except NotFound:  # deleted and purged since
                    spoilt.add(part.part_id)
                except (Damaged, Unsupported) as error:
                    spoilt.add(part.part_id)
                    self.outcome.findings.append(f"{part.part_id} is not copied: {error.message}")
                if time.monotonic() - self._listed_at > LIST_EVERY_SECONDS:
                    self._list(all_parts)

    def _send(self, part: Part, pool: ThreadPoolExecutor) -> None:
        """Send one part. It counts as sent only if what is here was read back whole as well."""
        known = self._fitting(part)
        more = part.size_bytes - sum(piece.size for piece in known.values())
        refuse_over(self.settings.ceiling, self.held.values(), more, self.copy)
        with closing(os.fdopen(self.parts.open_part(part.part_id), "rb", buffering=0)) as file:
            checked = pool.submit(self.parts.verify_part, part.part_id)
            try:
                self._send_pieces(part, file, known, pool)
            finally:
                failure = checked.exception()
        if failure:
            self._take_back(part)
            raise failure
        self._finish(part)

    def _fitting(self, part: Part) -> dict[int, Piece]:
        """Return the recorded pieces of a part; those that a version with longer or shorter pieces sent are given up."""
        known = self._pieces(part.part_id)
        others = [at for at, one in known.items() if one.size != min(PIECE, part.size_bytes - at * PIECE)]
        if others:
            self.ledger.forget_part(self.copy, part.part_id, others)
            names = {self._name(part.part_id, at) for at in others}
            self.store.remove(names)
            self.held = {name: size for name, size in self.held.items() if name not in names}
        return {at: one for at, one in known.items() if at not in others}

    def _send_pieces(self, part: Part, file: Any, known: dict[int, Piece], pool: ThreadPoolExecutor) -> None:
        under_way: list[tuple[int, Piece, Future[None]]] = []
        try:
            for number, offset in enumerate(range(0, part.size_bytes, PIECE)):
                size = min(PIECE, part.size_bytes - offset)
                if self._is_settled(part, number, known.get(number)):
                    self.advance(size)
                    continue
                done = self._stored(part, *under_way.pop(0)) if len(under_way) == PIECES_AT_ONCE else {}
                file.seek(offset)
                piece, stored = self._sealed(file, size)
                self.ledger.note_pieces(self.copy, part.part_id, done | {number: piece})
                under_way.append((number, piece, pool.submit(self._store, part.part_id, number, piece, stored)))
            while under_way:
                self.ledger.note_pieces(self.copy, part.part_id, self._stored(part, *under_way.pop(0)))
        finally:
            for _, _, future in under_way:
                future.cancel()
                with suppress(Exception):
                    future.result()

    def _sealed(self, file: BinaryIO, size: int) -> tuple[Piece, bytes]:
        source = HashingReader(file, size)
        stored = seal(source, self.recipient)
        if source.size != size:
            raise Damaged("its file is shorter than it was.", hint="Check the zone.")
        hashed = source.hash.hexdigest()
        stored_hash = blake3(stored).hexdigest() if self.recipient else hashed
        return Piece(size, hashed, len(stored), stored_hash, is_verified=False), stored

    def _is_settled(self, part: Part, number: int, piece: Piece | None) -> bool:
        """Return whether a piece is there whole: it was read back, or was stored and could not be read back before a kill."""
        if piece is None or not self._holds(part.part_id, number, piece):
            return False
        if piece.is_verified:
            return True
        name = self._name(part.part_id, number)
        if not self._reads_back(name, piece):
            return False
        self.ledger.note_pieces(self.copy, part.part_id, {number: replace(piece, is_verified=True)})
        return True

    def _store(self, part_id: str, number: int, piece: Piece, stored: bytes) -> None:
        name = self._name(part_id, number)
        self.store.put(name, stored, self.bandwidth.wait if self.bandwidth.rate else None)
        if not self._reads_back(name, piece):
            raise Unavailable(
                f"What was just stored for {part_id} was read back as something else.",
                hint="The store or the way to it changes bytes. Nothing counts as copied there.",
            )

    def _reads_back(self, name: str, piece: Piece) -> bool:
        hashed, size = blake3(), 0
        with suppress(NotFound):
            for chunk in self.store.get(name):
                hashed.update(chunk)
                size += len(chunk)
        return size == piece.stored_size and hashed.hexdigest() == piece.stored_hash

    def _stored(self, part: Part, number: int, piece: Piece, future: Future[None]) -> dict[int, Piece]:
        """Wait until a piece is stored and was read back; return it as it is to be recorded, with the next one."""
        future.result()
        self.held[self._name(part.part_id, number)] = piece.stored_size
        self.outcome.sent_bytes += piece.stored_size
        self.advance(piece.size)
        return {number: replace(piece, is_verified=True)}

    def _finish(self, part: Part) -> None:
        """Store the index of a part whose pieces are all there, and record the part."""
        pieces = [piece for _, piece in sorted(self._pieces(part.part_id).items())]
        rows = tuple((one.size, one.hash, one.stored_size, one.stored_hash) for one in pieces)
        stored = wrap(Index(part_id=part.part_id, pieces=rows), self.recipient)
        name, hashed = index_name(self.state.writer, part.part_id), blake3(stored).hexdigest()
        self.store.put(name, stored)
        if not self._reads_back(name, Piece(0, "", len(stored), hashed)):
            raise Unavailable(f"The index of {part.part_id} was read back as something else.")
        self.store.settle(part_folder(self.state.writer, part.part_id))
        self.held[name] = len(stored)
        total = len(stored) + sum(one.stored_size for one in pieces)
        hashes = digest(one.hash for one in pieces)
        now = int(self.clock())
        self.ledger.note_sent(
            self.copy, SentPart(part.part_id, part.size_bytes, hashes, total, len(stored), hashed, sent_at=now)
        )
        self.outcome.sent.append(part.part_id)

    def _take_back(self, part: Part) -> None:
        """Remove what was sent of a part that turned out to be damaged here."""
        names = [name for name in self.held if name.startswith(part_folder(self.state.writer, part.part_id))]
        self.ledger.forget_part(self.copy, part.part_id)
        with suppress(ZoneError):
            self.store.remove(names)
        for name in names:
            del self.held[name]

    def _list(self, all_parts: dict[str, Part], leaving_out: Collection[str] = ()) -> None:
        """Write a manifest if it would say anything new."""
        self._listed_at = time.monotonic()
        sent = self.ledger.sent(self.copy)
        entries = [
            CopyEntry.of(all_parts[one.part_id], one)
            for one in sent.values()
            if one.part_id in all_parts and one.part_id not in leaving_out
        ]
        entries.sort(key=lambda one: (one.taken_at, len(one.parents), one.part_id))
        content = content_hash(entries)
        there = manifest_name(self.state.writer, self.state.number) in self.held
        if (content == self.state.content and there) or not (entries or self.state.number):
            return
        number = max(self.state.number, self.state.intended) + 1
        first = max(self.state.first, number - KEPT_MANIFESTS)
        manifest = Manifest(
            writer=self.state.writer,
            number=number,
            first=first,
            written_at=int(self.clock()),
            zone=self.parts.zone,
            host=socket.gethostname()[:255],
            is_sealed=self.is_sealed,
            entries=tuple(entries),
        )
        stored, name = write_manifest(manifest, self.keys), manifest_name(self.state.writer, number)
        self.ledger.intend(self.copy, number)
        is_new = self.store.create(name, stored)
        if not self._reads_back(name, Piece(0, "", len(stored), blake3(stored).hexdigest())):
            if is_new:
                raise Unavailable("The manifest was read back as something else.", hint="The next run writes it again.")
            self.ledger.start_anew(self.copy, self.settings.place)
            raise Unavailable(
                f"The copy has an object {name!r} that was not written here: a twin of this zone writes there.",
                hint="What is there stays. The next run sends all again, as another writer.",
            )
        self.held[name] = len(stored)
        self.ledger.note_listed(self.copy, number, first, content, [one.part_id for one in entries])
        self.state = replace(self.state, number=number, intended=number, first=first, content=content)
        self._drop_old_manifests(first)

    def _drop_old_manifests(self, first: int) -> None:
        old = [name for name in self.held if (number := number_of(name)) and number < first]
        if old:
            self.store.remove(old)
            for name in old:
                del self.held[name]


def _named(ids: list[str]) -> str:
    return ", ".join(sorted(ids)[:10]) + (f" and {len(ids) - 10} more" if len(ids) > 10 else "")
