"""Compare the approved terms with the catalogue and the disk: when a job is admitted, and again before it has an effect.

A job's request carries its terms (`may_go`, `must_stay`, `disks`), and its row the time by which it must start. A roll-back
has started once it holds the disks, a deletion in the transaction that marks the snapshots. Time is the system's uptime,
sleep included, so setting a clock revives no job; after a reboot every such job has expired.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

from snapshot_mcp.catalogue.database import Catalogue
from snapshot_mcp.catalogue.lookup import half_in_place, label_of, refuse_incomplete
from snapshot_mcp.catalogue.store import Row
from snapshot_mcp.contract.errors import Expired, NotUsable, TermsChanged
from snapshot_mcp.contract.states import JobAction, SnapshotStatus
from snapshot_mcp.contract.terms import BEGIN_WITHIN_SECONDS, Terms
from snapshot_mcp.contract.text import clean_text

DESTRUCTIVE: Final = frozenset({JobAction.APPLY, JobAction.DELETE})

NOTHING_CHANGED = "Nothing was changed. Review what would happen now and ask for approval again."

PATIENT_DISKS: Final = 3
"""Waiting for a passing reader blocks every other change to the catalogue, so it is done for a few disks only."""


def deadline(catalogue: Catalogue, terms: Terms | None) -> tuple[str, float]:
    """Return the boot id and the uptime by which a job that is admitted now must start. Raises Expired."""
    seconds = min(terms.begin_within_seconds, BEGIN_WITHIN_SECONDS) if terms else BEGIN_WITHIN_SECONDS
    boot, uptime = _present(catalogue)
    latest = terms.not_after if terms else None
    if latest is None or latest.boot != boot:
        return boot, uptime + seconds
    if uptime > latest.seconds:
        raise Expired("The approval had expired when the request arrived.", hint=NOTHING_CHANGED)
    return boot, min(uptime + seconds, latest.seconds)


def named(terms: Terms | None) -> dict[str, str]:
    """Return what a job's `extra` repeats of the terms, so that the approval can be recognised."""
    return {"agreement": terms.agreement} if terms and terms.agreement else {}


def is_overdue(catalogue: Catalogue, job: Row) -> bool:
    """Return whether the time to start the job has passed; a destructive job of an earlier version, without one, is overdue."""
    if not job["begin_until"]:
        return job["action"] in DESTRUCTIVE and not job["has_effect"]
    boot, uptime = _present(catalogue)
    return bool(boot != job["begin_boot"] or uptime > job["begin_until"])


def _present(catalogue: Catalogue) -> tuple[str, float]:
    """Return the boot id and the uptime; where the system has no boot ids, the wall clock."""
    present = catalogue.clock.read()
    return (present.boot, present.uptime) if present.boot else ("", present.wall)


def expired(job: Row) -> Expired:
    """Return the error of a job that did not start in time."""
    return Expired(
        f"Job {job['job_id']} ({job['action']}) did not start within the approved time, so it was not run.",
        hint=NOTHING_CHANGED,
    )


def refuse_overdue(catalogue: Catalogue, job: Row) -> None:
    """Raise Expired if the time to start the job has passed."""
    if is_overdue(catalogue, job):
        raise expired(job)


def terms_changed(what: str) -> TermsChanged:
    """Return the error of a change that is not the approved one and was not begun."""
    return TermsChanged(what, hint=NOTHING_CHANGED)


def compare_deletion(
    catalogue: Catalogue, resource_id: str, going: Collection[str], request: Mapping[str, Any]
) -> None:
    """Raise TermsChanged if a deletion would take more than was approved."""
    may_go = request.get("may_go")
    if may_go is not None and (more := sorted(set(going) - set(may_go))):
        raise terms_changed(f"The deletion would also remove {_ids(more)}, which the approval does not cover.")
    for field, is_kept, state, last in (
        ("must_stay", is_good, "is still good", "last good one"),
        ("must_exist", _exists, "still exists", "last one"),
    ):
        ids = request.get(field) or ()
        if ids and not any(is_kept(catalogue, one, resource_id, going) for one in ids):
            raise terms_changed(
                f"None of the restore points that were to remain {state} ({_ids(ids)}), so the deletion could remove the"
                f" {last}."
            )


