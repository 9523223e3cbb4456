"""A pool, or a namespace in it: its images, and the keys of its objects. Blocking; raises CephError."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import time
from collections.abc import Iterator, Sequence
from ctypes import POINTER, byref, c_char, c_char_p, c_int, c_size_t, c_ubyte, c_uint64, c_void_p
from typing import TYPE_CHECKING, Final

from snapshot_mcp.ground.closing import Closing
from snapshot_mcp.providers.ceph import clib
from snapshot_mcp.providers.ceph.clib import CephError, call
from snapshot_mcp.providers.ceph.errors import GONE
from snapshot_mcp.providers.ceph.image import RbdImage

if TYPE_CHECKING:
    from snapshot_mcp.providers.ceph.cluster import Cluster

SILENT_SECONDS: Final = 2.0
"""After the cluster did not answer, calls fail at once for so long: those that queued up would wait one after the other."""

PAGE: Final = 10_000
"""Keys of an object that are read at once."""


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

    def read_all_keys(self, name: str, prefix: str = "") -> dict[str, bytes]:
        """Return all keys of an object that begin so, which may change while they are read: an OSD gives 1,024 at most."""
        found: dict[str, bytes] = {}
        after = ""
        while True:
            iterator, status, more = c_void_p(), c_int(), c_ubyte()
            with self._reading(name) as operation:
                arguments = after.encode(), prefix.encode(), PAGE, byref(iterator), byref(more), byref(status)
                call("rados_read_op_omap_get_vals2", operation, *arguments)
            page = _keys_of(iterator)
            found |= page
            if not more.value or not page:
                return found
            after = max(page)

    def has_snapshots(self, image_id: str, prefix: str) -> bool:
        """Return whether an image has snapshots whose names begin so, without opening it (`read_metadata`)."""
        try:
            found = self.read_all_keys(f"rbd_header.{image_id}", "snapshot_")
        except CephError as error:
            if error.errno == errno.ENOENT:
                return False
            raise
        return any(prefix.encode() in one for one in found.values())

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

    def add_namespace(self, name: str) -> None:
        """Make a namespace in the pool."""
        call("rbd_namespace_create", self.handle, name.encode())

    def remove_namespace(self, name: str) -> None:
        """Remove an empty namespace."""
        call("rbd_namespace_remove", self.handle, name.encode())

    def has_namespace(self, name: str) -> bool:
        """Return whether the pool has a namespace. Raises CephError (EPERM) where it is seen from another one."""
        found = ctypes.c_bool()
        call("rbd_namespace_exists", self.handle, name.encode(), byref(found))
        return found.value

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
            found = {one.id.decode(): clib.text_of(one.name) for one in specs[: count.value]}
            call("rbd_image_spec_list_cleanup", specs, count.value)
            return found

    def read_metadata(self, image_id: str, *keys: str) -> dict[str, str]:
        """Return what is written to an image under each key, "" for nothing, without opening it, which takes 30 times as long.

        It stands in the keys of the image's header (the format of RBD images since Ceph 0.60). Raises CephError (ENOENT).
        """
        found = self.read_keys(f"rbd_header.{image_id}", [f"metadata_{key}" for key in keys])
        return {key: found.get(f"metadata_{key}", b"").decode("utf-8", "replace") for key in keys}

    def open_image(self, image_id: str, *, snapshot: str = "", is_read_only: bool = True) -> RbdImage:
        """Open an image by its id, or a snapshot of it; who opens it for writing is seen by all as its user."""
        handle = c_void_p()
        function = "rbd_open_by_id_read_only" if is_read_only else "rbd_open_by_id"
        call(function, self.handle, image_id.encode(), byref(handle), snapshot.encode() or None)
        return RbdImage(self, handle)

    def create_image(self, name: str, size: int, *, like: RbdImage | None = None) -> None:
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
            call("rbd_create4", self.handle, clib.bytes_of(name), size, options)
        finally:
            call("rbd_image_options_destroy", options)

    def open_by_name(self, name: str) -> RbdImage:
        """Open an image for writing."""
        handle = c_void_p()
        call("rbd_open", self.handle, clib.bytes_of(name), byref(handle), None)
        return RbdImage(self, handle)

    def rename_image(self, name: str, new_name: str) -> None:
        """Rename an image. Raises CephError (EEXIST)."""
        call("rbd_rename", self.handle, clib.bytes_of(name), clib.bytes_of(new_name))

    def remove_image(self, name: str) -> None:
        """Remove an image. Raises CephError: ENOENT, EBUSY."""
        call("rbd_remove", self.handle, clib.bytes_of(name))


def _keys_of(iterator: c_void_p) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    try:
        while True:
            key, value, size = c_char_p(), POINTER(c_char)(), c_size_t()
            call("rados_omap_get_next", iterator, byref(key), byref(value), byref(size))
            if key.value is None:
                return found
            found[key.value.decode("utf-8", "surrogateescape")] = ctypes.string_at(value, size.value)
    finally:
        call("rados_omap_get_end", iterator)
