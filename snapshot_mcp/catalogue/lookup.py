"""Find the rows that a request names, or refuse it (CONTRACT.md, "Busy", "Usable", "Names")."""

import json
from collections.abc import Collection, Sequence
from typing import NamedTuple

from snapshot_mcp.catalogue.database import Catalogue
from snapshot_mcp.catalogue.store import Row
from snapshot_mcp.contract.errors import BadRequest, NotFound, NotUsable, ResourceBusy
from snapshot_mcp.contract.models import MAX_IDS, MAX_NAME_CHARACTERS, first_repeated
from snapshot_mcp.contract.states import JobAction, SnapshotStatus
from snapshot_mcp.contract.text import MESSAGE_CHARACTERS, clean_text, quoted


def label_of(resource: Row) -> str:
    """Return how messages name a resource."""
    return f"{resource['resource_type']} {quoted(resource['name'])} ({resource['resource_id']})"


def check_ids(field: str, ids: Sequence[str]) -> None:
    """Raise BadRequest for no ids, too many, or a duplicate."""
    if not ids:
        raise BadRequest(f"{field!r} is empty.", hint="Give at least one id.")
    if len(ids) > MAX_IDS:
        raise BadRequest(f"{field!r} lists {len(ids)} ids.", hint=f"Give at most {MAX_IDS} ids per request.")
    if repeated := first_repeated(ids):
        raise BadRequest(f"{clean_text(repeated)!r} is listed twice in {field!r}.", hint="List each id once.")


def checked_name(name: str) -> str:
    """Return the name. Raises BadRequest if it is too long, UnicodeEncodeError (which the zone translates) if it is not text."""
    if len(name) > MAX_NAME_CHARACTERS:
        raise BadRequest(
            f"The name {clean_text(name)!r} has {len(name)} characters.",
            hint=f"Use at most {MAX_NAME_CHARACTERS} characters.",
        )
    name.encode()
    return name


def find_resource(catalogue: Catalogue, resource_id: str) -> Row:
    """Return a registered disk. Raises NotFound."""
    resource = catalogue.resource(resource_id)
    if resource is None or resource["removed_at"] is not None:
        raise NotFound(
            f"There is no volume or instance {clean_text(resource_id)!r}.",
            hint="List the resources to see the existing ids.",
        )
    return resource


def find_snapshot(catalogue: Catalogue, snapshot_id: str) -> Row:
    """Return a snapshot, whatever its status. Raises NotFound."""
    snapshot = catalogue.snapshot(snapshot_id)
    if snapshot is None:
        raise NotFound(
            f"There is no snapshot {clean_text(snapshot_id)!r}.", hint="List the snapshots to see the existing ids."
        )
    return snapshot


def find_job(catalogue: Catalogue, job_id: str) -> Row:
    """Return a job. Raises NotFound."""
    job = catalogue.job(job_id)
    if job is None:
        raise unknown_job(job_id)
    return job


def unknown_job(job_id: str) -> NotFound:
    """Return the error for an id that no job has."""
    return NotFound(f"There is no job {clean_text(job_id)!r}.", hint="List the unfinished jobs.")


def owner_of(catalogue: Catalogue, snapshot: Row) -> Row:
    """Return the disk of a snapshot, even if it was unregistered."""
    resource = catalogue.resource(snapshot["resource_id"])
    assert resource is not None, "a foreign key"
    return resource


def find_usable(catalogue: Catalogue, snapshot_id: str) -> Row:
    """Return an available snapshot. Raises NotFound, NotUsable."""
    snapshot = find_snapshot(catalogue, snapshot_id)
    if snapshot["status"] != SnapshotStatus.AVAILABLE:
        raise not_usable(snapshot, "used")
    return snapshot


def not_usable(snapshot: Row, verb: str) -> NotUsable:
    """Return the error for a snapshot whose status forbids the operation; `verb` says what it cannot be ("deleted")."""
    hint = {
        SnapshotStatus.DELETED: "Recover it first." if verb != "deleted" else "It is already deleted.",
        SnapshotStatus.CEASED: "Its data is gone. List the snapshots to see which ones exist.",
        SnapshotStatus.PENDING: "Wait until the job that creates it has finished.",
        SnapshotStatus.AVAILABLE: "It is already available, so nothing needs to be done.",
    }.get(snapshot["status"], "")
    return NotUsable(f"Snapshot {snapshot['snapshot_id']} is {snapshot['status']}, so it cannot be {verb}.", hint=hint)


