"""The data folder: is it there, private, writable, and on a local filesystem with room? Blocking; it writes nothing."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from snapshot_mcp.contract.text import format_bytes
from snapshot_mcp.doctor.symptom import Symptom, well, wrong
from snapshot_mcp.ground import reserve
from snapshot_mcp.ground.mounts import network_filesystem
from snapshot_mcp.ground.permissions import reason_of
from snapshot_mcp.ground.shell import quote

OTHERS = stat.S_IRWXG | stat.S_IRWXO


def look_at_home(home: Path) -> Iterator[Symptom]:
    """Yield what is found of the data folder."""
    if kind := network_filesystem(home):
        yield wrong(
            "home",
            f"{home} is on a network filesystem ({kind}), where SQLite's log is not safe.",
            "Set SNAPSHOT_MCP_HOME to a folder on a local disk.",
        )
    try:
        found = home.stat()
        os.scandir(home).close()
    except FileNotFoundError:
        yield well("home", f"{home} does not exist yet; the first change makes it.")
        return
    except OSError as error:
        yield wrong("home", f"{home} cannot be used: {reason_of(error, home)}.", "Correct its permissions.")
        return
    yield from _permissions(home, found)
    yield _space(home)


def _permissions(home: Path, found: os.stat_result) -> Iterator[Symptom]:
    mode = stat.S_IMODE(found.st_mode)
    if os.name == "nt":
        return
    if found.st_uid != os.geteuid():
        yield wrong("home", f"{home} belongs to another user (uid {found.st_uid}).", "Run this as that user.")
    elif not os.access(home, os.W_OK | os.X_OK):
        yield wrong("home", f"{home} cannot be written.", f"chmod u+rwx {quote(str(home))}")
    elif mode & (stat.S_IWGRP | stat.S_IWOTH):
        yield wrong("home", f"Other users can change {home} (mode {mode:04o}).", f"chmod go-w {quote(str(home))}")
    else:
        yield well("home", f"{home} belongs to this user.")


def _space(home: Path) -> Symptom:
    free = reserve.free_bytes(home)
    text = f"{format_bytes(free)} are free on the disk of {home}."
    if free < reserve.RESERVE_BYTES:
        return wrong("home", f"{text} Records cannot be kept.", "Free some space on this disk.")
    return well("home", text)
