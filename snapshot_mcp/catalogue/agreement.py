"""What was agreed to, held against the catalogue and the disk: once when a job is admitted, once before it has an effect.

A job's request carries what its terms said (`may_go`, `must_stay`, `disks`), and its row until when it must have begun. It has
begun once the hold on the disks is taken (a roll-back), or in the transaction that marks the snapshots (a deletion). Time
is the system's uptime, sleep included, so that no clock can bring a job back; another run of the system is too late.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final

from snapshot_mcp.catalogue.database import Catalogue
from snapshot_mcp.catalogue.lookup import is_half_overwritten, label_of, refuse_incomplete
from snapshot_mcp.catalogue.store import Row
from snapshot_mcp.contract.errors import Expired, NotUsable, TermsChanged
from snapshot_mcp.contract.states import JobAction, SnapshotStatus
from snapshot_mcp.contract.terms import BEGIN_WITHIN_SECONDS, Terms
from snapshot_mcp.contract.text import clean_text

DESTRUCTIVE: Final = frozenset({JobAction.APPLY, JobAction.DELETE})

NOTHING_CHANGED = "Nothing was changed. Look at what would happen now, and have it agreed to again."


def deadline(catalogue: Catalogue, terms: Terms | None) -> tuple[str, float]:
    """Return the run of the system and the uptime by which a job that is admitted now must have begun. Raises Expired."""
    seconds = min(terms.begin_within_seconds, BEGIN_WITHIN_SECONDS) if terms else BEGIN_WITHIN_SECONDS
    boot, uptime = _present(catalogue)
    latest = terms.not_after if terms else None
    if latest is None or latest.boot != boot:
        return boot, uptime + seconds
    if uptime > latest.seconds:
        raise Expired("What was agreed to was asked for too late, so it was not begun.", hint=NOTHING_CHANGED)
    return boot, min(uptime + seconds, latest.seconds)


def named(terms: Terms | None) -> dict[str, str]:
    """What of the terms a job's `extra` repeats, so that who agreed knows it again."""
    return {"agreement": terms.agreement} if terms and terms.agreement else {}


def is_overdue(catalogue: Catalogue, job: Row) -> bool:
    """Whether the time within which the job had to begin is over.

    One that destroys and has no such time was entered by a program of an earlier version: nothing says until when it may begin.
    """
    if not job["begin_until"]:
        return job["action"] in DESTRUCTIVE and not job["has_effect"]
    boot, uptime = _present(catalogue)
    return bool(boot != job["begin_boot"] or uptime > job["begin_until"])


def _present(catalogue: Catalogue) -> tuple[str, float]:
    """The run of the system and its uptime; where the system names no runs, the clock."""
    present = catalogue.clock.read()
    return (present.boot, present.uptime) if present.boot else ("", present.wall)


def expired(job: Row) -> Expired:
    """Return the error of a job that did not begin in its time."""
    return Expired(
        f"Job {job['job_id']} ({job['action']}) did not begin within the time that was agreed to, so it was not carried out.",
        hint=NOTHING_CHANGED,
    )


def refuse_overdue(catalogue: Catalogue, job: Row) -> None:
    """Raises Expired."""
    if is_overdue(catalogue, job):
        raise expired(job)


def compare_deletion(
    catalogue: Catalogue, resource_id: str, going: Collection[str], request: Mapping[str, Any]
) -> None:
    """Raise TermsChanged where a deletion would take more than was agreed to."""
    may_go, must_stay = request.get("may_go"), request.get("must_stay") or ()
    if may_go is not None and (more := sorted(set(going) - set(may_go))):
        raise TermsChanged(
            f"The deletion would also take {_ids(more)}, which nobody agreed to.",
            hint=NOTHING_CHANGED,
        )
    if must_stay and not any(is_good(catalogue, one, resource_id, without=going) for one in must_stay):
        raise TermsChanged(
            f"None of the restore points that were to remain is good any more ({_ids(must_stay)}), so the deletion could"
            " take the last good one.",
            hint=NOTHING_CHANGED,
        )
    must_exist = request.get("must_exist") or ()
    if must_exist and not any(_is_there(catalogue, one, resource_id, going) for one in must_exist):
        raise TermsChanged(
            f"None of the restore points that were to remain is there any more ({_ids(must_exist)}), so the deletion could"
            " take the last one.",
            hint=NOTHING_CHANGED,
        )


def _is_there(catalogue: Catalogue, snapshot_id: str, resource_id: str, without: Collection[str]) -> bool:
    row = catalogue.snapshot(snapshot_id)
    return (
        row is not None
        and (row["resource_id"], row["status"]) == (resource_id, SnapshotStatus.AVAILABLE)
        and snapshot_id not in without
    )


