"""MCP resources and completions: what a host can attach or offer while a person types.

`snapshot://{zone}/{snapshot_id}`, `chain://{zone}/{root_id}`, `job://{zone}/{job_id}`, as JSON in the tools' own models.
"""

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ResourceError, ResourceNotFoundError
from mcp.types import Completion, CompletionArgument, CompletionContext, PromptReference, ResourceTemplateReference

from snapshot_mcp.contract.errors import NotFound, UnknownZone, ZoneError
from snapshot_mcp.contract.models import ResourceFilter, SnapshotFilter
from snapshot_mcp.contract.states import GONE_SNAPSHOT_STATUSES, SnapshotType
from snapshot_mcp.contract.text import quoted
from snapshot_mcp.server.face import Face, face_of
from snapshot_mcp.server.looking import MAX_CHAIN_NODES, picture
from snapshot_mcp.server.results import JobRow, SnapshotRow
from snapshot_mcp.zones import Zone
from snapshot_mcp.zones.finding import find_snapshot, read_list

MAX_COMPLETIONS = 100
"""The protocol's own limit."""
JSON = "application/json"


async def read_snapshot(zone: str, snapshot_id: str, ctx: Context) -> str:
    """One restore point in full."""
    with _errors():
        found = await find_snapshot(face_of(ctx).zone(zone).provider, snapshot_id)
    return SnapshotRow.of(found, verbose=True).model_dump_json(exclude_none=True)


async def read_chain(zone: str, root_id: str, ctx: Context) -> str:
    """One chain as a tree of restore points."""
    with _errors():
        place = face_of(ctx).zone(zone)
        query = SnapshotFilter(root_id=root_id, verbose=1)
        snapshots, total = await read_list(place.provider.list_snapshots, query, MAX_CHAIN_NODES)
        if not snapshots:
            raise NotFound(f"There is no chain {quoted(root_id)} in zone {place.name}.")
        gone = SnapshotFilter(root_id=root_id, status=tuple(sorted(GONE_SNAPSHOT_STATUSES)), limit=1)
        gone_count = (await place.provider.list_snapshots(gone)).total_count
    found = picture(place, snapshots[0].resource, snapshots, total_count=total, gone_count=gone_count)
    return found.model_dump_json(exclude_none=True)


async def read_job(zone: str, job_id: str, ctx: Context) -> str:
    """One job as it stands."""
    with _errors():
        place = face_of(ctx).zone(zone)
        job = await place.provider.get_job(job_id)
    return JobRow.of(job, place.name).model_dump_json(exclude_none=True)


def add_resources(server: MCPServer[Face]) -> None:
    """Register the three templates."""
    server.resource("snapshot://{zone}/{snapshot_id}", title="A restore point", mime_type=JSON)(read_snapshot)
    server.resource("chain://{zone}/{root_id}", title="A chain of restore points", mime_type=JSON)(read_chain)
    server.resource("job://{zone}/{job_id}", title="A job", mime_type=JSON)(read_job)


async def complete(face: Face, argument: CompletionArgument, context: CompletionContext | None) -> Completion:
    """Offer values for a prompt's or a template's argument; what cannot be reached offers nothing."""
    given = (context.arguments if context else None) or {}
    try:
        if argument.name == "zone":
            values = [name for name in face.zones.names if name.startswith(argument.value)]
        else:
            values = await _values(face.zone(given.get("zone", "")), argument)
    except ZoneError:
        values = []
    return Completion(values=values[:MAX_COMPLETIONS], total=len(values), has_more=len(values) > MAX_COMPLETIONS)


async def _values(zone: Zone, argument: CompletionArgument) -> list[str]:
    typed = argument.value
    match argument.name:
        case "disk":
            query = ResourceFilter(search_word=typed, limit=MAX_COMPLETIONS)
            volumes, instances = await zone.provider.list_volumes(query), await zone.provider.list_instances(query)
            found = [(one.id, one.name) for one in volumes.items] + [(one.id, one.name) for one in instances.items]
            names = [name for _, name in found]
            return [name if name and name.isprintable() and names.count(name) == 1 else one for one, name in found]
        case "snapshot_id" | "root_id":
            snapshots = SnapshotFilter(
                search_word=typed,
                limit=MAX_COMPLETIONS,
                snapshot_type=SnapshotType.FULL if argument.name == "root_id" else None,
            )
            return [one.snapshot_id for one in (await zone.provider.list_snapshots(snapshots)).items]
        case "job_id":
            jobs = await zone.provider.list_unfinished_jobs()
            return [job.job_id for job in jobs if job.job_id.startswith(typed)]
        case _:
            return []


class _errors:
    """A zone's error as the SDK's resource error."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, NotFound | UnknownZone):
            raise ResourceNotFoundError(str(error)) from error
        if isinstance(error, ZoneError):
            raise ResourceError(str(error)) from error


CompletionReference = PromptReference | ResourceTemplateReference
