"""Bring a copy up to date: what is whole here and not there is sent, parents before children, and named in a new manifest.

COPIES.md, "A run", has the order of all steps, and why. What was sent once stays named, whatever becomes of it here.
"""

import socket
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Final

from blake3 import blake3

from snapshot_mcp.contract.errors import Damaged, NotFound, NotUsable, Unavailable, Unsupported, ZoneError
from snapshot_mcp.contract.parts import CopyState, Ledger, Part, Parts, SentPart
from snapshot_mcp.copies.deleting import Deleting
from snapshot_mcp.copies.keys import MachineKeys
from snapshot_mcp.copies.manifest import (
    CopyEntry,
    Manifest,
    content_hash,
    index_name,
    manifest_name,
    number_of,
    write_manifest,
)
from snapshot_mcp.copies.sending import PartSender, StorePlace
from snapshot_mcp.copies.settings import CopySettings
from snapshot_mcp.copies.stores import CopyStore
from snapshot_mcp.copies.strangers import written_by

LIST_EVERY_SECONDS: Final = 300.0
"""How long a long run goes on before what is whole is named in a manifest."""

KEPT_MANIFESTS: Final = 100
MAX_STRANGERS: Final = 20
"""Manifests that are not known here and are looked into."""

MAX_NAMED: Final = 10


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
        self.recipient = recipient_of(copy, settings, keys)
        self.outcome = Outcome()
        self.place = StorePlace(store, "")
        self.state: CopyState
        self._listed_at = time.monotonic()

    def carry_out(self) -> Outcome:
        """Do all that is due; what is whole is named in a manifest even if the run fails later."""
        where = self.copy, self.settings.place, self.recipient
        known = self.ledger.find(*where)
        self.start("comparing", 0)
        self.store.prepare(is_known=bool(known and known.number))
        self.place.look()  # before the ledger takes the place for the copy's: it may be misspelt
        self.state = self.ledger.open(*where, self.settings.keep_deleted_days)
        self.place.writer = self.state.writer
        self._compare()
        parts = {part.part_id: part for part in self.parts.list_parts()}
        self._refuse_unknown_disks(parts)
        deleting = Deleting(self.settings, self.ledger, self.state, self.clock, self.place.time)
        deleting.note(parts)
        self._describe(parts)
        going = deleting.due(parts)
        if going:
            self._list(leaving_out=going)
            deleting.remove(going, self.place)
            self.outcome.removed = sorted(going)
        try:
            self._send_all(parts)
        except ZoneError:
            with suppress(ZoneError):  # the first error is the one to tell
                self._list()
            raise
        self._list()
        return self.outcome

    def _compare(self) -> None:
        """Compare what the store lists with what was recorded: replay and loss are found here."""
        numbers = {number for name in self.place.held if (number := number_of(name))}
        state = self.state
        beyond = sorted((one for one in numbers if one > max(state.number, state.intended)), reverse=True)
        if any(written_by(self.store, state.writer, number, self.keys) for number in beyond[:MAX_STRANGERS]):
            self._find(
                f"The copy was written to after what is recorded here ended (manifest {beyond[0]}; here {state.number}):"
                " this zone's catalogue was put back. What is there stays; from here on it is another writer's."
            )
            self.state = self.ledger.start_anew(state.copy_id)
            self.place.writer = self.state.writer
            return
        if beyond:
            self._find(f"{len(beyond)} objects among the copy's manifests were not written here; they are left alone.")
        if state.number and self.place.held.get(manifest_name(state.writer, state.number)) != state.manifest_size:
            what = "is not there any more" if state.number not in numbers else "was changed"
            self._find(
                f"The store was rolled back, emptied or changed: manifest {state.number} {what}, the newest of ours is"
                f" {max(numbers - set(beyond), default='none')}. What is missing is sent again."
            )
            self.state = replace(state, content="")
        self._look_for_lost()

    def _look_for_lost(self) -> None:
        """Doubt what the store does not list; what it has again, or still, is read back."""
        lost = []
        for one in self.ledger.sent(self.state.copy_id).values():
            pieces = self.ledger.pieces(self.state.copy_id, one.part_id)
            name = index_name(self.state.writer, one.part_id)
            gone = [
                at
                for at, piece in pieces.items()
                if not self.place.holds(self._name(one.part_id, at), piece.stored_size)
            ]
            if one.is_whole and (gone or not pieces or not self.place.holds(name, one.index_size)):
                self.ledger.doubt(self.state.copy_id, one.part_id, gone)
                lost.append(one.part_id)
        if lost:
            self._find(f"The store has lost objects of {_named(lost)}.")

    def _name(self, part_id: str, number: int) -> str:
        return self.place.piece(part_id, number, is_sealed=bool(self.recipient))

    def _refuse_unknown_disks(self, parts: Mapping[str, Part]) -> None:
        names = {one for part in parts.values() for one in (part.resource_id, part.resource_name)}
        names |= set(self.parts.disks())
        if unknown := [one for one in self.settings.disks if one not in names]:
            self._find(f"The zone has no disk {_named(unknown)}, which `disks` of [copies.{self.copy}] names.")

    def _describe(self, parts: Mapping[str, Part]) -> None:
        """Record what parts are called now, as far as they are known here."""
        sent = self.ledger.sent(self.state.copy_id)
        changed = []
        for one in sent.values():
            if part := parts.get(one.part_id):
                about = CopyEntry.of(part, one).model_dump_json()
                if about != one.about:
                    changed.append(replace(one, about=about))
        if changed:
            self.ledger.note_sent(self.state.copy_id, *changed)

    def _todo(self, parts: Mapping[str, Part]) -> list[Part]:
        """Return what is to be sent, parents before children; a damaged ancestor keeps its children here."""
        there = {one.part_id for one in self.ledger.sent(self.state.copy_id).values() if one.is_whole}
        able = {part.part_id for part in parts.values() if part.is_whole and not part.is_gone}
        wanted = [
            part for part in parts.values() if part.part_id in able and part.deleted_at is None and self._takes(part)
        ]
        chosen: dict[str, Part] = {}
        for part in sorted(wanted, key=lambda one: (one.taken_at, len(one.parents))):
            chain = [*part.parents, part.part_id]
            if all(one in able or one in there for one in chain):
                chosen |= {one: parts[one] for one in chain if one not in there and one not in chosen}
        return list(chosen.values())

    def _takes(self, part: Part) -> bool:
        disks = self.settings.disks
        return not disks or part.resource_id in disks or part.resource_name in disks

    def _send_all(self, parts: Mapping[str, Part]) -> None:
        todo, spoilt = self._todo(parts), set[str]()
        self.start("copying", sum(part.size_bytes for part in todo))
        with PartSender(
            self.copy, self.settings, self.place, self.parts, self.ledger, self.state, self.recipient, self.advance
        ) as sender:
            self._read_doubtful_back(sender, leaving_out={part.part_id for part in todo})
            for part in todo:
                if not spoilt.isdisjoint(part.parents):
                    continue
                try:
                    sent = sender.send(part)
                except (Damaged, NotFound, Unsupported) as error:
                    spoilt.add(part.part_id)
                    self._read_doubtful_back(sender, only=part.part_id)
                    if not isinstance(error, NotFound):  # deleted and purged since
                        self._find(f"{part.part_id} is not copied: {error.message}")
                else:
                    entry = CopyEntry.of(part, replace(sent, sent_at=int(self.clock())))
                    done = replace(sent, sent_at=entry.sent_at, about=entry.model_dump_json())
                    self.ledger.note_sent(self.state.copy_id, done)
                    self.outcome.sent.append(part.part_id)
                self.outcome.sent_bytes = sender.sent_bytes
                if time.monotonic() - self._listed_at > LIST_EVERY_SECONDS:
                    self._list()

    def _read_doubtful_back(self, sender: PartSender, leaving_out: Collection[str] = (), only: str = "") -> None:
        """Count again what the store has after all, of what cannot be sent again from here."""
        for one in self.ledger.sent(self.state.copy_id).values():
            is_meant = one.part_id == only if only else one.part_id not in leaving_out
            if not one.is_whole and is_meant and sender.is_there(one):
                self.ledger.note_sent(self.state.copy_id, replace(one, is_whole=True))

    def _list(self, leaving_out: Collection[str] = ()) -> None:
        """Write a manifest if it would say anything new: all that is whole there with all that it builds on."""
        self._listed_at = time.monotonic()
        sent = self.ledger.sent(self.state.copy_id)
        entries = _restorable([_entry(one) for one in sent.values() if one.is_whole and one.part_id not in leaving_out])
        content = content_hash(entries, self.keys)
        there = manifest_name(self.state.writer, self.state.number) in self.place.held
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
            is_sealed=bool(self.recipient),
            entries=tuple(entries),
        )
        stored, name = write_manifest(manifest, self.keys), manifest_name(self.state.writer, number)
        self.ledger.intend(self.state.copy_id, number)
        hashed = blake3(stored).hexdigest()
        is_new = self.store.create(name, stored)
        if not self.place.reads_back(name, len(stored), hashed):
            if is_new:
                raise Unavailable("The manifest was read back as something else.", hint="The next run writes it again.")
            self.ledger.start_anew(self.state.copy_id)
            raise Unavailable(
                f"The copy has an object {name!r} that was not written here: a twin of this zone writes there.",
                hint="What is there stays. The next run sends all again, as another writer.",
            )
        self.place.note(name, len(stored))
        self.state = replace(
            self.state,
            number=number,
            intended=number,
            first=first,
            content=content,
            manifest_size=len(stored),
            manifest_hash=hashed,
        )
        self.ledger.note_listed(self.state, [one.part_id for one in entries])
        self.place.remove([one for one in self.place.held if (at := number_of(one)) and at < first])

    def _find(self, text: str) -> None:
        self.outcome.findings.append(text)


