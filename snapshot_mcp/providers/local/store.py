"""`FileStore`: the catalogue's hooks (`catalogue.store`) over raw disk images and snapshots' files."""

import shutil
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from snapshot_mcp.catalogue.database import Catalogue
from snapshot_mcp.catalogue.lookup import label_of
from snapshot_mcp.catalogue.room import Room
from snapshot_mcp.catalogue.store import Capacity, DamagedSnapshot, Row, Sight, Use
from snapshot_mcp.ground.files import fsync_folder
from snapshot_mcp.providers.local import estimates, in_use
from snapshot_mcp.providers.local.disk import CaptureSource, TargetDisk
from snapshot_mcp.providers.local.identity import Identity, described, identity_at
from snapshot_mcp.providers.local.snapshot_file.format import file_name


class FileStore:
    """The files of the zone in `folder`, and the disk images that its rows name."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.snapshots = folder, folder / "snapshots"

    def check_capture(self, resource: Row, room: Room, *, is_full: bool, allow_fuzzy: bool) -> None:
        """Open the disk as a capture would."""
        with CaptureSource(resource["path"], label_of(resource), allow_fuzzy=allow_fuzzy) as source:
            if not is_full:
                room.add_incremental(resource["resource_id"])
            elif room.kept_bytes:
                room.add(estimates.of_full(source.fd, room.left_bytes))

    def check_overwrite(self, resource: Row, *, is_alone: bool, is_patient: bool) -> str:
        """Hold the disk as a roll-back would."""
        with TargetDisk(resource["path"], label_of(resource), is_patient=is_patient) as target:
            if is_alone:
                target.refuse_company()
            return str(target.identity)

    def check_export(self, snapshot_id: str, room: Room) -> None:
        """A damaged snapshot counts nothing, since its export fails."""
        if room.kept_bytes:
            with suppress(DamagedSnapshot):
                room.add(estimates.of_export(self.snapshots, snapshot_id))

    def look_at(self, row: Row, *, is_verbose: bool = False) -> Sight:
        """Look at the file at the row's path; no file is opened."""
        path = Path(row["path"])
        try:
            size = path.stat().st_size
        except OSError as error:
            return Sight(0, f"its file cannot be read: {error.strerror}")
        if not is_verbose:
            return Sight(size)
        if identity := identity_at(path):
            return Sight(size, "", str(identity), identity.links)
        return Sight(size, "its path does not lead to a regular file any more")

    def identity_of(self, resource: Row) -> str:
        """Return which file lies at the disk's path."""
        return str(identity_at(Path(resource["path"])) or "")

    def is_same_disk(self, before: str, present: str) -> bool:
        """Compare filesystem, inode and time of birth, not the number of names."""
        begun, there = Identity.parse(before), Identity.parse(present)
        return begun is None or (there is not None and there.is_same_file(begun))

    def describe(self, identity: str) -> str:
        """Describe the file by inode and time of birth."""
        return described(identity)

    def find_uses(self, catalogue: Catalogue, resources: Sequence[Row]) -> dict[str, Use]:
        """Look at claims and the kernel's tables, then ask for leases."""
        return in_use.find_uses(catalogue, self.folder, resources)

    def capacity(self) -> Capacity:
        """Return the room on the filesystem of the zone's folder."""
        usage = shutil.disk_usage(self.folder)
        return Capacity(usage.total, usage.free)

    def remove(self, snapshot_ids: Sequence[str]) -> None:
        """Unlink the snapshots' files and sync their folder."""
        for snapshot_id in snapshot_ids:
            (self.snapshots / file_name(snapshot_id)).unlink(missing_ok=True)
        fsync_folder(self.snapshots)

    def clean_up(self, request: Mapping[str, Any], whole_ids: Collection[str]) -> None:
        """What their former content was (`work.former`), and an exported file that was never registered."""
        for resource_id in whole_ids:
            self.former_path(resource_id).unlink(missing_ok=True)
        if new_id := request.get("new_id"):
            for name in ("images", "volumes"):
                (self.folder / name / f"{new_id}.raw").unlink(missing_ok=True)

    def former_path(self, resource_id: str) -> Path:
        """Where the hashes of what a disk held are kept while it is overwritten without a safety snapshot."""
        return self.snapshots / f".{resource_id}.former"
