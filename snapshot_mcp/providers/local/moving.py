"""Move a disk to another path: its file was moved, copied or restored there, and its chain goes on with that file.

The file is compared with the disk's newest restore point. If it is smaller, or if less than half is equal, there are `doubts`
and a person decides. Whatever the file holds, the next backup is right, because a backup compares content; but a roll-back
will overwrite that file.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from snapshot_mcp.catalogue.lookup import find_resource, halves, label_of, refuse_busy
from snapshot_mcp.catalogue.report import Advance
from snapshot_mcp.catalogue.store import DamagedSnapshot, Row
from snapshot_mcp.contract.errors import BadRequest, NotUsable, ResourceBusy, TermsChanged
from snapshot_mcp.contract.states import SnapshotStatus
from snapshot_mcp.contract.text import MESSAGE_CHARACTERS, clean_text, format_bytes
from snapshot_mcp.providers.local.disk import OpenDisk, image_path
from snapshot_mcp.providers.local.folder import FolderCatalogue
from snapshot_mcp.providers.local.formats import AS_IT_SEEMS, Form, recognise
from snapshot_mcp.providers.local.holders import describe, find_holders
from snapshot_mcp.providers.local.identity import identity_at
from snapshot_mcp.providers.local.image.disk import ImageSource
from snapshot_mcp.providers.local.image.layers import QCOW2, RAW, Layout
from snapshot_mcp.providers.local.likeness import Likeness, measure_likeness
from snapshot_mcp.providers.local.machine.disk import verify
from snapshot_mcp.providers.local.place import other_kind_at, shown
from snapshot_mcp.providers.local.registration import check_disk, refuse_own_file, refuse_registered
from snapshot_mcp.providers.local.snapshot_file.reader import Chain
from snapshot_mcp.providers.local.source import Source

GIVE_FILE_ITSELF: Final = "Give the path of the disk's file itself."


@dataclass(frozen=True, slots=True)
class Move:
    """A move of a disk that nothing forbids: what its file was compared with, and what a person has to decide.

    `identity`, `file_bytes`, `old_path` and `head_id` are compared again when it is carried out. `snapshot_id` is "" if there
    is no restore point to compare with; `likeness` is None if nothing could be compared. `notes` are facts without a doubt.
    """

    resource_id: str
    label: str
    old_path: str
    path: str
    identity: str
    size_bytes: int
    file_bytes: int
    layout: str
    head_id: str | None
    snapshot_id: str
    likeness: Likeness | None
    doubts: tuple[str, ...]
    notes: tuple[str, ...]


class Mover:
    """Plans and carries out moves in one catalogue; `home` and `configuration` hold files that are never disks."""

    def __init__(
        self, catalogue: FolderCatalogue, home: Path | None = None, configuration: Sequence[Path] = ()
    ) -> None:
        self.catalogue = catalogue
        self._home, self._configuration = home, configuration

    def plan(self, resource_id: str, path: Path, advance: Advance, form: Form = AS_IT_SEEMS) -> Move:
        """Compare the file with the disk's newest restore point. Raises BadRequest, NotFound, NotUsable, ResourceBusy."""
        real = _file_path(path)
        if form.machine:
            known = Layout.parse(find_resource(self.catalogue, resource_id)["layout"])
            verify(real, form.format or known.format, form.machine)
        with self.catalogue.transaction():  # no job can start while files are opened, which would break its lease
            resource = find_resource(self.catalogue, resource_id)
            self._refuse(resource, real, may_stay=form.machine is not None)
            known = Layout.parse(resource["layout"])
            if form.machine and resource["path"] == str(real) and not form.bases:
                return _same_file(resource, real, replace(known, machine=form.machine))
            layout = check_disk(real, Form(form.format or known.format, form.bases, form.machine or known.machine))
            for base in layout.bases:
                refuse_own_file(Path(base.path), self.catalogue.folder, self._home, self._configuration)
                refuse_registered(self.catalogue, Path(base.path), resource_id)
            if layout.format == QCOW2:
                disk: OpenDisk = ImageSource(str(real), label_of(resource), layout)
            else:
                disk = OpenDisk(str(real), label_of(resource), os.O_RDONLY)
        with disk:
            return self._compare(resource, real, disk, layout, advance, may_wrap=form.format != "")

    def carry_out(self, move: Move) -> Row:
        """Move the disk, if all that was planned is still so. Raises TermsChanged, and what `plan` raises."""
        real = Path(move.path)
        with self.catalogue.transaction() as db:
            resource = find_resource(self.catalogue, move.resource_id)
            self._refuse(resource, real, may_stay=move.layout != resource["layout"])
            present = str(identity_at(real) or ""), real.lstat().st_size, resource["path"], resource["head_id"]
            if present != (move.identity, move.file_bytes, move.old_path, move.head_id):
                raise TermsChanged(
                    f"{move.label} or the file {shown(real)} changed after they were compared.",
                    hint="Nothing was changed. Move the disk again.",
                )
            db.execute(
                "UPDATE resources SET path = ?, layout = ?, status_at = ? WHERE resource_id = ?",
                (move.path, move.layout, self.catalogue.now(), move.resource_id),
            )
        moved = self.catalogue.resource(move.resource_id)
        assert moved is not None
        return moved

    def _refuse(self, resource: Row, real: Path, *, may_stay: bool) -> None:
        """Raise if the disk, its present file or the new one forbids a move; opens nothing. `may_stay`: what it is changes."""
        refuse_busy(self.catalogue, [resource])
        if kind := other_kind_at(real):
            raise BadRequest(f"The path {shown(real)} is now {kind}.", hint=GIVE_FILE_ITSELF)
        if resource["path"] == str(real) and not (
            may_stay or resource["layout"]
        ):  # the bases of an image can have changed
            raise BadRequest(f"{label_of(resource)} is at {shown(real)} already.", hint="Nothing was changed.")
        refuse_own_file(real, self.catalogue.folder, self._home, self._configuration)
        if real.is_relative_to(self.catalogue.folder.resolve()) and real.stem != resource["resource_id"]:
            raise BadRequest(
                f"The file {shown(real)} is in the zone's own folder.",
                hint=f"Only a volume that was exported there can return. Move the file of {label_of(resource)} elsewhere.",
            )
        refuse_registered(self.catalogue, real, resource["resource_id"])
        self._refuse_half(resource, real)
        _refuse_file_in_use(resource, real)

    def _refuse_half(self, resource: Row, real: Path) -> None:
        """Raise NotUsable for a disk that is half overwritten, unless it is that very file: a copy of it would pass as whole."""
        found, there = halves(resource), str(identity_at(real) or "")
        if found and not any(self.catalogue.store.is_same_disk(half.identity, there) for half in found):
            described = self.catalogue.store.describe(found[0].identity)
            raise NotUsable(
                f"A roll-back of {label_of(resource)} to {found[0].applying_id} is unfinished, and the file {shown(real)} is"
                f" not the one that it was overwriting ({described}).",
                hint="Move that file there itself, not a copy of it; or put it back to its old path and roll back again.",
            )

    def _compare(
        self, resource: Row, real: Path, disk: OpenDisk, layout: Layout, advance: Advance, *, may_wrap: bool
    ) -> Move:
        size = disk.content.size_bytes
        point, likeness, doubts = self._newest(resource), None, []
        if point is None:
            doubts.append("The disk has no restore point, so nothing shows that this is its file.")
        else:
            likeness, doubts = self._measure(point, disk.content, size, advance)
        is_odd = doubts or (point and size != point["virtual_bytes"])
        if is_odd and layout.format == RAW and not may_wrap and (form := recognise(disk.fd, size)):
            raise BadRequest(f"The file {shown(real)} is {form.name}, not a raw disk image.", hint=form.next_step(real))
        return Move(
            resource_id=resource["resource_id"],
            label=label_of(resource),
            old_path=resource["path"],
            path=str(real),
            identity=str(identity_at(real) or ""),
            size_bytes=size,
            file_bytes=real.lstat().st_size,
            layout=str(layout),
            head_id=resource["head_id"],
            snapshot_id=point["snapshot_id"] if point else "",
            likeness=likeness,
            doubts=tuple(doubts),
            notes=tuple(_notes(resource, real, size, point)),
        )

    def _newest(self, resource: Row) -> Row | None:
        """Return the restore point that the disk's content grew from, else the newest whose file is kept; None for none."""
        kept = (SnapshotStatus.AVAILABLE, SnapshotStatus.SUSPENDED, SnapshotStatus.DELETED)
        return self.catalogue.row(
            """SELECT * FROM snapshots WHERE resource_id = ? AND status IN (?, ?, ?)
            ORDER BY snapshot_id = ? DESC, is_affected, snapshot_at DESC, depth DESC LIMIT 1""",
            resource["resource_id"],
            *kept,
            resource["head_id"] or "",
        )

    def _measure(self, point: Row, content: Source, size: int, advance: Advance) -> tuple[Likeness | None, list[str]]:
        done, total = 0, point["virtual_bytes"]

        def add(amount: int) -> None:
            nonlocal done
            done += amount
            advance(done, total)

        try:
            with Chain(self.catalogue.store.snapshots, point["snapshot_id"]) as chain:
                likeness = measure_likeness(content, chain, add)
        except DamagedSnapshot as error:
            return None, [f"It could not be compared with {point['snapshot_id']}: {error.message}"]
        doubts = []
        if size < total:
            doubts.append(f"It is smaller than {point['snapshot_id']}: {format_bytes(size)} of {format_bytes(total)}.")
        if not likeness.is_alike:
            doubts.append(f"Only {likeness} of {point['snapshot_id']} are equal in it.")
        return likeness, doubts


