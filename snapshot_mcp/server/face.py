"""What a tool finds behind its call: the zones, the guard, and what this process remembers of its own creates."""

from dataclasses import dataclass, field
from typing import Any

import anyio
from mcp.server.mcpserver import Context

from snapshot_mcp.guard import Guard
from snapshot_mcp.jobs import Zone, Zones


@dataclass(frozen=True)
class Face:
    """The server's lifespan value; one a process."""

    zones: Zones
    guard: Guard
    create_lock: anyio.Lock = field(default_factory=anyio.Lock)
    """A create looks for its like and starts in one step, or two equal calls at once would both find nothing."""

    def zone(self, name: str) -> Zone:
        return self.zones.get(name)


def face_of(ctx: Context[Any, Any]) -> Face:
    """Return the face of the server that this call came to."""
    face = ctx.request_context.lifespan_context
    assert isinstance(face, Face)
    return face
