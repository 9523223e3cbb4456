"""`PoolStore`: the hooks of `catalogue.store` over RBD images. A disk's `path` in the catalogue is its image's id."""

import errno
import logging
import math
import time
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from snapshot_mcp.catalogue.lookup import label_of
from snapshot_mcp.catalogue.room import Room
from snapshot_mcp.catalogue.store import Capacity, Row, Sight, Use
from snapshot_mcp.contract.errors import NotUsable, QuotaExceeded, ResourceBusy
from snapshot_mcp.contract.states import SnapshotStatus
from snapshot_mcp.contract.text import MESSAGE_CHARACTERS, clean_text
from snapshot_mcp.providers.ceph import clib
from snapshot_mcp.providers.ceph.clib import CephError
from snapshot_mcp.providers.ceph.errors import GONE
from snapshot_mcp.providers.ceph.image import ClientUse, RbdImage
from snapshot_mcp.providers.ceph.names import (
    ID,
    PREFIX,
    id_in,
    is_ours,
    label_key,
    names_for,
    partial_name,
    snapshot_name,
)
from snapshot_mcp.providers.ceph.pool import Pool

if TYPE_CHECKING:
    from snapshot_mcp.catalogue.database import Catalogue
    from snapshot_mcp.providers.ceph.catalogue import PoolCatalogue

MAX_SNAPSHOTS: Final = 480
"""Snapshots of an image, ours and others': the kernel's client maps no image with more than 510."""

DEAD_CLIENT_SECONDS: Final = 40.0
"""Ceph lets go of a client that has died after 30 s."""

LOOK_SECONDS: Final = 0.5

SHOWN_CLIENTS: Final = 3

log = logging.getLogger(__name__)


