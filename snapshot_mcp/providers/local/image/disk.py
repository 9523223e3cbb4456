"""Hold a disk in a qcow2 image for a capture or a roll-back, as `CaptureSource` and `TargetDisk` hold a raw one.

QEMU is started when the content is first used, so that a check costs no process. For a capture the image is cloned or leased as
any file, and QEMU reads that. For a roll-back the lease proves that nobody uses it; then QEMU's own locks and a watch replace the
lease, which QEMU's opening of the file would break.
"""

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from snapshot_mcp.contract.errors import NotUsable
from snapshot_mcp.providers.local.disk import CaptureSource, TargetDisk
from snapshot_mcp.providers.local.holders import DAEMON_NAME, find_writers
from snapshot_mcp.providers.local.image.daemon import ImageServer, check_image, require_tools, resize_image
from snapshot_mcp.providers.local.image.layers import Layout, check_chain, open_bases
from snapshot_mcp.providers.local.platform import DiskInUse
from snapshot_mcp.providers.local.source import Span
from snapshot_mcp.providers.local.watch import OpenWatch

METADATA_BYTES: Final = 4 << 20
"""What QEMU may write beside the content: tables and counts, some 0.02 % of it, and these to begin with."""


ORPHAN_TRIES, ORPHAN_SECONDS = 25, 0.2
"""How long a roll-back waits for one that a killed worker left; it takes as long as a sync of the disk."""


class ImageContent:
    """The disk in an image as a `Target`, while QEMU serves it; `start` serves it again after its size was changed."""

    def __init__(
        self, start: Callable[[], ImageServer], resize: Callable[[int], None], fd: int, *, is_shared: bool
    ) -> None:
        self._start, self._resize, self._fd, self._is_shared = start, resize, fd, is_shared
        self._server = start()

    @property
    def size_bytes(self) -> int:
        """The size that the machine sees."""
        return self._server.disk.size_bytes

    def read(self, length: int, offset: int) -> bytes:
        """Read what the machine sees."""
        return self._server.disk.read(length, offset)

    def data_extents(self, start: int, end: int) -> Iterator[Span]:
        """Yield what QEMU does not know to be zeros, in this image and its bases."""
        return self._server.disk.data_extents(start, end)

    def write(self, data: bytes, offset: int) -> None:
        """Write into the image itself, never into a base."""
        self._server.disk.write(data, offset)

    def write_zeros(self, offset: int, length: int) -> None:
        """Write zeros, which need no space."""
        self._server.disk.write_zeros(offset, length)

    def resize(self, size_bytes: int) -> None:
        """Have `qemu-img` change the size that the image gives its disk."""
        self.close()
        self._resize(size_bytes)
        self._server = self._start()

    def reserve(self, spans: Iterable[Span]) -> None:
        """Compare the free space with what will be allocated: nothing can be reserved within an image."""
        needed = METADATA_BYTES + sum(map(self._unallocated, spans))
        free = os.fstatvfs(self._fd)
        if needed + needed // 1000 > free.f_bavail * free.f_frsize:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def flush(self) -> None:
        """Have QEMU sync the image."""
        self._server.disk.flush()

    def close(self) -> None:
        """End QEMU."""
        self._server.close()

    def _unallocated(self, span: Span) -> int:
        """Return how much of a part the image allocates anew: all, if its clusters belong to a base or to its own snapshots."""
        start, end = span
        stored = 0 if self._is_shared else sum(hole - data for data, hole in self.data_extents(start, end))
        return end - start - stored


