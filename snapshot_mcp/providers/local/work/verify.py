"""Read snapshots, and all that they build on, back whole; record what is damaged and what is sound."""

import json
from typing import Any

from snapshot_mcp.catalogue.outcome import succeed
from snapshot_mcp.catalogue.progress import JobProgress
from snapshot_mcp.catalogue.report import Finding
from snapshot_mcp.catalogue.store import Row
from snapshot_mcp.contract.errors import Damaged, Unsupported
from snapshot_mcp.providers.local.check import Verification
from snapshot_mcp.providers.local.folder import FolderCatalogue


def carry_out(catalogue: FolderCatalogue, job: Row, request: dict[str, Any], progress: JobProgress) -> None:
    """Verify, parents before children. Raises Damaged, which names what is, or Unsupported for what cannot be read here."""
    rows = _with_ancestors(catalogue, request["verify_ids"])
    progress.start("verifying", sum(row["size_bytes"] for row in rows))
    verification = Verification(catalogue)
    findings = [one for row in rows for one in verification.verify(row, progress.advance)]
    progress.finish()
    sound = [one for one in request["verify_ids"] if one in verification.sound]
    outcome = {"verified": sound, "damaged": sorted(verification.damaged)}
    if findings:
        with catalogue.transaction():
            catalogue.set_job(job["job_id"], extra=json.dumps(json.loads(job["extra"]) | outcome))
        unread = [one for one in request["verify_ids"] if one not in sound]
        raise _damaged(findings, unread) if verification.damaged else _unread(findings, unread)
    with catalogue.transaction():
        succeed(catalogue, job, outcome)


def _with_ancestors(catalogue: FolderCatalogue, snapshot_ids: list[str]) -> list[Row]:
    rows = {row["snapshot_id"]: row for one in snapshot_ids for row in catalogue.ancestors(one)}
    return sorted(rows.values(), key=lambda row: (row["root_id"], row["depth"], row["snapshot_id"]))


def _unread(findings: list[Finding], ids: list[str]) -> Unsupported:
    return Unsupported(
        f"{' '.join(one.text for one in findings)} So these were not verified: {', '.join(ids)}.",
        hint="None of them was marked. Update this installation, then verify again.",
    )


def _damaged(findings: list[Finding], lost: list[str]) -> Damaged:
    what = " ".join(one.text if one.subject in one.text else f"{one.subject}: {one.text}." for one in findings)
    return Damaged(
        f"{what} So these cannot be restored: {', '.join(lost)}.",
        hint="Take a new full snapshot of the disk; the damaged ones are marked and no longer count as good.",
    )
