"""A connection to a Ceph cluster, a pool of it, and its images. Blocking; safe to share between threads.

A server's calls time out; a worker waits for the cluster as long as it takes, since half a roll-back helps nobody.
"""

import ctypes
from ctypes import byref, c_void_p
from pathlib import Path
from typing import Final

from snapshot_mcp.ground.closing import Closing
from snapshot_mcp.providers.ceph import clib
from snapshot_mcp.providers.ceph.clib import call
from snapshot_mcp.providers.ceph.pool import Pool

CONNECT_SECONDS: Final = 5
MONITOR_SECONDS: Final = 8
STORAGE_SECONDS: Final = 5
"""How long a server waits for each; a worker has no limit for the last."""


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

    def pool(self, name: str, namespace: str = "") -> Pool:
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
