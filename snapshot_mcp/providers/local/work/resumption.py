"""A roll-back that was interrupted after its first byte goes on: at every start of a worker (`resume`), until it is done.

Each disk by itself, so that what holds one up leaves no other one half overwritten. A half overwritten disk is written to only
if it is the very file that was begun; any disk only if it holds nothing but what it held before, as the safety snapshot or the
hashes of its former content tell, and what the roll-back has written. What fails that waits for a person.
"""

import os
from contextlib import ExitStack

from snapshot_mcp.catalogue.agreement import compare_again
from snapshot_mcp.catalogue.lookup import label_of
from snapshot_mcp.catalogue.rollback import hold_up, is_last_in_place
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
                hold_up(self.catalogue, resource, error)
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
            _refuse_another_file(self.catalogue, resource)
        held = self.hold(stack, resource)
        if not is_half:
            compare_again(self.catalogue, self.request, resource, str(held.target.identity), is_head_ours=True)
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
            former = FormerContent.read(self.catalogue.store.former_path(disk.id))
            return former is not None and former.accounts_for(disk)
        disk.target.refuse_company()
        safety = self.catalogue.snapshot(safety_id)
        if safety is None or safety["status"] != SnapshotStatus.AVAILABLE:
            return False
        with Chain(self.folder, safety_id) as before:
            return restore.find_foreign(disk.target.fd, disk.chain, before, disk.differences) is None


def _refuse_another_file(catalogue: FolderCatalogue, resource: Row) -> None:
    """Raise TermsChanged where the file at the disk's path is not the one that was being overwritten, NotUsable for none."""
    begun, there = Identity.parse(resource["applying_identity"]), os.path.lexists(resource["path"])
    if begun and is_last_in_place(catalogue, resource):
        return
    kind = TermsChanged if there or not begun else NotUsable
    raise kind(
        f"The roll-back of {label_of(resource)} to {resource['applying_id']} was interrupted, and when it"
        f" was to be resumed, {'another file was at its path than' if there else 'its path did not lead to'} the one that it"
        f" was writing to"
        f" ({described(resource['applying_identity'])}).",
        hint="It was left alone. Bring that file back to the path and roll back again, or roll back what lies there now.",
    )
