"""Roll disks back, each under its exclusive lock while nobody uses it (the contract's apply)."""

import errno
import json
import time
from contextlib import ExitStack
from typing import Any

from snapshot_mcp.catalogue.agreement import NOTHING_CHANGED, compare_again, refuse_overdue
from snapshot_mcp.catalogue.lookup import label_of
from snapshot_mcp.catalogue.outcome import refuse_cancelled, succeed
from snapshot_mcp.catalogue.progress import JobProgress
from snapshot_mcp.catalogue.rollback import DiskOverwrite, mark, record_problem
from snapshot_mcp.catalogue.snapshots import Taken, make_available
from snapshot_mcp.catalogue.store import DamagedSnapshot, Row
from snapshot_mcp.contract.errors import ResourceBusy, TermsChanged, ZoneError
from snapshot_mcp.providers.ceph.catalogue import PoolCatalogue
from snapshot_mcp.providers.ceph.clib import CephError
from snapshot_mcp.providers.ceph.errors import CommittedFirst
from snapshot_mcp.providers.ceph.image import RbdImage
from snapshot_mcp.providers.ceph.names import snapshot_name
from snapshot_mcp.providers.ceph.store import DEAD_CLIENT_SECONDS, LOOK_SECONDS, in_words, refuse_users
from snapshot_mcp.providers.ceph.work.blocks import is_made_of
from snapshot_mcp.providers.ceph.work.create import facts_of, take_together


