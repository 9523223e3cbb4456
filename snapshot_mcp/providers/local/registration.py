"""Register disks: images that this user can read, write and lease, and that are not snapshot-mcp's own files.

What a file is, a person says once. Content is checked only then: a guest may later write anything, even the magic number of an
image, into its raw disk.
"""

import errno
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from snapshot_mcp.catalogue.lookup import checked_name, find_resource, label_of, refuse_busy, refuse_incomplete
from snapshot_mcp.catalogue.snapshots import new_id
from snapshot_mcp.catalogue.store import Row
from snapshot_mcp.contract.errors import BadRequest, NotUsable, ResourceBusy
from snapshot_mcp.contract.states import ResourceType
from snapshot_mcp.contract.text import encodable
from snapshot_mcp.ground.permissions import owner_of, user_name
from snapshot_mcp.ground.shell import quote
from snapshot_mcp.providers.local.device import DeviceTarget, frozen, is_device, stable_path
from snapshot_mcp.providers.local.disk import image_path
from snapshot_mcp.providers.local.folder import FILE_NAME, FOLDERS, FolderCatalogue
from snapshot_mcp.providers.local.formats import AS_IT_SEEMS, GIVE_RAW_IMAGE, SECTOR_BYTES, Form, Machine, recognise
from snapshot_mcp.providers.local.holders import has_foreign_lease
from snapshot_mcp.providers.local.image.daemon import require_tools
from snapshot_mcp.providers.local.image.layers import DEVICE, EXPORT_SUFFIXES, QCOW2, RAW, Layout, freeze
from snapshot_mcp.providers.local.in_use import Lease, ask_lease
from snapshot_mcp.providers.local.machine.disk import verify
from snapshot_mcp.providers.local.machine.virsh import disks_of
from snapshot_mcp.providers.local.place import other_kind_at, shown


def register(
    catalogue: FolderCatalogue,
    path: Path,
    name: str,
    resource_type: ResourceType,
    form: Form = AS_IT_SEEMS,
    home: Path | None = None,
    configuration: Sequence[Path] = (),
) -> Row:
    """Register a disk image as a volume or an instance, unless it is registered already (FORMAT.md, "Invariants").

    It is opened last: opening a registered disk would break the lease of a job that holds it.
    """
    real = stable_path(path) if is_device(path) else image_path(path)
    refuse_own_file(real, catalogue.folder, home, configuration)
    name = checked_name(name or encodable(real.name))
    if form.machine:
        verify(real, RAW if is_device(real) else form.format or RAW, form.machine)
    with catalogue.transaction():
        refuse_registered(catalogue, real)
        layout = _check_device(real, form) if is_device(real) else check_disk(real, form)
        for base in layout.bases:
            refuse_own_file(Path(base.path), catalogue.folder, home, configuration)
            refuse_registered(catalogue, Path(base.path))
        resource_id = new_id("vol" if resource_type == ResourceType.VOLUME else "ins")
        catalogue.add_resource(resource_id, resource_type, name, str(real), str(layout))
        row = catalogue.resource(resource_id)
    assert row is not None
    return row


def register_domain(
    catalogue: FolderCatalogue,
    domain: Machine,
    resource_type: ResourceType,
    only: Path | None = None,
    bases: tuple[Path, ...] = (),
    home: Path | None = None,
    configuration: Sequence[Path] = (),
) -> list[Row]:
    """Register all disks of a domain of libvirt, or only one, in the formats of its definition: all or none of them."""
    disks = disks_of(domain.domain)
    wanted = [one for one in disks if only is None or one.path == only]
    if not wanted:
        raise BadRequest(
            f"Domain {shown(domain.domain)} does not have the disk {shown(only or Path())}.",
            hint=f"It has: {', '.join(shown(one.path) for one in disks)}",
        )
    rows: list[Row] = []
    try:
        for one in wanted:
            form = Form(one.format, bases, domain)
            name = f"{domain.domain}-{one.target}"
            rows.append(register(catalogue, one.path, name, resource_type, form, home, configuration))
    except BaseException:
        for row in rows:
            unregister(catalogue, row["resource_id"])
        raise
    return rows


def refuse_own_file(real: Path, folder: Path, home: Path | None, configuration: Sequence[Path] = ()) -> None:
    """Raise BadRequest for a file of a zone, of the home folder, or of the operator's settings (`configuration`).

    A roll-back would overwrite it, and a backup would copy the tokens in it. The only disks in the zone's folder are
    exported volumes, which may be registered again.
    """
    folder = folder.resolve()
    if real.is_relative_to(folder):
        if real.parent == folder / "volumes" and real.suffix in EXPORT_SUFFIXES:
            return
        if real.parent == folder / "images":
            copy = "Copy it out of the zone's folder and register the copy; exported images are never changed."
            raise BadRequest(f"The file {shown(real)} is an image that this zone exported.", hint=copy)
        raise BadRequest(f"The file {shown(real)} belongs to the zone itself and is not a disk.", hint=GIVE_RAW_IMAGE)
    if other := next((one for one in real.parents if _is_zone(one)), None):
        raise BadRequest(
            f"The file {shown(real)} belongs to another zone of this program, in {shown(other)}.",
            hint="Copy it out of that folder and register the copy, or give the path of another raw disk image.",
        )
    if home and real.is_relative_to(home.resolve()):
        raise BadRequest(
            f"The file {shown(real)} is in {shown(home)}, where snapshot-mcp keeps its own files.",
            hint="Move the disk image out of that folder and register it there.",
        )
    inode = _inode(real)
    for own in configuration:
        if real == own.resolve() or (inode is not None and inode == _inode(own)):  # a hard link too
            raise BadRequest(f"The file {shown(real)} is a settings file of snapshot-mcp.", hint=GIVE_RAW_IMAGE)
        if real.is_relative_to(own.resolve()):
            raise BadRequest(
                f"The file {shown(real)} is in {shown(own)}, which holds settings of snapshot-mcp.",
                hint="If it is a disk image, move it out of that folder and register it there.",
            )


