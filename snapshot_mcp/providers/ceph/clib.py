"""librados and librbd through ctypes: their functions with their signatures, and what their error numbers mean.

Nothing on PyPI is kept, and Debian's bindings are for Debian's Python alone. The libraries have kept these functions since
Ceph 14; `tests/ceph/test_clib.py` calls each of them on a real cluster. A wrong signature ends the process, so they stand here
and nowhere else. Python's lock is released during every call.
"""

import ctypes
import errno
import os
from ctypes import (
    CFUNCTYPE,
    POINTER,
    c_char,
    c_char_p,
    c_int,
    c_int64,
    c_size_t,
    c_ssize_t,
    c_ubyte,
    c_uint64,
    c_void_p,
)
from functools import cache
from typing import Any, Final

from snapshot_mcp.contract.errors import Unsupported


class SnapInfo(ctypes.Structure):
    """`rbd_snap_info_t`: a snapshot of an image."""

    _fields_ = (("id", c_uint64), ("size", c_uint64), ("name", c_char_p))


class ImageSpec(ctypes.Structure):
    """`rbd_image_spec_t`: an image in a list; its texts are freed by the library."""

    _fields_ = (("id", c_char_p), ("name", c_char_p))


class Watcher(ctypes.Structure):
    """`rbd_image_watcher_t`: a client that has an image open for writing."""

    _fields_ = (("addr", c_char_p), ("id", c_int64), ("cookie", c_uint64))


class ImageInfo(ctypes.Structure):
    """`rbd_image_info_t`."""

    _fields_ = (
        ("size", c_uint64),
        ("obj_size", c_uint64),
        ("num_objs", c_uint64),
        ("order", c_int),
        ("block_name_prefix", c_char * 24),
        ("parent_pool", c_int64),
        ("parent_name", c_char * 96),
    )


class ClusterStat(ctypes.Structure):
    """`rados_cluster_stat_t`, in KiB."""

    _fields_ = (("kb", c_uint64), ("kb_used", c_uint64), ("kb_avail", c_uint64), ("num_objects", c_uint64))


class TimeVal(ctypes.Structure):
    """`struct timeval`."""

    _fields_ = (("seconds", c_int64), ("microseconds", ctypes.c_long))


Progress = CFUNCTYPE(c_int, c_uint64, c_uint64, c_void_p)
"""Called with how many of how many objects are done."""
Extent = CFUNCTYPE(c_int, c_uint64, c_size_t, c_int, c_void_p)
"""Called with offset, length and whether there is data."""

_TEXTS: Final = POINTER(c_char_p)
_SIZES: Final = POINTER(c_size_t)
_HANDLE: Final = POINTER(c_void_p)

