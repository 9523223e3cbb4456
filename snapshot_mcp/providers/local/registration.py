"""What may be registered as a disk: a raw image that this user can read, write and lease, and no file of snapshot-mcp itself.

It is looked at once, when it is registered. Later the disk's content is its own affair: a guest may
write anything, the magic number of an image too.
"""

import errno
import os
import pwd
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import Final

from snapshot_mcp.catalogue.lookup import checked_name, find_resource, label_of, refuse_busy, refuse_incomplete
from snapshot_mcp.catalogue.resources import insert_resource
from snapshot_mcp.catalogue.snapshots import new_id
from snapshot_mcp.catalogue.store import Row
from snapshot_mcp.contract.errors import BadRequest, NotUsable, ResourceBusy
from snapshot_mcp.contract.states import ResourceType
from snapshot_mcp.contract.text import clean_text
from snapshot_mcp.providers.local.disk import image_path
from snapshot_mcp.providers.local.folder import FILE_NAME, FOLDERS, FolderCatalogue
from snapshot_mcp.providers.local.formats import SECTOR_BYTES, recognise
from snapshot_mcp.providers.local.holders import has_foreign_lease
from snapshot_mcp.providers.local.in_use import Lease, ask_lease

_RAW_IMAGE: Final = "Give the path of a raw disk image."


def register(
    catalogue: FolderCatalogue,
    path: Path,
    name: str,
    resource_type: ResourceType,
    home: Path | None = None,
    configuration: Sequence[Path] = (),
) -> Row:
    """Enter a disk image as a volume or an instance. One file is registered once (FORMAT.md, "Invariants").

    It is opened last: to open a disk that is registered would break the lease of a job that has it.
    """
    real = image_path(path)
    refuse_own_file(real, catalogue.folder, home, configuration)
    name = checked_name(name or real.name)
    with catalogue.transaction():
        refuse_registered(catalogue, real)
        check_disk(real)
        resource_id = new_id("vol" if resource_type == ResourceType.VOLUME else "ins")
        insert_resource(catalogue, resource_id, resource_type, name, str(real))
        row = catalogue.resource(resource_id)
    assert row is not None
    return row


def refuse_own_file(real: Path, folder: Path, home: Path | None, configuration: Sequence[Path] = ()) -> None:
    """Raise BadRequest for a file of this zone, of another one, of the home folder or of the operator's settings.

    A roll-back would overwrite it, and a backup would copy the tokens in it. `configuration`: files, whole folders.
    Only a volume that this zone exported itself, and that was forgotten since, is a disk in the zone's folder.
    """
    folder = folder.resolve()
    if real.is_relative_to(folder):
        if real.parent == folder / "volumes" and real.suffix == ".raw":
            return
        if real.parent == folder / "images":
            copy = "Copy it out of the zone's folder and register the copy; the image stays as it was exported."
            raise BadRequest(f"The file {_shown(real)} is an image that this zone keeps.", hint=copy)
        raise BadRequest(f"The file {_shown(real)} is the zone's own, no disk.", hint=_RAW_IMAGE)
    if other := next((one for one in real.parents if _is_zone(one)), None):
        raise BadRequest(
            f"The file {_shown(real)} belongs to another zone of snapshot-mcp, in {_shown(other)}.",
            hint="Copy it out of that folder and register the copy, or give the path of another raw disk image.",
        )
    if home and real.is_relative_to(home.resolve()):
        raise BadRequest(
            f"The file {_shown(real)} lies in {_shown(home)}, where snapshot-mcp keeps its own files.",
            hint="Move the disk image out of that folder and register it there.",
        )
    inode = _inode(real)
    for own in configuration:
        if real == own.resolve() or (inode is not None and inode == _inode(own)):  # a hard link too
            raise BadRequest(f"The file {_shown(real)} is the settings file of snapshot-mcp, no disk.", hint=_RAW_IMAGE)
        if real.is_relative_to(own.resolve()):
            raise BadRequest(
                f"The file {_shown(real)} lies in {_shown(own)}, where snapshot-mcp's settings are.",
                hint="If it is a disk image, move it out of that folder and register it there.",
            )


