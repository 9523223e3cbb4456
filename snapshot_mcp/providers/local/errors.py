"""What an error of the disk or of the catalogue's file means to a person."""

import errno
import sqlite3

from snapshot_mcp.contract.errors import Damaged, InternalError, StorageFull, Unavailable, ZoneError
from snapshot_mcp.contract.text import clean_text


def translate(error: Exception) -> ZoneError | None:
    """Return the contract's error for it; None for a bug of ours."""
    if isinstance(error, OSError):
        return _from_os(error)
    return _from_sqlite(error) if isinstance(error, sqlite3.Error) else None


def _from_os(error: OSError) -> ZoneError:
    """What the disk's error means to a person."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return StorageFull(
            "There is no room left on the disk.", hint="Free some space and try again; nothing was lost."
        )
    if error.errno in {errno.EMFILE, errno.ENFILE}:
        return InternalError(
            f"More files are open than the system allows: {clean_text(error, 400)}.",
            hint="Raise the limit (`ulimit -n`), or name fewer disks at once.",
        )
    return InternalError(
        f"The disk failed: {clean_text(error, 400)}.", hint="Check the disk and the file's permissions."
    )


def _from_sqlite(error: sqlite3.Error) -> ZoneError | None:
    """What an error of the catalogue means to a person; None for a bug of ours."""
    match getattr(error, "sqlite_errorcode", 0) & 0xFF:  # the primary code; the rest of it says which call
        case sqlite3.SQLITE_FULL:
            return StorageFull("There is no room left in the zone's folder.", hint="Free some space and try again.")
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return Damaged(
                f"The zone's catalogue is damaged: {error}.",
                hint="Put a copy of catalogue.sqlite back. Keep the folder: its snapshots' files hold their data still.",
            )
        case sqlite3.SQLITE_IOERR | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
            return InternalError(
                f"The zone's catalogue cannot be used: {error}.",
                hint="Check the disk (its health, room and quota) and the permissions of the zone's folder.",
            )
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return Unavailable(f"Another process keeps the zone's catalogue: {error}.", hint="Try again in a moment.")
    return None
