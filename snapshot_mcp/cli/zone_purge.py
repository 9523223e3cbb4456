"""`snapshot-mcp zone purge`: free the space of deleted snapshots for ever, once a person has confirmed it."""

import argparse
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING

import anyio

from snapshot_mcp.cli.out import say
from snapshot_mcp.cli.person import agree, user_name
from snapshot_mcp.contract.errors import Forbidden
from snapshot_mcp.contract.models import Snapshot, SnapshotFilter
from snapshot_mcp.zones.finding import read_whole

if TYPE_CHECKING:
    from snapshot_mcp.app import Deed, Guard, OwnZone, PersonAct
    from snapshot_mcp.settings import Settings


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from snapshot_mcp import app

    settings = app.own_settings()
    guard = app.build_guard(settings)
    act, deed = anyio.run(_plan, settings, guard, args.zone)
    if not act.ids and not act.refusal:
        say("There is nothing to purge.")
        return 0
    door = agree(guard, act, deed)
    if door is None:
        return 1
    purged, obstacles = anyio.run(_purge, settings, guard, replace(deed, door=door), act.ids)
    say(*purged or ["Nothing was purged."], *obstacles)
    if left := len(set(act.ids) - set(purged)):
        what = "1 snapshot" if left == 1 else f"{left} snapshots"
        say(
            f"{what} could not be purged: a job is using the disk, or what was deleted with it is protected."
            " Run purge again when the job has finished."
        )
    return 0


async def _plan(settings: "Settings", guard: "Guard", name: str) -> "tuple[PersonAct, Deed]":
    from snapshot_mcp import app

    async with aclosing(app.open_own_zone(settings, name)) as zone:
        act = await guard.plan_purge(zone.zone, await _list_deleted(zone))
        return act, app.deed(act.operation, zone, user_name(), snapshot_ids=list(act.ids))


async def _purge(
    settings: "Settings", guard: "Guard", deed: "Deed", ids: tuple[str, ...]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Purge what was confirmed and no rule forbids now; nothing else is purged before its grace period ends.

    Return it, and what a zone on Ceph could not remove yet, with the reason.
    """
    from snapshot_mcp import app

    async with aclosing(app.open_own_zone(settings, deed.zone)) as zone:
        again = await guard.plan_purge(zone.zone, await _list_deleted(zone))
        async with guard.recorded(deed) as found:
            if again.refusal:
                raise Forbidden(again.refusal.message)
            purged = await zone.purge(set(ids) & set(again.ids))
            found["snapshot_ids"] = list(purged)
        ceph = app.as_ceph(zone)
        return tuple(one for one in purged if one in ids), ceph.obstacles if ceph else ()


async def _list_deleted(zone: "OwnZone") -> tuple[Snapshot, ...]:
    """Return all snapshots in their grace period."""
    return await read_whole(zone.list_snapshots, SnapshotFilter(status=("deleted",), verbose=1))
