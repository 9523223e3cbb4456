"""`snapshot-mcp zone forget DISK`: destroy all restore points of a disk on Ceph for ever, so that its manager can remove it."""

import argparse
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING

import anyio

from snapshot_mcp.cli.named import find_disk
from snapshot_mcp.cli.out import say
from snapshot_mcp.cli.person import agree, user_name
from snapshot_mcp.contract.errors import BadRequest, Forbidden
from snapshot_mcp.contract.models import Snapshot, SnapshotFilter
from snapshot_mcp.zones.finding import read_whole

if TYPE_CHECKING:
    from snapshot_mcp.app import CephZone, Deed, Guard, PersonAct
    from snapshot_mcp.settings import Settings

KEPT = ("pending", "available", "suspended", "deleted")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("resource", metavar="DISK", help="id or exact name of the disk")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from snapshot_mcp import app

    settings = app.own_settings()
    guard = app.build_guard(settings)
    act, deed, resource_id = anyio.run(_plan, settings, guard, args)
    if act.ids:
        door = agree(guard, act, deed)
        if door is None:
            return 1
        gone, obstacles = anyio.run(_forget, settings, guard, replace(deed, door=door), resource_id, act.ids)
    else:  # what was destroyed before may still have RBD snapshots
        gone, obstacles = anyio.run(_clear, settings, args.zone, resource_id)
    if obstacles:
        say(*gone, *obstacles, "So its manager cannot remove the disk yet. Run this again when that is done.")
        return 1
    end = "Nothing of ours is left on the disk; its manager can remove it."
    say(*gone, end if gone else "The disk has no restore point of ours.")
    return 0


def _opened(settings: "Settings", name: str) -> "CephZone":
    from snapshot_mcp import app

    if zone := app.as_ceph(app.open_own_zone(settings, name)):
        return zone
    raise BadRequest(
        "Only a zone on Ceph has restore points on the disks themselves.", hint="Here delete them instead."
    )


async def _plan(settings: "Settings", guard: "Guard", args: argparse.Namespace) -> "tuple[PersonAct, Deed, str]":
    from snapshot_mcp import app

    async with aclosing(_opened(settings, args.zone)) as zone:
        disk = await find_disk(zone, args.resource, guard.command)
        act = await guard.plan_forget(zone.zone, disk, await _points(zone, disk.id))
        deed = app.deed(act.operation, zone, user_name(), resource_id=disk.id, snapshot_ids=list(act.ids))
        return act, deed, disk.id


async def _forget(
    settings: "Settings", guard: "Guard", deed: "Deed", resource_id: str, ids: tuple[str, ...]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Destroy what was agreed to, unless a rule forbids it by now; return it, and what could not be removed yet."""
    async with aclosing(_opened(settings, deed.zone)) as zone, guard.recorded(deed):
        disk = await find_disk(zone, resource_id, guard.command)
        if refusal := (await guard.plan_forget(zone.zone, disk, await _points(zone, disk.id))).refusal:
            raise Forbidden(refusal.message)
        return await zone.forget(disk.id, ids), zone.obstacles


async def _clear(settings: "Settings", name: str, resource_id: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Remove what is left of restore points that were destroyed; return it, and what could not be removed yet."""
    async with aclosing(_opened(settings, name)) as zone:
        return await zone.forget(resource_id, ()), zone.obstacles


async def _points(zone: "CephZone", resource_id: str) -> tuple[Snapshot, ...]:
    return await read_whole(zone.list_snapshots, SnapshotFilter(resource_id=resource_id, status=KEPT, verbose=1))
