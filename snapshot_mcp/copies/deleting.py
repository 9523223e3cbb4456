"""What was deleted here goes there too, in its own time: only after a deletion that was agreed to and recorded.

What is missing here without one (a disk that died, a zone that was rebuilt, files removed by hand) is never removed there.
"""

from collections.abc import Callable, Mapping
from typing import Final

from snapshot_mcp.contract.parts import Ledger, Part, SentPart
from snapshot_mcp.copies.manifest import part_folder
from snapshot_mcp.copies.settings import CopySettings
from snapshot_mcp.copies.stores import CopyStore

DAY: Final = 86_400


class Deleting:
    """The end of deleted parts in one copy."""

    def __init__(
        self, copy: str, settings: CopySettings, store: CopyStore, ledger: Ledger, clock: Callable[[], float]
    ) -> None:
        self.copy, self.settings, self.store, self.ledger, self.clock = copy, settings, store, ledger, clock

    def note(self, parts: Mapping[str, Part], days_before: int) -> None:
        """Record until when what was deleted since the last run stays there, and that what was recovered stays.

        `days_before`: what was in force, and promised, when it was deleted; fewer days act on later deletions only.
        """
        days = max(self.settings.keep_deleted_days, days_before)
        untils: dict[str, int | None] = {}
        for one in self.ledger.sent(self.copy).values():
            part = parts.get(one.part_id)
            if part is None:
                continue
            if part.deleted_at is None and one.until is not None:
                untils[one.part_id] = None
            elif part.deleted_at is not None and one.until is None:
                untils[one.part_id] = part.deleted_at + days * DAY
        if untils:
            self.ledger.note_until(self.copy, untils)

    def due(self, parts: Mapping[str, Part], store_time: Callable[[], float]) -> list[str]:
        """Return the parts whose days have ended, children before parents; none that something which stays builds on.

        Both clocks must say so, ours and the store's: one that was set wrong ends nothing.
        """
        sent = self.ledger.sent(self.copy)
        over = self._over(sent, parts, self.clock())
        if over:
            over = self._over(sent, parts, min(self.clock(), store_time()))
        needed = {above for one in sent if one not in over for above in (parts[one].parents if one in parts else ())}
        return sorted(over - needed, key=lambda one: -len(parts[one].parents))

    def remove(self, writer: str, going: list[str], held: dict[str, int]) -> None:
        """Remove their objects, after the manifest that no longer names them; the ledger forgets them last."""
        for one in going:
            names = [name for name in held if name.startswith(part_folder(writer, one))]
            self.store.remove(names)
            for name in names:
                del held[name]
            self.ledger.forget_part(self.copy, one)

    def _over(self, sent: Mapping[str, SentPart], parts: Mapping[str, Part], now: float) -> set[str]:
        return {
            one.part_id
            for one in sent.values()
            if one.until is not None
            and one.until <= now
            and (part := parts.get(one.part_id)) is not None
            and part.deleted_at is not None
            and part.is_gone
        }
