"""Apply: a roll-back under one hold. Every disk is held, compared with what was agreed to, verified and given room; the
safety snapshots are taken and read back; only then the first byte changes, one disk after another.

Until that moment a failure, a cancellation or a dead worker leaves everything as it was: the safety snapshots become available
in the transaction that marks the first disk as being overwritten, and are discarded otherwise. After it a disk that is half
overwritten is resumed at every start of a worker (`resume`), onto the very file that was begun, and only over content that the
safety snapshot holds or the roll-back has written itself. What fails that waits for a person.
"""

import errno
import json
import os
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, Final, NamedTuple

from snapshot_mcp.contract.errors import NotUsable, ResourceBusy, StorageFull, TermsChanged, ZoneError
from snapshot_mcp.contract.states import SnapshotStatus
from snapshot_mcp.contract.text import clean_text, format_bytes
from snapshot_mcp.providers.local import restore
from snapshot_mcp.providers.local.admission import enter_resumption
from snapshot_mcp.providers.local.agreed import NOTHING_CHANGED, compare_again, refuse_overdue
from snapshot_mcp.providers.local.catalogue import Catalogue, Row, now
from snapshot_mcp.providers.local.disk import RollbackTarget
from snapshot_mcp.providers.local.identity import Identity, described
from snapshot_mcp.providers.local.lookup import is_half_overwritten, label_of
from snapshot_mcp.providers.local.snapshot_file.format import DamagedFile, file_name
from snapshot_mcp.providers.local.snapshot_file.reader import Chain
from snapshot_mcp.providers.local.work.create import Taken, capture_one, discard, make_full
from snapshot_mcp.providers.local.work.outcome import refuse_cancelled, succeed
from snapshot_mcp.providers.local.work.progress import Progress

LEFT_SECONDS: Final = 2.0
"""A roll-back may have written for so long after it last said so."""


def carry_out(catalogue: Catalogue, job: Row, request: dict[str, Any], progress: Progress) -> None:
    """Roll back what is not rolled back yet, from the start unless a byte was written."""
    _Rollback(catalogue, job, request, progress).run()


class Disk(NamedTuple):
    """One disk of a roll-back, held; `chain` is what it goes back to."""

    resource: Row
    target: RollbackTarget
    chain: Chain
    differences: restore.Differences

    @property
    def id(self) -> str:
        return str(self.resource["resource_id"])


