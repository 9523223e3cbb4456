"""Apply: a roll-back under one hold. Every disk is held, compared with what was agreed to, verified and given room; the
safety snapshots are taken and read back; only then the first byte changes, one disk after another.

Until that moment a failure, a cancellation or a dead worker leaves everything as it was: the safety snapshots become available
in the transaction that marks the first disk as being overwritten, and are discarded otherwise. After it `resumption` goes on.
"""

from contextlib import ExitStack
from typing import Any

from snapshot_mcp.contract.errors import ZoneError
from snapshot_mcp.contract.states import SnapshotStatus
from snapshot_mcp.providers.local import restore
from snapshot_mcp.providers.local.agreed import compare_again, refuse_overdue
from snapshot_mcp.providers.local.catalogue import Catalogue, Row, now
from snapshot_mcp.providers.local.snapshot_file.format import DamagedFile, file_name
from snapshot_mcp.providers.local.snapshot_file.reader import Chain
from snapshot_mcp.providers.local.work.create import capture_one, discard, make_full
from snapshot_mcp.providers.local.work.former import FormerContent, path_of
from snapshot_mcp.providers.local.work.overwriting import Disk, Overwriting, reserve_room
from snapshot_mcp.providers.local.work.progress import Progress
from snapshot_mcp.providers.local.work.resumption import Resumption


def carry_out(catalogue: Catalogue, job: Row, request: dict[str, Any], progress: Progress) -> None:
    """Roll back from the start; what is not rolled back yet, where a byte was written."""
    kind = Resumption if job["has_effect"] else Rollback
    kind(catalogue, job, request, progress).run()


class Rollback(Overwriting):
    """A roll-back that has changed nothing yet."""

    def run(self) -> None:
        with ExitStack() as stack:
            disks = self._opened(stack)
            self._take_safety([disk for disk in disks if disk.id in self.safety])
            for disk in disks:
                if disk.id not in self.safety:
                    FormerContent.of(disk).write(path_of(self.folder, disk.id))
            self.progress.start("writing", sum(disk.differences.byte_count for disk in disks))
            for number, disk in enumerate(disks):
                self.overwrite(disk, is_first=number == 0)
                path_of(self.folder, disk.id).unlink(missing_ok=True)
            self.progress.finish()
        self.finish()

    def _opened(self, stack: ExitStack) -> list[Disk]:
        """Hold every disk, and make sure that each may and can be overwritten."""
        held = [self.hold(stack, self.resource(resource_id)) for resource_id in self.request["targets"]]
        for one in held:
            compare_again(self.request, one.resource, one.target)
        refuse_overdue(self.job)
        self.progress.start("verifying", sum(one.chain.header.virtual_size_bytes for one in held))
        disks = [self.compare(one) for one in held]
        for disk in disks:
            reserve_room(disk)
        return disks

    def _take_safety(self, disks: list[Disk]) -> None:
        """Capture what is overwritten, and read back what of it would be lost. Raises ResourceBusy, DamagedFile."""
        if not disks:
            return
        taken_at = now()
        self.progress.start("taking the safety snapshot", sum(disk.target.size_bytes for disk in disks))
        for disk in disks:
            disk.target.refuse_company()
            self._capture(disk, taken_at)
        self.progress.start("verifying the safety snapshot", sum(disk.differences.byte_count for disk in disks))
        for disk in disks:
            safety_id = self.safety[disk.id]
            try:
                self._read_back(disk)
            except DamagedFile as error:
                if error.snapshot_id == safety_id:
                    raise
                (self.folder / file_name(safety_id)).unlink()
                make_full(self.catalogue, safety_id, error)
                self._capture(disk, taken_at)
                self._read_back(disk)

    def _capture(self, disk: Disk, taken_at: int) -> None:
        safety_id = self.safety[disk.id]
        snapshot = self.catalogue.snapshot(safety_id)
        assert snapshot is not None
        (self.folder / file_name(safety_id)).unlink(missing_ok=True)  # of a worker that was interrupted
        capture_one(self.catalogue, snapshot, disk.target, taken_at, self.progress)

    def _read_back(self, disk: Disk) -> None:
        with Chain(self.folder, self.safety[disk.id]) as before:
            restore.verify_before(disk.chain, before, disk.differences, self.progress.advance)


def clean_up(catalogue: Catalogue, request: dict[str, Any], error: ZoneError) -> None:
    """Discard the safety snapshots of a roll-back that changed nothing; half overwritten disks keep what stopped them."""
    discard(catalogue, [one for one in (request.get("safety") or {}).values() if _is_pending(catalogue, one)])
    for resource_id in request["targets"]:
        catalogue.db.execute(
            "UPDATE resources SET problem = ? WHERE resource_id = ? AND applying_id IS NOT NULL AND problem = ''",
            (error.message, resource_id),
        )
        resource = catalogue.resource(resource_id)
        if resource and resource["applying_id"] is None:
            path_of(catalogue.folder / "snapshots", resource_id).unlink(missing_ok=True)


def _is_pending(catalogue: Catalogue, snapshot_id: str) -> bool:
    snapshot = catalogue.snapshot(snapshot_id)
    return snapshot is not None and snapshot["status"] == SnapshotStatus.PENDING
