"""What a request names: the rows behind its ids, or the refusal in words (contract.md, "Busy", "Usable", "Names")."""

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from snapshot_mcp.contract.errors import BadRequest, NotFound, NotUsable, ResourceBusy
from snapshot_mcp.contract.models import MAX_NAME_CHARACTERS, first_repeated
from snapshot_mcp.contract.states import JobAction, SnapshotStatus
from snapshot_mcp.contract.text import clean_text, quoted
from snapshot_mcp.providers.local.catalogue import Catalogue, Row
from snapshot_mcp.providers.local.identity import Identity, identity_at

MAX_RESOURCES: Final = 100
"""As many ids as one request may name."""


def label_of(resource: Row) -> str:
    """How a message names a resource."""
    return f"{resource['resource_type']} {quoted(resource['name'])} ({resource['resource_id']})"


def check_ids(field: str, ids: Sequence[str]) -> None:
    if not ids:
        raise BadRequest(f"{field!r} is empty.", hint="Name at least one id.")
    if len(ids) > MAX_RESOURCES:
        raise BadRequest(f"{field!r} names {len(ids)} ids.", hint=f"Name at most {MAX_RESOURCES} at once.")
    if repeated := first_repeated(ids):
        raise BadRequest(f"{clean_text(repeated)!r} stands twice in {field!r}.", hint="Name each id once.")


def checked_name(name: str) -> str:
    if len(name) > MAX_NAME_CHARACTERS:
        raise BadRequest(
            f"The name {clean_text(name)!r} has {len(name)} characters.", hint=f"Use at most {MAX_NAME_CHARACTERS}."
        )
    try:
        name.encode()
    except UnicodeEncodeError:
        raise BadRequest(f"The name {clean_text(name)!r} is no valid Unicode text.", hint="Use another name.") from None
    return name


def find_resource(catalogue: Catalogue, resource_id: str) -> Row:
    resource = catalogue.resource(resource_id)
    if resource is None or resource["removed_at"] is not None:
        raise NotFound(
            f"There is no volume or instance {clean_text(resource_id)!r}.",
            hint="List the resources to see which ids there are.",
        )
    return resource


def find_snapshot(catalogue: Catalogue, snapshot_id: str) -> Row:
    snapshot = catalogue.snapshot(snapshot_id)
    if snapshot is None:
        raise NotFound(
            f"There is no snapshot {clean_text(snapshot_id)!r}.", hint="List the snapshots to see which ids there are."
        )
    return snapshot


def owner_of(catalogue: Catalogue, snapshot: Row) -> Row:
    resource = catalogue.resource(snapshot["resource_id"])
    assert resource is not None, "a foreign key"
    return resource


def find_usable(catalogue: Catalogue, snapshot_id: str) -> Row:
    snapshot = find_snapshot(catalogue, snapshot_id)
    if snapshot["status"] != SnapshotStatus.AVAILABLE:
        raise not_usable(snapshot, "used")
    return snapshot


def not_usable(snapshot: Row, verb: str) -> NotUsable:
    hint = {
        SnapshotStatus.DELETED: "Recover it first." if verb != "deleted" else "It is gone already.",
        SnapshotStatus.CEASED: "It is gone for good; list the snapshots to see which there are.",
        SnapshotStatus.PENDING: "Wait until the job that makes it is over.",
        SnapshotStatus.AVAILABLE: "It is there; nothing needs to be done.",
    }.get(snapshot["status"], "")
    return NotUsable(f"Snapshot {snapshot['snapshot_id']} is {snapshot['status']}, so it cannot be {verb}.", hint=hint)


class Half(NamedTuple):
    """A file that a roll-back was broken off on: what it was to become, and the snapshot that holds what it was."""

    applying_id: str
    identity: str
    safety_id: str | None
    problem: str

    def is_file(self, identity: Identity | None) -> bool:
        """Whether this is the half overwritten one; no other can be told from one that an earlier version left."""
        begun = Identity.parse(self.identity)
        return begun is None or (identity is not None and identity.is_same_file(begun))


def halves(resource: Row) -> list[Half]:
    """The half overwritten files of a disk, wherever they lie now; first the one that was written to last."""
    last = Half(*(resource[name] for name in ("applying_id", "applying_identity", "applying_safety_id", "problem")))
    others = [Half(*one) for one in json.loads(resource["other_halves"])]
    return others if resource["applying_id"] is None else [last, *others]


def half_at_path(resource: Row) -> Half | None:
    """The half overwritten file at the disk's path; any other that lies there is as whole as it was when it came."""
    found = halves(resource)
    present = identity_at(Path(resource["path"])) if found else None
    return next((one for one in found if one.is_file(present)), None)


def is_half_overwritten(resource: Row) -> bool:
    """Whether the file at the disk's path is one that a roll-back was broken off on."""
    return half_at_path(resource) is not None


def refuse_incomplete(resource: Row) -> None:
    if half := half_at_path(resource):
        raise NotUsable(
            f"A roll-back of {label_of(resource)} to {half.applying_id} has begun and is not over"
            + (f" ({clean_text(half.problem, 400)})" if half.problem else "")
            + ", so the disk is neither the old one nor the new one.",
            hint="Remove what stops it; it is resumed at the next start. Or roll back again, to the same or another snapshot,"
            " without a safety snapshot.",
        )


def refuse_needed(catalogue: Catalogue, snapshot_ids: Collection[str]) -> None:
    """Raise NotUsable for what a half overwritten disk needs: what it goes back to, and what holds its former content."""
    for resource in catalogue.rows("SELECT * FROM resources WHERE applying_id IS NOT NULL AND removed_at IS NULL"):
        kept = {one for half in halves(resource) for one in (half.applying_id, half.safety_id or "")}
        if needed := kept & set(snapshot_ids):
            raise NotUsable(
                f"Snapshot {sorted(needed)[0]} is needed: a roll-back of {label_of(resource)} was interrupted, and it holds"
                " what the disk goes back to or what it held before.",
                hint="Bring the disk into one state first: let the roll-back end, or roll back again.",
            )


def refuse_busy(catalogue: Catalogue, resources: Sequence[Row]) -> None:
    for resource in resources:
        holder = catalogue.row("SELECT job_id FROM claims WHERE kind = 'resource' AND id = ?", resource["resource_id"])
        if holder:
            raise busy(catalogue, label_of(resource), holder["job_id"])


def refuse_going(catalogue: Catalogue, snapshot: Row) -> None:
    """Raise ResourceBusy for a snapshot that a job is about to delete: its file may be gone before it is read."""
    deletion = catalogue.row(
        "SELECT jobs.* FROM claims JOIN jobs USING (job_id) WHERE kind = 'resource' AND id = ? AND action = ?",
        snapshot["resource_id"],
        JobAction.DELETE,
    )
    if deletion and snapshot["snapshot_id"] in json.loads(deletion["resource_ids"]):
        raise busy(catalogue, f"Snapshot {snapshot['snapshot_id']}", deletion["job_id"])


def busy(catalogue: Catalogue, what: str, job_id: str) -> ResourceBusy:
    job = catalogue.job(job_id)
    action = job["action"] if job else "a job"
    return ResourceBusy(
        f"{what} is busy with job {job_id} ({action}).", hint=f"Wait for job {job_id}, then try again.", job_id=job_id
    )
