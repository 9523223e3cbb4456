"""A roll-back that was interrupted after its first byte goes on: at every start of a worker (`resume`), until it is done.

Each disk by itself, so that what holds one up leaves no other one half overwritten. A half overwritten disk is written to only
if it is the very file that was begun; any disk only if it holds nothing but what it held before, as the safety snapshot or the
hashes of its former content tell, and what the roll-back has written. What fails that waits for a person.
"""

import os
from contextlib import ExitStack

from snapshot_mcp.contract.errors import NotUsable, TermsChanged, ZoneError
from snapshot_mcp.contract.states import SnapshotStatus
from snapshot_mcp.providers.local import restore
from snapshot_mcp.providers.local.admission import enter_resumption
from snapshot_mcp.providers.local.agreed import compare_again
from snapshot_mcp.providers.local.catalogue import Catalogue, Row
from snapshot_mcp.providers.local.identity import Identity, described
from snapshot_mcp.providers.local.lookup import half_at_path, halves, label_of
from snapshot_mcp.providers.local.snapshot_file.reader import Chain
from snapshot_mcp.providers.local.work.former import FormerContent, path_of
from snapshot_mcp.providers.local.work.overwriting import Disk, Overwriting, reserve_room


class Resumption(Overwriting):
    """A roll-back that has had an effect."""

    def run(self) -> None:
        errors = []
        for resource in self._unfinished():
            try:
                with ExitStack() as stack:
                    disk = self._opened(stack, resource)
                    self.progress.start("writing", disk.differences.byte_count)
                    self.overwrite(disk)
                    path_of(self.folder, disk.id).unlink(missing_ok=True)
            except ZoneError as error:
                errors.append(error)
                self._hold_up(resource, error)
        if errors:
            raise errors[0]
        self.progress.finish()
        self.finish()

    def _unfinished(self) -> list[Row]:
        """The disks that are not rolled back yet, half overwritten ones first."""
        ids = [one for one in self.request["targets"] if self.outcomes.get(one) != "applied"]
        return sorted(map(self.resource, ids), key=lambda resource: not self._is_half(resource))

    def _is_half(self, resource: Row) -> bool:
        """Whether this roll-back was interrupted while it overwrote the disk."""
        resource_id = resource["resource_id"]
        is_ours = resource["applying_id"] == self.request["targets"][resource_id]
        return is_ours and self.outcomes.get(resource_id) == "incomplete"

    def _opened(self, stack: ExitStack, resource: Row) -> Disk:
        """Hold the disk, and make sure that it may and can be overwritten still."""
        is_half = self._is_half(resource)
        if is_half:
            _refuse_another_file(resource)
        held = self.hold(stack, resource)
        if not is_half:
            compare_again(self.request, resource, held.target, is_head_ours=True)
        self.progress.start("verifying", held.chain.header.virtual_size_bytes)
        disk = self.compare(held)
        if not self._is_left_alone(disk):
            raise TermsChanged(
                f"The roll-back of {disk.target.label} was interrupted, and the disk was written to by another program"
                " since, or what it held before cannot be compared any more: it is not overwritten any further.",
                hint="Look at the disk. A roll-back that is agreed to anew puts it into one state.",
            )
        reserve_room(disk)
        return disk

    def safety_of(self, disk: Disk) -> str | None:
        is_half = self._is_half(disk.resource)
        return disk.resource["applying_safety_id"] if is_half else super().safety_of(disk)

    def _is_left_alone(self, disk: Disk) -> bool:
        """Whether nothing would be overwritten that came after the roll-back began."""
        safety_id = self.safety_of(disk)
        if not safety_id:
            former = FormerContent.read(path_of(self.folder, disk.id))
            return former is not None and former.accounts_for(disk)
        disk.target.refuse_company()
        safety = self.catalogue.snapshot(safety_id)
        if safety is None or safety["status"] != SnapshotStatus.AVAILABLE:
            return False
        with Chain(self.folder, safety_id) as before:
            return restore.find_foreign(disk.target.fd, disk.chain, before, disk.differences) is None

    def _hold_up(self, resource: Row, error: ZoneError) -> None:
        """Keep with a half overwritten disk what stopped it, and whether it waits for a person."""
        with self.catalogue.transaction() as db:
            db.execute(
                "UPDATE resources SET problem = ?, is_stopped = ? WHERE resource_id = ? AND applying_id IS NOT NULL",
                (error.message, isinstance(error, TermsChanged), resource["resource_id"]),
            )


def _refuse_another_file(resource: Row) -> None:
    """Raise TermsChanged where the file at the disk's path is not the one that was being overwritten, NotUsable for none."""
    begun, there = Identity.parse(resource["applying_identity"]), os.path.lexists(resource["path"])
    if begun and _is_last_there(resource):
        return
    kind = TermsChanged if there or not begun else NotUsable
    raise kind(
        f"The roll-back of {label_of(resource)} to {resource['applying_id']} was interrupted, and"
        f" {'what lies at its path now is not' if there else 'its path does not lead to'} the file that it was writing to"
        f" ({described(resource['applying_identity'])}).",
        hint="It was left alone. Bring that file back to the path and roll back again, or roll back what lies there now.",
    )


def _is_last_there(resource: Row) -> bool:
    """Whether the file at the path is the one that was written to last, of those that are half overwritten."""
    return half_at_path(resource) in halves(resource)[:1]


def resume(catalogue: Catalogue) -> None:
    """Enter roll-backs whose job failed midway again, each as a job.

    Not those that wait for a person, nor those whose file is not at the path (it may come back).
    """
    with catalogue.transaction():
        incomplete = catalogue.rows(
            """SELECT * FROM resources WHERE applying_id IS NOT NULL AND removed_at IS NULL AND NOT is_stopped
            AND resource_id NOT IN (SELECT id FROM claims WHERE kind = 'resource')"""
        )
        for resource in incomplete:
            if _is_last_there(resource):
                enter_resumption(catalogue, resource)
