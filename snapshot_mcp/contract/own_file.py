"""`OwnFile`: a file that a zone itself made by an export, and what is lost if it is deleted."""

from dataclasses import dataclass, field
from datetime import datetime


@dataclass(frozen=True, slots=True)
class OwnFile:
    """An exported volume or image; two are equal if deleting them has the same effect.

    `made_from` is the snapshot that it was exported from, and `is_restorable` says whether that is still good and the file has
    not been written to since. `identity` says which file it is, opaque to all but the zone.
    """

    item_id: str
    name: str
    path: str
    size_bytes: int
    made_at: datetime
    written_at: datetime
    made_from: str
    is_restorable: bool
    hard_links: int
    identity: str
    frees_bytes: int = field(compare=False)
