"""`FileStore`: the hooks of `catalogue.store` over raw disk images and snapshots' files."""

import shutil
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from snapshot_mcp.catalogue.database import Catalogue
from snapshot_mcp.catalogue.room import Room
from snapshot_mcp.catalogue.store import Capacity, DamagedSnapshot, Row, Sight, Use
from snapshot_mcp.ground.files import fsync_folder
from snapshot_mcp.providers.local import capture, in_use, restore
from snapshot_mcp.providers.local.clones import Clones
from snapshot_mcp.providers.local.device import device_at, size_at
from snapshot_mcp.providers.local.identity import Identity, described, identity_at
from snapshot_mcp.providers.local.image.layers import DEVICE, EXPORT_SUFFIXES, QCOW2, Layout
from snapshot_mcp.providers.local.image.look import layout_of_export, look_into
from snapshot_mcp.providers.local.opening import is_running, open_source, open_target
from snapshot_mcp.providers.local.place import other_kind_at, shown, why_missing
from snapshot_mcp.providers.local.snapshot_file.format import file_name
from snapshot_mcp.providers.local.snapshot_file.reader import Chain


def _no_file(resource: Row) -> str:
    """Say of a disk without a path where it was before its zone was rebuilt."""
    was = (
        f"; it was at {shown(resource['former_path'])} before the zone was rebuilt or copied"
        if resource["former_path"]
        else ""
    )
    return f"it has no file{was}. The command `zone move {resource['resource_id']} PATH` gives it one"


def _layout_of(row: Row) -> Layout:
    """Return the layout of a row of `resources` or `images`; what is exported is what its name says."""
    is_image = "image_id" in row.keys()  # noqa: SIM118 (a row is not a mapping)
    return layout_of_export(Path(row["path"])) if is_image else Layout.parse(row["layout"])


def _look_at_device(path: Path, *, is_verbose: bool) -> Sight:
    identity = device_at(path)
    if identity is None:
        return Sight(0, "its device is not connected", format=DEVICE)
    return (
        Sight(size_at(path), "", str(identity), identity.links, format=DEVICE)
        if is_verbose
        else Sight(size_at(path), format=DEVICE)
    )


class FileStore:
    """The files of the zone in `folder`, and the disk images that its rows name."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.snapshots, self.clones = folder, folder / "snapshots", Clones(folder)

    def check_capture(self, resource: Row, room: Room, *, is_full: bool, allow_fuzzy: bool) -> None:
        """Open the disk as a capture does, and estimate the snapshot; nothing is asked of a running machine yet."""
        if is_running(resource):
            if is_full:
                room.add(Path(resource["path"]).stat().st_blocks * 512)
            else:
                room.add_incremental(resource["resource_id"])
            return
        with open_source(resource, allow_fuzzy=allow_fuzzy) as source:
            if not is_full:
                room.add_incremental(resource["resource_id"])
            elif room.kept_bytes:
                stored = source.stored_bytes
                room.add(stored if stored <= room.left_bytes else int(stored * capture.sampled_ratio(source.content)))

    def check_overwrite(self, resource: Row, *, is_alone: bool, is_patient: bool) -> str:
        """Hold the disk as a roll-back does, and return which file it is."""
        with open_target(resource, is_patient=is_patient) as target:
            if is_alone:
                target.refuse_company()
            return str(target.identity)

    def check_export(self, snapshot_id: str, room: Room) -> None:
        """Count the bytes that are not zero; none for a damaged snapshot, since its export fails."""
        if room.kept_bytes:
            with suppress(DamagedSnapshot), Chain(self.snapshots, snapshot_id) as chain:
                room.add(restore.room_needed(chain))

    def look_at(self, row: Row, *, is_verbose: bool = False) -> Sight:
        """Look at the file at the row's path without opening it, but for the header of an image."""
        if not row["path"]:
            return Sight(0, _no_file(row))
        path = Path(row["path"])
        if _layout_of(row).format == DEVICE:
            return _look_at_device(path, is_verbose=is_verbose)
        try:
            found = path.lstat()
        except ValueError:
            return Sight(0, "its path cannot exist")
        except OSError as error:
            return Sight(0, f"its file cannot be read: {why_missing(path, error)}")
        if kind := other_kind_at(path):
            return Sight(0, f"its path no longer leads to a regular file: it is now {kind}")
        size, problem, form = found.st_size, "", ""
        if (layout := _layout_of(row)).format == QCOW2:
            size, problem, form = look_into(path, layout)
        identity = identity_at(path) if is_verbose else None
        if identity is None:
            return Sight(size, problem, format=form)
        return Sight(size, problem, str(identity), identity.links, format=form)

    def identity_of(self, resource: Row) -> str:
        """Return which file is at the disk's path."""
        path = Path(resource["path"])
        found = device_at(path) if _layout_of(resource).format == DEVICE else identity_at(path)
        return str(found or "") if resource["path"] else ""

    def is_same_disk(self, before: str, present: str) -> bool:
        """Compare filesystem, inode and birth time, not the number of hard links."""
        begun, there = Identity.parse(before), Identity.parse(present)
        return begun is None or (there is not None and there.is_same_file(begun))

    def describe(self, identity: str) -> str:
        """Describe the file by its inode and birth time."""
        return described(identity)

    def find_uses(self, catalogue: Catalogue, resources: Sequence[Row]) -> dict[str, Use]:
        """Check claims and the kernel's tables, then request leases."""
        return in_use.find_uses(catalogue, self.folder, resources)

    def find_states(self, resources: Sequence[Row]) -> dict[str, str]:
        """Look who has each disk open, in the kernel's tables."""
        return in_use.find_states(self.folder, resources)

    def capacity(self) -> Capacity:
        """Return the space on the filesystem of the zone's folder."""
        usage = shutil.disk_usage(self.folder)
        return Capacity(usage.total, usage.free)

    def make_room(self) -> bool:
        """Remove all kept clones."""
        return self.clones.remove_all()

    def remove(self, snapshot_ids: Sequence[str]) -> Collection[str]:
        """Unlink the snapshots' files and sync their folder."""
        for snapshot_id in snapshot_ids:
            (self.snapshots / file_name(snapshot_id)).unlink(missing_ok=True)
        with suppress(FileNotFoundError):  # the folder was moved away, and the files with it
            fsync_folder(self.snapshots)
        self.clones.remove(snapshot_ids)
        return ()

    def clean_up(self, request: Mapping[str, Any], whole_ids: Collection[str]) -> None:
        """Remove the hashes of disks' former content (`work.former`) and an exported file that was never registered."""
        for resource_id in whole_ids:
            self.former_path(resource_id).unlink(missing_ok=True)
        if new_id := request.get("new_id"):
            for name in ("images", "volumes"):
                for suffix in EXPORT_SUFFIXES:
                    (self.folder / name / f"{new_id}{suffix}").unlink(missing_ok=True)

    def former_path(self, resource_id: str) -> Path:
        """Return where the hashes of a disk's former content are kept while it is overwritten without a safety snapshot."""
        return self.snapshots / f".{resource_id}.former"