class _Rollback:
    """One apply under way; `outcomes` names each disk as applied, unchanged or incomplete (contract.md)."""

    def __init__(self, catalogue: Catalogue, job: Row, request: Mapping[str, Any], progress: Progress) -> None:
        self.catalogue, self.job, self.request, self.progress = catalogue, job, request, progress
        self.is_resumed = bool(job["has_effect"])
        self.outcomes: dict[str, str] = json.loads(job["extra"]).get("resources", {})
        self.safety: dict[str, str] = request.get("safety") or {}
        self.folder = catalogue.folder / "snapshots"

    def run(self) -> None:
        with ExitStack() as stack:
            disks = self._opened(stack)
            if not self.is_resumed:
                self._take_safety(disks)
            self.progress.start("writing", sum(disk.differences.byte_count for disk in disks))
            for number, disk in enumerate(disks):
                self._note(disk, "incomplete", is_first=number == 0 and not self.is_resumed)
                self._write(disk)
                self._note(disk, "applied")
            self.progress.finish()
        with self.catalogue.transaction():  # after the disks are let go: whoever hears of the end may use them at once
            succeed(self.catalogue, self.job, {"resources": self.outcomes})

    # Before the first byte

    def _opened(self, stack: ExitStack) -> list[Disk]:
        """Hold every disk, half overwritten ones first, and make sure that each may and can be overwritten."""
        held = []
        for resource_id, snapshot_id in self.request["targets"].items():
            if self.outcomes.get(resource_id) != "applied":
                resource = self._resource(resource_id)
                chain = stack.enter_context(Chain(self.folder, snapshot_id))
                held.append((resource, stack.enter_context(self._held(resource)), chain))
        held.sort(key=lambda one: not self._is_half(one[0]))
        if not self.is_resumed:
            refuse_overdue(self.job)
        self.progress.start("verifying", sum(chain.header.virtual_size_bytes for *_, chain in held))
        disks = [
            Disk(resource, target, chain, restore.compare(target.fd, chain, self.progress.advance))
            for resource, target, chain in held
        ]
        for disk in disks:
            self._refuse_foreign(disk)
            _reserve_room(disk)
        return disks

    def _held(self, resource: Row) -> RollbackTarget:
        """The disk, if it is the one that was agreed to; a half overwritten one, if it is the one that was begun."""
        is_half = self._is_half(resource)
        if is_half:
            _refuse_another_file(resource)
        target = RollbackTarget(resource["path"], label_of(resource))
        try:
            if not is_half:
                compare_again(self.request, resource, target)
        except BaseException:
            target.close()
            raise
        return target

    def _is_half(self, resource: Row) -> bool:
        """Whether this roll-back was interrupted while it overwrote the disk."""
        resource_id = resource["resource_id"]
        is_ours = resource["applying_id"] == self.request["targets"][resource_id]
        return self.is_resumed and is_ours and self.outcomes.get(resource_id) == "incomplete"

    def _refuse_foreign(self, disk: Disk) -> None:
        """Raise TermsChanged where a disk holds what another program wrote to it since the roll-back was interrupted."""
        if not self.is_resumed:
            return
        is_half = self._is_half(disk.resource)
        safety_id = disk.resource["applying_safety_id"] if is_half else self.safety.get(disk.id)
        is_known = not self._holds_foreign(disk, safety_id) if safety_id else not is_half or _is_as_it_was_left(disk)
        if is_known:
            self._note_written(disk)
        else:
            raise TermsChanged(
                f"The roll-back of {disk.target.label} was interrupted, and the disk was written to by another program"
                " since, or what it held before cannot be compared any more: it is not overwritten any further.",
                hint="Look at the disk. A roll-back that is agreed to anew puts it into one state.",
            )

    def _holds_foreign(self, disk: Disk, safety_id: str) -> bool:
        safety = self.catalogue.snapshot(safety_id)
        if safety is None or safety["status"] != SnapshotStatus.AVAILABLE:
            return True
        with Chain(self.folder, safety_id) as before:
            return restore.find_foreign(disk.target.fd, disk.chain, before, disk.differences) is not None

    def _take_safety(self, disks: list[Disk]) -> None:
        """Capture what is overwritten, and read back what of it would be lost. Raises ResourceBusy, DamagedFile."""
        taken = [(disk, self.safety[disk.id]) for disk in disks if disk.id in self.safety]
        if not taken:
            return
        taken_at = now()
        self.progress.start("taking the safety snapshot", sum(disk.target.size_bytes for disk, _ in taken))
        for disk, safety_id in taken:
            disk.target.refuse_company()
            self._capture(safety_id, disk, taken_at)
        self.progress.start("verifying the safety snapshot", sum(disk.differences.byte_count for disk, _ in taken))
        for disk, safety_id in taken:
            try:
                self._read_back(safety_id, disk)
            except DamagedFile as error:
                if error.snapshot_id == safety_id:
                    raise
                (self.folder / file_name(safety_id)).unlink()
                make_full(self.catalogue, safety_id, error)
                self._capture(safety_id, disk, taken_at)
                self._read_back(safety_id, disk)

    def _capture(self, safety_id: str, disk: Disk, taken_at: int) -> None:
        snapshot = self.catalogue.snapshot(safety_id)
        assert snapshot is not None
        (self.folder / file_name(safety_id)).unlink(missing_ok=True)  # of a worker that was interrupted
        capture_one(self.catalogue, snapshot, disk.target, taken_at, self.progress)

    def _read_back(self, safety_id: str, disk: Disk) -> None:
        with Chain(self.folder, safety_id) as before:
            restore.verify_before(disk.chain, before, disk.differences, self.progress.advance)

    # From the first byte on

    def _write(self, disk: Disk) -> None:
        def advance(amount: int) -> None:
            disk.target.check()
            self.progress.advance(amount)

        self.progress.beside = lambda: _note_written_now(self.catalogue, disk.id)
        checkpoint = None if disk.target.identity.is_certain else lambda end: self._note_durable(disk, end)
        restore.write_back(disk.target.fd, disk.chain, disk.differences, advance, disk.target.check, checkpoint)
        if not disk.target.is_alone:
            _compare_again(disk)
        if not disk.target.is_at_its_path:
            raise TermsChanged(
                f"The file of {disk.target.label} was moved or given another name while it was rolled back: what lies at"
                f" its path is not what was written to ({disk.target.identity.description}).",
                hint="Look at the path. The file that was overwritten holds the snapshot's content.",
            )

    def _note(self, disk: Disk, outcome: str, *, is_first: bool = False) -> None:
        """Write down durably where a disk stands, before and after it is written to; the first time is the point of no return."""
        if outcome == "incomplete":
            _look_once_more(disk)
        self.outcomes |= {disk.id: outcome}
        with self.catalogue.transaction() as db:
            if is_first:
                refuse_cancelled(self.catalogue, self.job)
                for safety_id in self.safety.values():
                    Taken.read(self.folder, safety_id).make_available(db)
            _write_state(db.execute, disk, outcome, self.safety.get(disk.id) or disk.resource["applying_safety_id"])
            extra = json.loads(self.job["extra"]) | {"resources": self.outcomes}
            self.catalogue.set_job(self.job["job_id"], extra=json.dumps(extra), has_effect=1)

    def _note_written(self, disk: Disk) -> None:
        """From here on a change of the file's is ours."""
        with self.catalogue.transaction():
            _note_written_now(self.catalogue, disk.id)

    def _note_durable(self, disk: Disk, end: int) -> None:
        with self.catalogue.transaction() as db:
            db.execute("UPDATE resources SET applied_bytes = ? WHERE resource_id = ?", (end, disk.id))

    def _resource(self, resource_id: str) -> Row:
        resource = self.catalogue.resource(resource_id)
        assert resource is not None, "a claim"
        return resource