class ImageSource(CaptureSource):
    """A disk in an image that is read as of one moment. Raises as `CaptureSource` does, and NotUsable for a changed base."""

    def __init__(self, path: str, label: str, layout: Layout) -> None:
        require_tools()
        self._stack = ExitStack()
        self._content: ImageContent | None = None
        super().__init__(path, label)
        with self._closed_on_error("; a copy taken now could be inconsistent"):
            self._layout = layout
            self._bases = open_bases(layout, label, self._stack)
            self._header = check_chain(self.path, self.fd, layout, self._bases, label)
            self.size_bytes = self._header.virtual_bytes

    @property
    def content(self) -> ImageContent:
        """What the machine sees."""
        if self._content is None:
            if not self._header.is_dirty:  # QEMU reads lost tables as zeros without a word
                check_image(self._layout, self.fd, self._bases, self.label)
            self._content = ImageContent(self._serve, _never, self.fd, is_shared=True)
        return self._content

    @property
    def stored_bytes(self) -> int:
        """What the image and its bases have allocated, at most the disk's size."""
        stored = sum(os.fstat(fd).st_blocks * 512 for fd in (self.fd, *(one.fd for one in self._bases)))
        return min(stored, self.size_bytes)

    def _look(self) -> None:
        super()._look()
        for one in self._bases:
            one.check()

    def close(self) -> None:
        """End QEMU and close all files."""
        if self._content is not None:
            self._content.close()
            self._content = None
        super().close()
        self._stack.close()

    def _serve(self) -> ImageServer:
        return ImageServer(self._layout, self.fd, self._bases, self.label)


def _never(size_bytes: int) -> None:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def _wait_for_orphan(path: Path) -> None:
    """Wait for a daemon whose worker was killed: it writes out what it has and ends by itself."""
    for _ in range(ORPHAN_TRIES):
        if not any(DAEMON_NAME in writer.text for writer in find_writers(path)):
            return
        time.sleep(ORPHAN_SECONDS)


def _lock(fd: int) -> None:
    """Lock a file for ourselves. Raises DiskInUse."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DiskInUse("another program has locked it") from None


class ImageTarget(TargetDisk):
    """A disk in an image that is held to be overwritten. Raises as `TargetDisk` does, and NotUsable for a changed base."""

    def __init__(self, path: str, label: str, layout: Layout, *, is_patient: bool = True) -> None:
        require_tools()
        self._stack = ExitStack()
        self._content: ImageContent | None = None
        _wait_for_orphan(Path(path))
        super().__init__(path, label, is_patient=is_patient)
        with self._closed_on_error(self.consequence):
            self._layout = layout
            self._bases = open_bases(layout, label, self._stack)
            self._header = check_chain(self.path, self.fd, layout, self._bases, label)
            self.size_bytes = self._header.virtual_bytes
            if self._header.is_dirty:
                raise NotUsable(
                    f"The image of {label} was not closed by the program that last wrote to it, so QEMU would have to repair it"
                    " before a roll-back.",
                    hint="Start the machine and shut it down, or copy the image and run: qemu-img check -r all IMAGE",
                )

    @property
    def content(self) -> ImageContent:
        """What the machine sees; from its first use on a watch stands for the lease."""
        if self._content is None:
            with self._closed_on_error(self.consequence):
                self._watch = OpenWatch(self.fd, self.path)
                if self._hold:
                    self._hold.close()
                self._hold = self._watch
                _lock(self.fd)
                check_image(self._layout, self.fd, self._bases, self.label)
                is_shared = bool(self._layout.bases or self._header.snapshot_count)
                self._content = ImageContent(self._serve, self._resize, self.fd, is_shared=is_shared)
        return self._content

    def close(self) -> None:
        """End QEMU, release the hold and close all files."""
        if self._content is not None:
            self._content.close()
            self._content = None
        super().close()
        self._stack.close()

    def _serve(self) -> ImageServer:
        server = ImageServer(self._layout, self.fd, self._bases, self.label, is_writable=True)
        try:
            self._watch.settle({server.pid})
        except BaseException:
            server.close()
            raise
        return server

    def _resize(self, size_bytes: int) -> None:
        shrink = size_bytes < self.size_bytes
        resize_image(self._layout, self.fd, self._bases, self.label, size_bytes, may_shrink=shrink)