def _exists(catalogue: Catalogue, snapshot_id: str, resource_id: str, without: Collection[str]) -> bool:
    row = catalogue.snapshot(snapshot_id)
    return (
        row is not None
        and (row["resource_id"], row["status"]) == (resource_id, SnapshotStatus.AVAILABLE)
        and snapshot_id not in without
    )


def is_good(catalogue: Catalogue, snapshot_id: str, resource_id: str, without: Collection[str] = ()) -> bool:
    """Return whether a disk can be restored from the snapshot once those in `without` are deleted.

    Good: it and everything that it builds on is available and not known to be damaged, and it is not fuzzy itself.
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
    """Raise TermsChanged if a deletion can be undone for a shorter time than was promised."""
    if terms and terms.recovery_seconds > recovery_seconds:
        raise terms_changed(
            f"Deleted snapshots can now be recovered for {recovery_seconds} s in this zone, but the approval promised"
            f" {terms.recovery_seconds} s."
        )


def probe_disks(catalogue: Catalogue, resources: Mapping[str, Row], *, has_safety: bool) -> dict[str, dict[str, str]]:
    """Return each disk's state (`_disk`) if all can be rolled back now. Raises ResourceBusy, NotUsable."""
    is_patient = len(resources) <= PATIENT_DISKS
    return {one: _probe(catalogue, row, has_safety=has_safety, is_patient=is_patient) for one, row in resources.items()}


def _probe(catalogue: Catalogue, resource: Row, *, has_safety: bool, is_patient: bool) -> dict[str, str]:
    if resource["removed_at"] is not None:
        raise NotUsable(
            f"{label_of(resource)} is no longer registered, so it cannot be rolled back.",
            hint="Export the snapshot instead. If the disk is registered again, it is a new disk without these snapshots.",
        )
    if has_safety:
        refuse_incomplete(catalogue, resource)
    return _disk(resource, catalogue.store.check_overwrite(resource, is_alone=has_safety, is_patient=is_patient))


def outcome_of(catalogue: Catalogue, resource: Row) -> str:
    """Return the outcome of a roll-back that never reaches the disk, which an earlier one may have left incomplete."""
    return "incomplete" if half_in_place(catalogue, resource) else "unchanged"


def compare_disks(
    catalogue: Catalogue, terms: Terms | None, disks: Mapping[str, Mapping[str, str]], resources: Mapping[str, Row]
) -> None:
    """Raise TermsChanged if the disks (`_disk`) are not the ones whose overwriting was approved."""
    if terms is None or terms.resources is None:
        return
    if others := sorted(disks.keys() - terms.resources.keys()):
        raise terms_changed(f"The roll-back would overwrite {_ids(others)}, which the approval does not cover.")
    for resource_id, disk in disks.items():
        agreed = terms.resources[resource_id].model_dump(exclude_none=True)
        _compare_disk(catalogue, {**disk, **agreed}, disk, label_of(resources[resource_id]))


def compare_again(
    catalogue: Catalogue, request: Mapping[str, Any], resource: Row, identity: str, *, is_head_ours: bool = False
) -> None:
    """Raise TermsChanged if the disk, whose identity is now `identity`, is not the one that the job was admitted for.

    `is_head_ours`: the job itself has moved the head since, to its safety snapshot.
    """
    present = _disk(resource, identity)
    agreed = request.get("disks", {}).get(resource["resource_id"], present)
    if is_head_ours:
        agreed = agreed | {"head_id": present["head_id"]}
    _compare_disk(catalogue, agreed, present, label_of(resource))


def _disk(resource: Row, identity: str) -> dict[str, str]:
    """Return what must not change about a disk until it is overwritten."""
    return {"identity": identity, "head_id": resource["head_id"] or ""}


def _compare_disk(catalogue: Catalogue, agreed: Mapping[str, str], present: Mapping[str, str], label: str) -> None:
    describe = catalogue.store.describe
    if agreed["identity"] != present["identity"]:
        raise terms_changed(
            f"The file at the path of {label} is not the approved one: found {describe(present['identity'])}, expected"
            f" {describe(agreed['identity'])}."
        )
    if agreed["head_id"] != present["head_id"]:
        raise terms_changed(
            f"The content of {label} is now based on {present['head_id'] or 'no snapshot'}; the approval was for content"
            f" based on {clean_text(agreed['head_id']) or 'no snapshot'}."
        )


def _ids(ids: Iterable[str]) -> str:
    shown = [clean_text(one) for one in ids]
    return ", ".join(shown[:5]) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")
