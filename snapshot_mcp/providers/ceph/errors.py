"""Translate errors of Ceph into the contract's."""

import errno
import sqlite3

from snapshot_mcp.contract.errors import (
    Forbidden,
    InternalError,
    NotFound,
    ResourceBusy,
    StorageFull,
    Unavailable,
    ZoneError,
)
from snapshot_mcp.providers.ceph.clib import CephError

FENCED = errno.ESHUTDOWN
"""Another client has locked this one out of the cluster; the connection is of no use any more."""

GONE = frozenset({errno.ETIMEDOUT, errno.ENOTCONN, errno.ECONNREFUSED, errno.EHOSTUNREACH, FENCED})
"""The cluster does not answer, or not to this connection."""

FULL_HINT = (
    "Deleting still works: delete what is not needed, then `zone purge`; or raise the pool's quota, or add storage."
)


class CommittedFirst(sqlite3.OperationalError):
    """Another process has changed the catalogue first, or it could not be written now; nothing was changed."""


def translate(error: Exception) -> ZoneError | None:
    """Translate an error; None for a bug of ours."""
    if isinstance(error, CephError):
        return _from_ceph(error)
    if isinstance(error, CommittedFirst):
        return Unavailable(f"{error}.", hint="Try again in a moment. Nothing was changed.")
    return None


def _from_ceph(error: CephError) -> ZoneError:
    what = f"{error.strerror} ({error.filename or 'Ceph'})"
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return StorageFull("The pool is full, or has reached its quota.", hint=FULL_HINT)
        case errno.EPERM | errno.EACCES:
            return Forbidden(
                f"Ceph does not allow it: {what}.",
                hint="The user's caps do not suffice; README lists what a zone needs.",
            )
        case errno.ENOENT:
            return NotFound(
                f"Ceph has no such thing: {what}.", hint="Check the pool, the namespace and the configuration."
            )
        case errno.EBUSY | errno.EROFS:
            return ResourceBusy(f"Another client of Ceph uses it: {what}.", hint="Try again in half a minute.")
        case code if code in GONE:
            return Unavailable(
                "The Ceph cluster does not answer.", hint="Check its health (`ceph -s`) and this machine's network."
            )
        case _:
            return InternalError(f"A call of Ceph failed: {what}.", hint="Check the cluster's health (`ceph -s`).")
