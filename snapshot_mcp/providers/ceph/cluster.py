"""A connection to a Ceph cluster, a pool of it, and its images. Blocking; safe to share between threads.

A server's calls time out; a worker waits for the cluster as long as it takes, since half a roll-back helps nobody.
"""

import contextlib
import ctypes
import errno
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from ctypes import POINTER, byref, c_char, c_char_p, c_int, c_size_t, c_ubyte, c_uint64, c_void_p
from pathlib import Path
from typing import Final, NamedTuple

from snapshot_mcp.ground.closing import Closing
from snapshot_mcp.providers.ceph import clib
from snapshot_mcp.providers.ceph.clib import CephError, call
from snapshot_mcp.providers.ceph.errors import GONE

CONNECT_SECONDS: Final = 5
MONITOR_SECONDS: Final = 8
STORAGE_SECONDS: Final = 5
"""How long a server waits for each; a worker has no limit for the last."""

SILENT_SECONDS: Final = 2.0
"""After the cluster did not answer, calls fail at once for so long: those that queued up would wait one after the other."""

PAGE: Final = 10_000
"""Keys of an object that are read at once."""


class ClientUse(NamedTuple):
    """A client that has an image open for writing."""

    address: str
    client: int


class ImageSnapshot(NamedTuple):
    """An RBD snapshot."""

    name: str
    size: int
    is_protected: bool


class Cluster(Closing):
    """A connection. Raises CephError; Unsupported without Ceph's libraries."""

    def __init__(self, conf: Path, user: str, keyring: Path | None, *, is_patient: bool = False) -> None:
        self._handle = c_void_p()
        call("rados_create", byref(self._handle), user.encode())
        try:
            call("rados_conf_read_file", self._handle, str(conf).encode())
            options = {"client_mount_timeout": CONNECT_SECONDS, "rados_mon_op_timeout": MONITOR_SECONDS}
            if is_patient:
                options["rados_mon_op_timeout"] = 0
            else:
                options["rados_osd_op_timeout"] = STORAGE_SECONDS
            for name, value in {**options, **({"keyring": keyring} if keyring else {})}.items():
                call("rados_conf_set", self._handle, name.encode(), str(value).encode())
            call("rados_connect", self._handle)
        except BaseException:
            call("rados_shutdown", self._handle)
            raise

    def close(self) -> None:
        """End the connection; everything of it must be closed before."""
        call("rados_shutdown", self._handle)

    @property
    def id(self) -> str:
        """The cluster's fsid."""
        text = ctypes.create_string_buffer(37)
        call("rados_cluster_fsid", self._handle, text, len(text))
        return text.value.decode()

    @property
    def client(self) -> int:
        """The number of this client, which its watchers have."""
        return int(call("rados_get_instance_id", self._handle))

    def capacity(self) -> tuple[int, int]:
        """Return the bytes of the cluster in all and free; zeros where it has no manager."""
        found = clib.ClusterStat()
        call("rados_cluster_stat", self._handle, byref(found))
        return found.kb << 10, found.kb_avail << 10

    def pool(self, name: str, namespace: str = "") -> "Pool":
        """Open a pool."""
        handle = c_void_p()
        call("rados_ioctx_create", self._handle, name.encode(), byref(handle))
        call("rados_ioctx_set_namespace", handle, namespace.encode())
        # without it every write to a full pool hangs, even those that would free space
        call("rados_set_pool_full_try", handle)
        return Pool(self, handle, f"{name}/{namespace}" if namespace else name)

    def pool_name(self, number: int) -> str:
        """Return the name of a pool."""
        text = ctypes.create_string_buffer(1024)
        call("rados_pool_reverse_lookup", self._handle, number, text, len(text))
        return text.value.decode()


