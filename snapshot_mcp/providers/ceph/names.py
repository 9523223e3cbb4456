"""What of a pool is ours, and how it is called there."""

import re
from typing import Final

PREFIX: Final = "snapshot-mcp."
OBJECT: Final = f"{PREFIX}catalogue"
"""The object with the catalogue."""

PARTIAL: Final = f"{PREFIX}partial"
"""What the name of an unfinished export begins with."""

ID: Final = f"{PREFIX}id"
"""The key of an exported image's metadata with its id in the zone and, since metadata is copied along, the image that has it."""

KIND: Final = f"{PREFIX}kind"
"""The key of an image's metadata that says "instance" of the disk of a machine; all others are volumes."""


def is_ours(name: str) -> bool:
    """Return whether an image is one that we are making, and not a disk."""
    return name.startswith(PREFIX)


def id_text(new_id: str, image_id: str) -> str:
    """Return what is written to an exported image under `ID`."""
    return f"{new_id} {image_id}"


def id_in(written: str, image_id: str) -> str:
    """Return the id that is written to an image, "" if it has none or another image's, whose copy it is."""
    new_id, _, owner = written.partition(" ")
    return new_id if owner == image_id and re.fullmatch(r"(vol|img)-\w+", new_id, re.ASCII) else ""


def snapshot_name(snapshot_id: str) -> str:
    """Return the name of a restore point's RBD snapshot."""
    return f"{PREFIX}{snapshot_id}"


def label_key(snapshot_id: str) -> str:
    """Return the key of an image's metadata with the name that a person gave a restore point."""
    return f"{snapshot_name(snapshot_id)}.name"


def partial_name(new_id: str) -> str:
    """Return the name of an image that is being exported."""
    return f"{PARTIAL}.{new_id}"


def names_for(text: str, new_id: str) -> tuple[str, ...]:
    """Return the names that an exported image may have for one that a person gave, the best one first."""
    name = re.sub(r"[^\w.+ -]+", "-", text).strip(" -.")[:80]
    return (new_id,) if not name or is_ours(name) else (name, f"{name}-{new_id}", new_id)
