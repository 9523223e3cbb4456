"""`snapshot-mcp zone remove ID`: take a disk or an image off the list; with `--delete-file` delete what an export made.

The file of a disk that the user registered is never deleted. A deletion is a person's act: shown, confirmed in a terminal,
carried out for exactly what was shown, and recorded.
"""

import argparse
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING

import anyio

from snapshot_mcp.cli.named import find_disk_or_image
from snapshot_mcp.cli.out import say
from snapshot_mcp.cli.person import agree, user_name
from snapshot_mcp.contract.errors import Forbidden
from snapshot_mcp.contract.models import Image
from snapshot_mcp.contract.text import clean_text

if TYPE_CHECKING:
    from snapshot_mcp.app import Deed, Guard, OwnFile, PersonAct
    from snapshot_mcp.settings import Settings

PATH_CHARACTERS = 400


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("resource", metavar="ID", help="its id, or its name if nothing else has it")
    parser.add_argument(
        "--delete-file",
        action="store_true",
        help="delete the file too, of a volume or an image that an export made; a person confirms it in a terminal",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from snapshot_mcp import app

    settings = app.own_settings()
    guard = app.build_guard(settings)
    if not args.delete_file:
        say(anyio.run(_remove, settings, guard, args))
        return 0
    act, deed, file = anyio.run(_plan, settings, guard, args)
    door = agree(guard, act, deed)
    if door is None:
        return 1
    anyio.run(_delete, settings, guard, replace(deed, door=door), file)
    say(f"{file.item_id} and its file {clean_text(file.path, PATH_CHARACTERS)} are deleted.")
    return 0


async def _remove(settings: "Settings", guard: "Guard", args: argparse.Namespace) -> str:
    from snapshot_mcp import app

    async with aclosing(app.open_local_zone(settings, args.zone)) as zone:
        found = await find_disk_or_image(zone, args.resource, guard.command)
        path = clean_text(found.path or "", PATH_CHARACTERS)
        async with guard.recorded(app.deed("zone remove", zone, user_name(), resource_id=found.id)):
            if isinstance(found, Image):
                await zone.remove_image(found.id)
                return f"{found.id} is no longer listed; its file {path} remains."
            await zone.remove_resource(found.id)
            return f"{found.id} is unregistered; its file {path} and its snapshots remain."


async def _plan(settings: "Settings", guard: "Guard", args: argparse.Namespace) -> "tuple[PersonAct, Deed, OwnFile]":
    from snapshot_mcp import app

    async with aclosing(app.open_local_zone(settings, args.zone)) as zone:
        found = await find_disk_or_image(zone, args.resource, guard.command)
        file = await zone.look_at_own_file(found.id)
        act = await guard.plan_file_deletion(zone.zone, file)
        about = {"resource_id": file.item_id, "path": file.path, "size_bytes": file.size_bytes, "file": file.identity}
        return act, app.deed(act.operation, zone, user_name(), **about), file


async def _delete(settings: "Settings", guard: "Guard", deed: "Deed", file: "OwnFile") -> None:
    """Delete what was confirmed, unless a rule forbids it by now."""
    from snapshot_mcp import app

    async with aclosing(app.open_local_zone(settings, deed.zone)) as zone, guard.recorded(deed):
        if refusal := (await guard.plan_file_deletion(zone.zone, file)).refusal:
            raise Forbidden(refusal.message)
        await zone.delete_own_file(file)
