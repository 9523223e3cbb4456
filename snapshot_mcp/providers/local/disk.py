"""Open a registered disk image for a capture or for a roll-back, or refuse it with the reason.

A capture uses (FORMAT.md, "A disk in use") an instant clone if the filesystem has clones, else a lease, which proves that
nobody writes, else (if the operator allows it or the system has no leases) a comparison of times.
"""

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from snapshot_mcp.contract.errors import BadRequest, NotUsable, ResourceBusy, Unsupported
from snapshot_mcp.contract.text import MESSAGE_CHARACTERS, clean_text
from snapshot_mcp.ground.closing import Closing
from snapshot_mcp.ground.permissions import obstacle_of
from snapshot_mcp.providers.local.clones import Clones
from snapshot_mcp.providers.local.formats import GIVE_RAW_IMAGE
from snapshot_mcp.providers.local.holders import describe_holders
from snapshot_mcp.providers.local.identity import identity_at, identity_of
from snapshot_mcp.providers.local.place import MOVE_HINT, kind_of, other_kind_at, shown, why_missing
from snapshot_mcp.providers.local.platform import DiskInUse, ReadLease, WriteHold, clone_beside
from snapshot_mcp.providers.local.snapshot_file.reader import SnapshotFile
from snapshot_mcp.providers.local.source import RawFile, Span, Target


def image_path(path: Path) -> Path:
    """Return the real path of a disk image. Raises BadRequest (missing, not a regular file), Unsupported (block device)."""
    try:
        path = path.expanduser()
        mode = path.stat().st_mode
        real = path.resolve(strict=True)
    except (OSError, ValueError, RuntimeError) as error:  # missing; a zero byte; `~` of an unknown user
        raise _not_reached(path, error) from None
    if stat.S_ISBLK(mode):
        what = f"The path {shown(path)} is a block device."
        raise Unsupported(
            what, hint="Register it by itself, with `zone add`: a disk cannot move from a file to a device."
        )
    if kind := kind_of(mode):
        raise BadRequest(f"The path {shown(path)} is {kind}, not a regular file.", hint=GIVE_RAW_IMAGE)
    return real


def _not_reached(path: Path, error: Exception) -> BadRequest:
    if not isinstance(error, OSError):
        return BadRequest(f"The path {shown(path)} is not a valid path: {error}.", hint=GIVE_RAW_IMAGE)
    if link := other_kind_at(path):
        return BadRequest(f"The path {shown(path)} is {link}.", hint=GIVE_RAW_IMAGE)
    why = why_missing(path, error)
    if error.errno == errno.ENOENT:
        return BadRequest(f"The path {shown(path)} does not exist: {why}.", hint=GIVE_RAW_IMAGE)
    return BadRequest(f"The path {shown(path)} cannot be read: {why}.", hint=step_after(error, path))


def _replaced(label: str, path: str, kind: str) -> NotUsable:
    """Return the error for a disk whose path leads to something else now."""
    return NotUsable(f"The path of {label}, {shown(path)}, is now {kind}, not the disk's file.", hint=MOVE_HINT)


def step_after(error: OSError, path: Path) -> str:
    """Return the next step after a file could not be opened."""
    obstacle = obstacle_of(error, path)
    return obstacle.hint if obstacle else "Check the file and its permissions."


