"""An open RBD image: its size, its users, its lock, its snapshots and its bytes. Blocking; raises CephError."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import threading
from collections.abc import Callable, Iterator
from ctypes import byref, c_char, c_char_p, c_int, c_size_t, c_uint64, c_void_p
from typing import TYPE_CHECKING, NamedTuple

from snapshot_mcp.ground.closing import Closing
from snapshot_mcp.providers.ceph import clib
from snapshot_mcp.providers.ceph.clib import CephError, call

if TYPE_CHECKING:
    from snapshot_mcp.providers.ceph.pool import Pool


class ClientUse(NamedTuple):
    """A client that has an image open for writing."""

    address: str
    client: int


class RbdImage(Closing):
    """An open image, or a snapshot of one."""

    def __init__(self, pool: Pool, handle: c_void_p) -> None:
        self.pool, self._handle = pool, handle
        self._closing = threading.Lock()
        self._is_closed = False

    def close(self) -> None:
        """Close it, once."""
        with self._closing:
            if not self._is_closed:
                self._is_closed = True
                call("rbd_close", self._handle)

    @property
    def _info(self) -> clib.ImageInfo:
        info = clib.ImageInfo()
        call("rbd_stat", self._handle, byref(info), ctypes.sizeof(info))
        return info

    @property
    def size(self) -> int:
        """Its size in bytes."""
        return int(self._info.size)

    @property
    def order(self) -> int:
        """The size of its objects, as a power of two."""
        return int(self._info.order)

    @property
    def id(self) -> str:
        """Its id, which it keeps when it is renamed."""
        text = ctypes.create_string_buffer(256)
        call("rbd_get_id", self._handle, text, len(text))
        return text.value.decode()

    @property
    def name(self) -> str:
        """Its name, as text."""
        size = c_size_t(4096)
        text = ctypes.create_string_buffer(size.value)
        call("rbd_get_name", self._handle, text, byref(size))
        return clib.readable(clib.text_of(text.value))

    @property
    def features(self) -> int:
        """Its features, as bits."""
        found = c_uint64()
        call("rbd_get_features", self._handle, byref(found))
        return int(found.value)

    @property
    def data_pool(self) -> str:
        """The name of the pool of its data, "" where that is its own."""
        number = int(call("rbd_get_data_pool_id", self._handle))
        return "" if number in {-1, self.pool.number} else self.pool.cluster.pool_name(number)

    def metadata(self, key: str) -> str:
        """Return what is written to the image under a key, "" for nothing."""
        size = c_size_t(4096)
        text = ctypes.create_string_buffer(size.value)
        try:
            call("rbd_metadata_get", self._handle, key.encode(), text, byref(size))
        except CephError as error:
            if error.errno == errno.ENOENT:
                return ""
            raise
        return text.value.decode("utf-8", "replace")

    def set_metadata(self, key: str, value: str) -> None:
        """Write something to the image under a key."""
        call("rbd_metadata_set", self._handle, key.encode(), value.encode())

    def drop_metadata(self, key: str) -> None:
        """Remove what is written to the image under a key, if there is anything."""
        with _ignoring(errno.ENOENT):
            call("rbd_metadata_remove", self._handle, key.encode())

    def clients(self) -> list[ClientUse]:
        """Return who else has it open for writing; readers do not show."""
        count = c_size_t(16)
        while True:
            watchers = (clib.Watcher * count.value)()
            try:
                call("rbd_watchers_list", self._handle, watchers, byref(count))
            except CephError as error:
                if error.errno == errno.ERANGE:
                    continue
                raise
            found = [ClientUse(one.addr.decode(), one.id) for one in watchers[: count.value]]
            call("rbd_watchers_list_cleanup", watchers, count.value)
            return [one for one in found if one.client != self.pool.cluster.client]

    def lock(self) -> None:
        """Take the exclusive lock until it is closed; a dead owner is locked out of the cluster first."""
        call("rbd_lock_acquire", self._handle, clib.LOCK_EXCLUSIVE)

    def lock_owner(self) -> str:
        """Return the address of the client that has the exclusive lock, be it dead; "" for nobody."""
        mode, count = c_int(), c_size_t(1)
        owners = (c_char_p * count.value)()
        try:
            call("rbd_lock_get_owners", self._handle, byref(mode), owners, byref(count))
        except CephError as error:
            if error.errno == errno.ENOENT:
                return ""
            raise
        found = (owners[0] or b"").decode()
        call("rbd_lock_get_owners_cleanup", owners, count.value)
        return found

    def unlock(self) -> None:
        """Give the exclusive lock back."""
        call("rbd_lock_release", self._handle)

    def snapshots(self) -> dict[str, int]:
        """Return the sizes of its snapshots by name."""
        count = c_int(64)
        while True:
            infos = (clib.SnapInfo * count.value)()
            try:
                call("rbd_snap_list", self._handle, infos, byref(count))
            except CephError as error:
                if error.errno == errno.ERANGE:
                    continue
                raise
            number = next((place for place, one in enumerate(infos) if not one.name), count.value)
            found = {clib.text_of(one.name): int(one.size) for one in infos[:number]}
            call("rbd_snap_list_end", infos)
            return found

    def is_protected(self, name: str) -> bool:
        """Return whether a snapshot can only be removed once that is taken back."""
        found = c_int()
        call("rbd_snap_is_protected", self._handle, clib.bytes_of(name), byref(found))
        return bool(found.value)

    def take(self, name: str) -> None:
        """Take a protected snapshot; one that is there already is protected."""
        with _ignoring(errno.EEXIST):
            call("rbd_snap_create", self._handle, clib.bytes_of(name))
        with _ignoring(errno.EBUSY):  # it is protected
            call("rbd_snap_protect", self._handle, clib.bytes_of(name))

    def drop(self, name: str) -> None:
        """Remove a snapshot, if it is there."""
        with _ignoring(errno.EINVAL, errno.ENOENT):  # not protected, or gone
            call("rbd_snap_unprotect", self._handle, clib.bytes_of(name))
        with _ignoring(errno.ENOENT):
            call("rbd_snap_remove", self._handle, clib.bytes_of(name))

    def roll_back(self, name: str, advance: Callable[[int, int], None]) -> None:
        """Give it the content and the size of a snapshot; `advance` hears of objects done and in all."""
        problems: list[BaseException] = []

        def note(done: int, total: int, _: object) -> int:
            try:
                advance(done, total)
            except BaseException as error:
                problems.append(error)
            return 0

        call("rbd_snap_rollback_with_progress", self._handle, name.encode(), clib.Progress(note), None)
        if problems:
            raise problems[0]

    def changed_bytes(self, since: str) -> int:
        """Return the bytes of all objects that were written since a snapshot, "" for since ever. An estimate: never of what."""
        total, size = 0, self.size

        def note(offset: int, length: int, has_data: int, _: object) -> int:
            nonlocal total
            total += length
            return 0

        if size:  # asked of nothing, librbd ends the process
            arguments = since.encode() or None, 0, size, 0, 1, clib.Extent(note), None
            call("rbd_diff_iterate2", self._handle, *arguments)
        return total

    def read(self, offset: int, length: int) -> bytes:
        """Read bytes."""
        data = bytearray(length)
        count = self.read_into(offset, data)
        return bytes(data[:count])

    def read_into(self, offset: int, data: bytearray) -> int:
        """Read bytes into a buffer, which spares copying them; return how many."""
        buffer = (c_char * len(data)).from_buffer(data)
        return int(call("rbd_read2", self._handle, offset, len(data), buffer, clib.ONCE))

    def write(self, offset: int, data: bytes | bytearray) -> None:
        """Write bytes."""
        buffer = (c_char * len(data)).from_buffer(data) if isinstance(data, bytearray) else data
        call("rbd_write2", self._handle, offset, len(data), buffer, clib.ONCE)

    def resize(self, size: int) -> None:
        """Give it another size."""
        call("rbd_resize", self._handle, size)

    def flush(self) -> None:
        """Wait until all that was written is durable."""
        call("rbd_flush", self._handle)


@contextlib.contextmanager
def _ignoring(*numbers: int) -> Iterator[None]:
    try:
        yield
    except CephError as error:
        if error.errno not in numbers:
            raise
