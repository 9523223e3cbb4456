"""`snapshot-mcp zone purge`: end the recovery of what was deleted, and free its space, once a person has agreed to it."""

import argparse
import os
from dataclasses import replace
from typing import TYPE_CHECKING

import anyio

from snapshot_mcp.cli.person import agree, user_name
from snapshot_mcp.contract.errors import Forbidden
from snapshot_mcp.contract.models import Snapshot, SnapshotFilter
from snapshot_mcp.zones.finding import read_whole

if TYPE_CHECKING:
    from snapshot_mcp.app import Deed, Guard, LocalZone, PersonAct
    from snapshot_mcp.settings import Settings


def run(args: argparse.Namespace) -> int:
    from snapshot_mcp import app
    from snapshot_mcp.settings import load_settings

    settings = load_settings(os.environ)
    guard = app.build_guard(settings)
    act, deed = anyio.run(_plan, settings, guard, args.zone)
    if not act.ids and not act.refusal:
        print("There is nothing to purge.")
        return 0
    door = agree(guard, act, deed)
    if door is None:
        return 1
    purged = anyio.run(_purge, settings, guard, replace(deed, door=door), act.ids)
    print("\n".join(purged) or "Nothing was purged.")
    if left := len(set(act.ids) - set(purged)):
        what = "1 snapshot" if left == 1 else f"{left} snapshots"
        print(
            f"{what} could not be purged: a job is using the disk, or what was deleted with it is protected."
            " Run purge again when the job has finished."
        )
    return 0


async def _plan(settings: "Settings", guard: "Guard", name: str) -> "tuple[PersonAct, Deed]":
    from snapshot_mcp import app

    zone = app.open_local_zone(settings, name)
    try:
        deleted = await _deleted(zone)
        act = await guard.plan_purge(zone.zone, deleted)
        return act, app.deed(act.operation, zone, user_name(), snapshot_ids=list(act.ids))
    finally:
        await zone.aclose()


async def _purge(settings: "Settings", guard: "Guard", deed: "Deed", ids: tuple[str, ...]) -> tuple[str, ...]:
    """Purge what was agreed to and no rule forbids by now, and nothing else before its grace is over."""
    from snapshot_mcp import app

    zone = app.open_local_zone(settings, deed.zone)
    try:
        again = await guard.plan_purge(zone.zone, await _deleted(zone))
        async with guard.recorded(deed) as found:
            if again.refusal:
                raise Forbidden(again.refusal.message)
            purged = await zone.purge(set(ids) & set(again.ids))
            found["snapshot_ids"] = list(purged)
        return tuple(one for one in purged if one in ids)
    finally:
        await zone.aclose()


async def _deleted(zone: "LocalZone") -> tuple[Snapshot, ...]:
    """Everything that waits for the end of its grace."""
    return await read_whole(zone.list_snapshots, SnapshotFilter(status=("deleted",), verbose=1))