def _is_zone(folder: Path) -> bool:
    return (folder / FILE_NAME).is_file() and (folder / FOLDERS[0]).is_dir()


def refuse_registered(catalogue: FolderCatalogue, real: Path) -> None:
    """Raise BadRequest for a file that is a disk of the zone already, by whatever name."""
    inode = _inode(real)
    for other in catalogue.rows("SELECT * FROM resources WHERE removed_at IS NULL"):
        if other["path"] == str(real) or (inode is not None and _inode(Path(other["path"])) == inode):
            raise BadRequest(
                f"The file {_shown(real)} is registered already, as {label_of(other)}.",
                hint=f"Use {other['resource_id']}.",
            )


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino


def unregister(catalogue: FolderCatalogue, resource_id: str) -> Row:
    """Forget a disk; its file and its snapshots stay. One that is half rolled back is forgotten only when its file is gone."""
    with catalogue.transaction() as db:
        resource = find_resource(catalogue, resource_id)
        refuse_busy(catalogue, [resource])
        if Path(resource["path"]).exists():
            refuse_incomplete(catalogue, resource)
        db.execute(
            "UPDATE resources SET removed_at = ?, applying_id = NULL, problem = '' WHERE resource_id = ?",
            (catalogue.now(), resource_id),
        )
    return resource


def check_disk(real: Path) -> None:
    """Look at a file that is not registered here. Raises BadRequest (not a raw image), NotUsable, ResourceBusy."""
    if has_foreign_lease(real):  # opening it would break the lease
        raise ResourceBusy(
            f"The file {_shown(real)} is in use: another program holds a lease on it, as a backup of it does.",
            hint="Wait until that has ended, then register it.",
        )
    fd = _open(real, os.O_RDONLY, "read", "Backups read it")
    try:
        _check_content(real, fd)
        lease = ask_lease(fd)
    finally:
        os.close(fd)
    if lease == Lease.NOT_OURS:
        raise NotUsable(
            f"The file {_shown(real)} belongs to another user ({_owner(real)}), and only a file's owner can make sure that"
            " nobody writes to it during a backup.",
            hint=f"Run snapshot-mcp as that user, or change the owner: chown {_me()} {quote(str(real))}",
        )
    os.close(_open(real, os.O_RDWR, "write", "A roll-back overwrites it"))


def _check_content(real: Path, fd: int) -> None:
    size = os.fstat(fd).st_size
    if size == 0:
        raise BadRequest(
            f"The file {_shown(real)} is empty.",
            hint=f"Give it the size of the disk first, for example: truncate -s 20G {quote(str(real))}",
        )
    if form := recognise(fd, size):
        raise BadRequest(f"The file {_shown(real)} is {form.name}, not a raw disk image.", hint=form.next_step(real))
    if size < SECTOR_BYTES:
        raise BadRequest(
            f"The file {_shown(real)} has {size} bytes; a disk has at least one sector of {SECTOR_BYTES}.",
            hint=_RAW_IMAGE,
        )


def _open(real: Path, flags: int, verb: str, why: str) -> int:
    """Raises NotUsable."""
    try:
        return os.open(real, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        rights = f"Give {_me()} the right to {verb} it (its owner is {_owner(real)}), or run snapshot-mcp as its owner."
        steps = {
            errno.EACCES: rights,
            errno.EPERM: rights,
            errno.EROFS: "Move it to a filesystem that can be written to.",
        }
        raise NotUsable(
            f"The file {_shown(real)} cannot be opened to {verb} it: {error.strerror}. {why}.",
            hint=steps.get(
                error.errno or 0, "Stop what uses it, or check the disk that it is on, and register it again."
            ),
        ) from None


def _shown(path: Path) -> str:
    return repr(clean_text(path, 400))


def _owner(path: Path) -> str:
    try:
        return path.owner()
    except (OSError, KeyError):  # a user without a name
        return f"user {path.stat().st_uid}"


def _me() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
