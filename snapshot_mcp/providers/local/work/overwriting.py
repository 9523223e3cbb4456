"""`Overwriting`: what a roll-back and its resumption share: hold disks, compare them, and overwrite them.

The state of each disk is recorded before and after it is overwritten, for a worker that takes over.
"""

import errno
import json
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

from snapshot_mcp.catalogue.agreement import NOTHING_CHANGED
from snapshot_mcp.catalogue.outcome import refuse_cancelled, succeed
from snapshot_mcp.catalogue.progress import JobProgress
from snapshot_mcp.catalogue.rollback import DiskOverwrite, mark
from snapshot_mcp.catalogue.snapshots import make_available
from snapshot_mcp.catalogue.store import Row
from snapshot_mcp.contract.errors import ResourceBusy, StorageFull, TermsChanged
from snapshot_mcp.contract.text import format_bytes
from snapshot_mcp.providers.local import restore
from snapshot_mcp.providers.local.disk import TargetDisk
from snapshot_mcp.providers.local.folder import FolderCatalogue
from snapshot_mcp.providers.local.opening import open_target
from snapshot_mcp.providers.local.place import shown
from snapshot_mcp.providers.local.snapshot_file.reader import Chain
from snapshot_mcp.providers.local.work.create import read_taken


class Disk(NamedTuple):
    """One disk of a roll-back, held; `chain` is the snapshot that it is rolled back to."""

    resource: Row
    target: TargetDisk
    chain: Chain
    differences: restore.Differences

    @property
    def id(self) -> str:
        """Return the resource id."""
        return str(self.resource["resource_id"])


class Held(NamedTuple):
    """A disk before it is compared."""

    resource: Row
    target: TargetDisk
    chain: Chain


class Overwriting:
    """A roll-back in progress; `outcomes` has each disk as applied, unchanged or incomplete (CONTRACT.md)."""

    def __init__(self, catalogue: FolderCatalogue, job: Row, request: Mapping[str, Any], progress: JobProgress) -> None:
        self.catalogue, self.job, self.request, self.progress = catalogue, job, request, progress
        self.outcomes: dict[str, str] = json.loads(job["extra"]).get("resources", {})
        self.safety: dict[str, str] = request.get("safety") or {}
        self.folder = catalogue.store.snapshots
        self.verified = restore.VerifiedChunks()

    def hold(self, stack: ExitStack, resource: Row) -> Held:
        """Hold the disk until the stack ends. Raises ResourceBusy, NotUsable, DamagedSnapshot."""
        chain = stack.enter_context(Chain(self.folder, self.request["targets"][resource["resource_id"]]))
        target = stack.enter_context(open_target(resource))
        target.refuse_size(chain.header.virtual_size_bytes)
        return Held(resource, target, chain)

    def compare(self, held: Held) -> Disk:
        """Find what must be written, and verify all of it."""
        return Disk(*held, restore.compare(held.target.content, held.chain, self.progress.advance, self.verified))

    def overwrite(self, disk: Disk, *, is_first: bool = False) -> None:
        """Overwrite one disk; the first one of a roll-back is the point of no return."""
        self._look_once_more(disk, is_first=is_first)
        self._note(disk, "incomplete", is_first=is_first)
        self._write(disk)
        self._note(disk, "applied")

    def safety_of(self, disk: Disk) -> str | None:
        """Return the snapshot of the disk's former content, None for none."""
        return self.safety.get(disk.id)

    def finish(self) -> None:
        """End the job as successful, after the disks were released, so that they can be used at once."""
        with self.catalogue.transaction():
            succeed(self.catalogue, self.job, {"resources": self.outcomes})

    def resource(self, resource_id: str) -> Row:
        """Return a disk of the job."""
        resource = self.catalogue.resource(resource_id)
        assert resource is not None, "a claim"
        return resource

    def _write(self, disk: Disk) -> None:
        def advance(amount: int) -> None:
            disk.target.check()
            self.progress.advance(amount)

        restore.write_back(disk.target.content, disk.chain, disk.differences, advance, disk.target.check)
        disk.target.check()
        if not disk.target.is_alone:
            _compare_again(disk)
        if not disk.target.is_at_its_path:
            raise TermsChanged(
                f"The file of {disk.target.label} was moved or hard-linked during the roll-back: afterwards the file at its"
                f" path was not the one that was overwritten ({disk.target.identity.description}).",
                hint="Check the path. The file that was overwritten holds the snapshot's content.",
            )

    def _look_once_more(self, disk: Disk, *, is_first: bool) -> None:
        """Make sure that the disk is still held and at its path. Raises ResourceBusy, TermsChanged."""
        disk.target.check()
        if not disk.target.is_at_its_path:
            raise TermsChanged(
                f"The file of {disk.target.label} was replaced, moved or hard-linked before it could be overwritten.",
                hint=NOTHING_CHANGED
                if is_first
                else "This disk was not changed; the job has the outcome of each disk.",
            )

    def _note(self, disk: Disk, outcome: str, *, is_first: bool = False) -> None:
        """Record the state of a disk durably; the first record is the point of no return."""
        self.outcomes |= {disk.id: outcome}
        with self.catalogue.transaction():
            if is_first:
                refuse_cancelled(self.catalogue, self.job)
                for safety_id in self.safety.values():
                    make_available(self.catalogue, safety_id, read_taken(self.folder, safety_id))
            identity, snapshot_id = str(disk.target.identity), disk.chain.tip.snapshot_id
            written = DiskOverwrite(disk.resource, identity, snapshot_id, self.safety_of(disk))
            mark(self.catalogue, written, is_over=outcome == "applied")
            extra = json.loads(self.job["extra"]) | {"resources": self.outcomes}
            self.catalogue.set_job(self.job["job_id"], extra=json.dumps(extra), has_effect=1)


def reserve_room(disk: Disk) -> None:
    """Reserve the space that the roll-back needs. Raises StorageFull."""
    try:
        restore.reserve_room(disk.target.content, disk.chain, disk.differences)
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        raise StorageFull(
            f"Not enough space to roll back {disk.target.label}: {format_bytes(disk.differences.byte_count)} must be written"
            f" to the filesystem of its file {shown(disk.target.path)}.",
            hint="Free some space there and roll back again. Nothing was changed.",
        ) from None


def _compare_again(disk: Disk) -> None:
    """Raise ResourceBusy if the disk, from which no lease kept others out, does not have what was written."""
    if restore.compare(disk.target.content, disk.chain, lambda amount: None, restore.VerifiedChunks()).byte_count:
        raise ResourceBusy(
            f"Another program wrote to {disk.target.label} during the roll-back.",
            hint="Stop that program. The roll-back resumes when the zone's worker next starts; or roll back again.",
        )