def recipient_of(copy: str, settings: CopySettings, keys: MachineKeys | None) -> str:
    """Return whom a copy is sealed for, "" for nobody. Raises NotUsable without a key."""
    if not settings.is_sealed:
        return ""
    if keys is None:
        raise NotUsable(
            f"Copy {copy!r} is encrypted, and there is no recovery key yet.",
            hint="A person makes it: `snapshot-mcp copy key`. Nothing is sent before that.",
        )
    return keys.recipient


def _entry(one: SentPart) -> CopyEntry:
    return CopyEntry.model_validate_json(one.about).model_copy(update={"until": one.until, "sent_at": one.sent_at})


def _restorable(entries: list[CopyEntry]) -> list[CopyEntry]:
    """Return the entries whose ancestors are all among them, in the order in which they were taken."""
    kept: dict[str, CopyEntry] = {}
    for one in sorted(entries, key=lambda one: (len(one.parents), one.taken_at, one.part_id)):
        if all(above in kept for above in one.parents):
            kept[one.part_id] = one
    return sorted(kept.values(), key=lambda one: (one.taken_at, len(one.parents), one.part_id))


def _named(ids: list[str]) -> str:
    more = f" and {len(ids) - MAX_NAMED} more" if len(ids) > MAX_NAMED else ""
    return ", ".join(map(repr, sorted(ids)[:MAX_NAMED])).replace("'", "") + more