class OpenDisk(Closing):
    """A disk image, open; `label` names it in messages. Never waits for another program's lease."""

    fd = -1

    def __init__(self, path: str, label: str, flags: int) -> None:
        self.path, self.label = Path(path), label
        if not path:
            raise NotUsable(
                f"{label} has no file: its zone was rebuilt or copied, and nothing says for certain where the disk is.",
                hint="The command `zone move ID PATH` gives it one; `zone list` shows where it was.",
            )
        if kind := other_kind_at(self.path):
            raise _replaced(label, path, kind)
        try:
            self.fd = os.open(self.path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except BlockingIOError:
            raise ResourceBusy(
                f"{label} is in use: another program holds a lease on its file {shown(path)}.",
                hint="Stop the program that uses it and try again.",
            ) from None
        except OSError as error:
            is_missing = error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}
            raise NotUsable(
                f"The file of {label}, {shown(path)}, cannot be opened: {why_missing(self.path, error)}.",
                hint=f"Move the file back to that path. {MOVE_HINT}" if is_missing else step_after(error, self.path),
            ) from None
        if kind := kind_of(os.fstat(self.fd).st_mode):
            self.close()
            raise _replaced(label, path, kind)

    @property
    def content(self) -> Target:
        """The disk's content."""
        return RawFile(self.fd)

    def close(self) -> None:
        """Close the file."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    @contextmanager
    def _closed_on_error(self, consequence: str) -> Iterator[None]:
        """Close the disk if it cannot be used, and say why."""
        try:
            yield
        except BaseException as error:
            self.close()
            if isinstance(error, DiskInUse):
                raise ResourceBusy(
                    f"{self.label} is in use{consequence}: {clean_text(error, MESSAGE_CHARACTERS)}.",
                    hint="Stop the program that uses it (shut the machine down, unmount, detach the loop device) and try"
                    " again.",
                ) from None
            if isinstance(error, PermissionError):
                raise NotUsable(
                    f"Cannot verify that no program writes to the file of {self.label}, {shown(self.path)}: only its"
                    " owner may ask the system.",
                    hint="Run snapshot-mcp as the file's owner, or make its user the owner.",
                ) from None
            raise


class CaptureSource(OpenDisk):
    """A disk that is read as of one moment; `consistency` says how that is proved.

    Raises ResourceBusy if it is in use and the copy could be inconsistent, NotUsable if its file is missing.
    """

    _clones: Clones | None = None

    def __init__(self, path: str, label: str, *, allow_fuzzy: bool = False, clones: Clones | None = None) -> None:
        self._lease: ReadLease | None = None
        super().__init__(path, label, os.O_RDONLY)
        with self._closed_on_error("; a copy taken now could be inconsistent"):
            copy = clone_beside(self.fd, self.path)
            if copy is not None:
                os.close(self.fd)
                self.fd = copy
                self.consistency = "instant"
                self._clones = clones
            else:
                self._lease = ReadLease(self.fd, self.path, allow_in_use=allow_fuzzy)
                self.consistency = self._lease.kind
        self.size_bytes = os.fstat(self.fd).st_size

    @property
    def stored_bytes(self) -> int:
        """About how many bytes it stores, at most its size."""
        return RawFile(self.fd).stored_bytes

    def changed_since(self, parent: SnapshotFile) -> Iterable[Span] | None:
        """Return what may differ from a snapshot that is one state of the disk; None for all of it."""
        return self._clones.changes(self.fd, parent.snapshot_id, parent.hash) if self._clones else None

    def remember(self, snapshot_id: str, file_hash: bytes) -> None:
        """Keep what tells the next capture what will have changed since this snapshot, which is complete."""
        if self._clones:
            self._clones.keep(self.fd, self.path, snapshot_id, file_hash)

    def check(self) -> None:
        """Raise ResourceBusy if what was read may be inconsistent. Cheap; call it after the last read, too."""
        try:
            self._look()
        except DiskInUse as error:
            raise ResourceBusy(
                f"The backup of {self.label} was aborted: {clean_text(error, MESSAGE_CHARACTERS)}.",
                hint="Stop the program that writes to it and create the snapshot again.",
            ) from None

    def _look(self) -> None:
        """Raise DiskInUse if somebody may have written to it."""
        if self._lease:
            self._lease.check()

    def close(self) -> None:
        """Release the lease and close the file."""
        if self._lease is not None:
            self._lease.close()
            self._lease = None
        super().close()


class Hold(Protocol):
    """What keeps others from a disk that is overwritten, or notices them."""

    @property
    def is_alone(self) -> bool:
        """Whether nobody else can write unnoticed."""

    def check(self) -> None:
        """Raise DiskInUse if somebody may have written."""

    def close(self) -> None:
        """Release it."""


class TargetDisk(OpenDisk):
    """A disk that nobody else holds, open for writing; `identity` says which file it is.

    A safety snapshot reads it under the same hold (`size_bytes`, `consistency`, `check`). Raises ResourceBusy, naming who
    holds it, and NotUsable if its file is missing or not writable.
    """

    consistency = "held"
    consequence = " and cannot be rolled back"

    def __init__(self, path: str, label: str, *, is_patient: bool = True) -> None:
        self._hold: Hold | None = None
        self.path, self.label = Path(path), label
        with self._closed_on_error(self.consequence):
            with OpenDisk(path, label, os.O_RDONLY) as reader:
                WriteHold.refuse_writers(reader.fd, reader.path)
            super().__init__(path, label, os.O_RDWR)
            self._hold = WriteHold(self.fd, self.path, tries=WriteHold.TRIES if is_patient else 1)
            self.identity = identity_of(self.fd, self.path)
            self.size_bytes = os.fstat(self.fd).st_size

    @property
    def is_alone(self) -> bool:
        """Return whether nobody else can write to it while it is held."""
        return self._hold is not None and self._hold.is_alone

    def changed_since(self, parent: SnapshotFile) -> None:
        """Return None: the way back is never left to a hint, so all of the disk is read."""

    def remember(self, snapshot_id: str, file_hash: bytes) -> None:
        """Keep nothing: the disk is about to be overwritten."""

    def refuse_company(self) -> None:
        """Raise ResourceBusy if another program could write between a copy of the disk and its overwriting."""
        if not self.is_alone:
            raise ResourceBusy(
                f"{self.label} is in use, so its safety snapshot could miss concurrent writes:"
                f" {clean_text(describe_holders(self.path), MESSAGE_CHARACTERS)}.",
                hint="Stop the program that has it open and try again, or approve a roll-back without a safety snapshot.",
            )

    def refuse_size(self, size_bytes: int) -> None:
        """Raise NotUsable if it cannot get this size; an image can get any."""

    @property
    def is_at_its_path(self) -> bool:
        """Return whether its path still leads to it and its number of hard links is unchanged."""
        return identity_at(self.path) == self.identity

    def check(self) -> None:
        """Raise ResourceBusy if another program may have written to it under our hold. Cheap."""
        try:
            if self._hold is not None:
                self._hold.check()
        except DiskInUse as error:
            raise ResourceBusy(
                f"{self.label} was in use during the roll-back: {clean_text(error, MESSAGE_CHARACTERS)}.",
                hint="Stop the program that writes to it and roll back again.",
            ) from None

    def close(self) -> None:
        """Release the hold and close the file."""
        if self._hold is not None:
            self._hold.close()
            self._hold = None
        super().close()
