"""Apply: a roll-back that verifies and reserves for every disk first, and only then writes, one disk after another."""

import errno
import json
from contextlib import ExitStack
from typing import Any

from snapshot_mcp.contract.errors import ResourceBusy, StorageFull, ZoneError
from snapshot_mcp.contract.text import clean_text, format_bytes
from snapshot_mcp.providers.local import restore
from snapshot_mcp.providers.local.admission import enter_resumption
from snapshot_mcp.providers.local.catalogue import Catalogue, Row, now
from snapshot_mcp.providers.local.disk import RollbackTarget
from snapshot_mcp.providers.local.lookup import label_of
from snapshot_mcp.providers.local.snapshot_file.reader import Chain
from snapshot_mcp.providers.local.work.outcome import succeed
from snapshot_mcp.providers.local.work.progress import Progress


def carry_out(catalogue: Catalogue, job: Row, request: dict[str, Any], progress: Progress) -> None:
    """Verify and reserve for every disk first; only then write, one disk after another."""
    outcomes: dict[str, str] = json.loads(job["extra"]).get("resources", {})
    targets = {one: snapshot for one, snapshot in request["targets"].items() if outcomes.get(one) != "applied"}
    _Rollback(catalogue, job, targets, outcomes, progress).run()


class _Rollback:
    """One apply under way; `outcomes` names each resource as applied, unchanged or incomplete (contract.md)."""

    def __init__(
        self,
        catalogue: Catalogue,
        job: Row,
        targets: dict[str, str],
        outcomes: dict[str, str],
        progress: Progress,
    ) -> None:
        self.catalogue, self.job, self.targets = catalogue, job, targets
        self.outcomes, self.progress = outcomes, progress
        self.begun_before: dict[str, str | None] = {}

    def run(self) -> None:
        with ExitStack() as stack:
            opened = []
            for resource_id, snapshot_id in self.targets.items():
                resource = self.catalogue.resource(resource_id)
                assert resource is not None
                self.begun_before[resource_id] = resource["applying_id"]
                chain = stack.enter_context(Chain(self.catalogue.folder / "snapshots", snapshot_id))
                target = stack.enter_context(RollbackTarget(resource["path"], label_of(resource)))
                opened.append((resource_id, target, chain))
            self.progress.start("verifying", sum(chain.header.virtual_size_bytes for _, _, chain in opened))
            found = []
            for resource_id, target, chain in opened:
                found.append((resource_id, target, chain, restore.compare(target.fd, chain, self.progress.advance)))
            for _, target, chain, differences in found:
                _reserve_room(target, chain, differences)
            self._note(dict.fromkeys(self.targets, "incomplete"))
            self.progress.start("writing", sum(differences.byte_count for *_, differences in found))
            for number, (resource_id, target, chain, differences) in enumerate(found):
                try:
                    restore.write_back(target.fd, chain, differences, self.progress.advance)
                    if not target.is_alone:
                        self._compare_again(target, chain)
                except BaseException:
                    self._note_unreached([one for one, *_ in found[number + 1 :]])
                    raise
                self._note({resource_id: "applied"})
            self.progress.finish()
        with self.catalogue.transaction():  # after the disks are let go: whoever hears of the end may use them at once
            succeed(self.catalogue, self.job, {"resources": self.outcomes})

    def _compare_again(self, target: RollbackTarget, chain: Chain) -> None:
        """Others have the disk open and no lease holds them off: see whether it holds now what was written."""
        if restore.compare(target.fd, chain, lambda amount: None).byte_count:
            raise ResourceBusy(
                f"{target.label} was written to by another program while it was rolled back.",
                hint="Stop what uses it; the roll-back is resumed at the next start, or roll back again.",
            )

    def _note_unreached(self, resource_ids: list[str]) -> None:
        """What this run did not write to is as it was: whole, or left incomplete by an earlier roll-back."""
        self._note({one: "incomplete" if self.begun_before[one] else "unchanged" for one in resource_ids})

    def _note(self, outcomes: dict[str, str]) -> None:
        """Write down durably where each disk stands, before and after it is written to."""
        self.outcomes |= outcomes
        with self.catalogue.transaction() as db:
            for resource_id, outcome in outcomes.items():
                snapshot_id = self.targets[resource_id]
                if outcome == "applied":
                    db.execute(
                        "UPDATE resources SET applying_id = NULL, problem = '', head_id = ?, status_at = ? WHERE resource_id = ?",
                        (snapshot_id, now(), resource_id),
                    )
                else:
                    db.execute(
                        "UPDATE resources SET applying_id = ?, status_at = ? WHERE resource_id = ?",
                        (snapshot_id if outcome == "incomplete" else None, now(), resource_id),
                    )
            extra = json.loads(self.job["extra"]) | {"resources": self.outcomes}
            self.catalogue.set_job(self.job["job_id"], extra=json.dumps(extra))


def _reserve_room(target: RollbackTarget, chain: Chain, differences: restore.Differences) -> None:
    try:
        restore.reserve_room(target.fd, chain, differences)
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        raise StorageFull(
            f"There is no room for the roll-back of {target.label} on the filesystem of its file"
            f" {clean_text(target.path, 400)!r}: it writes {format_bytes(differences.byte_count)}.",
            hint="Free some space there and roll back again; nothing was changed.",
        ) from None


def clean_up(catalogue: Catalogue, request: dict[str, Any], error: ZoneError) -> None:
    """Disks that are neither old nor new stay `applying`, with what stopped it; they are resumed (`resume`)."""
    for resource_id in request["targets"]:
        catalogue.db.execute(
            "UPDATE resources SET problem = ? WHERE resource_id = ? AND applying_id IS NOT NULL",
            (error.message, resource_id),
        )


def resume(catalogue: Catalogue) -> None:
    """Enter roll-backs whose job failed midway again, each as a job: at every start of a worker, until it is done."""
    with catalogue.transaction():
        incomplete = catalogue.rows(
            """SELECT * FROM resources WHERE applying_id IS NOT NULL AND removed_at IS NULL
            AND resource_id NOT IN (SELECT id FROM claims WHERE kind = 'resource')"""
        )
        for resource in incomplete:
            enter_resumption(catalogue, resource)