class Pool(Closing):
    """A pool, or a namespace in it: its images, and the keys of one object."""

    def __init__(self, cluster: Cluster, handle: c_void_p, name: str) -> None:
        self.cluster, self.handle, self.name = cluster, handle, name
        self._silent_until = 0.0

    def close(self) -> None:
        """Let go of the pool."""
        call("rados_ioctx_destroy", self.handle)

    @property
    def number(self) -> int:
        """The pool's number, which it keeps when it is renamed."""
        return int(call("rados_ioctx_get_id", self.handle))

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """Fail at once while the cluster is silent."""
        if time.monotonic() < self._silent_until:
            raise CephError(errno.ETIMEDOUT, "it did not answer a moment ago")
        try:
            yield
        except CephError as error:
            if error.errno in GONE:
                self._silent_until = time.monotonic() + SILENT_SECONDS
            raise

    # the object

    def exists(self, name: str) -> bool:
        """Return whether there is an object of this name."""
        size, changed = c_uint64(), ctypes.c_int64()
        try:
            call("rados_stat", self.handle, name.encode(), byref(size), byref(changed))
        except CephError as error:
            if error.errno == errno.ENOENT:
                return False
            raise
        return True

    def remove_object(self, name: str) -> None:
        """Remove an object."""
        call("rados_remove", self.handle, name.encode())

    def read_keys(self, name: str, keys: Sequence[str]) -> dict[str, bytes]:
        """Return those of the keys of an object that are there. Raises CephError (ENOENT) without the object."""
        found: dict[str, bytes] = {}
        for start in range(0, len(keys), PAGE):
            some = keys[start : start + PAGE]
            names = (c_char_p * len(some))(*(one.encode() for one in some))
            iterator, status = c_void_p(), c_int()
            with self._reading(name) as operation:
                arguments = names, len(some), byref(iterator), byref(status)
                call("rados_read_op_omap_get_vals_by_keys", operation, *arguments)
            found |= _keys_of(iterator)
        return found

    def read_all_keys(self, name: str) -> dict[str, bytes]:
        """Return all keys of an object, which may change while they are read."""
        found: dict[str, bytes] = {}
        after = ""
        while True:
            iterator, status, more = c_void_p(), c_int(), c_ubyte()
            with self._reading(name) as operation:
                arguments = after.encode(), b"", PAGE, byref(iterator), byref(more), byref(status)
                call("rados_read_op_omap_get_vals2", operation, *arguments)
            page = _keys_of(iterator)
            found |= page
            if not more.value or not page:
                return found
            after = max(page)

    @contextlib.contextmanager
    def _reading(self, name: str) -> Iterator[c_void_p]:
        operation = c_void_p(call("rados_create_read_op"))
        try:
            yield operation
            call("rados_read_op_operate", operation, self.handle, name.encode(), 0)
        finally:
            call("rados_release_read_op", operation)

    def write_keys(
        self,
        name: str,
        equal: dict[str, bytes],
        put: dict[str, bytes],
        drop: Sequence[str] = (),
        *,
        is_new: bool = False,
    ) -> None:
        """Change keys of an object at once, if those in `equal` have these values.

        Raises CephError: ECANCELED if they have not, EEXIST if the object `is_new` and there already.
        """
        operation = c_void_p(call("rados_create_write_op"))
        try:
            if is_new:
                call("rados_write_op_create", operation, 1, None)
            for key, value in equal.items():
                call("rados_write_op_omap_cmp", operation, key.encode(), clib.OMAP_EQUAL, value, len(value), None)
            names = (c_char_p * len(put))(*(one.encode() for one in put))
            values = (c_char_p * len(put))(*put.values())
            sizes = (c_size_t * len(put))(*(len(one) for one in put.values()))
            call("rados_write_op_omap_set", operation, names, values, sizes, len(put))
            if drop:
                dropped = (c_char_p * len(drop))(*(one.encode() for one in drop))
                call("rados_write_op_omap_rm_keys", operation, dropped, len(drop))
            call("rados_write_op_operate", operation, self.handle, name.encode(), None, 0)
        finally:
            call("rados_release_write_op", operation)

    def lock(self, name: str, label: str, cookie: str, seconds: int) -> bool:
        """Lock an object, for so long at most; return False if another has it."""
        duration = clib.TimeVal(seconds, 0)
        try:
            call(
                "rados_lock_exclusive",
                self.handle,
                name.encode(),
                label.encode(),
                cookie.encode(),
                b"",
                byref(duration),
                0,
            )
        except CephError as error:
            if error.errno in {errno.EBUSY, errno.EEXIST}:
                return False
            raise
        return True

    def unlock(self, name: str, label: str, cookie: str) -> None:
        """Unlock an object."""
        call("rados_unlock", self.handle, name.encode(), label.encode(), cookie.encode())

    # the images

    def list_images(self) -> dict[str, str]:
        """Return the names of all images by their ids."""
        count = c_size_t(64)
        while True:
            specs = (clib.ImageSpec * count.value)()
            try:
                call("rbd_list2", self.handle, specs, byref(count))
            except CephError as error:
                if error.errno == errno.ERANGE:
                    continue
                raise
            found = {one.id.decode(): one.name.decode() for one in specs[: count.value]}
            call("rbd_image_spec_list_cleanup", specs, count.value)
            return found

    def read_metadata(self, image_id: str, *keys: str) -> dict[str, str]:
        """Return what is written to an image under each key, "" for nothing, without opening it, which takes 30 times as long.

        It stands in the keys of the image's header (the format of RBD images since Ceph 0.60). Raises CephError (ENOENT).
        """
        found = self.read_keys(f"rbd_header.{image_id}", [f"metadata_{key}" for key in keys])
        return {key: found.get(f"metadata_{key}", b"").decode("utf-8", "replace") for key in keys}

    def open_image(self, image_id: str, *, snapshot: str = "", is_read_only: bool = True) -> "Image":
        """Open an image by its id, or a snapshot of it; who opens it for writing is seen by all as its user."""
        handle = c_void_p()
        function = "rbd_open_by_id_read_only" if is_read_only else "rbd_open_by_id"
        call(function, self.handle, image_id.encode(), byref(handle), snapshot.encode() or None)
        return Image(self, handle)

    def create_image(self, name: str, size: int, *, like: "Image | None" = None) -> None:
        """Create an image, laid out like another one."""
        options = c_void_p()
        call("rbd_image_options_create", byref(options))
        try:
            if like:
                features = like.features & ~clib.FEATURE_JOURNALING
                call("rbd_image_options_set_uint64", options, clib.OPTION_FEATURES, features)
                call("rbd_image_options_set_uint64", options, clib.OPTION_ORDER, like.order)
                if data_pool := like.data_pool:
                    call("rbd_image_options_set_string", options, clib.OPTION_DATA_POOL, data_pool.encode())
            call("rbd_create4", self.handle, name.encode(), size, options)
        finally:
            call("rbd_image_options_destroy", options)

    def open_by_name(self, name: str) -> "Image":
        """Open an image for writing."""
        handle = c_void_p()
        call("rbd_open", self.handle, name.encode(), byref(handle), None)
        return Image(self, handle)

    def rename_image(self, name: str, new_name: str) -> None:
        """Rename an image. Raises CephError (EEXIST)."""
        call("rbd_rename", self.handle, name.encode(), new_name.encode())

    def remove_image(self, name: str) -> None:
        """Remove an image. Raises CephError: ENOENT, EBUSY."""
        call("rbd_remove", self.handle, name.encode())