def is_good(catalogue: Catalogue, snapshot_id: str, resource_id: str, without: Collection[str] = ()) -> bool:
    """Whether a disk can be restored from the snapshot once those of `without` are gone.

    Good: available, as all that it builds on is, nothing of it known to be damaged, and not itself fuzzy.
    """
    path = catalogue.ancestors(snapshot_id)
    return (
        bool(path)
        and path[0]["resource_id"] == resource_id
        and not path[0]["consistency"].startswith("fuzzy")
        and path[-1]["parent_id"] is None
        and all(row["status"] == SnapshotStatus.AVAILABLE and not row["is_damaged"] for row in path)
        and not {row["snapshot_id"] for row in path} & set(without)
    )


def refuse_shorter_grace(terms: Terms | None, recovery_seconds: int) -> None:
    """Raise TermsChanged where a deletion can be undone for a shorter time than was promised."""
    if terms and terms.recovery_seconds > recovery_seconds:
        raise TermsChanged(
            f"A deletion can be undone for {recovery_seconds} s in this zone now, not for the {terms.recovery_seconds} s"
            " that were promised.",
            hint=NOTHING_CHANGED,
        )


PATIENT_DISKS: Final = 3
"""A passing reader is waited for while nobody else can change the catalogue, so not on many disks."""


def probe_disks(catalogue: Catalogue, resources: Mapping[str, Row], *, has_safety: bool) -> dict[str, dict[str, str]]:
    """Return which disks they are (`_disk`), if all of them can be rolled back now. Raises ResourceBusy, NotUsable."""
    is_patient = len(resources) <= PATIENT_DISKS
    return {one: _probe(catalogue, row, has_safety=has_safety, is_patient=is_patient) for one, row in resources.items()}


def _probe(catalogue: Catalogue, resource: Row, *, has_safety: bool, is_patient: bool) -> dict[str, str]:
    if resource["removed_at"] is not None:
        raise NotUsable(
            f"{label_of(resource)} is not registered any more, so it cannot be rolled back.",
            hint="Export the snapshot instead. Registered again, the disk is a new one with snapshots of its own.",
        )
    if has_safety:
        refuse_incomplete(catalogue, resource)
    return _disk(resource, catalogue.store.check_overwrite(resource, is_alone=has_safety, is_patient=is_patient))


def outcome_of(catalogue: Catalogue, resource: Row) -> str:
    """What a roll-back that never reaches the disk leaves: an earlier one may have been broken off on it."""
    return "incomplete" if is_half_overwritten(catalogue, resource) else "unchanged"


def compare_disks(
    catalogue: Catalogue, terms: Terms | None, disks: Mapping[str, Mapping[str, str]], resources: Mapping[str, Row]
) -> None:
    """Raise TermsChanged where the disks (`_disk`) are not those that it was agreed to overwrite."""
    if terms is None or terms.resources is None:
        return
    if others := sorted(disks.keys() - terms.resources.keys()):
        raise TermsChanged(
            f"The roll-back would overwrite {_ids(others)}, which nobody agreed to.", hint=NOTHING_CHANGED
        )
    for resource_id, disk in disks.items():
        agreed = terms.resources[resource_id].model_dump(exclude_none=True)
        _compare_disk(catalogue, {**disk, **agreed}, disk, label_of(resources[resource_id]))


def compare_again(
    catalogue: Catalogue, request: Mapping[str, Any], resource: Row, identity: str, *, is_head_ours: bool = False
) -> None:
    """Raise TermsChanged where the disk, now of this identity, is not the one that the job was admitted for any more.

    `is_head_ours`: the job itself has moved the head since, to the safety snapshot that it took.
    """
    present = _disk(resource, identity)
    agreed = request.get("disks", {}).get(resource["resource_id"], present)
    if is_head_ours:
        agreed = agreed | {"head_id": present["head_id"]}
    _compare_disk(catalogue, agreed, present, label_of(resource))


def _disk(resource: Row, identity: str) -> dict[str, str]:
    """What of a disk must stay as it is until it is overwritten."""
    return {"identity": identity, "head_id": resource["head_id"] or ""}


def _compare_disk(catalogue: Catalogue, agreed: Mapping[str, str], present: Mapping[str, str], label: str) -> None:
    describe = catalogue.store.describe
    if agreed["identity"] != present["identity"]:
        raise TermsChanged(
            f"The file at the path of {label} is not the one that was agreed to: it is {describe(present['identity'])},"
            f" and {describe(agreed['identity'])} was to be overwritten.",
            hint=NOTHING_CHANGED,
        )
    if agreed["head_id"] != present["head_id"]:
        raise TermsChanged(
            f"The content of {label} grew from {present['head_id'] or 'no snapshot'} now, not from"
            f" {clean_text(agreed['head_id']) or 'no snapshot'}.",
            hint=NOTHING_CHANGED,
        )


def _ids(ids: Iterable[str]) -> str:
    shown: Sequence[str] = [clean_text(one) for one in ids]
    return ", ".join(shown[:5]) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")
