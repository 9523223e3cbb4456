"""Resume a roll-back that was interrupted after its first byte, at every start of a worker until it is done.

Disks are resumed one by one, so that a problem with one leaves no other half overwritten. A half overwritten disk is written
to only if it is the same file. Any disk is written to only if it holds nothing but its former content, according to the safety
snapshot or the hashes of it, and what the roll-back has written. Otherwise the roll-back waits for a person.
"""

import os
from contextlib import ExitStack

from snapshot_mcp.catalogue.agreement import compare_again
from snapshot_mcp.catalogue.lookup import label_of
from snapshot_mcp.catalogue.rollback import is_last_in_place, record_problem
from snapshot_mcp.catalogue.store import Row
from snapshot_mcp.contract.errors import NotUsable, TermsChanged, ZoneError
from snapshot_mcp.contract.states import SnapshotStatus
from snapshot_mcp.providers.local import restore
from snapshot_mcp.providers.local.folder import FolderCatalogue
from snapshot_mcp.providers.local.identity import Identity, described
from snapshot_mcp.providers.local.snapshot_file.reader import Chain
from snapshot_mcp.providers.local.work.former import FormerContent
from snapshot_mcp.providers.local.work.overwriting import Disk, Overwriting, reserve_room


class Resumption(Overwriting):
    """A roll-back that has had an effect."""

    def run(self) -> None:
        """Roll back the disks that are not done; raise the first error after trying all."""
        errors = []
        for resource in self._unfinished():
            try:
                with ExitStack() as stack:
                    disk = self._opened(stack, resource)
                    self.progress.start("writing", disk.differences.byte_count)
                    self.overwrite(disk)
                    self.catalogue.store.former_path(disk.id).unlink(missing_ok=True)
            except ZoneError as error:
                errors.append(error)
                record_problem(self.catalogue, resource, error)
        if errors:
            raise errors[0]
        self.progress.finish()
        self.finish()

    def _unfinished(self) -> list[Row]:
        """Return the disks that are not rolled back yet, half overwritten ones first."""
        ids = [one for one in self.request["targets"] if self.outcomes.get(one) != "applied"]
        return sorted(map(self.resource, ids), key=lambda resource: not self._is_half(resource))

    def _is_half(self, resource: Row) -> bool:
        """Return whether this roll-back was interrupted while it overwrote the disk."""
        resource_id = resource["resource_id"]
        is_ours = resource["applying_id"] == self.request["targets"][resource_id]
        return is_ours and self.outcomes.get(resource_id) == "incomplete"

    def _opened(self, stack: ExitStack, resource: Row) -> Disk:
        """Hold the disk, and make sure that it still may and can be overwritten."""
        is_half = self._is_half(resource)
        if is_half:
            _refuse_another_file(self.catalogue, resource)
        held = self.hold(stack, resource)
        if not is_half:
            compare_again(self.catalogue, self.request, resource, str(held.target.identity), is_head_ours=True)
        self.progress.start("verifying", held.chain.header.virtual_size_bytes)
        disk = self.compare(held)
        if not self._is_left_alone(disk):
            raise TermsChanged(
                f"The roll-back of {disk.target.label} was interrupted. Since then another program has written to the disk, or"
                " its former content can no longer be compared, so nothing more was written.",
                hint="Inspect the disk, then approve another roll-back to make it consistent.",
            )
        reserve_room(disk)
        return disk

    def safety_of(self, disk: Disk) -> str | None:
        """Return the snapshot of the disk's former content, as the interrupted roll-back recorded it."""
        is_half = self._is_half(disk.resource)
        return disk.resource["applying_safety_id"] if is_half else super().safety_of(disk)

    def _is_left_alone(self, disk: Disk) -> bool:
        """Return whether nothing was written to the disk since the roll-back began, except by it."""
        safety_id = self.safety_of(disk)
        if not safety_id:
            former = FormerContent.read(self.catalogue.store.former_path(disk.id))
            return former is not None and former.accounts_for(disk)
        disk.target.refuse_company()
        safety = self.catalogue.snapshot(safety_id)
        if safety is None or safety["status"] != SnapshotStatus.AVAILABLE:
            return False
        with Chain(self.folder, safety_id) as before:
            return restore.find_foreign(disk.target.content, disk.chain, before, disk.differences) is None


def _refuse_another_file(catalogue: FolderCatalogue, resource: Row) -> None:
    """Raise TermsChanged if the file at the path is not the half overwritten one, NotUsable if there is none."""
    begun, there = Identity.parse(resource["applying_identity"]), os.path.lexists(resource["path"])
    if begun and is_last_in_place(catalogue, resource):
        return
    kind = TermsChanged if there or not begun else NotUsable
    raise kind(
        f"The roll-back of {label_of(resource)} to {resource['applying_id']} was interrupted and could not be resumed:"
        f" {'the file at its path was not' if there else 'its path did not lead to'} the one that was being overwritten"
        f" ({described(resource['applying_identity'])}).",
        hint="Nothing was written. Move that file back and roll back again, or roll back the file that is there now.",
    )