class Half(NamedTuple):
    """A disk on which a roll-back was interrupted: its target, and the safety snapshot of its former content."""

    applying_id: str
    identity: str
    safety_id: str | None
    problem: str


def halves(resource: Row) -> list[Half]:
    """Return the half overwritten disks of a resource, wherever they are now; the one written to last comes first."""
    last = Half(*(resource[name] for name in ("applying_id", "applying_identity", "applying_safety_id", "problem")))
    others = [Half(*one) for one in json.loads(resource["other_halves"])]
    return others if resource["applying_id"] is None else [last, *others]


def half_in_place(catalogue: Catalogue, resource: Row) -> Half | None:
    """Return the half overwritten disk that is now at the resource's place, None if a complete one is there."""
    found = halves(resource)
    present = catalogue.store.identity_of(resource) if found else ""
    return next((one for one in found if catalogue.store.is_same_disk(one.identity, present)), None)


def prospect_of(resource: Row, half: Half) -> str:
    """Return how the half overwritten disk that is now in place becomes consistent again."""
    again = "oll back again, to the same or another snapshot, without a safety snapshot."
    if half in halves(resource)[:1] and not resource["is_stopped"]:
        first = "Remove the cause; the" if half.problem else "The"
        return f"{first} roll-back is resumed when the zone's worker next starts. Or r{again}"
    return f"The roll-back waits for a person and is not resumed. R{again}"


def refuse_incomplete(catalogue: Catalogue, resource: Row) -> None:
    """Raise NotUsable for a disk on which a roll-back was interrupted."""
    if half := half_in_place(catalogue, resource):
        raise NotUsable(
            f"A roll-back of {label_of(resource)} to {half.applying_id} is unfinished"
            + (f" ({clean_text(half.problem, MESSAGE_CHARACTERS)})" if half.problem else "")
            + ", so the disk holds old and new content mixed.",
            hint=prospect_of(resource, half),
        )


def refuse_needed(catalogue: Catalogue, snapshot_ids: Collection[str]) -> None:
    """Raise NotUsable for the target of an interrupted roll-back and for the snapshot of the disk's former content."""
    for resource in catalogue.rows("SELECT * FROM resources WHERE applying_id IS NOT NULL AND removed_at IS NULL"):
        kept = {one for half in halves(resource) for one in (half.applying_id, half.safety_id or "")}
        if needed := kept & set(snapshot_ids):
            raise NotUsable(
                f"Snapshot {sorted(needed)[0]} is needed: a roll-back of {label_of(resource)} was interrupted, and this"
                " snapshot is its target or holds the disk's former content.",
                hint="Make the disk consistent first: let the roll-back finish, or roll back again.",
            )


def refuse_busy(catalogue: Catalogue, resources: Sequence[Row]) -> None:
    """Raise ResourceBusy for a disk that a job holds."""
    for resource in resources:
        holder = catalogue.row("SELECT job_id FROM claims WHERE kind = 'resource' AND id = ?", resource["resource_id"])
        if holder:
            raise busy(catalogue, label_of(resource), holder["job_id"])


def refuse_going(catalogue: Catalogue, snapshot: Row) -> None:
    """Raise ResourceBusy for a snapshot that a job is about to delete: its file may be removed before it is read."""
    deletion = catalogue.row(
        "SELECT jobs.* FROM claims JOIN jobs USING (job_id) WHERE kind = 'resource' AND id = ? AND action = ?",
        snapshot["resource_id"],
        JobAction.DELETE,
    )
    if deletion and snapshot["snapshot_id"] in json.loads(deletion["resource_ids"]):
        raise busy(catalogue, f"Snapshot {snapshot['snapshot_id']}", deletion["job_id"])


def busy(catalogue: Catalogue, what: str, job_id: str) -> ResourceBusy:
    """Return the error for something that a job holds."""
    job = catalogue.job(job_id)
    action = job["action"] if job else "a job"
    return ResourceBusy(
        f"{what} is busy with job {job_id} ({action}).",
        hint=f"Wait for job {job_id} to finish, then try again.",
        job_id=job_id,
    )
