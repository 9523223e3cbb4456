"""Translate errors of files and of the catalogue into the contract's."""

import errno
import sqlite3
from pathlib import Path

from snapshot_mcp.contract.errors import Damaged, InternalError, StorageFull, Unavailable, ZoneError
from snapshot_mcp.contract.text import MESSAGE_CHARACTERS, clean_text
from snapshot_mcp.ground import reserve
from snapshot_mcp.ground.permissions import obstacle_of, reason_of


def translate(error: Exception, catalogue: Path | None = None) -> ZoneError | None:
    """Translate an error; None for a bug of ours. With the catalogue's path it is said whose it is."""
    if isinstance(error, OSError):
        return _from_os(error)
    return _from_sqlite(error, catalogue) if isinstance(error, sqlite3.Error) else None


def _from_os(error: OSError) -> ZoneError:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return StorageFull("The disk is full.", hint="Free some space and try again. No data was lost.")
    if error.errno in {errno.EMFILE, errno.ENFILE}:
        return InternalError(
            f"Too many open files: {clean_text(error, MESSAGE_CHARACTERS)}.",
            hint="Raise the limit (`ulimit -n`), or use fewer disks per request.",
        )
    if obstacle := obstacle_of(error):
        return InternalError(f"{error.strerror}: {obstacle.why}.", hint=obstacle.hint)
    return InternalError(
        f"A file operation failed: {clean_text(error, MESSAGE_CHARACTERS)}.",
        hint="Check the disk and the file's permissions.",
    )


def _is_full(folder: Path) -> bool:
    """Whether there is not even room for SQLite's shared memory: it then says that it cannot open the file."""
    try:
        return reserve.free_bytes(folder) < SHARED_MEMORY_BYTES
    except OSError:
        return False


SHARED_MEMORY_BYTES = 64 << 10


def _from_sqlite(error: sqlite3.Error, catalogue: Path | None) -> ZoneError | None:
    match getattr(error, "sqlite_errorcode", 0) & 0xFF:  # the primary code
        case sqlite3.SQLITE_FULL:
            return StorageFull("The disk of the zone's folder is full.", hint="Free some space and try again.")
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return Damaged(
                f"The zone's catalogue is damaged: {error}.",
                hint="Keep the zone's folder: its snapshot files hold their data. The command `zone rebuild` reads them anew.",
            )
        case sqlite3.SQLITE_IOERR | sqlite3.SQLITE_CANTOPEN if catalogue and _is_full(catalogue.parent):
            return StorageFull("The disk of the zone's folder is full.", hint="Free some space and try again.")
        case sqlite3.SQLITE_IOERR | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
            obstacle = obstacle_of(error, catalogue)
            otherwise = "Check the disk (health, free space, quota) and the permissions of the zone's folder."
            return InternalError(
                f"The zone's catalogue cannot be read or written: {reason_of(error, catalogue)}.",
                hint=obstacle.hint if obstacle else otherwise,
            )
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return Unavailable(
                f"The zone's catalogue is locked by another process: {error}.", hint="Try again in a moment."
            )
    return None
