"""Carry out the worker's jobs over RBD images (CEPH.md, "Jobs")."""

import errno
import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import Any, Final

from snapshot_mcp.catalogue import deletion, jobs
from snapshot_mcp.catalogue.agreement import NOTHING_CHANGED, compare_again, refuse_overdue
from snapshot_mcp.catalogue.database import moment
from snapshot_mcp.catalogue.lookup import label_of, owner_of
from snapshot_mcp.catalogue.outcome import refuse_cancelled, succeed
from snapshot_mcp.catalogue.progress import JobProgress
from snapshot_mcp.catalogue.rollback import DiskOverwrite, mark, record_problem
from snapshot_mcp.catalogue.snapshots import Taken, make_available
from snapshot_mcp.catalogue.store import DamagedSnapshot, Row
from snapshot_mcp.contract.errors import Damaged, NotUsable, ResourceBusy, ZoneError
from snapshot_mcp.contract.models import format_time
from snapshot_mcp.contract.states import JobAction, ResourceType
from snapshot_mcp.contract.text import EACH_FOR_ITSELF, clean_text
from snapshot_mcp.providers.ceph import clib
from snapshot_mcp.providers.ceph.catalogue import PoolCatalogue
from snapshot_mcp.providers.ceph.clib import CephError
from snapshot_mcp.providers.ceph.cluster import Image, Pool
from snapshot_mcp.providers.ceph.errors import GONE, translate
from snapshot_mcp.providers.ceph.names import ID, names_for, partial_name, snapshot_name
from snapshot_mcp.providers.ceph.store import finished_name, in_words, refuse_users

BLOCK: Final = 4 << 20
"""Bytes that are copied at once: an object, as RBD makes them."""

COPIERS: Final = 8
"""Blocks that are copied at the same time."""

DEAD_CLIENT_SECONDS: Final = 40.0
"""Ceph lets go of a client that has died after 30 s."""

LOOK_SECONDS: Final = 0.5

MAX_COUNTED_OBJECTS: Final = 20_000
"""Objects of an image without the feature fast-diff that are looked at for a restore point's size."""


def carry_out(catalogue: PoolCatalogue, job_id: str) -> None:
    """Carry out a job that is `working`, in its own thread."""
    jobs.carry_out(catalogue, job_id, ACTIONS, _translate)


def _translate(error: Exception) -> ZoneError | None:
    if isinstance(error, CephError) and error.errno in GONE:
        raise error  # this client is locked out: the worker ends, and another goes on
    return translate(error)


# snapshots


def create(catalogue: PoolCatalogue, job: Row, request: dict[str, Any], progress: JobProgress) -> None:
    """Take the snapshots, all at once, or publish those that a worker that died has taken."""
    rows = [row for one in request["snapshot_ids"] if (row := catalogue.snapshot(one))]
    with ExitStack() as stack:
        images = [_opened(catalogue, stack, row) for row in rows]
        there = [
            snapshot_name(row["snapshot_id"]) in image.snapshots() for row, image in zip(rows, images, strict=True)
        ]
        if any(there) and not all(there):
            raise NotUsable(
                "The backup was interrupted while its snapshots were taken, so they are not of one moment.",
                hint="Create it again. Earlier snapshots are not affected.",
            )
        progress.start("taking the snapshot", 0)
        taken_at = rows[0]["snapshot_at"] if all(there) else catalogue.instant()
        take_together(images, [row["snapshot_id"] for row in rows])
        consistency = "instant" if len(rows) == 1 else f"instant, {EACH_FOR_ITSELF}"
        taken = {
            row["snapshot_id"]: facts_of(catalogue, row, image, taken_at, consistency)
            for row, image in zip(rows, images, strict=True)
        }
    with catalogue.transaction():
        for one, what in taken.items():
            make_available(catalogue, one, what)
        succeed(catalogue, job, {"snapshot_time": format_time(moment(taken_at))})


def _opened(catalogue: PoolCatalogue, stack: ExitStack, snapshot: Row) -> Image:
    return stack.enter_context(catalogue.store.open(owner_of(catalogue, snapshot), is_read_only=False))


def take_together(images: Sequence[Image], snapshot_ids: Sequence[str]) -> None:
    """Take a snapshot of each image, as near to each other as can be, and protect them."""
    names = list(map(snapshot_name, snapshot_ids))
    if len(images) == 1:
        images[0].take(names[0])
        return
    with ThreadPoolExecutor(len(images)) as pool:
        list(pool.map(Image.take, images, names))


def facts_of(catalogue: PoolCatalogue, snapshot: Row, image: Image, taken_at: float, consistency: str) -> Taken:
    """Return what is recorded of a snapshot that was taken."""
    name = snapshot_name(snapshot["snapshot_id"])
    size = image.snapshots()[name].size
    image.set_metadata(f"{name}.name", snapshot["name"][:1000])
    return Taken(taken_at, _estimate(catalogue, snapshot, image, size), size, consistency)


