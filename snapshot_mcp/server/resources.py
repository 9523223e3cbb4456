"""MCP resources, which a host can attach to a conversation.

`zone://{zone}`, `disk://{zone}/{resource_id}`, `points://{zone}/{resource_id}`, `snapshot://{zone}/{snapshot_id}`,
`chain://{zone}/{root_id}`, `job://{zone}/{job_id}`, as JSON in the tools' own models, and `approval://{approval_id}`. What is
there stands in `listing`.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ResourceError, ResourceNotFoundError

from snapshot_mcp.contract.errors import NotFound, UnknownZone, ZoneError
from snapshot_mcp.contract.models import Resource, ResourceFilter, SnapshotFilter
from snapshot_mcp.contract.states import GONE_SNAPSHOT_STATUSES
from snapshot_mcp.contract.text import MESSAGE_CHARACTERS, clean_text, quoted
from snapshot_mcp.server.callers import sees_names_of
from snapshot_mcp.server.chain import layout
from snapshot_mcp.server.coverage import protection_of
from snapshot_mcp.server.listing import MAX_DISKS
from snapshot_mcp.server.read_tools import MAX_CHAIN_NODES, fate_of, picture, snapshots_of
from snapshot_mcp.server.results import JobRow
from snapshot_mcp.server.rows import ResourceRow, SnapshotRow
from snapshot_mcp.server.state import ServerState, state_of
from snapshot_mcp.zones import Zone
from snapshot_mcp.zones.finding import find_resource, find_snapshot, read_list

MAX_POINTS = 1000
"""Restore points of a disk that are read for a drawing, the newest."""


async def read_snapshot(zone: str, snapshot_id: str, ctx: Context) -> str:
    """A restore point with all details."""
    with _translated():
        found = await find_snapshot(state_of(ctx).zones.get(zone).provider, snapshot_id)
    return json.dumps(SnapshotRow.of(found, verbose=True).lean(), ensure_ascii=False)


async def read_chain(zone: str, root_id: str, ctx: Context) -> str:
    """A chain as a tree of restore points."""
    with _translated():
        place = state_of(ctx).zones.get(zone)
        query = SnapshotFilter(root_id=root_id, verbose=1)
        snapshots, total = await read_list(place.provider.list_snapshots, query, MAX_CHAIN_NODES)
        if not snapshots:
            raise NotFound(f"There is no chain {quoted(root_id)} in zone {place.name}.")
        gone = SnapshotFilter(root_id=root_id, status=tuple(sorted(GONE_SNAPSHOT_STATUSES)), limit=1)
        gone_count = (await place.provider.list_snapshots(gone)).total_count
    found = picture(place, snapshots[0].resource, snapshots, total_count=total, gone_count=gone_count)
    nodes = [one.lean() for one in layout(snapshots)]
    return json.dumps(found.lean() | {"nodes": nodes}, ensure_ascii=False)


async def read_points(zone: str, resource_id: str, ctx: Context) -> str:
    """All restore points of a disk as a tree, for programs that draw it."""
    with _translated():
        place = state_of(ctx).zones.get(zone)
        found, snapshots, total = await snapshots_of(place, resource_id, MAX_POINTS)
    told = picture(place, found, snapshots, total_count=total, gone_count=0).lean()
    del told["lines"]
    told |= {"total_count": total, "nodes": [one.lean() for one in layout(snapshots)]}
    return json.dumps(told, ensure_ascii=False)


async def read_job(zone: str, job_id: str, ctx: Context) -> str:
    """The current state of a job."""
    with _translated():
        place = state_of(ctx).zones.get(zone)
        job = await place.provider.get_job(job_id)
    return json.dumps(JobRow.of(job, place.name).lean(), ensure_ascii=False)


async def read_zone(zone: str, ctx: Context) -> str:
    """The disks of a zone, with what protects each."""
    with _translated():
        place = state_of(ctx).zones.get(zone)
        query = ResourceFilter(verbose=1)
        volumes, volume_count = await read_list(place.provider.list_volumes, query, MAX_DISKS)
        instances, instance_count = await read_list(place.provider.list_instances, query, MAX_DISKS)
    rows = await _rows(place, [*volumes, *instances])
    total = volume_count + instance_count
    told = {"zone": place.name, "total_count": total, "resources": rows}
    if fate := fate_of(place):
        told["shared_fate"] = fate
    if total > len(rows):
        told["hint"] = f"Only {len(rows)} of {total} are shown; the tool list_resources lists all."
    return json.dumps(told, ensure_ascii=False)


async def read_disk(zone: str, resource_id: str, ctx: Context) -> str:
    """A disk or machine, with what protects it."""
    with _translated():
        place = state_of(ctx).zones.get(zone)
        found = await find_resource(place.provider, resource_id)
    (row,) = await _rows(place, [found])
    return json.dumps(row, ensure_ascii=False)


async def _rows(zone: Zone, disks: Sequence[Resource]) -> list[dict[str, Any]]:
    protection = await protection_of(zone, disks)
    rows = (ResourceRow.of(one, protection.coverage.get(one.id), protection.running.get(one.id, ())) for one in disks)
    return [row.lean() for row in rows]


async def read_approval(approval_id: str, ctx: Context) -> str:
    """What a person is asked to decide, how, and what became of it."""
    with _translated():
        guard = await state_of(ctx).guard_to_look()
        approval = await guard.get_approval(approval_id)
        if not sees_names_of(approval.call.principal):
            raise NotFound(
                f"There is no approval {quoted(approval_id)}.", hint="List the approvals to see which there are."
            )
        how = await guard.how_to_approve(approval, await guard.link(approval.id)) if approval.state == "pending" else ""
    ended = approval.job_end.in_words if approval.job_end else ""
    told = approval.to_json() | {
        "how_to_approve": how,
        "decision": approval.decision,
        "what_next": "" if how else approval.what_next,
        "job_id": clean_text(approval.job_id),
        "job_end": clean_text(ended, MESSAGE_CHARACTERS),
    }
    return json.dumps({key: value for key, value in told.items() if value}, ensure_ascii=False)


def add_resources(server: MCPServer[ServerState]) -> None:
    """Register the templates."""
    for uri, title, read in (
        ("zone://{zone}", "A zone and its disks", read_zone),
        ("disk://{zone}/{resource_id}", "A disk or machine", read_disk),
        ("points://{zone}/{resource_id}", "All restore points of a disk", read_points),
        ("approval://{approval_id}", "An approval", read_approval),
        ("snapshot://{zone}/{snapshot_id}", "A restore point", read_snapshot),
        ("chain://{zone}/{root_id}", "A chain of restore points", read_chain),
        ("job://{zone}/{job_id}", "A job", read_job),
    ):
        server.resource(uri, title=title, mime_type="application/json")(read)


@contextmanager
def _translated() -> Iterator[None]:
    """Raise a zone's error as the SDK's resource error."""
    try:
        yield
    except (NotFound, UnknownZone) as error:
        raise ResourceNotFoundError(str(error)) from error
    except ZoneError as error:
        raise ResourceError(str(error)) from error
