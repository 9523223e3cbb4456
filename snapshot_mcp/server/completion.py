"""Completion: values that a host offers while a person types an argument of a prompt or a resource template."""

from mcp.types import Completion, CompletionArgument, CompletionContext, PromptReference, ResourceTemplateReference

from snapshot_mcp.contract.errors import ZoneError
from snapshot_mcp.contract.models import MAX_NAME_CHARACTERS, ResourceFilter, SnapshotFilter
from snapshot_mcp.contract.states import SnapshotType
from snapshot_mcp.server.callers import sees_names_of
from snapshot_mcp.server.state import ServerState
from snapshot_mcp.zones import Zone

MAX_COMPLETIONS = 100
"""The protocol's limit."""


async def complete(
    state: ServerState,
    ref: PromptReference | ResourceTemplateReference,
    argument: CompletionArgument,
    context: CompletionContext | None,
) -> Completion:
    """Return values for an argument; none if the zone cannot be reached."""
    if len(argument.value) > MAX_NAME_CHARACTERS:
        return Completion(values=[], total=0, has_more=False)
    given = (context.arguments if context else None) or {}
    try:
        if argument.name == "zone":
            values = [name for name in state.zones.names if name.startswith(argument.value)]
        elif argument.name == "approval_id":
            approvals = await (await state.guard_to_look()).list_approvals()
            values = [one.id for one in approvals if one.expires_at and sees_names_of(one.call.principal)]
        else:
            values = await _values(state.zones.get(given.get("zone", "")), argument)
    except ZoneError:
        values = []
    return Completion(values=values[:MAX_COMPLETIONS], total=len(values), has_more=len(values) > MAX_COMPLETIONS)


async def _values(zone: Zone, argument: CompletionArgument) -> list[str]:
    typed = argument.value
    match argument.name:
        case "disk":
            query = ResourceFilter(search_word=typed, limit=MAX_COMPLETIONS)
            volumes, instances = await zone.provider.list_volumes(query), await zone.provider.list_instances(query)
            found = [*volumes.items, *instances.items]
            names = [one.name for one in found]
            return [
                one.name if one.name and one.name.isprintable() and names.count(one.name) == 1 else one.id
                for one in found
            ]
        case "resource_id":
            query = ResourceFilter(search_word=typed, limit=MAX_COMPLETIONS)
            volumes, instances = await zone.provider.list_volumes(query), await zone.provider.list_instances(query)
            return [one.id for one in (*volumes.items, *instances.items)]
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
