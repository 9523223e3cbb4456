"""The operator's file while a server runs: the settings, reloaded when the file has changed.

A check costs one `stat`. Everything here blocks and may be called from any thread.
"""

import threading
import time
from pathlib import Path

from snapshot_mcp.settings import Settings, SettingsError

SETTLED_SECONDS = 0.05
"""A file changed more recently may be incomplete, or change again within one tick of the filesystem's clock."""
MAX_READS = 20
"""After this many reads a file that keeps changing is used as it is."""

Stamp = tuple[int, ...]


class OperatorFile:
    """The settings as the file has them; `settings` are those of the start, whose environment stays in force."""

    def __init__(self, settings: Settings) -> None:
        self._path = settings.path
        self._lock = threading.Lock()
        self._stamp: Stamp | None = None
        self._problem: SettingsError | None = None
        self.last_good = settings
        """The settings that were last loaded without an error."""

    def now(self) -> Settings:
        """Return the settings, reloaded if the file has changed. Raises SettingsError while it is unusable."""
        if self._path is None:
            return self.last_good
        with self._lock:
            if self._stamp is None or self._stamp != _stamp(self._path):
                self._stamp = self._read(self._path)
            if self._problem is not None:
                raise SettingsError(self._problem.message, hint=self._problem.hint)
            return self.last_good

    def _read(self, path: Path) -> Stamp:
        """Read the file until it stops changing; return its stamp."""
        for _ in range(MAX_READS):
            before = _stamp(path)
            try:
                self.last_good, self._problem = self.last_good.reread(), None
            except SettingsError as error:
                self._problem = error
            if before == _stamp(path) and _is_settled(before):
                break
            time.sleep(SETTLED_SECONDS)
        return before


def _stamp(path: Path) -> Stamp:
    """Return a value that changes with the file; empty if there is no file."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_mode


def _is_settled(stamp: Stamp) -> bool:
    """Return whether the last change is not recent; a time in the future means that the clock was set."""
    return all(abs(time.time() - nanoseconds / 1e9) > SETTLED_SECONDS for nanoseconds in stamp[3:5])