RADOS: Final[dict[str, tuple[Any, tuple[Any, ...]]]] = {
    "rados_create": (c_int, (_HANDLE, c_char_p)),
    "rados_conf_read_file": (c_int, (c_void_p, c_char_p)),
    "rados_conf_set": (c_int, (c_void_p, c_char_p, c_char_p)),
    "rados_connect": (c_int, (c_void_p,)),
    "rados_shutdown": (None, (c_void_p,)),
    "rados_get_instance_id": (c_uint64, (c_void_p,)),
    "rados_cluster_fsid": (c_int, (c_void_p, c_char_p, c_size_t)),
    "rados_cluster_stat": (c_int, (c_void_p, POINTER(ClusterStat))),
    "rados_pool_reverse_lookup": (c_int, (c_void_p, c_int64, c_char_p, c_size_t)),
    "rados_ioctx_create": (c_int, (c_void_p, c_char_p, _HANDLE)),
    "rados_ioctx_destroy": (None, (c_void_p,)),
    "rados_ioctx_set_namespace": (None, (c_void_p, c_char_p)),
    "rados_ioctx_get_id": (c_int64, (c_void_p,)),
    "rados_set_pool_full_try": (None, (c_void_p,)),
    "rados_stat": (c_int, (c_void_p, c_char_p, POINTER(c_uint64), POINTER(c_int64))),
    "rados_remove": (c_int, (c_void_p, c_char_p)),
    "rados_lock_exclusive": (
        c_int,
        (c_void_p, c_char_p, c_char_p, c_char_p, c_char_p, POINTER(TimeVal), ctypes.c_uint8),
    ),
    "rados_lock_shared": (
        c_int,
        (c_void_p, c_char_p, c_char_p, c_char_p, c_char_p, c_char_p, POINTER(TimeVal), ctypes.c_uint8),
    ),
    "rados_exec": (c_int, (c_void_p, c_char_p, c_char_p, c_char_p, c_char_p, c_size_t, c_char_p, c_size_t)),
    "rados_unlock": (c_int, (c_void_p, c_char_p, c_char_p, c_char_p)),
    "rados_create_write_op": (c_void_p, ()),
    "rados_release_write_op": (None, (c_void_p,)),
    "rados_write_op_create": (None, (c_void_p, c_int, c_char_p)),
    "rados_write_op_omap_cmp": (None, (c_void_p, c_char_p, ctypes.c_uint8, c_char_p, c_size_t, POINTER(c_int))),
    "rados_write_op_omap_set": (None, (c_void_p, _TEXTS, _TEXTS, _SIZES, c_size_t)),
    "rados_write_op_omap_rm_keys": (None, (c_void_p, _TEXTS, c_size_t)),
    "rados_write_op_operate": (c_int, (c_void_p, c_void_p, c_char_p, POINTER(c_int64), c_int)),
    "rados_create_read_op": (c_void_p, ()),
    "rados_release_read_op": (None, (c_void_p,)),
    "rados_read_op_omap_get_vals2": (
        None,
        (c_void_p, c_char_p, c_char_p, c_uint64, _HANDLE, POINTER(c_ubyte), POINTER(c_int)),
    ),
    "rados_read_op_omap_get_vals_by_keys": (None, (c_void_p, _TEXTS, c_size_t, _HANDLE, POINTER(c_int))),
    "rados_read_op_operate": (c_int, (c_void_p, c_void_p, c_char_p, c_int)),
    "rados_omap_get_next": (c_int, (c_void_p, POINTER(c_char_p), POINTER(POINTER(c_char)), POINTER(c_size_t))),
    "rados_omap_get_end": (None, (c_void_p,)),
}
"""Name → what it returns and takes."""

RBD: Final[dict[str, tuple[Any, tuple[Any, ...]]]] = {
    "rbd_namespace_create": (c_int, (c_void_p, c_char_p)),
    "rbd_namespace_remove": (c_int, (c_void_p, c_char_p)),
    "rbd_namespace_exists": (c_int, (c_void_p, c_char_p, POINTER(ctypes.c_bool))),
    "rbd_list2": (c_int, (c_void_p, POINTER(ImageSpec), _SIZES)),
    "rbd_image_spec_list_cleanup": (None, (POINTER(ImageSpec), c_size_t)),
    "rbd_open": (c_int, (c_void_p, c_char_p, _HANDLE, c_char_p)),
    "rbd_open_by_id": (c_int, (c_void_p, c_char_p, _HANDLE, c_char_p)),
    "rbd_open_by_id_read_only": (c_int, (c_void_p, c_char_p, _HANDLE, c_char_p)),
    "rbd_close": (c_int, (c_void_p,)),
    "rbd_stat": (c_int, (c_void_p, POINTER(ImageInfo), c_size_t)),
    "rbd_get_id": (c_int, (c_void_p, c_char_p, c_size_t)),
    "rbd_get_name": (c_int, (c_void_p, c_char_p, _SIZES)),
    "rbd_get_features": (c_int, (c_void_p, POINTER(c_uint64))),
    "rbd_get_data_pool_id": (c_int64, (c_void_p,)),
    "rbd_image_options_create": (None, (_HANDLE,)),
    "rbd_image_options_destroy": (None, (c_void_p,)),
    "rbd_image_options_set_uint64": (c_int, (c_void_p, c_int, c_uint64)),
    "rbd_image_options_set_string": (c_int, (c_void_p, c_int, c_char_p)),
    "rbd_create4": (c_int, (c_void_p, c_char_p, c_uint64, c_void_p)),
    "rbd_rename": (c_int, (c_void_p, c_char_p, c_char_p)),
    "rbd_remove": (c_int, (c_void_p, c_char_p)),
    "rbd_metadata_get": (c_int, (c_void_p, c_char_p, c_char_p, _SIZES)),
    "rbd_metadata_set": (c_int, (c_void_p, c_char_p, c_char_p)),
    "rbd_metadata_remove": (c_int, (c_void_p, c_char_p)),
    "rbd_watchers_list": (c_int, (c_void_p, POINTER(Watcher), _SIZES)),
    "rbd_watchers_list_cleanup": (None, (POINTER(Watcher), c_size_t)),
    "rbd_lock_acquire": (c_int, (c_void_p, c_int)),
    "rbd_lock_release": (c_int, (c_void_p,)),
    "rbd_lock_get_owners": (c_int, (c_void_p, POINTER(c_int), _TEXTS, _SIZES)),
    "rbd_lock_get_owners_cleanup": (None, (_TEXTS, c_size_t)),
    "rbd_snap_list": (c_int, (c_void_p, POINTER(SnapInfo), POINTER(c_int))),
    "rbd_snap_list_end": (None, (POINTER(SnapInfo),)),
    "rbd_snap_create": (c_int, (c_void_p, c_char_p)),
    "rbd_snap_remove": (c_int, (c_void_p, c_char_p)),
    "rbd_snap_protect": (c_int, (c_void_p, c_char_p)),
    "rbd_snap_unprotect": (c_int, (c_void_p, c_char_p)),
    "rbd_snap_is_protected": (c_int, (c_void_p, c_char_p, POINTER(c_int))),
    "rbd_snap_rollback_with_progress": (c_int, (c_void_p, c_char_p, Progress, c_void_p)),
    "rbd_diff_iterate2": (
        c_int,
        (c_void_p, c_char_p, c_uint64, c_uint64, ctypes.c_uint8, ctypes.c_uint8, Extent, c_void_p),
    ),
    "rbd_read2": (c_ssize_t, (c_void_p, c_uint64, c_size_t, c_char_p, c_int)),
    "rbd_write2": (c_ssize_t, (c_void_p, c_uint64, c_size_t, c_char_p, c_int)),
    "rbd_resize": (c_int, (c_void_p, c_uint64)),
    "rbd_flush": (c_int, (c_void_p,)),
}
"""Name → what it returns and takes."""

