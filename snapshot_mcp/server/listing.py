"""What `resources/list` shows: zones, disks, chains and open approvals, which hosts offer in their menus.

A zone that cannot be reached is named and takes nothing else away. Who sees which approval is as in `list_jobs`.
"""

import re
from typing import Any

import anyio
from mcp.server.apps import client_supports_apps
from mcp.server.mcpserver import MCPServer
from mcp.types import ListResourcesResult, PaginatedRequestParams
from mcp.types import Resource as Listed

from snapshot_mcp.contract.errors import ZoneError
from snapshot_mcp.contract.models import ResourceFilter, SnapshotFilter
from snapshot_mcp.contract.states import SnapshotType
from snapshot_mcp.contract.text import clean_text, format_bytes, quoted
from snapshot_mcp.contract.tree import taken_at
from snapshot_mcp.server.callers import sees_names_of
from snapshot_mcp.server.state import ServerState
from snapshot_mcp.zones import Zone

ASK_SECONDS = 5.0
"""How long a zone may take before the list comes without it."""

MAX_DISKS = 100
MAX_CHAINS = 50
"""Most disks and chains of a zone, the newest; all can be read by their URI."""

PLAIN_ID = re.compile(r"[A-Za-z0-9._~-]{1,100}")
"""Ids that can stand in a URI as they are; what a provider calls otherwise is not listed."""


def add_listing(server: MCPServer[Any], state: ServerState) -> None:
    """Let the server list what is there, instead of the nothing that the SDK lists beside templates."""

    async def answer(ctx: Any, params: PaginatedRequestParams | None) -> ListResourcesResult:
        found: dict[str, list[Listed]] = {name: [] for name in state.zones.names}

        async def look(name: str) -> None:
            found[name] = await _zone(state, name)

        async with anyio.create_task_group() as tasks:
            for name in state.zones.names:
                tasks.start_soon(look, name)
        listed = [one for name in state.zones.names for one in found[name]]
        has_pages = client_supports_apps(ctx)
        fixed = [one for one in await server.list_resources() if has_pages or not str(one.uri).startswith("ui://")]
        return ListResourcesResult(resources=[*await _approvals(state), *listed, *fixed])

    server._lowlevel_server.add_request_handler("resources/list", PaginatedRequestParams, answer)


async def _zone(state: ServerState, name: str) -> list[Listed]:
    problem = "It did not answer in time."
    try:
        with anyio.move_on_after(ASK_SECONDS):
            zone = state.zones.get(name)
            disks, chains = await _disks(zone), await _chains(zone)
            what = "Its disks, and what protects each."
            if len(disks) >= MAX_DISKS:
                what += " Here the newest stand; the tool list_resources lists all."
            return [_listed(f"zone://{name}", f"Zone {name}", what), *disks, *chains]
    except ZoneError as error:
        problem = clean_text(error.message, 200)
    return [_listed(f"zone://{name}", f"Zone {name}", f"It cannot be read now: {problem}")]


async def _disks(zone: Zone) -> list[Listed]:
    query = ResourceFilter(limit=MAX_DISKS)
    found = [
        *(await zone.provider.list_volumes(query)).items,
        *(await zone.provider.list_instances(query)).items,
    ]
    return [
        _listed(
            f"disk://{zone.name}/{one.id}", quoted(one.name), f"{one.kind}, {format_bytes(one.byte_size)}, {one.id}"
        )
        for one in found
        if PLAIN_ID.fullmatch(one.id)
    ]


async def _chains(zone: Zone) -> list[Listed]:
    query = SnapshotFilter(snapshot_type=SnapshotType.FULL, limit=MAX_CHAINS)
    roots = (await zone.provider.list_snapshots(query)).items
    return [
        _listed(
            f"chain://{zone.name}/{one.snapshot_id}",
            f"Restore points of {quoted(one.resource.resource_name)}",
            f"The chain that began {moment:%Y-%m-%d %H:%M} UTC." if (moment := taken_at(one)) else "A chain.",
        )
        for one in roots
        if PLAIN_ID.fullmatch(one.snapshot_id)
    ]


async def _approvals(state: ServerState) -> list[Listed]:
    try:
        approvals = await (await state.guard_to_look()).list_approvals()
    except ZoneError:
        return []
    return [
        _listed(
            f"approval://{one.id}", f"Approval {one.state_in_words}: {clean_text(one.title, 120)}", "A person decides."
        )
        for one in approvals
        if one.expires_at and sees_names_of(one.call.principal)
    ]


def _listed(uri: str, title: str, description: str) -> Listed:
    return Listed(uri=uri, name=uri, title=title, description=description, mime_type="application/json")
