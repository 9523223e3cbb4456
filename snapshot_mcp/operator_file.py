"""The operator's file under a running server: the settings as it says them now, read again when it has changed.

To look costs one `stat`. Everything here blocks and may be called from any thread.
"""

import threading
import time
from pathlib import Path

from snapshot_mcp.settings import Settings, SettingsError

SETTLED_SECONDS = 0.05
"""A file that was changed more recently may still be being written, or change again within one tick of its clock."""
LOOKS = 20
"""A file that is written all the time is taken as it is after so many looks."""

Stamp = tuple[int, ...]


class OperatorFile:
    """`settings` is what was read at the start; the environment of then stays."""

    def __init__(self, settings: Settings) -> None:
        self._path = settings.path
        self._lock = threading.Lock()
        self._stamp: Stamp | None = None
        self._problem: SettingsError | None = None
        self._last_good = settings

    @property
    def last_good(self) -> Settings:
        """What the file said when it could last be read."""
        return self._last_good

    def now(self) -> Settings:
        """Return the settings as the file says them now. Raises SettingsError while it cannot be read or understood."""
        if self._path is None:
            return self._last_good
        with self._lock:
            if self._stamp is None or self._stamp != _stamp(self._path):
                self._stamp = self._read(self._path)
            if self._problem is not None:
                raise SettingsError(self._problem.message, hint=self._problem.hint)
            return self._last_good

    def _read(self, path: Path) -> Stamp:
        """Read the file once it holds still; return its stamp."""
        for _ in range(LOOKS):
            before = _stamp(path)
            try:
                self._last_good, self._problem = self._last_good.reread(), None
            except SettingsError as error:
                self._problem = error
            if before == _stamp(path) and _is_settled(before):
                break
            time.sleep(SETTLED_SECONDS)
        return before


def _stamp(path: Path) -> Stamp:
    """What changes whenever the file is changed or replaced; empty while there is none."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_mode


def _is_settled(stamp: Stamp) -> bool:
    """Whether the change is old enough; one in the future comes from a clock that was set, and says nothing."""
    return all(abs(time.time() - nanoseconds / 1e9) > SETTLED_SECONDS for nanoseconds in stamp[3:5])