class Image(Closing):
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
        """Its name."""
        size = c_size_t(4096)
        text = ctypes.create_string_buffer(size.value)
        call("rbd_get_name", self._handle, text, byref(size))
        return text.value.decode()

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

    @property
    def created_at(self) -> float:
        """When it was created by the cluster's own clock, in seconds since 1970."""
        found = clib.TimeSpec()
        call("rbd_get_create_timestamp", self._handle, byref(found))
        return float(found.seconds + found.nanoseconds / 1e9)

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

    def snapshots(self) -> dict[str, ImageSnapshot]:
        """Return its snapshots by name."""
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
            found = {one.name.decode(): int(one.size) for one in infos[:number]}
            call("rbd_snap_list_end", infos)
            return {name: ImageSnapshot(name, size, self._is_protected(name)) for name, size in found.items()}

    def _is_protected(self, name: str) -> bool:
        found = c_int()
        call("rbd_snap_is_protected", self._handle, name.encode(), byref(found))
        return bool(found.value)

    def take(self, name: str) -> None:
        """Take a protected snapshot; one that is there already is protected."""
        with _ignoring(errno.EEXIST):
            call("rbd_snap_create", self._handle, name.encode())
        with _ignoring(errno.EBUSY):  # it is protected
            call("rbd_snap_protect", self._handle, name.encode())

    def drop(self, name: str) -> None:
        """Remove a snapshot, if it is there."""
        with _ignoring(errno.EINVAL, errno.ENOENT):  # not protected, or gone
            call("rbd_snap_unprotect", self._handle, name.encode())
        with _ignoring(errno.ENOENT):
            call("rbd_snap_remove", self._handle, name.encode())

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
        total = 0

        def note(offset: int, length: int, has_data: int, _: object) -> int:
            nonlocal total
            total += length
            return 0

        arguments = since.encode() or None, 0, self.size, 0, 1, clib.Extent(note), None
        call("rbd_diff_iterate2", self._handle, *arguments)
        return total

    def read(self, offset: int, length: int) -> bytes:
        """Read bytes."""
        buffer = ctypes.create_string_buffer(length)
        count = call("rbd_read2", self._handle, offset, length, buffer, clib.ONCE)
        return buffer.raw[:count]

    def write(self, offset: int, data: bytes) -> None:
        """Write bytes."""
        call("rbd_write2", self._handle, offset, len(data), data, clib.ONCE)

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


def _keys_of(iterator: c_void_p) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    try:
        while True:
            key, value, size = c_char_p(), POINTER(c_char)(), c_size_t()
            call("rados_omap_get_next", iterator, byref(key), byref(value), byref(size))
            if key.value is None:
                return found
            found[key.value.decode()] = ctypes.string_at(value, size.value)
    finally:
        call("rados_omap_get_end", iterator)