LIBRARIES: Final = (("librados.so.2", RADOS), ("librbd.so.1", RBD))

OMAP_EQUAL: Final = 1
"""`LIBRADOS_CMPXATTR_OP_EQ`."""
LOCK_EXCLUSIVE: Final = 0
"""`RBD_LOCK_MODE_EXCLUSIVE`."""
FEATURE_EXCLUSIVE_LOCK: Final = 1 << 2
FEATURE_FAST_DIFF: Final = 1 << 4
FEATURE_JOURNALING: Final = 1 << 6
OPTION_FEATURES: Final = 1
OPTION_ORDER: Final = 2
OPTION_DATA_POOL: Final = 10
ONCE: Final = 0x20 | 0x40
"""`LIBRADOS_OP_FLAG_FADVISE_DONTNEED | …_NOCACHE`: what is read or written once need not stay in the cluster's memory."""

ECANCELED: Final = errno.ECANCELED
"""A comparison of a write did not hold: somebody else has committed first."""


class CephError(OSError):
    """A call of Ceph's libraries failed; `errno` says why."""


@cache
def functions() -> dict[str, Any]:
    """Return all functions by name. Raises Unsupported where the libraries are not installed or too old."""
    found: dict[str, Any] = {}
    for file_name, table in LIBRARIES:
        try:
            library = ctypes.CDLL(file_name)
        except OSError:
            raise Unsupported(
                f"Ceph's client library {file_name} is not installed on this machine.",
                hint="Install the packages librados2 and librbd1 (on Debian and Ubuntu: apt install librados2 librbd1).",
            ) from None
        for name, (result, arguments) in table.items():
            try:
                function = library[name]
            except AttributeError:
                raise Unsupported(
                    f"Ceph's client library {file_name} has no function {name}: it is too old.",
                    hint="Install Ceph's client libraries of version 14 or newer.",
                ) from None
            function.restype, function.argtypes = result, arguments
            found[name] = function
    return found


def text_of(name: bytes) -> str:
    """Return the name of an image or of a snapshot, which need not be text (`readable` makes it so)."""
    return name.decode("utf-8", "surrogateescape")


def bytes_of(name: str) -> bytes:
    """Return what `text_of` made a name of."""
    return name.encode("utf-8", "surrogateescape")


def readable(name: str) -> str:
    """Return a name as text, with a mark for each byte that is none."""
    return bytes_of(name).decode("utf-8", "replace")


def call(name: str, *arguments: Any) -> Any:
    """Call a function and return what it returns. Raises CephError for a negative number."""
    result = functions()[name](*arguments)
    if isinstance(result, int) and result < 0 and name != "rbd_get_data_pool_id":
        raise CephError(-result, os.strerror(-result), name)
    return result
