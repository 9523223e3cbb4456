"""Roll disks back under one hold (the contract's apply).

All disks are held, compared with the terms and verified, and their space is reserved; the safety snapshots are taken and
read back. Only then is the first byte written. Until then a failure, a cancellation or a dead worker changes nothing: the
safety snapshots become available only in the transaction that marks the first disk as being overwritten. After that point
`resumption` continues an interrupted roll-back.
"""

from contextlib import ExitStack
from typing import Any

from snapshot_mcp.catalogue.agreement import compare_again, refuse_overdue
from snapshot_mcp.catalogue.progress import JobProgress
from snapshot_mcp.catalogue.snapshots import make_full
from snapshot_mcp.catalogue.store import DamagedSnapshot, Row
from snapshot_mcp.providers.local import restore
from snapshot_mcp.providers.local.folder import FolderCatalogue
from snapshot_mcp.providers.local.snapshot_file.reader import Chain
from snapshot_mcp.providers.local.work.create import capture_one
from snapshot_mcp.providers.local.work.former import FormerContent
from snapshot_mcp.providers.local.work.overwriting import Disk, Overwriting, reserve_room
from snapshot_mcp.providers.local.work.resumption import Resumption


def carry_out(catalogue: FolderCatalogue, job: Row, request: dict[str, Any], progress: JobProgress) -> None:
    """Roll back from the start, or resume a roll-back that has written a byte."""
    kind = Resumption if job["has_effect"] else FirstAttempt
    kind(catalogue, job, request, progress).run()


class FirstAttempt(Overwriting):
    """A roll-back that has changed nothing yet."""

    def run(self) -> None:
        """Roll all disks back."""
        with ExitStack() as stack:
            disks = self._opened(stack)
            self._take_safety([disk for disk in disks if disk.id in self.safety])
            for disk in disks:
                if disk.id not in self.safety:
                    FormerContent.of(disk).write(self.catalogue.store.former_path(disk.id))
            self.progress.start("writing", sum(disk.differences.byte_count for disk in disks))
            for number, disk in enumerate(disks):
                self.overwrite(disk, is_first=number == 0)
                self.catalogue.store.former_path(disk.id).unlink(missing_ok=True)
            self.progress.finish()
        self.finish()

    def _opened(self, stack: ExitStack) -> list[Disk]:
        """Hold every disk, and make sure that all may and can be overwritten."""
        held = [self.hold(stack, self.resource(resource_id)) for resource_id in self.request["targets"]]
        for one in held:
            compare_again(self.catalogue, self.request, one.resource, str(one.target.identity))
        refuse_overdue(self.catalogue, self.job)
        self.progress.start("verifying", sum(one.chain.header.virtual_size_bytes for one in held))
        disks = [self.compare(one) for one in held]
        for disk in disks:
            reserve_room(disk)
        return disks

    def _take_safety(self, disks: list[Disk]) -> None:
        """Take the safety snapshots and read back what the roll-back overwrites. Raises ResourceBusy, DamagedSnapshot."""
        if not disks:
            return
        taken_at = self.catalogue.instant()
        self.progress.start("taking the safety snapshot", sum(disk.target.size_bytes for disk in disks))
        for disk in disks:
            disk.target.refuse_company()
            self._capture(disk, taken_at)
        self.progress.start("verifying the safety snapshot", sum(disk.differences.byte_count for disk in disks))
        for disk in disks:
            safety_id = self.safety[disk.id]
            try:
                self._read_back(disk)
            except DamagedSnapshot as error:
                if error.snapshot_id == safety_id:
                    raise
                self.catalogue.store.remove([safety_id])
                make_full(self.catalogue, safety_id, error)
                self._capture(disk, taken_at)
                self._read_back(disk)

    def _capture(self, disk: Disk, taken_at: float) -> None:
        safety_id = self.safety[disk.id]
        snapshot = self.catalogue.snapshot(safety_id)
        assert snapshot is not None
        self.catalogue.store.remove([safety_id])  # a file that an interrupted worker left
        together = tuple(self.safety.values())
        capture_one(self.catalogue, snapshot, disk.target, taken_at, self.progress, together)

    def _read_back(self, disk: Disk) -> None:
        with Chain(self.folder, self.safety[disk.id]) as before:
            restore.verify_before(disk.chain, before, disk.differences, self.progress.advance)
