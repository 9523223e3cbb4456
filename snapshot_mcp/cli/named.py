"""Find a disk or an image by its id or its unique name, with hints for a person's shell."""

from typing import TYPE_CHECKING

from snapshot_mcp.contract.errors import NotFound
from snapshot_mcp.contract.models import Image, Instance, Volume
from snapshot_mcp.zones.finding import find_listed, find_resource

if TYPE_CHECKING:
    from snapshot_mcp.app import OwnZone

SIMILAR = "Similar names"


async def find_disk(zone: "OwnZone", text: str, command: str) -> Volume | Instance:
    """Return a registered disk. Raises NotFound, BadRequest if several have the name."""
    try:
        return await find_resource(zone, text)
    except NotFound as error:
        raise _for_a_shell(error, command) from None


async def find_disk_or_image(zone: "OwnZone", text: str, command: str) -> Volume | Instance | Image:
    """Return a registered disk or an image. Raises NotFound, BadRequest if several have the name."""
    try:
        return await find_listed(zone, text)
    except NotFound as error:
        raise _for_a_shell(error, command) from None


def _for_a_shell(error: NotFound, command: str) -> NotFound:
    similar = f"{error.hint} " if error.hint.startswith(SIMILAR) else ""
    return NotFound(error.message, hint=f"{similar}`{command} zone list` shows the ids.")