def _same_file(resource: Row, real: Path, layout: Layout) -> Move:
    """Return the move of a disk that stays where it is and gets another machine: there is nothing to compare, and it may run."""
    machine = layout.machine
    name = machine and (machine.domain or machine.qmp)
    return Move(
        resource_id=resource["resource_id"],
        label=label_of(resource),
        old_path=resource["path"],
        path=str(real),
        identity=str(identity_at(real) or ""),
        size_bytes=0,
        file_bytes=real.lstat().st_size,
        layout=str(layout),
        head_id=resource["head_id"],
        snapshot_id="",
        likeness=None,
        doubts=(),
        notes=(f"Its machine is {shown(name or '')}.",),
    )


def _file_path(path: Path) -> Path:
    """Return the real path of a file that is not a symbolic link. Raises BadRequest, Unsupported."""
    path = path.absolute()
    if path.is_symlink():
        raise BadRequest(f"The path {shown(path)} is {other_kind_at(path)}.", hint=GIVE_FILE_ITSELF)
    return image_path(path)


def _refuse_file_in_use(resource: Row, real: Path) -> None:
    """Raise ResourceBusy if another program writes to the disk's present file: its chain would go on with an old copy."""
    old = Path(resource["path"])
    if other_kind_at(old) or not old.exists() or old.samefile(real):
        return
    if writers := [holder for holder in find_holders([old])[old] if holder.can_write]:
        raise ResourceBusy(
            f"The present file of {label_of(resource)}, {shown(old)}, is in use:"
            f" {clean_text(describe(writers), MESSAGE_CHARACTERS)}.",
            hint="Have that program use the new file, or stop it; then move the disk.",
        )


def _notes(resource: Row, real: Path, size: int, point: Row | None) -> list[str]:
    notes = []
    if point and size > point["virtual_bytes"]:
        notes.append(f"It has grown from {format_bytes(point['virtual_bytes'])} to {format_bytes(size)}.")
    old = Path(resource["path"])
    if not other_kind_at(old) and old.exists() and not old.samefile(real):
        notes.append(f"The file at the old path {shown(old)} remains; it is no longer backed up.")
    if users := describe(find_holders([real])[real]):
        notes.append(f"In use: {clean_text(users, MESSAGE_CHARACTERS)}.")
    return notes
