"""What the process of an embedded zone's worker is: the zone's jobs, and the copies that the operator's file names.

It is started for every job, so the settings are read only once there is something to copy.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from snapshot_mcp.providers.local.worker import main

if TYPE_CHECKING:
    from collections.abc import Callable

    from snapshot_mcp.contract.parts import Copier, Ledger, Parts


def work(folder: str, lock: str) -> None:
    """Be the worker of the zone in a folder, with the lock that was inherited."""
    main(folder, lock, _LateCopier(Path(folder)))


class _LateCopier:
    """The home's copier, built when it is first needed; a settings file that is broken by then is an error of the job."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def names(self) -> tuple[str, ...]:
        return self._built().names()

    def carry_out(
        self,
        copy: str,
        parts: Parts,
        ledger: Ledger,
        start: Callable[[str, int], None],
        advance: Callable[[int], None],
    ) -> dict[str, object]:
        return self._built().carry_out(copy, parts, ledger, start, advance)

    def _built(self) -> Copier:
        from snapshot_mcp import app

        return app.build_copier(self._folder)
