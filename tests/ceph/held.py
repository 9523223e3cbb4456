"""A worker in a process of its own that stands still where a test says; it looks at others' jobs more often than others do.

`python -m tests.ceph.held FOLDER SETTINGS [MODULE:CLASS.METHOD before|after NUMBER]`: at so many calls of the method the file
`paused` appears in the folder, and the call goes on once that is gone.
"""

import importlib
import sys
import time
from pathlib import Path
from typing import Any

from snapshot_mcp.providers.ceph import worker
from snapshot_mcp.providers.ceph.settings import CephZoneSettings

PAUSED = "paused"

SECONDS = {"BEAT_SECONDS": 0.1, "LOOK_SECONDS": 0.1, "TAKE_OVER_SECONDS": 0.7}


def stand_still(folder: Path, where: str, when: str, number: int) -> None:
    module, _, place = where.partition(":")
    owner, _, name = place.partition(".")
    kind = getattr(importlib.import_module(module), owner)
    real, calls = getattr(kind, name), 0

    def wait() -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            (folder / PAUSED).touch()
            while (folder / PAUSED).exists():
                time.sleep(0.01)

    def changed(*arguments: Any, **named: Any) -> Any:
        if when == "before":
            wait()
        result = real(*arguments, **named)
        if when == "after":
            wait()
        return result

    setattr(kind, name, changed)


if __name__ == "__main__":
    place, settings, *stop = sys.argv[1:]
    for name, seconds in SECONDS.items():
        setattr(worker, name, seconds)
    if stop:
        stand_still(Path(place), stop[0], stop[1], int(stop[2]))
    worker.run(Path(place), CephZoneSettings.model_validate_json(settings), 30.0)
