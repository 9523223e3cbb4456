"""Delete what the zone itself made: exported volumes and images, in its own folders.

Never a file that the zone did not make (each export records which file it wrote), one that is open anywhere, one with restore
points of its own, or one that a symbolic link leads to. It is unlinked under a hold, in the transaction that takes it off the
list, and only if it is still what was agreed to.
"""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from snapshot_mcp.catalogue.lookup import find_resource, label_of, refuse_busy
from snapshot_mcp.catalogue.store import Row
from snapshot_mcp.contract.errors import BadRequest, NotFound, NotUsable, ResourceBusy, TermsChanged
from snapshot_mcp.contract.own_file import OwnFile
from snapshot_mcp.contract.states import SnapshotStatus
from snapshot_mcp.contract.text import MESSAGE_CHARACTERS, clean_text, quoted
from snapshot_mcp.providers.local.disk import TargetDisk
from snapshot_mcp.providers.local.folder import FolderCatalogue
from snapshot_mcp.providers.local.holders import describe, describe_holders, find_holders
from snapshot_mcp.providers.local.identity import Identity, identity_at
from snapshot_mcp.providers.local.in_use import Lease, ask_lease
from snapshot_mcp.providers.local.place import other_kind_at, shown, why_missing

KEEP_FILE: Final = "Remove it without --delete-file, and delete the file yourself if you do not need it."


class DoomedFile(TargetDisk):
    """A file that is about to be deleted; nobody else may have it open, not even for reading."""

    consequence = " and cannot be deleted"

    def __init__(self, path: str, label: str) -> None:
        if users := describe(find_holders([Path(path)])[Path(path)]):  # before it is opened, which could break a lease
            raise _in_use(label, users)
        super().__init__(path, label, is_patient=False)
        if not self.is_alone and ask_lease(self.fd) != Lease.UNKNOWN:
            self.close()
            raise _in_use(label, describe_holders(self.path))

    def unlink(self) -> None:
        """Remove its name, if that still leads to it, durably. Raises TermsChanged, OSError."""
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            there, held = os.stat(self.path.name, dir_fd=folder, follow_symlinks=False), os.fstat(self.fd)
            if (there.st_dev, there.st_ino) != (held.st_dev, held.st_ino):
                raise TermsChanged(f"The file {shown(self.path)} was replaced meanwhile.", hint="Nothing was deleted.")
            os.unlink(self.path.name, dir_fd=folder)
            os.fsync(folder)
        finally:
            os.close(folder)


def _in_use(label: str, users: str) -> ResourceBusy:
    return ResourceBusy(
        f"{label} is in use and cannot be deleted: {clean_text(users, MESSAGE_CHARACTERS)}.",
        hint="Stop the program that has it open, then try again.",
    )


def look_at_own_file(catalogue: FolderCatalogue, item_id: str) -> OwnFile:
    """Return what deleting the file of an exported volume or image takes. Raises if it must not be deleted."""
    with catalogue.transaction():  # no job can start while it is opened
        row = find_item(catalogue, item_id)
        found = _look(catalogue, row)
        DoomedFile(found.path, _label(row)).close()
    return found


def delete_own_file(catalogue: FolderCatalogue, agreed: OwnFile) -> None:
    """Delete the file and take the volume or image off the list. Raises TermsChanged if anything differs by now."""
    with catalogue.transaction():
        row = find_item(catalogue, agreed.item_id)
        _refuse_changed(catalogue, row, agreed)
        with DoomedFile(agreed.path, _label(row)) as file:
            _refuse_changed(catalogue, row, agreed)  # now that nobody can write to it
            file.unlink()
        take_off_list(catalogue, row)


def _refuse_changed(catalogue: FolderCatalogue, row: Row, agreed: OwnFile) -> None:
    if _look(catalogue, row) != agreed:
        raise TermsChanged(f"{_label(row)} changed since it was shown.", hint="Nothing was deleted. Look again.")


def find_image(catalogue: FolderCatalogue, image_id: str) -> Row:
    """Return an image. Raises NotFound."""
    image = catalogue.row("SELECT * FROM images WHERE image_id = ?", image_id)
    if image is None:
        raise NotFound(f"There is no image {clean_text(image_id)!r}.", hint="List the images to see the existing ids.")
    return image


def find_item(catalogue: FolderCatalogue, item_id: str) -> Row:
    """Return a registered disk or an image. Raises NotFound."""
    image = catalogue.row("SELECT * FROM images WHERE image_id = ?", item_id)
    return image or find_resource(catalogue, item_id)


