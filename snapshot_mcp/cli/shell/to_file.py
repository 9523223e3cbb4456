"""`restore SNAPSHOT --to-file PATH`: write a restore point to a new file, on any disk of this machine.

The file is created, never opened: nothing is overwritten, no symbolic link is followed, and nothing is put among the files of
this program. What was not written whole is removed.
"""

import argparse
import os
from collections.abc import Iterator
from contextlib import aclosing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from snapshot_mcp.cli.bar import progress_bar
from snapshot_mcp.cli.out import say, say_json
from snapshot_mcp.cli.person import user_name
from snapshot_mcp.cli.shell.words import Words, program
from snapshot_mcp.contract.errors import BadRequest, NotFound, Unsupported, ZoneError
from snapshot_mcp.contract.text import MESSAGE_CHARACTERS, clean_text, encodable, format_bytes
from snapshot_mcp.ground.permissions import reason_of
from snapshot_mcp.zones.finding import find_snapshot

if TYPE_CHECKING:
    from snapshot_mcp.settings import Settings

NOTHING = "Nothing was written."

UNFINISHED, WHOLE = 0o200, 0o600
"""Modes of the file: until it is whole nobody can read it, so what a kill leaves is not taken for a disk."""


def run(settings: "Settings", args: argparse.Namespace) -> int:
    """Write the file; it is complete when the command ends."""
    written, snapshot_id = anyio.run(_write, settings, args), args.snapshot[0]
    path = encodable(str(args.to_file.absolute()))
    if args.json:
        say_json({"status": "written", "snapshot_id": snapshot_id, "path": path, "disk_bytes": written})
    else:
        shown = clean_text(path, MESSAGE_CHARACTERS)
        say(f"{clean_text(snapshot_id)} is written whole to {shown} ({format_bytes(written)}), every byte verified.")
    return 0


async def _write(settings: "Settings", args: argparse.Namespace) -> int:
    from snapshot_mcp import app

    guard = app.build_guard(settings, has_page=False)
    snapshot_id, path = args.snapshot[0], args.to_file.absolute()
    name = args.zone or settings.first_zone
    try:
        zone = app.open_local_zone(settings, name)
    except BadRequest:
        raise Unsupported(
            f"Zone {name!r} is not an embedded (local) zone: its data lies elsewhere, so no file can be written here.",
            hint="--to-volume NAME makes a new volume there.",
        ) from None
    own = [settings.home, zone.folder, *([settings.path] if settings.path else [])]
    async with aclosing(zone):
        try:
            await find_snapshot(zone, snapshot_id)
        except NotFound as error:
            raise NotFound(error.message, hint=Words(program()).line(error.hint)) from None
        deed = app.deed("restore to file", zone, user_name(), snapshot_id=snapshot_id, path=encodable(str(path)))
        async with guard.recorded(deed):
            with created(path, own) as descriptor, progress_bar("writing") as advance:
                return await zone.read_out(snapshot_id, descriptor, advance)


@contextmanager
def created(path: Path, own: list[Path]) -> Iterator[int]:
    """Yield a new file's descriptor; remove the file if the block fails. Raises BadRequest if none can be created there."""
    if any(path.resolve().is_relative_to(one.resolve()) for one in own):
        raise BadRequest(
            f"{shown_path(path)} is among the files of snapshot-mcp.", hint=f"{NOTHING} Give another path."
        )
    try:
        folder = _open_folder(path.parent)
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(path.name, flags, UNFINISHED, dir_fd=folder)
        except BaseException:
            os.close(folder)
            raise
    except FileExistsError:
        there = f"There is something at {shown_path(path)} already, and nothing is overwritten."
        raise BadRequest(there, hint=f"{NOTHING} Give a new path.") from None
    except OSError as error:
        raise BadRequest(
            f"No file can be created at {shown_path(path)}: {reason_of(error, path.parent)}.",
            hint=f"{NOTHING} Give another path.",
        ) from None
    made = os.fstat(descriptor)
    try:
        yield descriptor
        os.fchmod(descriptor, WHOLE)
        os.fsync(descriptor)
        os.fsync(folder)
    except BaseException as error:
        _remove(path.name, folder, made)
        if isinstance(error, ZoneError):
            error.add(hint="What was written of the file was removed.")
        raise
    finally:
        os.close(descriptor)
        os.close(folder)


def _open_folder(path: Path) -> int:
    """Open a folder without following a symbolic link at any step. Raises BadRequest, OSError."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    folder = os.open(path.anchor, flags)
    for name in path.parts[1:]:
        try:
            below = os.open(name, flags, dir_fd=folder)
        except NotADirectoryError:
            if path.resolve() == path:
                raise
            raise BadRequest(
                f"{shown_path(path)} leads through a symbolic link, and none is followed.",
                hint=f"{NOTHING} Give the folder's own path: {shown_path(path.resolve())}",
            ) from None
        finally:
            os.close(folder)
        folder = below
    return folder


def _remove(name: str, folder: int, made: os.stat_result) -> None:
    """Remove the file that was made, unless another one has its name by now."""
    with suppress(OSError):
        there = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if (there.st_dev, there.st_ino) == (made.st_dev, made.st_ino):
            os.unlink(name, dir_fd=folder)


def shown_path(path: Path) -> str:
    """Return a path as it is shown."""
    return clean_text(encodable(str(path)), MESSAGE_CHARACTERS)
