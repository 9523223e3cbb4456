"""Say what is at a path now: the file that a disk had there may have been moved, linked or replaced.

Nothing here opens the path, because opening a pipe, a terminal or a tape has effects, and opening a disk breaks its lease.
"""

import errno
import os
import stat
from pathlib import Path
from typing import Final

from snapshot_mcp.contract.text import MESSAGE_CHARACTERS, clean_text
from snapshot_mcp.ground.permissions import reason_of

MOVE_HINT: Final = (
    "If its file is elsewhere now, the command `zone move ID PATH` takes the disk there and keeps its restore points."
)

_KINDS: Final = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISBLK, "a block device"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
)


def shown(path: Path | str) -> str:
    """Return a path, quoted, for a message."""
    return repr(clean_text(path, MESSAGE_CHARACTERS))


def kind_of(mode: int) -> str:
    """Return what a file of this mode is, "" for a regular file."""
    return next((name for is_kind, name in _KINDS if is_kind(mode)), "" if stat.S_ISREG(mode) else "a special file")


def other_kind_at(path: Path) -> str:
    """Return what is at the path instead of a regular file; "" for a regular file, or if there is nothing to see."""
    try:
        mode = path.lstat().st_mode
    except (OSError, ValueError):
        return ""
    return _link_at(path) if stat.S_ISLNK(mode) else kind_of(mode)


def why_missing(path: Path, error: OSError) -> str:
    """Return why a path cannot be looked at, in words; the first part of it that is missing or is not a folder is named."""
    reason = clean_text(reason_of(error, path), MESSAGE_CHARACTERS)
    if error.errno == errno.ELOOP:
        return "a symbolic link in it leads in a circle"
    if error.errno not in {errno.ENOENT, errno.ENOTDIR}:
        return reason
    for folder in reversed(path.parents):
        if not os.path.lexists(folder):
            return f"{reason} (there is no folder {shown(folder)})"
        if not folder.is_dir():
            what = "leads nowhere" if folder.is_symlink() and not folder.exists() else "is not a folder"
            return f"{reason} ({shown(folder)} {what})"
    return reason


def _link_at(path: Path) -> str:
    """Describe a symbolic link: its target, and what that is if it is not a file."""
    try:
        link = f"a symbolic link to {shown(path.readlink())}"
        kind = kind_of(path.stat().st_mode)
    except OSError as error:
        if error.errno == errno.ELOOP:
            return "a symbolic link that leads in a circle"
        missing = error.errno in {errno.ENOENT, errno.ENOTDIR}
        return f"{link}, which {'does not exist' if missing else f'cannot be reached: {error.strerror}'}"
    return f"{link}, which is {kind}" if kind else link
