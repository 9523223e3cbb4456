"""Disks that are being overwritten: what the catalogue says of them, and the roll-backs that go on after an interruption.

A disk is marked before its first byte changes, with its identity and with the snapshot that holds what it held, and until it
is rolled back; the first mark of a job is the point of no return (CATALOGUE.md, "Roll-back").
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
    """One disk that goes back to a snapshot; `safety_id` holds what is overwritten, None where nothing does."""

    resource: Row
    identity: str
    snapshot_id: str
    safety_id: str | None


_WHOLE: Final = (None, "", None, "")
"""What is said of a resource without a half overwritten disk (`Half`)."""


def mark(catalogue: Catalogue, disk: DiskOverwrite, *, is_over: bool) -> None:
    """Mark the disk as half overwritten, or as whole; others that are half overwritten stay so and wait for a person.

    Within a transaction of the caller's.
    """
    is_same_disk = catalogue.store.is_same_disk
    others = [one for one in halves(disk.resource) if not is_same_disk(one.identity, disk.identity)]
    first = others.pop(0) if is_over and others else None
    half = first or (_WHOLE if is_over else Half(disk.snapshot_id, disk.identity, disk.safety_id, ""))
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


def hold_up(catalogue: Catalogue, resource: Row, error: ZoneError) -> None:
    """Keep with a half overwritten disk what stopped it, and whether it waits for a person."""
    with catalogue.transaction() as db:
        db.execute(
            "UPDATE resources SET problem = ?, is_stopped = ? WHERE resource_id = ? AND applying_id IS NOT NULL",
            (error.message, isinstance(error, TermsChanged), resource["resource_id"]),
        )


def resume(catalogue: Catalogue) -> None:
    """Enter roll-backs whose job failed midway again, each as a job.

    Not those that wait for a person, nor those whose disk is not in its place (it may come back).
    """
    with catalogue.transaction():
        incomplete = catalogue.rows(
            """SELECT * FROM resources WHERE applying_id IS NOT NULL AND removed_at IS NULL AND NOT is_stopped
            AND resource_id NOT IN (SELECT id FROM claims WHERE kind = 'resource')"""
        )
        for resource in incomplete:
            if is_last_in_place(catalogue, resource):
                _enter_again(catalogue, resource)


def is_last_in_place(catalogue: Catalogue, resource: Row) -> bool:
    """Whether the disk that is there is the one that was written to last, of those that are half overwritten."""
    return half_in_place(catalogue, resource) in halves(resource)[:1]


def _enter_again(catalogue: Catalogue, resource: Row) -> None:
    """Enter a roll-back that was interrupted once more."""
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
