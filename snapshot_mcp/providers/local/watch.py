"""`OpenWatch`: notice that another program opens a file or a device (inotify), where no lease can be held."""

import ctypes
import os
import struct
from collections.abc import Collection
from pathlib import Path
from typing import Final

from snapshot_mcp.ground.closing import Closing
from snapshot_mcp.providers.local.holders import describe, find_writers
from snapshot_mcp.providers.local.platform import DiskInUse

_NONBLOCK_CLOEXEC: Final = os.O_NONBLOCK | os.O_CLOEXEC
_CLOSE_WRITE, _OPEN, _OVERFLOW = 0x8, 0x20, 0x4000
_EVENT: Final = struct.Struct("iIII")


class OpenWatch(Closing):
    """Notices who opens the file from now on; those that were expected are forgotten by `settle`."""

    def __init__(self, fd: int, path: Path) -> None:
        self.path = path
        self._ours: Collection[int] = ()
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init1(_NONBLOCK_CLOEXEC)
        if self._fd < 0 or libc.inotify_add_watch(self._fd, f"/proc/self/fd/{fd}".encode(), _CLOSE_WRITE | _OPEN) < 0:
            code = ctypes.get_errno()
            self.close()
            raise OSError(code, os.strerror(code))

    @property
    def is_alone(self) -> bool:
        """Nobody writes unnoticed."""
        return True

    def settle(self, ours: Collection[int]) -> None:
        """Forget what was opened until now; of all processes only `ours` may write. Raises DiskInUse."""
        self._ours = ours
        self._events()
        self._refuse_writers()

    def check(self) -> None:
        """Raise DiskInUse if another program wrote to the file, or can. Cheap while nobody opens it."""
        events = self._events()
        if events & _CLOSE_WRITE:
            raise DiskInUse("a program opened it for writing")
        if events & (_OPEN | _OVERFLOW):
            self._refuse_writers()

    def close(self) -> None:
        """Stop watching."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _refuse_writers(self) -> None:
        if writers := find_writers(self.path, self._ours):
            raise DiskInUse(describe(writers))

    def _events(self) -> int:
        """Return what happened since the last call, as one mask."""
        mask = 0
        while True:
            try:
                data = os.read(self._fd, 4096)
            except BlockingIOError:
                return mask
            at = 0
            while at < len(data):
                _, what, _, length = _EVENT.unpack_from(data, at)
                mask |= what
                at += _EVENT.size + length