def take_off_list(catalogue: FolderCatalogue, row: Row) -> None:
    """Forget an image, or unregister a volume, within the caller's transaction."""
    if _is_image(row):
        catalogue.db.execute("DELETE FROM images WHERE image_id = ?", (row["image_id"],))
    else:
        sql = "UPDATE resources SET removed_at = ?, applying_id = NULL, problem = '' WHERE resource_id = ?"
        catalogue.db.execute(sql, (catalogue.now(), row["resource_id"]))


def _is_image(row: Row) -> bool:
    return "image_id" in row.keys()  # noqa: SIM118 (a row is not a mapping)


def _label(row: Row) -> str:
    return f"image {quoted(row['name'])} ({row['image_id']})" if _is_image(row) else label_of(row)


def _look(catalogue: FolderCatalogue, row: Row) -> OwnFile:
    """Return the file of a volume or an image, without opening it. Raises if the rules forbid to delete it."""
    path = Path(row["path"])
    if not _is_image(row):
        refuse_busy(catalogue, [row])
        _refuse_with_restore_points(catalogue, row)
    _refuse_elsewhere(catalogue, row, path)
    if kind := other_kind_at(path):
        raise NotUsable(f"The path of {_label(row)}, {shown(path)}, is now {kind}.", hint=KEEP_FILE)
    try:
        found = path.lstat()
    except OSError as error:
        missing = f"The file of {_label(row)}, {shown(path)}, cannot be deleted: {why_missing(path, error)}."
        raise NotUsable(missing, hint=KEEP_FILE) from None
    made, identity = _find_export(catalogue, row, path)
    return OwnFile(
        item_id=row["image_id"] if _is_image(row) else row["resource_id"],
        name=row["name"],
        path=str(path),
        size_bytes=found.st_size,
        made_at=datetime.fromtimestamp(made["created_at"], UTC),
        written_at=datetime.fromtimestamp(found.st_mtime, UTC),
        made_from=made["made_from"],
        is_restorable=_is_good(catalogue, made["made_from"]) and found.st_mtime_ns == made["made_mtime_ns"],
        hard_links=found.st_nlink,
        identity=identity,
        frees_bytes=found.st_blocks * 512,
    )


def _is_good(catalogue: FolderCatalogue, snapshot_id: str) -> bool:
    row = catalogue.snapshot(snapshot_id)
    return row is not None and row["worth"] == "good"


def _refuse_with_restore_points(catalogue: FolderCatalogue, row: Row) -> None:
    count = "SELECT count(*) FROM snapshots WHERE resource_id = ? AND status != ?"
    if number := catalogue.count(count, row["resource_id"], SnapshotStatus.CEASED):
        raise NotUsable(
            f"{label_of(row)} has restore points of its own ({number}, with deleted ones that can be recovered), so its file"
            " is kept.",
            hint="Delete them first, or remove the volume without --delete-file.",
        )


def _refuse_elsewhere(catalogue: FolderCatalogue, row: Row, path: Path) -> None:
    own = catalogue.folder / ("images" if _is_image(row) else "volumes")
    if own.is_symlink():
        raise NotUsable(f"The zone's folder {shown(own)} is now {other_kind_at(own)}.", hint=KEEP_FILE)
    if path.parent.resolve() != own.resolve():
        raise BadRequest(
            f"The file of {_label(row)}, {shown(path)}, is not in the zone's folder: it is not the zone's to delete.",
            hint=KEEP_FILE,
        )


def _find_export(catalogue: FolderCatalogue, row: Row, path: Path) -> tuple[Row, str]:
    """Return the record of the export that made the file, and the file's identity. Raises BadRequest if there is none."""
    found = identity_at(path)
    exports = catalogue.rows(
        """SELECT resource_id AS item_id, made_identity, made_mtime_ns, made_from, created_at, removed_at IS NULL AS is_listed
        FROM resources WHERE made_identity != '' UNION ALL
        SELECT image_id, made_identity, made_mtime_ns, snapshot_id, created_at, 1 FROM images WHERE made_identity != ''"""
    )
    for export in exports:
        made = Identity.parse(export["made_identity"])
        if found and made and found.is_born_as(made):
            own_id = row["image_id"] if _is_image(row) else row["resource_id"]
            if export["is_listed"] and export["item_id"] != own_id:
                raise NotUsable(
                    f"The file at the path of {_label(row)}, {shown(path)}, is that of {clean_text(export['item_id'])}.",
                    hint=f"Nothing was deleted. {KEEP_FILE}",
                )
            return export, str(found)
    raise BadRequest(
        f"Nothing shows that an export of this zone made the file of {_label(row)}, {shown(path)}: it was replaced, or copied"
        " here, or made by an earlier version.",
        hint=KEEP_FILE,
    )