def _estimate(catalogue: PoolCatalogue, snapshot: Row, image: Image, size: int) -> int:
    """Return about what a restore point stores: all that was written since its parent, as far as Ceph knows that cheaply."""
    is_cheap = image.features & clib.FEATURE_FAST_DIFF or size >> image.order <= MAX_COUNTED_OBJECTS
    since = snapshot_name(snapshot["parent_id"]) if snapshot["parent_id"] else ""
    if not is_cheap:
        return size
    try:
        with catalogue.store.pool.open_image(image.id, snapshot=snapshot_name(snapshot["snapshot_id"])) as taken:
            return min(size, taken.changed_bytes(since))
    except CephError as error:
        if error.errno in GONE:
            raise
        return size


# roll-backs


class Overwriting:
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

    def _hold(self, stack: ExitStack, resource: Row, *, is_patient: bool = False) -> Image:
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

    def _check(self, resource_id: str, image: Image) -> None:
        """See that the disk is the agreed one and the snapshot is there."""
        resource = self._resource(resource_id)
        compare_again(self.catalogue, self.request, resource, self.catalogue.store.identity_of(resource))
        self._refuse_missing(self.targets[resource_id], image)

    def _refuse_missing(self, snapshot_id: str, image: Image) -> None:
        if snapshot_name(snapshot_id) not in image.snapshots():
            raise DamagedSnapshot(snapshot_id, "its RBD snapshot is gone")

    def _take_safety(self, disks: dict[str, Image]) -> dict[str, Taken]:
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

    def _overwrite(self, resource_id: str, image: Image, safety: dict[str, Taken]) -> None:
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


def apply(catalogue: PoolCatalogue, job: Row, request: dict[str, Any], progress: JobProgress) -> None:
    """Roll disks back, or go on with that."""
    overwriting = Overwriting(catalogue, job, request, progress)
    if job["has_effect"]:
        overwriting.resume()
    else:
        overwriting.first()


# exports


def export(catalogue: PoolCatalogue, job: Row, request: dict[str, Any], progress: JobProgress) -> None:
    """Copy a snapshot to a new image, which gets its name when it is whole."""
    is_image = job["action"] == JobAction.CAPTURE_INSTANCE
    store, new_id = catalogue.store, request["new_id"]
    pool = store.image_pool if is_image else store.pool
    snapshot = catalogue.snapshot(request["snapshot_id"])
    assert snapshot is not None, "a claim"
    try:
        name = finished_name(pool, new_id, request["name"])
        if not name:
            with _snapshot_of(catalogue, snapshot) as source:
                progress.start("writing", source.size)
                with closing(_fresh_image(pool, new_id, source, progress)) as target:
                    target.set_metadata(ID, new_id)
                    _copy(source, target, progress.advance)
            name = _finish_name(pool, new_id, request["name"])
            progress.finish()
        _record_export(catalogue, job, request, pool, name)
    except ZoneError:
        store.remove_export(new_id, request["name"])  # before the job ends, and outside of its transaction
        raise


def _record_export(catalogue: PoolCatalogue, job: Row, request: dict[str, Any], pool: Pool, name: str) -> None:
    new_id, snapshot_id = request["new_id"], request["snapshot_id"]
    with pool.open_by_name(name) as made:
        image_id, size = made.id, made.size
    with catalogue.transaction():
        catalogue.db.execute("DELETE FROM resources WHERE resource_id = ?", (new_id,))  # it may have been found already
        if job["action"] == JobAction.CAPTURE_INSTANCE:
            catalogue.add_image(new_id, request["name"], image_id, snapshot_id)
        else:
            catalogue.add_resource(new_id, ResourceType.VOLUME, request["name"], image_id)
            catalogue.db.execute("UPDATE resources SET former_path = ? WHERE resource_id = ?", (name, new_id))
        catalogue.record_export(new_id, image_id, 0, snapshot_id)
        succeed(catalogue, job, {"path": f"{pool.name}/{name}", "size_bytes": size})


def _snapshot_of(catalogue: PoolCatalogue, snapshot: Row) -> Image:
    """Open a restore point's content. Raises DamagedSnapshot if it is gone."""
    image_id, name = owner_of(catalogue, snapshot)["path"], snapshot_name(snapshot["snapshot_id"])
    try:
        return catalogue.store.pool.open_image(image_id, snapshot=name)
    except CephError as error:
        if error.errno != errno.ENOENT:
            raise
        raise DamagedSnapshot(snapshot["snapshot_id"], "its RBD snapshot is gone") from None