def _is_zone(folder: Path) -> bool:
    return (folder / FILE_NAME).is_file() and (folder / FOLDERS[0]).is_dir()


def refuse_registered(catalogue: FolderCatalogue, real: Path, own_id: str = "") -> None:
    """Raise BadRequest for a file that is already registered, under any name, except as the disk `own_id`."""
    inode = _inode(real)
    for other in catalogue.rows("SELECT * FROM resources WHERE removed_at IS NULL AND resource_id != ?", own_id):
        for base in Layout.parse(other["layout"]).bases:
            if base.path == str(real) or (inode is not None and inode == _inode(Path(base.path))):
                raise BadRequest(
                    f"The file {shown(real)} is a base of {label_of(other)}, which would change with it.",
                    hint="Back up that disk instead: its restore points hold the content of its bases too.",
                )
        if other["path"] == str(real) or (inode is not None and _inode(Path(other["path"])) == inode):
            kind = other_kind_at(Path(other["path"]))
            move = f"Its path {shown(other['path'])} is now {kind}: the command `zone move ID PATH` takes the disk to its file."
            remove = f"If that was a mistake, `zone remove {other['resource_id']}` unregisters it, and then this disk can move."
            raise BadRequest(
                f"The file {shown(real)} is already registered as {label_of(other)}.",
                hint=move if kind else remove if own_id else f"Use {other['resource_id']}.",
            )


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino


def unregister(catalogue: FolderCatalogue, resource_id: str) -> Row:
    """Unregister a disk; its file and snapshots stay. Refused while its file exists and is half overwritten."""
    with catalogue.transaction() as db:
        resource = find_resource(catalogue, resource_id)
        refuse_busy(catalogue, [resource])
        if os.path.exists(resource["path"]):  # noqa: PTH110 (also where its folder may not be entered)
            refuse_incomplete(catalogue, resource)
        db.execute(
            "UPDATE resources SET removed_at = ?, applying_id = NULL, problem = '' WHERE resource_id = ?",
            (catalogue.now(), resource_id),
        )
    return resource


def _check_device(path: Path, form: Form) -> Layout:
    """Check a block device that is not registered. Raises BadRequest, NotUsable, ResourceBusy."""
    if form.format == QCOW2 or form.bases:
        raise BadRequest(f"The block device {shown(path)} is raw.", hint="Leave --format and --base out.")
    with DeviceTarget(str(path), f"device {shown(path)}") as device:
        return Layout(DEVICE, device.size_bytes, identity=frozen(device), machine=form.machine)


def check_disk(real: Path, form: Form = AS_IT_SEEMS) -> Layout:
    """Check a file that is not registered, and return what to register it as. Raises BadRequest, NotUsable, ResourceBusy.

    With the format "raw" the formats that wrap a disk are not looked for: a person knows what the content has to be.
    """
    if has_foreign_lease(real):  # opening it would break the lease
        raise ResourceBusy(
            f"The file {shown(real)} is in use: another program, such as a backup, holds a lease on it.",
            hint="Wait until that program has finished, then try again.",
        )
    fd = _open(real, os.O_RDONLY, "read", "Backups must read it")
    try:
        layout = _check_content(real, fd, form)
        lease = ask_lease(fd)
    finally:
        os.close(fd)
    if lease == Lease.NOT_OURS:
        raise NotUsable(
            f"The file {shown(real)} belongs to another user ({owner_of(real)}), and only its owner can make sure that"
            " nobody writes to it during a backup.",
            hint=f"Run snapshot-mcp as that user, or change the owner: chown {user_name()} {quote(str(real))}",
        )
    os.close(_open(real, os.O_RDWR, "write", "Roll-backs must overwrite it"))
    return replace(layout, machine=form.machine)


def _check_content(real: Path, fd: int, form: Form) -> Layout:
    if form.format == QCOW2:
        require_tools()
        return freeze(real, fd, form.bases)
    if form.bases:
        raise BadRequest(
            f"A raw disk has no base: {shown(form.bases[0])}.", hint="Add --format qcow2, if it is such an image."
        )
    size = os.fstat(fd).st_size
    if size == 0:
        raise BadRequest(
            f"The file {shown(real)} is empty.",
            hint=f"Give it the size of the disk first, for example: truncate -s 20G {quote(str(real))}",
        )
    if form.format != RAW and (wrapped := recognise(fd, size)):
        raise BadRequest(
            f"The file {shown(real)} is {wrapped.name}, not a raw disk image.", hint=wrapped.next_step(real)
        )
    if size < SECTOR_BYTES:
        raise BadRequest(
            f"The file {shown(real)} has only {size} bytes; a disk has at least one sector ({SECTOR_BYTES} bytes).",
            hint=GIVE_RAW_IMAGE,
        )
    return Layout()


def _open(real: Path, flags: int, verb: str, why: str) -> int:
    try:
        return os.open(real, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        rights = f"Allow {user_name()} to {verb} it (its owner is {owner_of(real)}), or run snapshot-mcp as its owner."
        steps = {errno.EACCES: rights, errno.EPERM: rights, errno.EROFS: "Move it to a writable filesystem."}
        otherwise = "Stop the program that uses it, or check the disk that it is on, then register it again."
        raise NotUsable(
            f"The file {shown(real)} cannot be opened to {verb} it: {error.strerror}. {why}.",
            hint=steps.get(error.errno or 0, otherwise),
        ) from None
