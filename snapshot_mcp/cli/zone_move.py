"""`snapshot-mcp zone move ID PATH`: take a disk to another path. A person confirms it if the file there may be another disk's."""

import argparse
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from snapshot_mcp.cli.bar import progress_bar
from snapshot_mcp.cli.named import find_disk
from snapshot_mcp.cli.out import say
from snapshot_mcp.cli.person import agree, user_name
from snapshot_mcp.cli.zone_form import add_domain, add_form, add_machine, form_of
from snapshot_mcp.contract.errors import BadRequest
from snapshot_mcp.contract.text import clean_text

if TYPE_CHECKING:
    from snapshot_mcp.app import Deed, Guard, Move
    from snapshot_mcp.settings import Settings

PATH_CHARACTERS = 400


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("resource", metavar="ID", help="its id, or its name if no other disk has it")
    parser.add_argument("path", type=Path, metavar="PATH", help="where its file is now")
    add_form(parser)
    add_machine(parser)
    add_domain(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from snapshot_mcp import app

    settings = app.own_settings()
    guard = app.build_guard(settings)
    move, deed = anyio.run(_plan, settings, guard, args)
    lines = _lines(move)
    if move.doubts:
        act = anyio.run(guard.plan_move, deed.zone, move.label, lines)
        try:
            door = agree(guard, act, deed)
        except BadRequest as error:  # no terminal, or no PIN: then the reasons were not shown yet
            error.add(after=" ".join(move.doubts))
            raise
        if door is None:
            return 1
        deed = replace(deed, door=door)
    anyio.run(_move, settings, guard, deed, move)
    if not move.doubts:
        say(*lines)
    say(f"{move.label} is at {_shown(move.path)} now. {_next_backup(move)}")
    return 0


async def _plan(settings: "Settings", guard: "Guard", args: argparse.Namespace) -> "tuple[Move, Deed]":
    from snapshot_mcp import app

    async with aclosing(app.open_local_zone(settings, args.zone)) as zone:
        resource_id = (await find_disk(zone, args.resource, guard.command)).id
        with progress_bar("comparing") as advance:
            move = await zone.plan_move(resource_id, args.path, advance, form_of(args))
        found = {"compared_with": move.snapshot_id, "equal": str(move.likeness or "not compared")}
        paths = {"old_path": move.old_path, "path": move.path}
        return move, app.deed("zone move", zone, user_name(), resource_id=resource_id, **paths, **found)


async def _move(settings: "Settings", guard: "Guard", deed: "Deed", move: "Move") -> None:
    from snapshot_mcp import app

    async with aclosing(app.open_local_zone(settings, deed.zone)) as zone, guard.recorded(deed):
        await zone.move_resource(move)


def _lines(move: "Move") -> list[str]:
    """Return the whole effect, and what the file was compared with."""
    lines = [f"From: {_shown(move.old_path)}", f"To: {_shown(move.path)}"]
    if move.likeness:
        lines.append(f"Equal to its restore point {move.snapshot_id}: {move.likeness}")
    return [*lines, *move.doubts, *move.notes]


def _shown(path: str) -> str:
    return clean_text(path, PATH_CHARACTERS) or "no file"


def _next_backup(move: "Move") -> str:
    return "The next backup stores what differs." if move.head_id else "The next backup is full."