def _look_once_more(disk: Disk) -> None:
    """Right before the first byte of a disk: it is still held, and still at its path. Raises ResourceBusy, TermsChanged."""
    disk.target.check()
    if not disk.target.is_at_its_path:
        raise TermsChanged(
            f"The file of {disk.target.label} was replaced, moved or given another name meanwhile.",
            hint=NOTHING_CHANGED,
        )


def _write_state(execute: Any, disk: Disk, outcome: str, safety_id: str | None) -> None:
    if outcome == "applied":
        execute(
            """UPDATE resources SET applying_id = NULL, applying_identity = '', applying_safety_id = NULL, applied_bytes = 0,
            is_stopped = 0, problem = '', head_id = ?, status_at = ? WHERE resource_id = ?""",
            (disk.chain.tip.snapshot_id, now(), disk.id),
        )
    else:
        execute(
            """UPDATE resources SET applying_id = ?, applying_identity = ?, applying_safety_id = ?, is_stopped = 0,
            written_at = ?, status_at = ? WHERE resource_id = ?""",
            (disk.chain.tip.snapshot_id, str(disk.target.identity), safety_id, time.time(), now(), disk.id),
        )


def _note_written_now(catalogue: Catalogue, resource_id: str) -> None:
    catalogue.db.execute("UPDATE resources SET written_at = ? WHERE resource_id = ?", (time.time(), resource_id))


def _refuse_another_file(resource: Row) -> None:
    """Raise TermsChanged where the file at the disk's path is not the one that was being overwritten, NotUsable for none."""
    begun, there = Identity.parse(resource["applying_identity"]), os.path.lexists(resource["path"])
    if begun and is_half_overwritten(resource):
        return
    kind = TermsChanged if there or not begun else NotUsable
    raise kind(
        f"The roll-back of {label_of(resource)} to {resource['applying_id']} was interrupted, and"
        f" {'what lies at its path now is not' if there else 'its path does not lead to'} the file that it was writing to"
        f" ({described(resource['applying_identity'])}).",
        hint="It was left alone. Bring that file back to the path and roll back again, or roll back what lies there now.",
    )


def _is_as_it_was_left(disk: Disk) -> bool:
    """Whether a disk without a safety snapshot was left alone since the roll-back last wrote to it.

    A file's time of change cannot be set by programs. One without a time of birth must also hold what was written so far.
    """
    if os.fstat(disk.target.fd).st_ctime > disk.resource["written_at"] + LEFT_SECONDS:
        return False
    done = disk.resource["applied_bytes"]
    is_there = bool(done) and disk.differences.flags.find(1, 0, done // disk.differences.chunk_size) < 0
    return disk.target.identity.is_certain or is_there


def _compare_again(disk: Disk) -> None:
    """Others have the disk open and no lease holds them off: see whether it holds now what was written."""
    if restore.compare(disk.target.fd, disk.chain, lambda amount: None).byte_count:
        raise ResourceBusy(
            f"{disk.target.label} was written to by another program while it was rolled back.",
            hint="Stop what uses it; the roll-back is resumed at the next start, or roll back again.",
        )


def _reserve_room(disk: Disk) -> None:
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


def clean_up(catalogue: Catalogue, request: dict[str, Any], error: ZoneError) -> None:
    """Discard the safety snapshots of a roll-back that changed nothing; half overwritten disks keep what stopped them.

    They are resumed, unless only a person can say how it goes on.
    """
    pending = [one for one in (request.get("safety") or {}).values() if _is_pending(catalogue, one)]
    discard(catalogue, pending)
    for resource_id in request["targets"]:
        catalogue.db.execute(
            """UPDATE resources SET problem = ?, is_stopped = is_stopped OR ?
            WHERE resource_id = ? AND applying_id IS NOT NULL""",
            (error.message, isinstance(error, TermsChanged), resource_id),
        )


def _is_pending(catalogue: Catalogue, snapshot_id: str) -> bool:
    snapshot = catalogue.snapshot(snapshot_id)
    return snapshot is not None and snapshot["status"] == SnapshotStatus.PENDING


def resume(catalogue: Catalogue) -> None:
    """Enter roll-backs whose job failed midway again, each as a job: at every start of a worker, until it is done.

    Not those that wait for a person, nor those whose file is not at the path (it may come back).
    """
    with catalogue.transaction():
        incomplete = catalogue.rows(
            """SELECT * FROM resources WHERE applying_id IS NOT NULL AND removed_at IS NULL AND NOT is_stopped
            AND resource_id NOT IN (SELECT id FROM claims WHERE kind = 'resource')"""
        )
        for resource in incomplete:
            if is_half_overwritten(resource):
                enter_resumption(catalogue, resource)
