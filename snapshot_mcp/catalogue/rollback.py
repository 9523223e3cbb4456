"""Mark disks that are being overwritten, and enqueue interrupted roll-backs again (CATALOGUE.md, "Roll-back").

A disk is marked, with its identity and the snapshot of its former content, from before its first byte changes until it is
rolled back. The first mark of a job is the point of no return.
"""

import json
from typing import Final, NamedTuple

from snapshot_mcp.catalogue.admission import insert_job
from snapshot_mcp.catalogue.database import Catalogue
from snapshot_mcp.catalogue.lookup import Half, half_in_place, halves
from snapshot_mcp.catalogue.store import Row
from snapshot_mcp.contract.errors import TermsChanged, ZoneError
from snapshot_mcp.contract.states import JobAction


class DiskOverwrite(NamedTuple):
    """One disk that is rolled back to a snapshot; `safety_id` is the snapshot of its former content, None for none."""

    resource: Row
    identity: str
    snapshot_id: str
    safety_id: str | None


_COMPLETE: Final = (None, "", None, "")
"""The fields of `Half` for a resource without a half overwritten disk."""


def mark(catalogue: Catalogue, disk: DiskOverwrite, *, is_over: bool) -> None:
    """Mark the disk as half overwritten or as complete, within the caller's transaction.

    Other half overwritten disks of the resource stay marked and wait for a person.
    """
    is_same_disk = catalogue.store.is_same_disk
    others = [one for one in halves(disk.resource) if not is_same_disk(one.identity, disk.identity)]
    first = others.pop(0) if is_over and others else None
    half = first or (_COMPLETE if is_over else Half(disk.snapshot_id, disk.identity, disk.safety_id, ""))
    catalogue.db.execute(
        """UPDATE resources SET applying_id = ?, applying_identity = ?, applying_safety_id = ?, problem = ?, is_stopped = ?,
        other_halves = ?, head_id = iif(?, ?, head_id), status_at = ? WHERE resource_id = ?""",
        (
            *half,
            first is not None,
            json.dumps(others),
            is_over,
            disk.snapshot_id,
            catalogue.now(),
            disk.resource["resource_id"],
        ),
    )


def record_problem(catalogue: Catalogue, resource: Row, error: ZoneError) -> None:
    """Record what stopped a roll-back with its half overwritten disk, and whether that needs a person."""
    with catalogue.transaction() as db:
        db.execute(
            "UPDATE resources SET problem = ?, is_stopped = ? WHERE resource_id = ? AND applying_id IS NOT NULL",
            (error.message, isinstance(error, TermsChanged), resource["resource_id"]),
        )


def resume(catalogue: Catalogue) -> None:
    """Enqueue interrupted roll-backs again, except those that need a person or whose disk is not in its place."""
    with catalogue.transaction():
        incomplete = catalogue.rows(
            """SELECT * FROM resources WHERE applying_id IS NOT NULL AND removed_at IS NULL AND NOT is_stopped
            AND resource_id NOT IN (SELECT id FROM claims WHERE kind = 'resource')"""
        )
        for resource in incomplete:
            if not is_last_in_place(catalogue, resource):
                continue
            resource_id = resource["resource_id"]
            insert_job(
                catalogue,
                JobAction.APPLY,
                {"targets": {resource_id: resource["applying_id"]}},
                [resource_id],
                resource_claims=[resource_id],
                has_effect=True,
                extra={"resources": {resource_id: "incomplete"}, "resumed": True},
            )


def is_last_in_place(catalogue: Catalogue, resource: Row) -> bool:
    """Return whether the disk in place is the half overwritten one that was written to last."""
    return half_in_place(catalogue, resource) in halves(resource)[:1]
