"""`HomeCopier`: the copies of a home for one zone's worker, as the operator's file has them at each moment."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from snapshot_mcp.contract.errors import NotFound
from snapshot_mcp.contract.parts import Ledger, Parts
from snapshot_mcp.copies.keys import read_keys
from snapshot_mcp.copies.send import Run
from snapshot_mcp.copies.settings import CopySettings
from snapshot_mcp.copies.stores import open_store


class HomeCopier:
    """A `contract.parts.Copier`; `read` returns the home and the zone's copies as the operator's file has them now.

    Raises ZoneError if the file is unusable.
    """

    def __init__(
        self, read: Callable[[], tuple[Path, Mapping[str, CopySettings]]], clock: Callable[[], float] = time.time
    ) -> None:
        self._read, self._clock = read, clock

    def names(self) -> tuple[str, ...]:
        """Return the copies of this zone."""
        return tuple(self._read()[1])

    def carry_out(
        self,
        copy: str,
        parts: Parts,
        ledger: Ledger,
        start: Callable[[str, int], None],
        advance: Callable[[int], None],
    ) -> dict[str, object]:
        """Run a copy, and record how it ended; the worker records what it raises."""
        home, copies = self._read()
        settings = copies.get(copy)
        if settings is None:
            raise NotFound(
                f"The operator's file has no [copies.{copy}] for this zone.", hint="README shows how to write one."
            )
        run = Run(copy, settings, open_store(settings), read_keys(home), parts, ledger, start, advance, self._clock)
        done = run.carry_out()
        ledger.note_run(run.state.copy_id, " ".join(done.findings), settings.keep_deleted_days)
        return {
            "copy": copy,
            "sent": done.sent,
            "sent_bytes": done.sent_bytes,
            "removed": done.removed,
            "findings": done.findings,
        }
