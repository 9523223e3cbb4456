"""Sync a file in the background while it is written, so that the last sync is short."""

import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

from snapshot_mcp.ground.closing import Closing
from snapshot_mcp.providers.local.platform import fdatasync
from snapshot_mcp.providers.local.source import RawFile

SYNC_EVERY_BYTES: Final = 48 << 20


class BackgroundSync(Closing):
    """Syncs an open file after every 48 MiB that any of its threads has written. The file stays its opener's."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()
        self._waiting = 0
        self._syncer = ThreadPoolExecutor(1, thread_name_prefix="sync")
        self._sync: Future[None] | None = None

    def wrote(self, byte_count: int) -> None:
        """Count bytes as written, and start a sync if one is due. Raises OSError of an earlier one."""
        with self._lock:
            self._waiting += byte_count
            if self._waiting >= SYNC_EVERY_BYTES and (self._sync is None or self._sync.done()):
                self._join()
                self._waiting = 0
                self._sync = self._syncer.submit(self._run)

    def finish(self) -> None:
        """Sync the rest. Raises OSError."""
        self._join()
        self._run()

    def close(self) -> None:
        """Wait for a sync that runs."""
        self._syncer.shutdown(wait=True)

    def _join(self) -> None:
        if self._sync is not None:
            self._sync.result()
            self._sync = None

    def _run(self) -> None:
        """Make durable what was written so far."""
        fdatasync(self._fd)


class SyncedFile(BackgroundSync, RawFile):
    """A new raw file that is synced while it is written; its pages leave the page cache, so a long file takes few of them."""

    def __init__(self, fd: int) -> None:
        RawFile.__init__(self, fd)
        BackgroundSync.__init__(self, fd)

    def write(self, data: bytes, offset: int) -> None:
        """Write to the file."""
        super().write(data, offset)
        self.wrote(len(data))

    def flush(self) -> None:
        """Sync the rest."""
        self.finish()

    def _run(self) -> None:
        super()._run()
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
