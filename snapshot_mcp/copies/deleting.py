"""What was deleted here goes there too, in its own time: only after a deletion that was recorded here.

What is missing here without one (a disk that died, a zone that was rebuilt, files removed by hand) is never removed there.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from snapshot_mcp.contract.parts import CopyState, Ledger, Part, SentPart
from snapshot_mcp.copies.manifest import CopyEntry
from snapshot_mcp.copies.sending import StorePlace
from snapshot_mcp.copies.settings import CopySettings

DAY: Final = 86_400


class Deleting:
    """The end of deleted parts in one copy; `store_time` asks the store for its own time."""

    def __init__(
        self,
        settings: CopySettings,
        ledger: Ledger,
        state: CopyState,
        clock: Callable[[], float],
        store_time: Callable[[], float],
    ) -> None:
        self._ledger, self._id, self._clock, self._store_time = ledger, state.copy_id, clock, store_time
        self._days = max(settings.keep_deleted_days, state.keep_days)
        """What was in force, and promised, when it was deleted; fewer days act on later deletions only."""

    def note(self, parts: Mapping[str, Part]) -> None:
        """Record until when what was deleted since the last run stays there, and that what was recovered stays.

        The days begin at the deletion, by the later of both clocks.
        """
        changed: list[SentPart] = []
        for one in self._ledger.sent(self._id).values():
            part = parts.get(one.part_id)
            if part is None or part.deleted_at == one.deleted_at:
                continue
            if part.deleted_at is None:
                changed.append(replace(one, deleted_at=None, until=None))
            else:
                changed.append(replace(one, deleted_at=part.deleted_at))
        if any(one.deleted_at for one in changed):
            now = int(self._store_time())
            changed = [
                replace(one, until=max(one.deleted_at, now) + self._days * DAY) if one.deleted_at else one
                for one in changed
            ]
        if changed:
            self._ledger.note_sent(self._id, *changed)

    def due(self, parts: Mapping[str, Part]) -> list[str]:
        """Return the parts whose days have ended, children before parents; none that something which stays builds on.

        Both clocks must say so, ours and the store's: one that was set wrong ends nothing.
        """
        sent = self._ledger.sent(self._id)
        over = _over(sent, parts, self._clock())
        if over:
            over = _over(sent, parts, min(self._clock(), self._store_time()))
        above = {one: CopyEntry.model_validate_json(sent[one].about).parents for one in sent}
        needed = {parent for one in sent if one not in over for parent in above[one]}
        return sorted(over - needed, key=lambda one: -len(above[one]))

    def remove(self, going: list[str], place: StorePlace) -> None:
        """Remove their objects, after the manifest that no longer names them; the ledger forgets them last."""
        for one in going:
            place.remove_part(one)
            self._ledger.forget_part(self._id, one)


def _over(sent: Mapping[str, SentPart], parts: Mapping[str, Part], now: float) -> set[str]:
    return {
        one.part_id
        for one in sent.values()
        if one.until is not None
        and one.until <= now
        and (part := parts.get(one.part_id)) is not None
        and part.deleted_at is not None
        and part.is_gone
    }
