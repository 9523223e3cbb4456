"""What of a pool is ours, and how it is called there."""

import re
from typing import Final

PREFIX: Final = "snapshot-mcp."
OBJECT: Final = f"{PREFIX}catalogue"
"""The object with the catalogue."""

PARTIAL: Final = f"{PREFIX}partial"
"""What the name of an unfinished export begins with."""

ID: Final = f"{PREFIX}id"
"""The key of an exported image's metadata with its id in the zone."""

KIND: Final = f"{PREFIX}kind"
"""The key of an image's metadata that says "instance" of the disk of a machine; all others are volumes."""


def is_ours(name: str) -> bool:
    """Return whether an image is one that we are making, and not a disk."""
    return name.startswith(PREFIX)


def snapshot_name(snapshot_id: str) -> str:
    """Return the name of a restore point's RBD snapshot."""
    return f"{PREFIX}{snapshot_id}"


def partial_name(new_id: str) -> str:
    """Return the name of an image that is being exported."""
    return f"{PARTIAL}.{new_id}"


def names_for(text: str, new_id: str) -> tuple[str, ...]:
    """Return the names that an exported image may have for one that a person gave, the best one first."""
    name = re.sub(r"[^\w.+ -]+", "-", text).strip(" -.")[:80]
    return (new_id,) if not name or is_ours(name) else (name, f"{name}-{new_id}", new_id)