class PoolStore:
    """The images of `pool`, and the exported ones in `image_pool`."""

    catalogue: "PoolCatalogue"

    def __init__(self, pool: Pool, image_pool: Pool) -> None:
        self.pool, self.image_pool = pool, image_pool
        self._place = f"{pool.cluster.id}/{pool.number}"
        self.until = math.inf
        """When the call that runs must have answered, by the monotonic clock."""
        self.obstacles: dict[str, str] = {}
        """Why RBD snapshots could not be removed, by their restore points' ids."""

    def refuse_late(self) -> None:
        """Fail if the call that runs takes too long: the cluster answers, but slowly."""
        if time.monotonic() > self.until:
            with self.pool.answering():
                raise CephError(errno.ETIMEDOUT, "it answers too slowly")

    def open(self, resource: Row, *, is_read_only: bool = True) -> RbdImage:
        """Open a disk's image. Raises NotUsable if it is gone."""
        self.refuse_late()
        try:
            return self.pool.open_image(resource["path"], is_read_only=is_read_only)
        except CephError as error:
            if error.errno != errno.ENOENT:
                raise
            raise NotUsable(
                f"The image of {label_of(resource)} is not in its pool any more.",
                hint="It was removed or moved to the trash; `rbd trash ls` shows what can come back.",
            ) from None

    def check_capture(self, resource: Row, room: Room, *, is_full: bool, allow_fuzzy: bool) -> None:
        """See that the image is there and takes another snapshot; record restore points that it has lost."""
        with self.open(resource) as image:
            names = image.snapshots()
        count = len(names)
        self.record_missing(resource, names)
        if count >= MAX_SNAPSHOTS:
            raise QuotaExceeded(
                f"{label_of(resource)} has {count} snapshots, ours and others'; at most {MAX_SNAPSHOTS} are possible.",
                hint="Delete restore points that are not needed, then `zone purge`.",
            )

    def check_overwrite(self, resource: Row, *, is_alone: bool, is_patient: bool) -> str:
        """See that nobody has the image open for writing, and that it can be locked."""
        with self.open(resource) as image:
            refuse_users(resource, image)
            if not image.features & clib.FEATURE_EXCLUSIVE_LOCK:
                raise NotUsable(
                    f"{label_of(resource)} has no exclusive lock, so a machine that starts during a roll-back could write to it.",
                    hint=f"Enable it: rbd feature enable {clean_text(resource['former_path'])} exclusive-lock.",
                )
        return self.identity_of(resource)

    def check_export(self, snapshot_id: str, room: Room) -> None:
        """Nothing is estimated: a full pool refuses the export's first new object."""

    def look_at(self, row: Row, *, is_verbose: bool = False) -> Sight:
        """Open the image for reading, which nobody notices."""
        is_disk = "resource_id" in tuple(row.keys())
        pool = self.pool if is_disk else self.image_pool
        self.refuse_late()
        try:
            with pool.open_image(row["path"]) as image:
                identity = self._identity(row["path"]) if is_verbose and is_disk else None
                return Sight(image.size, "", identity, None, f"{pool.name}/{image.name}")
        except CephError as error:
            if error.errno in GONE:
                raise
            gone = "its image is not in the pool any more"
            return Sight(0, gone if error.errno == errno.ENOENT else f"its image cannot be opened: {error.strerror}")

    def identity_of(self, resource: Row) -> str:
        """Return the cluster, the pool and the image, "" if the image is gone."""
        if resource["removed_at"] is not None and resource["path"] not in self.pool.list_images():
            return ""  # it is not out of the trash again
        return self._identity(resource["path"])

    def _identity(self, image_id: str) -> str:
        return f"{self._place}/{image_id}"

    def is_same_disk(self, before: str, present: str) -> bool:
        """An image's id belongs to one image for ever."""
        return not before or before == present

    def describe(self, identity: str) -> str:
        """Name the image by its id."""
        return f"image {clean_text(identity.rpartition('/')[2]) or 'none'}"

    def find_states(self, resources: Sequence[Row]) -> dict[str, str]:
        """Return that none is known to run: an image of a pool is a volume."""
        return {row["resource_id"]: "stopped" for row in resources}

    def find_uses(self, catalogue: "Catalogue", resources: Sequence[Row]) -> dict[str, Use]:
        """Ask who has each image open for writing; jobs of ours first."""
        claims = catalogue.rows("SELECT c.id, j.job_id, j.action FROM claims c JOIN jobs j USING (job_id)")
        ours = {row["id"]: f"{row['action']} {row['job_id']} of this zone" for row in claims}
        uses: dict[str, Use] = {}
        for resource in resources:
            if holder := ours.get(resource["resource_id"]):
                uses[resource["resource_id"]] = Use(holder, is_ours=True)
                continue
            self.refuse_late()
            try:
                with self.pool.open_image(resource["path"]) as image:
                    uses[resource["resource_id"]] = Use(in_words(image.clients()))
            except CephError as error:
                if error.errno in GONE:
                    raise
                uses[resource["resource_id"]] = Use(None)
        return uses

    def capacity(self) -> Capacity:
        """Return what the whole cluster has; zeros where it has no manager to count it."""
        return Capacity(*self.pool.cluster.capacity())

    def make_room(self) -> bool:
        """Nothing is kept to save time."""
        return False

    def remove(self, snapshot_ids: Sequence[str]) -> Collection[str]:
        """Remove RBD snapshots, each by itself; within a transaction once that is committed, since it may outlast its lock."""
        places = [(row["path"], one) for one in snapshot_ids if (row := self._disk_of(one))]
        left: list[str] = []

        def act() -> None:
            left.extend(one for image_id, one in places if not self._remove(image_id, one))

        if places and not self.catalogue.after_commit(act):
            act()
        return left

    def remains(self, resource: Row) -> tuple[list[str], list[str]]:
        """Return the ids of RBD snapshots of ours on an image that are no restore points any more, and of unknown ones."""
        try:
            with self.pool.open_image(resource["path"]) as image:
                ids = [name.removeprefix(PREFIX) for name in image.snapshots() if is_ours(name)]
        except CephError as error:
            if error.errno != errno.ENOENT:
                raise
            return [], []
        rows = {one: self.catalogue.snapshot(one) for one in ids}
        own = {one: row for one, row in rows.items() if row and row["resource_id"] == resource["resource_id"]}
        return [one for one, row in own.items() if row["status"] == SnapshotStatus.CEASED], sorted(rows.keys() - own)

    def _disk_of(self, snapshot_id: str) -> Row | None:
        return self.catalogue.row(
            "SELECT r.* FROM snapshots JOIN resources r USING (resource_id) WHERE snapshot_id = ?", snapshot_id
        )

    def record_missing(self, resource: Row, names: Collection[str]) -> set[str]:
        """Record, within a transaction, that those of a disk's restore points are damaged that no RBD snapshot of these is of.

        Return them.
        """
        rows = self.catalogue.rows(
            "SELECT snapshot_id FROM snapshots WHERE resource_id = ? AND status IN ('available', 'suspended', 'deleted')",
            resource["resource_id"],
        )
        missing = {row["snapshot_id"] for row in rows if snapshot_name(row["snapshot_id"]) not in names}
        for one in missing:
            self.catalogue.mark_damaged(one, is_damaged=True)
        return missing

    def _remove(self, image_id: str, snapshot_id: str) -> bool:
        """Remove an RBD snapshot; return False if that cannot be done now, which `obstacles` explains."""
        name, place = snapshot_name(snapshot_id), image_id
        try:
            with self.pool.open_image(image_id, is_read_only=False) as image:
                place = f"{self.pool.name}/{image.name}"
                image.drop(name)
                image.drop_metadata(label_key(snapshot_id))
        except CephError as error:
            if error.errno in GONE:
                raise
            if error.errno != errno.ENOENT:
                clones = f"an image was cloned from it (rbd children {place}@{name})"
                why = clones if error.errno == errno.EBUSY else error.strerror
                self.obstacles[snapshot_id] = (
                    f"The RBD snapshot of {snapshot_id} cannot be removed: {clean_text(why, MESSAGE_CHARACTERS)}."
                )
                log.info("%s", self.obstacles[snapshot_id])
                return False
        self.obstacles.pop(snapshot_id, None)
        return True

    def clean_up(self, request: Mapping[str, Any], whole_ids: Collection[str]) -> None:
        """Remove an export that was not recorded."""
        if new_id := request.get("new_id"):
            self.catalogue.after_commit(lambda: self.remove_export(str(new_id), str(request["name"])))

    def remove_export(self, new_id: str, text: str) -> None:
        """Remove what there is of an export that was not recorded."""
        for pool in (self.pool, self.image_pool):
            remove_partial(pool, new_id)
            if name := finished_name(pool, new_id, text):
                pool.remove_image(name)


