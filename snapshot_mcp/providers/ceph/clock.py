"""The zone's clock is the cluster's: the machines of a zone need not agree on the time, and none may be an hour off."""

import ctypes
import errno
import struct
import uuid
from ctypes import byref
from typing import TYPE_CHECKING, ClassVar, Final

from snapshot_mcp.ground.clock import Moment, SystemClock
from snapshot_mcp.providers.ceph import clib
from snapshot_mcp.providers.ceph.clib import CephError, call
from snapshot_mcp.providers.ceph.names import OBJECT, PREFIX

if TYPE_CHECKING:
    from snapshot_mcp.providers.ceph.pool import Pool

LABEL: Final = b"clock"
LOCK_SECONDS: Final = 30

ANSWER_BYTES: Final = 1 << 16


class ClusterClock:
    """The cluster's time, asked for once and carried on by this machine's uptime, which nobody sets.

    Without an answer there is no time, and nothing is purged: raises CephError, and asks again. Who may change nothing has this
    machine's time.
    """

    _asked: ClassVar[dict[str, Moment]] = {}
    """What each cluster has said, by its id."""

    def __init__(self, pool: "Pool") -> None:
        self._pool, self._own = pool, SystemClock()
        self._cluster = pool.cluster.id

    def read(self) -> Moment:
        """Return the present moment."""
        now = self._own.read()
        asked = self._asked.get(self._cluster)
        if asked is None or asked.boot != now.boot or not now.boot:
            wall = self._ask()
            if wall is None:
                return now
            asked = Moment(wall, now.boot, self._own.read().uptime)
            self._asked[self._cluster] = asked
        return Moment(asked.wall + max(now.uptime - asked.uptime, 0), now.boot, now.uptime)

    def _ask(self) -> float | None:
        """Return the cluster's time; None for who may not ask, and for a full pool in which nothing is that could be purged.

        An object is locked for a while, and the OSD says when that ends. It works in a full pool, where nothing can be made.
        """
        is_there = self._pool.exists(OBJECT)
        name = (OBJECT if is_there else f"{PREFIX}clock.{uuid.uuid4().hex}").encode()
        cookie = uuid.uuid4().hex.encode()
        try:
            duration = clib.TimeVal(LOCK_SECONDS, 0)
            call("rados_lock_shared", self._pool.handle, name, LABEL, cookie, b"", b"", byref(duration), 0)
            try:
                return self._end_of_lock(name, cookie) - LOCK_SECONDS
            finally:
                call("rados_unlock", self._pool.handle, name, LABEL, cookie)
                if not is_there:
                    call("rados_remove", self._pool.handle, name)
        except CephError as error:
            if error.errno in {errno.EPERM, errno.EACCES}:
                return None
            if error.errno in {errno.ENOSPC, errno.EDQUOT} and not is_there:
                return None
            raise

    def _end_of_lock(self, name: bytes, cookie: bytes) -> float:
        """Return when a lock ends by the OSD's clock (`cls_lock_get_info`, which librados has no function for)."""
        asked = struct.pack("<BBII", 1, 1, 4 + len(LABEL), len(LABEL)) + LABEL
        answer = ctypes.create_string_buffer(ANSWER_BYTES)
        call("rados_exec", self._pool.handle, name, b"lock", b"get_info", asked, len(asked), answer, len(answer))
        (count,) = struct.unpack_from("<I", answer.raw, 6)
        at = 10
        for _ in range(count):
            owner, at = _part(answer.raw, at)
            about, at = _part(answer.raw, at)
            if owner.endswith(cookie):
                seconds, nanoseconds = struct.unpack_from("<II", about)
                return float(seconds + nanoseconds / 1e9)
        raise CephError(errno.ETIMEDOUT, "the lock that tells the time has ended already")


def _part(data: bytes, at: int) -> tuple[bytes, int]:
    """Return an encoded structure's content, and where the next one begins: two numbers of versions and a length come first."""
    _, _, length = struct.unpack_from("<BBI", data, at)
    return data[at + 6 : at + 6 + length], at + 6 + length
