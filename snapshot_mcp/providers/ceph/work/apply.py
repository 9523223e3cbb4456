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
from snapshot_mcp.contract.errors import ResourceBusy, ZoneError
from snapshot_mcp.providers.ceph.catalogue import PoolCatalogue
from snapshot_mcp.providers.ceph.clib import CephError
from snapshot_mcp.providers.ceph.image import RbdImage
from snapshot_mcp.providers.ceph.names import snapshot_name
from snapshot_mcp.providers.ceph.store import DEAD_CLIENT_SECONDS, LOOK_SECONDS, in_words, refuse_users
from snapshot_mcp.providers.ceph.work.create import facts_of, take_together


class RollBack:
    """A roll-back; `outcomes` has each disk as applied, unchanged or incomplete (CONTRACT.md)."""

    def __init__(self, catalogue: PoolCatalogue, job: Row, request: dict[str, Any], progress: JobProgress) -> None:
        self.catalogue, self.job, self.request, self.progress = catalogue, job, request, progress
        self.outcomes: dict[str, str] = json.loads(job["extra"]).get("resources", {})
        self.safety: dict[str, str] = request.get("safety") or {}
        self.targets: dict[str, str] = request["targets"]

    def first(self) -> None:
        """Roll all disks back: until all are held and agreed to, nothing is changed."""
        with ExitStack() as stack:
            disks = {one: self._hold(stack, self._resource(one)) for one in self.targets}
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
        """Go on with the disks that are not done, one by one; raise the first error after all were tried."""
        errors = []
        for one in self.targets:
            if self.outcomes.get(one) == "applied":
                continue
            resource = self._resource(one)
            try:
                with ExitStack() as stack:
                    image = self._hold(stack, resource, is_patient=True)
                    if self.outcomes.get(one) != "incomplete":
                        identity = self.catalogue.store.identity_of(resource)
                        compare_again(self.catalogue, self.request, resource, identity, is_head_ours=True)
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

    def _hold(self, stack: ExitStack, resource: Row, *, is_patient: bool = False) -> RbdImage:
        """Lock an image that nobody uses, and look again: who came in between would be overwritten."""
        deadline = time.monotonic() + (DEAD_CLIENT_SECONDS if is_patient else 0)
        with self.catalogue.store.open(resource) as seen:
            while clients := seen.clients():
                if time.monotonic() > deadline:
                    refuse_users(resource, seen)
                self.progress.start(f"waiting until Ceph lets go of {in_words(clients)}, up to 30 s", 0)
                time.sleep(LOOK_SECONDS)
        image = stack.enter_context(self.catalogue.store.open(resource, is_read_only=False))
        refuse_users(resource, image)
        self.progress.start("locking the disk; a client that died is waited for, up to 30 s", 0)
        try:
            image.lock()
        except CephError as error:
            if error.errno not in {errno.EBUSY, errno.EROFS, errno.EAGAIN}:
                raise
            raise ResourceBusy(
                f"{label_of(resource)} is locked by another client of Ceph.", hint=f"Stop it. {NOTHING_CHANGED}"
            ) from None
        refuse_users(resource, image)
        return image

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
        taken_at = self.catalogue.instant()
        images = [disks[one] for one in disks if one in self.safety]
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
        """Record the state of a disk; the first record is the point of no return."""
        is_first = not self.catalogue.count("SELECT has_effect FROM jobs WHERE job_id = ?", self.job["job_id"])
        self.outcomes |= {resource_id: outcome}
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