def finished_name(pool: Pool, new_id: str, text: str) -> str:
    """Return the name of an export that is whole, "" if there is none."""
    for name in names_for(text, new_id):
        try:
            with pool.open_by_name(name) as image:
                if id_in(image.metadata(ID), image.id) == new_id:
                    return name
        except CephError as error:
            if error.errno != errno.ENOENT:
                raise
    return ""


def remove_partial(pool: Pool, new_id: str) -> None:
    """Remove an unfinished export. What its dead writer still holds is left; a worker that starts removes it."""
    try:
        pool.remove_image(partial_name(new_id))
    except CephError as error:
        if error.errno not in {errno.ENOENT, errno.EBUSY}:
            raise


def refuse_users(resource: Row, image: RbdImage) -> None:
    """Raise ResourceBusy if a client has the image open for writing."""
    if clients := image.clients():
        raise ResourceBusy(
            f"{label_of(resource)} is in use: {in_words(clients)} has it open for writing.",
            hint="Stop the machine that uses it. A client that died is let go of by Ceph after half a minute.",
        )


def in_words(clients: Sequence[ClientUse]) -> str:
    """Return who uses an image, "" for nobody."""
    shown = [f"client.{one.client} at {clean_text(one.address)}" for one in clients[:SHOWN_CLIENTS]]
    more = len(clients) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")