def _fresh_image(pool: Pool, new_id: str, like: Image, progress: JobProgress) -> Image:
    """Return a new image; what a worker that died has left of it is removed first, once Ceph has let go of that worker."""
    deadline = time.monotonic() + DEAD_CLIENT_SECONDS
    while True:
        try:
            pool.create_image(partial_name(new_id), like.size, like=like)
            return pool.open_by_name(partial_name(new_id))
        except CephError as error:
            if error.errno != errno.EEXIST:
                raise
        try:
            pool.remove_image(partial_name(new_id))
        except CephError as error:
            if error.errno == errno.EBUSY and time.monotonic() < deadline:
                progress.start("waiting until Ceph lets go of a client that died, up to 30 s", 0)
                time.sleep(LOOK_SECONDS)
            elif error.errno != errno.ENOENT:
                raise


def _copy(source: Image, target: Image, advance: Callable[[int], None]) -> None:
    """Copy all content; blocks of zeros are left out of the new image."""
    zeros, size = bytes(BLOCK), source.size

    def copy(offset: int) -> int:
        length = min(BLOCK, size - offset)
        data = source.read(offset, length)
        if data != zeros[:length]:
            target.write(offset, data)
        return length

    with ThreadPoolExecutor(COPIERS) as pool:
        try:
            for length in _in_turn(pool, copy, range(0, size, BLOCK)):
                advance(length)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    target.flush()


def _in_turn(pool: ThreadPoolExecutor, act: Callable[[int], int], items: range) -> Iterator[int]:
    """Yield the results in order, with a bounded number of calls under way."""
    waiting: list[Any] = []
    for item in items:
        waiting.append(pool.submit(act, item))
        if len(waiting) >= 2 * COPIERS:
            yield waiting.pop(0).result()
    for one in waiting:
        yield one.result()


def _finish_name(pool: Pool, new_id: str, text: str) -> str:
    """Give a finished export its name, with its id behind it where an image has that name already."""
    for name in names_for(text, new_id):
        try:
            pool.rename_image(partial_name(new_id), name)
        except CephError as error:
            if error.errno != errno.EEXIST:
                raise
        else:
            return name
    raise NotUsable(
        f"There are images of all names that the export could have: {clean_text(text)!r}.", hint="Use another."
    )


# verification


def verify(catalogue: PoolCatalogue, job: Row, request: dict[str, Any], progress: JobProgress) -> None:
    """Read snapshots back whole: Ceph compares what it stores with its own checksums."""
    rows = {row["snapshot_id"]: row for one in request["verify_ids"] for row in catalogue.ancestors(one)}
    progress.start("verifying", sum(row["virtual_bytes"] for row in rows.values()))
    damaged: dict[str, str] = {}
    for snapshot_id, row in rows.items():
        try:
            _read_whole(catalogue, row, progress.advance)
        except DamagedSnapshot as error:
            damaged[snapshot_id] = error.message
        except CephError as error:
            if error.errno != errno.EIO:
                raise
            damaged[snapshot_id] = f"Snapshot {snapshot_id} is damaged: Ceph cannot read all of it."
    progress.finish()
    with catalogue.transaction():
        for one in rows:
            catalogue.mark_damaged(one, is_damaged=one in damaged)
        whole = [one for one in rows if not {row["snapshot_id"] for row in catalogue.ancestors(one)} & damaged.keys()]
        verified = [one for one in request["verify_ids"] if one in whole]
        catalogue.mark_verified(whole)
        outcome = {"verified": verified, "damaged": sorted(damaged)}
        if not damaged:
            succeed(catalogue, job, outcome)
            return
        catalogue.set_job(job["job_id"], extra=json.dumps(json.loads(job["extra"]) | outcome))
    lost = [one for one in request["verify_ids"] if one not in verified]
    raise Damaged(
        f"{' '.join(damaged.values())} So these cannot be restored: {', '.join(lost)}.",
        hint="Take a new full snapshot of the disk; the damaged ones are marked and no longer count as good.",
    )


def _read_whole(catalogue: PoolCatalogue, snapshot: Row, advance: Callable[[int], None]) -> None:
    with _snapshot_of(catalogue, snapshot) as image, ThreadPoolExecutor(COPIERS) as pool:
        size = image.size
        for length in _in_turn(
            pool, lambda offset: len(image.read(offset, min(BLOCK, size - offset))), range(0, size, BLOCK)
        ):
            advance(length)


ACTIONS: Final[dict[JobAction, jobs.Action[PoolCatalogue]]] = {
    JobAction.CREATE: create,
    JobAction.DELETE: deletion.carry_out,
    JobAction.LEASE: deletion.recover,
    JobAction.APPLY: apply,
    JobAction.CAPTURE_INSTANCE: export,
    JobAction.CREATE_VOLUME: export,
    JobAction.VERIFY: verify,
}
