"""MCP resources, which a host can attach to a conversation.

`snapshot://{zone}/{snapshot_id}`, `chain://{zone}/{root_id}`, `job://{zone}/{job_id}`, as JSON in the tools' own models.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ResourceError, ResourceNotFoundError

from snapshot_mcp.contract.errors import NotFound, UnknownZone, ZoneError
from snapshot_mcp.contract.models import SnapshotFilter
from snapshot_mcp.contract.states import GONE_SNAPSHOT_STATUSES
from snapshot_mcp.contract.text import quoted
from snapshot_mcp.server.chain import layout
from snapshot_mcp.server.read_tools import MAX_CHAIN_NODES, picture
from snapshot_mcp.server.results import JobRow
from snapshot_mcp.server.rows import SnapshotRow
from snapshot_mcp.server.state import ServerState, state_of
from snapshot_mcp.zones.finding import find_snapshot, read_list


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


async def read_job(zone: str, job_id: str, ctx: Context) -> str:
    """The current state of a job."""
    with _translated():
        place = state_of(ctx).zones.get(zone)
        job = await place.provider.get_job(job_id)
    return json.dumps(JobRow.of(job, place.name).lean(), ensure_ascii=False)


def add_resources(server: MCPServer[ServerState]) -> None:
    """Register the three templates."""
    for uri, title, read in (
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
