"""Say why a user may not use a file: whose it is, who runs, and what to do. Nothing here opens or changes anything."""

import errno
import os
import sqlite3
from pathlib import Path
from typing import NamedTuple

from snapshot_mcp.ground.shell import quote

READ, WRITE, ENTER = os.R_OK, os.W_OK, os.X_OK


class Obstacle(NamedTuple):
    """What prevents the use of a file, and the next step."""

    why: str
    hint: str


def user_name(uid: int | None = None) -> str:
    """Return a user's name, or `user 1000` for one without a name; of this process's user by default."""
    uid = os.geteuid() if uid is None and hasattr(os, "geteuid") else uid
    try:
        import pwd

        return pwd.getpwuid(uid or 0).pw_name
    except (ImportError, KeyError):  # Windows; no passwd entry
        return f"user {uid}"


def owner_of(path: Path) -> str:
    """Return the name of a file's owner. Raises OSError."""
    return user_name(path.stat().st_uid)


def find_obstacle(path: Path, access: int = READ | WRITE) -> Obstacle | None:
    """Return what prevents the access: a folder above, the folder that it would be created in, or itself; else None."""
    if os.name == "nt":
        return None
    for folder in reversed(path.parents):
        if not os.access(folder, ENTER) and os.path.lexists(folder):
            return _describe(folder, ENTER)
    while not os.path.lexists(path) and path != path.parent:
        path, access = path.parent, WRITE | ENTER
    return None if os.access(path, access) else _describe(path, access)


def reason_of(error: OSError | sqlite3.Error, path: Path | None = None, access: int = READ | WRITE) -> str:
    """Return why a file operation failed, without Python's `[Errno 13]`; for missing permissions, whose file it is."""
    obstacle = obstacle_of(error, path, access)
    said = (error.strerror if isinstance(error, OSError) else "") or str(error)
    return f"{said} ({obstacle.why})" if obstacle else said


def obstacle_of(
    error: OSError | sqlite3.Error, path: Path | None = None, access: int = READ | WRITE
) -> Obstacle | None:
    """Return the missing permission that an error reports, None if it reports something else. SQLite does not say which."""
    if isinstance(error, OSError):
        if error.errno not in {errno.EACCES, errno.EPERM, errno.EROFS}:
            return None
        path = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else path
        return find_obstacle(path, access) if path else None
    besides = [path.with_name(path.name + end) for end in ("-wal", "-shm")] if path else []
    found = [path, *(one for one in besides if one.exists()), path.parent] if path else []
    return next(filter(None, (find_obstacle(one, access) for one in found)), None)


def _describe(path: Path, access: int) -> Obstacle:
    try:
        found = path.stat()
        is_read_only = bool(access & WRITE and os.statvfs(path).f_flag & os.ST_RDONLY)
    except OSError as error:
        return Obstacle(f"{str(path)!r}: {error.strerror}", "Check the permissions of the folders above it.")
    if is_read_only:
        return Obstacle(f"{str(path)!r} is on a read-only filesystem", "Mount it writable, or use another folder.")
    owner, me = user_name(found.st_uid), user_name()
    why = f"{str(path)!r} belongs to {owner}, mode {found.st_mode & 0o7777:04o}; this process runs as {me}"
    if found.st_uid == os.geteuid():
        return Obstacle(why, f"Run: chmod u+rwX {quote(str(path))}")
    return Obstacle(
        why, f"Run snapshot-mcp as {owner}, or give {me} access to {quote(str(path))} (chown, chmod, setfacl)."
    )