class RollBack:
    """A roll-back; `outcomes` has each disk as applied, unchanged or incomplete (CONTRACT.md)."""

    def __init__(self, catalogue: PoolCatalogue, job: Row, request: dict[str, Any], progress: JobProgress) -> None:
        self.catalogue, self.job, self.request, self.progress = catalogue, job, request, progress
        self.outcomes: dict[str, str] = json.loads(job["extra"]).get("resources", {})
        self.safety: dict[str, str] = request.get("safety") or {}
        self.targets: dict[str, str] = request["targets"]
        self.left = catalogue.holds(job["job_id"]) if job["has_effect"] else {}
        self.held: dict[str, str] = {}
        self.is_patient = job["run_count"] > 1 or bool(job["has_effect"])

    def first(self) -> None:
        """Roll all disks back: until all are held and agreed to, nothing is changed."""
        with ExitStack() as stack:
            disks = {one: self._hold(stack, self._resource(one))[0] for one in self.targets}
            for one, image in disks.items():
                self._check(one, image)
            refuse_overdue(self.catalogue, self.job)
            self.progress.start("taking the safety snapshot", 0)
            taken = self._take_safety(disks)
            for number, (one, image) in enumerate(disks.items()):
                refuse_users(self._resource(one), image)
                self._overwrite(one, image, taken if number == 0 else {})
        self._finish()

    def resume(self) -> None:
        """Go on with the disks that are not done, one by one; raise the first error after all were tried.

        What was written since the roll-back was interrupted is not overwritten: that waits for a person.
        """
        errors = []
        for one in self.targets:
            if self.outcomes.get(one) == "applied":
                continue
            resource = self._resource(one)
            try:
                with ExitStack() as stack:
                    image, is_untouched = self._hold(stack, resource)
                    if self.outcomes.get(one) != "incomplete":
                        identity = self.catalogue.store.identity_of(resource)
                        compare_again(self.catalogue, self.request, resource, identity, is_head_ours=True)
                    if not is_untouched:
                        self._refuse_foreign(resource, image)
                    self._overwrite(one, image, {})
            except ZoneError as error:
                errors.append(error)
                record_problem(self.catalogue, resource, error)
        if errors:
            raise errors[0]
        self._finish()

    def _resource(self, resource_id: str) -> Row:
        resource = self.catalogue.resource(resource_id)
        assert resource is not None, "a claim"
        return resource

    def _hold(self, stack: ExitStack, resource: Row) -> tuple[RbdImage, bool]:
        """Lock an image that nobody uses, and look again: who came in between would be overwritten.

        Return also whether nobody can have written to it since it was marked: the client that had it locked then has the lock
        still, though it is dead, and whoever writes takes it away.
        """
        resource_id = resource["resource_id"]
        deadline = time.monotonic() + (DEAD_CLIENT_SECONDS if self.is_patient else 0)
        with self.catalogue.store.open(resource) as seen:
            while clients := seen.clients():
                if time.monotonic() > deadline:
                    refuse_users(resource, seen)
                self.progress.start(f"waiting until Ceph lets go of {in_words(clients)}, up to 30 s", 0)
                time.sleep(LOOK_SECONDS)
        image = stack.enter_context(self.catalogue.store.open(resource, is_read_only=False))
        refuse_users(resource, image)
        self.progress.start("locking the disk; a client that died is waited for, up to 30 s", 0)
        owner = image.lock_owner()
        is_untouched = bool(owner) and owner == self.left.get(resource_id)
        if not is_untouched:
            self._let_go(resource_id)  # or, if this client dies with the lock, it would look as if it had kept it
        try:
            image.lock()
        except CephError as error:
            if error.errno not in {errno.EBUSY, errno.EROFS, errno.EAGAIN}:
                raise
            raise ResourceBusy(
                f"{label_of(resource)} is locked by another client of Ceph.", hint=f"Stop it. {NOTHING_CHANGED}"
            ) from None
        self.held[resource_id] = image.lock_owner()
        stack.callback(self._let_go, resource_id)
        refuse_users(resource, image)
        return image, is_untouched

    def _let_go(self, resource_id: str) -> None:
        """Say that a disk is not locked any more as it was when it was marked."""
        self.held.pop(resource_id, None)
        if self.left.pop(resource_id, None) is not None:
            self.catalogue.set_holds(self.job["job_id"], self.left)

    def _refuse_foreign(self, resource: Row, image: RbdImage) -> None:
        """Raise TermsChanged unless a disk holds nothing but what the roll-back writes and what a snapshot of it was taken of."""
        resource_id = resource["resource_id"]
        is_half = self.outcomes.get(resource_id) == "incomplete"
        former = resource["applying_safety_id"] if is_half else self.safety.get(resource_id)
        self._refuse_missing(self.targets[resource_id], image)
        names = {snapshot_name(one) for one in (self.targets[resource_id], former) if one} & image.snapshots().keys()
        self.progress.start("comparing the disk with its snapshots", image.size)
        with ExitStack() as stack:
            pool = self.catalogue.store.pool
            sources = [stack.enter_context(pool.open_image(image.id, snapshot=name)) for name in names]
            if is_made_of(image, sources, self.progress.advance):
                return
        raise TermsChanged(
            f"The roll-back of {label_of(resource)} was interrupted. Since then the disk may have been written to, so nothing"
            " more was written.",
            hint="Inspect the disk, then approve another roll-back to make it consistent.",
        )

    def _check(self, resource_id: str, image: RbdImage) -> None:
        """See that the disk is the agreed one and the snapshot is there."""
        resource = self._resource(resource_id)
        compare_again(self.catalogue, self.request, resource, self.catalogue.store.identity_of(resource))
        self._refuse_missing(self.targets[resource_id], image)

    def _refuse_missing(self, snapshot_id: str, image: RbdImage) -> None:
        if snapshot_name(snapshot_id) not in image.snapshots():
            raise DamagedSnapshot(snapshot_id, "its RBD snapshot is gone")

    def _take_safety(self, disks: dict[str, RbdImage]) -> dict[str, Taken]:
        ids = [self.safety[one] for one in disks if one in self.safety]
        if not ids:
            return {}
        images = [disks[one] for one in disks if one in self.safety]
        for one, image in zip(ids, images, strict=True):
            if snapshot_name(one) in image.snapshots():  # of what the disk held before it was locked this time
                image.drop(snapshot_name(one))
        taken_at = self.catalogue.instant()
        take_together(images, ids)
        rows = [row for one in ids if (row := self.catalogue.snapshot(one))]
        return {
            row["snapshot_id"]: facts_of(self.catalogue, row, image, taken_at, "held")
            for row, image in zip(rows, images, strict=True)
        }

    def _overwrite(self, resource_id: str, image: RbdImage, safety: dict[str, Taken]) -> None:
        """Overwrite one disk; the first one of a roll-back is the point of no return."""
        self._refuse_missing(self.targets[resource_id], image)
        self._note(resource_id, "incomplete", safety)
        counted = 0
        self.progress.start("writing", image.size)

        def advance(done: int, total: int) -> None:
            nonlocal counted
            reached = image_bytes * done // max(total, 1)
            self.progress.advance(reached - counted)
            counted = reached

        image_bytes = image.size
        image.roll_back(snapshot_name(self.targets[resource_id]), advance)
        self.progress.finish()
        self._note(resource_id, "applied", {})

    def _note(self, resource_id: str, outcome: str, safety: dict[str, Taken]) -> None:
        """Record the state of a disk under its lock, however often another commit comes first."""
        while True:
            try:
                self._try_to_note(resource_id, outcome, safety)
            except CommittedFirst:
                self.catalogue.refuse_fenced()
            else:
                return

    def _try_to_note(self, resource_id: str, outcome: str, safety: dict[str, Taken]) -> None:
        """Record the state of a disk; the first record is the point of no return."""
        is_first = not self.catalogue.count("SELECT has_effect FROM jobs WHERE job_id = ?", self.job["job_id"])
        self.outcomes |= {resource_id: outcome}
        left = self.left | self.held
        if outcome == "applied":
            self.held.pop(resource_id, None)
            left.pop(resource_id, None)
        with self.catalogue.transaction():
            resource = self._resource(resource_id)
            identity = self.catalogue.store.identity_of(resource)
            if is_first:
                refuse_cancelled(self.catalogue, self.job)
                refuse_overdue(self.catalogue, self.job)
                compare_again(self.catalogue, self.request, resource, identity)
            for safety_id, taken in safety.items():
                make_available(self.catalogue, safety_id, taken)
            resource = self._resource(resource_id)
            saved_by = self.safety.get(resource_id) or (
                resource["applying_safety_id"] if outcome != "applied" else None
            )
            written = DiskOverwrite(resource, identity, self.targets[resource_id], saved_by)
            mark(self.catalogue, written, is_over=outcome == "applied")
            extra = json.loads(self.job["extra"]) | {"resources": self.outcomes}
            self.catalogue.set_job(self.job["job_id"], extra=json.dumps(extra), has_effect=1)
            self.catalogue.put_with_commit(f"holds/{self.job['job_id']}", json.dumps(left).encode())
        self.left = left

    def _finish(self) -> None:
        with self.catalogue.transaction():
            succeed(self.catalogue, self.job, {"resources": self.outcomes})


def carry_out(catalogue: PoolCatalogue, job: Row, request: dict[str, Any], progress: JobProgress) -> None:
    """Roll disks back, or go on with that."""
    overwriting = RollBack(catalogue, job, request, progress)
    if job["has_effect"]:
        overwriting.resume()
    else:
        overwriting.first()
