"""Disks that are being overwritten: what the catalogue says of them, and the roll-backs that go on after an interruption.

A disk is marked before its first byte changes, with its identity and with the snapshot that holds what it held, and until it
is rolled back; the first mark of a job is the point of no return (CATALOGUE.md, "Roll-back").
"""

from typing import NamedTuple

from snapshot_mcp.catalogue.admission import insert_job
from snapshot_mcp.catalogue.database import Catalogue
from snapshot_mcp.catalogue.lookup import is_half_overwritten
from snapshot_mcp.catalogue.store import Row
from snapshot_mcp.contract.errors import TermsChanged, ZoneError
from snapshot_mcp.contract.states import JobAction


class DiskOverwrite(NamedTuple):
    """One disk that goes back to a snapshot; `safety_id` holds what is overwritten, None where nothing does."""

    resource: Row
    identity: str
    snapshot_id: str
    safety_id: str | None


def mark_begun(catalogue: Catalogue, disk: DiskOverwrite) -> None:
    """Say that the disk is being overwritten, within a transaction of the caller's."""
    catalogue.db.execute(
        """UPDATE resources SET applying_id = ?, applying_identity = ?, applying_safety_id = ?, is_stopped = 0,
        problem = '', status_at = ? WHERE resource_id = ?""",
        (disk.snapshot_id, disk.identity, disk.safety_id, catalogue.now(), disk.resource["resource_id"]),
    )


def mark_applied(catalogue: Catalogue, disk: DiskOverwrite) -> None:
    """Say that the disk is rolled back, within a transaction of the caller's."""
    catalogue.db.execute(
        """UPDATE resources SET applying_id = ?, applying_identity = ?, applying_safety_id = ?, is_stopped = ?,
        problem = ?, head_id = ?, status_at = ? WHERE resource_id = ?""",
        (*_left_half(catalogue, disk), disk.snapshot_id, catalogue.now(), disk.resource["resource_id"]),
    )


def _left_half(catalogue: Catalogue, disk: DiskOverwrite) -> tuple[str | None, str, str | None, int, str]:
    """What stays marked when the disk is rolled back: another one that was half overwritten may come back to its place."""
    before = disk.resource
    if before["applying_id"] is None or catalogue.store.is_same_disk(before["applying_identity"], disk.identity):
        return None, "", None, 0, ""
    return before["applying_id"], before["applying_identity"], before["applying_safety_id"], 1, before["problem"]


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
            if is_half_overwritten(catalogue, resource):
                _enter_again(catalogue, resource)


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
