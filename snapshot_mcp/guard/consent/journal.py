"""Records acts that need no approval: renames, registrations, moves, removals, purges.

Each is recorded before the zone is asked, and again when it has ended. Renames are remembered for a day, because a name can be
changed right before a person is asked about the snapshot. Blocking; call it in a worker thread.
"""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from snapshot_mcp.contract.errors import ZoneError
from snapshot_mcp.contract.models import MAX_NAME_CHARACTERS, Snapshot, SnapshotUpdate
from snapshot_mcp.contract.text import MESSAGE_CHARACTERS, clean_text
from snapshot_mcp.guard.consent.approval import moment_from_text, moment_to_text
from snapshot_mcp.guard.consent.client import Client
from snapshot_mcp.guard.consent.register import Register, Rows, new_id
from snapshot_mcp.guard.consent.states import Door

RENAME = "rename"
RECENT_SECONDS = 24 * 3600.0
"""How long a snapshot's former name is shown in the question to a person."""


@dataclass(frozen=True, slots=True)
class Deed:
    """What is done, where, and by whom. `arguments` are cleaned; a rename has `old_name` and `name`, or `old_tags` and `tags`."""

    operation: str
    zone: str
    location: str
    by: str
    door: str
    arguments: dict[str, Any] = field(default_factory=dict)
    client: str = ""

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of its record; the one who does it is also the one who asked."""
        about = {"operation": self.operation, "arguments": self.arguments, "zone": self.zone, "location": self.location}
        return about | {"principal": self.by, "client": self.client, "door": self.door, "by": self.by}


def rename_deed(zone: str, location: str, snapshot: Snapshot, update: SnapshotUpdate, client: Client) -> Deed | None:
    """Describe what `rename_snapshot` is about to do to the name and the tags, None for nothing."""
    texts: dict[str, str] = {}
    if update.snapshot_name and update.snapshot_name != snapshot.snapshot_name:
        texts |= {"old_name": snapshot.snapshot_name, "name": update.snapshot_name}
    if update.tags is not None and update.tags != snapshot.tags:
        texts |= {"old_tags": ", ".join(snapshot.tags), "tags": ", ".join(update.tags)}
    if not texts:
        return None
    return Deed(
        operation=RENAME,
        zone=zone,
        location=location,
        by=client.principal,
        door=Door.CLIENT,
        arguments={"snapshot_id": snapshot.snapshot_id}
        | {key: clean_text(value, MAX_NAME_CHARACTERS) for key, value in texts.items()},
        client=clean_text(f"{client.name} {client.version}".strip()),
    )


class Journal:
    """The journal; each method is one transaction."""

    def __init__(self, register: Register) -> None:
        self._register = register

    def begin(self, deed: Deed) -> str:
        """Record the start of an act; return its id."""
        act = new_id(8, "act-")
        with self._register.transaction() as rows:
            rows.append(deed.operation, **deed.fields, act=act)
            if deed.operation == RENAME and "name" in deed.arguments:
                _remember(rows, act, deed)
        return act

    def end(self, act: str, deed: Deed, error: BaseException | None = None, **found: Any) -> None:
        """Record how it ended: successful with what was found, failed for certain, or unknown."""
        is_refused = isinstance(error, ZoneError) and error.is_definite
        status = "successful" if error is None else "failed" if is_refused else "unknown"
        said = {"status": status, **found}
        if isinstance(error, ZoneError):
            said |= {"code": error.code, "reason": clean_text(error.message, MESSAGE_CHARACTERS)}
        elif error is not None:
            said |= {"reason": "it was interrupted"}
        with self._register.transaction() as rows:
            rows.append("ended", **deed.fields, act=act, **said)
            if is_refused:
                rows.execute("DELETE FROM renames WHERE act = ?", (act,))

    def note(self, event: str, deed: Deed, **fields: Any) -> None:
        """Record an act that was not started."""
        with self._register.transaction() as rows:
            rows.append(event, **deed.fields, **fields)


def recent_renames(rows: Rows, location: str) -> dict[str, tuple[str, datetime]]:
    """Return by snapshot id the oldest name of the last day and when it was changed, unless it is the name again."""
    first: dict[str, tuple[str, datetime]] = {}
    last: dict[str, str] = {}
    for row in rows.execute("SELECT * FROM renames WHERE location = ? ORDER BY rowid", (location,)):
        at = moment_from_text(row["at"])
        if at.is_within(rows.now, RECENT_SECONDS):
            first.setdefault(row["snapshot_id"], (row["old_name"], at.time))
            last[row["snapshot_id"]] = row["new_name"]
    return {snapshot_id: one for snapshot_id, one in first.items() if one[0] != last[snapshot_id]}


def _remember(rows: Rows, act: str, deed: Deed) -> None:
    rows.execute("DELETE FROM renames WHERE json_extract(at, '$[0]') < ?", (rows.now.wall - 2 * RECENT_SECONDS,))
    names = deed.arguments
    rows.execute(
        "INSERT INTO renames (act, location, snapshot_id, old_name, new_name, at) VALUES (?, ?, ?, ?, ?, ?)",
        (act, deed.location, names["snapshot_id"], names["old_name"], names["name"], moment_to_text(rows.now)),
    )
