"""What a roll-back and its resumption share: disks that are held and compared, and the bytes written over them.

Where each disk stands is written down before and after it is written to, so that a worker that takes over knows.
"""

import errno
import json
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

from snapshot_mcp.catalogue.agreement import NOTHING_CHANGED
from snapshot_mcp.catalogue.lookup import label_of
from snapshot_mcp.catalogue.outcome import refuse_cancelled, succeed
from snapshot_mcp.catalogue.progress import JobProgress
from snapshot_mcp.catalogue.rollback import DiskOverwrite, mark
from snapshot_mcp.catalogue.snapshots import make_available
from snapshot_mcp.catalogue.store import Row
from snapshot_mcp.contract.errors import ResourceBusy, StorageFull, TermsChanged
from snapshot_mcp.contract.text import clean_text, format_bytes
from snapshot_mcp.providers.local import restore
from snapshot_mcp.providers.local.disk import TargetDisk
from snapshot_mcp.providers.local.folder import FolderCatalogue
from snapshot_mcp.providers.local.snapshot_file.reader import Chain
from snapshot_mcp.providers.local.work.create import read_taken


class Disk(NamedTuple):
    """One disk of a roll-back, held; `chain` is what it goes back to."""

    resource: Row
    target: TargetDisk
    chain: Chain
    differences: restore.Differences

    @property
    def id(self) -> str:
        return str(self.resource["resource_id"])


class Held(NamedTuple):
    """A disk before it is compared."""

    resource: Row
    target: TargetDisk
    chain: Chain


class Overwriting:
    """One apply under way; `outcomes` names each disk as applied, unchanged or incomplete (CONTRACT.md)."""

    def __init__(self, catalogue: FolderCatalogue, job: Row, request: Mapping[str, Any], progress: JobProgress) -> None:
        self.catalogue, self.job, self.request, self.progress = catalogue, job, request, progress
        self.outcomes: dict[str, str] = json.loads(job["extra"]).get("resources", {})
        self.safety: dict[str, str] = request.get("safety") or {}
        self.folder = catalogue.store.snapshots

    def hold(self, stack: ExitStack, resource: Row) -> Held:
        """Hold the disk until the stack ends. Raises ResourceBusy, NotUsable, DamagedSnapshot."""
        chain = stack.enter_context(Chain(self.folder, self.request["targets"][resource["resource_id"]]))
        target = TargetDisk(resource["path"], label_of(resource))
        return Held(resource, stack.enter_context(target), chain)

    def compare(self, held: Held) -> Disk:
        """Find what is to be written, and verify all of it."""
        return Disk(*held, restore.compare(held.target.fd, held.chain, self.progress.advance))

    def overwrite(self, disk: Disk, *, is_first: bool = False) -> None:
        """Write one disk; with the first one of a roll-back there is no way back."""
        self._look_once_more(disk, is_first=is_first)
        self._note(disk, "incomplete", is_first=is_first)
        self._write(disk)
        self._note(disk, "applied")

    def safety_of(self, disk: Disk) -> str | None:
        """The snapshot that holds what is overwritten."""
        return self.safety.get(disk.id)

    def finish(self) -> None:
        """Say that it is done, after the disks are let go: whoever hears of it may use them at once."""
        with self.catalogue.transaction():
            succeed(self.catalogue, self.job, {"resources": self.outcomes})

    def resource(self, resource_id: str) -> Row:
        resource = self.catalogue.resource(resource_id)
        assert resource is not None, "a claim"
        return resource

    def _write(self, disk: Disk) -> None:
        def advance(amount: int) -> None:
            disk.target.check()
            self.progress.advance(amount)

        restore.write_back(disk.target.fd, disk.chain, disk.differences, advance, disk.target.check)
        if not disk.target.is_alone:
            _compare_again(disk)
        if not disk.target.is_at_its_path:
            raise TermsChanged(
                f"The file of {disk.target.label} was moved or given another name while it was rolled back: what was at"
                f" its path then was not what was written to ({disk.target.identity.description}).",
                hint="Look at the path. The file that was overwritten holds the snapshot's content.",
            )

    def _look_once_more(self, disk: Disk, *, is_first: bool) -> None:
        """Right before the first byte: the disk is held still, and still at its path. Raises ResourceBusy, TermsChanged."""
        disk.target.check()
        if not disk.target.is_at_its_path:
            raise TermsChanged(
                f"The file of {disk.target.label} was replaced, moved or given another name meanwhile.",
                hint=NOTHING_CHANGED if is_first else "It was left alone; the job says of each disk where it stands.",
            )

    def _note(self, disk: Disk, outcome: str, *, is_first: bool = False) -> None:
        """Write down durably where a disk stands; the first time is the point of no return."""
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
    """Raises StorageFull, naming the disk and what it takes."""
    try:
        restore.reserve_room(disk.target.fd, disk.chain, disk.differences)
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        raise StorageFull(
            f"There is no room for the roll-back of {disk.target.label} on the filesystem of its file"
            f" {clean_text(disk.target.path, 400)!r}: it writes {format_bytes(disk.differences.byte_count)}.",
            hint="Free some space there and roll back again; nothing was changed.",
        ) from None


def _compare_again(disk: Disk) -> None:
    """Others have the disk open and no lease holds them off: see whether it holds now what was written."""
    if restore.compare(disk.target.fd, disk.chain, lambda amount: None).byte_count:
        raise ResourceBusy(
            f"{disk.target.label} was written to by another program while it was rolled back.",
            hint="Stop what uses it; the roll-back is resumed at the next start, or roll back again.",
        )
