"""A create that is repeated within ten minutes: what is there already is answered, instead of a second backup.

What this home has submitted decides first, by uptime. Else the zone's times decide: an embedded zone's by uptime on the same
machine, others' by the wall clock, where up to five minutes ahead count as now; what lies further ahead has a wrong clock.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import attrgetter

from snapshot_mcp.contract.models import Snapshot, SnapshotFilter
from snapshot_mcp.contract.states import SnapshotStatus, TransitionStatus
from snapshot_mcp.contract.text import CLOCK_SKEW_SECONDS
from snapshot_mcp.ground.clock import Clock, Moment, SystemClock
from snapshot_mcp.server.state import ServerState
from snapshot_mcp.zones import Zone
from snapshot_mcp.zones.finding import at_once, read_list, try_find_snapshots

SAME_CREATE_SECONDS = 600.0
"""How long a create with the same disks and name returns the existing backup (ARCHITECTURE.md, "The MCP face")."""


@dataclass(slots=True)
class Repeated:
    """The snapshots of an equal create, in the resources' order; `ahead` are equal ones whose time cannot be believed."""

    existing: list[Snapshot] = field(default_factory=list)
    ahead: list[Snapshot] = field(default_factory=list)


async def find_repeated(
    state: ServerState, zone: Zone, resource_ids: Sequence[str], name: str, clock: Clock | None = None
) -> Repeated:
    """Return what an equal create of the last ten minutes has made or is making.

    Separate backups of single disks under the same name are not a backup of all of them at one point in time.
    """
    own = await state.history.find_create(zone, resource_ids, name, SAME_CREATE_SECONDS) if state.history else None
    if own is not None:
        found, is_whole = await try_find_snapshots(zone.provider, own)
        if not own or is_whole:
            is_there = len(found) == len(resource_ids) and all(map(_is_well, found))
            return Repeated(found if is_there else [])
    return await _find_in_zone(zone, resource_ids, name, (clock or SystemClock()).read())


async def _find_in_zone(zone: Zone, resource_ids: Sequence[str], name: str, now: Moment) -> Repeated:
    alike: dict[str, list[Snapshot]] = {}

    async def look(resource_id: str) -> None:
        query = SnapshotFilter(resource_id=resource_id, search_word=name, verbose=1)
        found = (await read_list(zone.provider.list_snapshots, query))[0]
        alike[resource_id] = [one for one in found if one.snapshot_name == name and _is_well(one)]

    await at_once(look, resource_ids)
    flat = [one for found in alike.values() for one in found]
    ahead = [one for one in flat if (_seconds_since(one, now) or 0.0) < -CLOCK_SKEW_SECONDS]
    recent = {one: [found for found in alike[one] if _is_recent(found, now)] for one in resource_ids}
    for moment_of in (attrgetter("create_time"), attrgetter("snapshot_time")):
        for moment in filter(None, dict.fromkeys(map(moment_of, flat))):
            together = [next((one for one in recent[id_] if moment_of(one) == moment), None) for id_ in resource_ids]
            if None not in together:
                return Repeated([one for one in together if one], ahead)
    return Repeated([], ahead)


def _seconds_since(one: Snapshot, now: Moment) -> float | None:
    """Return how long ago it was asked for, negative if its time lies ahead; None if it has no time."""
    if one.created_boot and one.created_boot == now.boot:
        return now.uptime - one.created_uptime
    return None if one.create_time is None else now.wall - one.create_time.timestamp()


def _is_recent(one: Snapshot, now: Moment) -> bool:
    seconds = _seconds_since(one, now)
    return seconds is not None and -CLOCK_SKEW_SECONDS <= seconds < SAME_CREATE_SECONDS


def _is_well(one: Snapshot) -> bool:
    """Return whether it is there to stay, or is being made."""
    is_well = one.status in {SnapshotStatus.PENDING, SnapshotStatus.AVAILABLE}
    return is_well and one.transition_status in {TransitionStatus.NONE, TransitionStatus.CREATING}
