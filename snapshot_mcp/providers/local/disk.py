"""A registered disk image, opened for a capture or for a roll-back, or refused with the reason.

The ladder (FORMAT.md, "A disk in use"): an instant clone where the filesystem has clones, else the proof of a
lease that nobody writes, else (only where the operator allows it, or the system has no leases) a comparison of times.
"""

import errno
import os
import stat
from pathlib import Path
from typing import Self

from snapshot_mcp.contract.errors import BadRequest, NotUsable, ResourceBusy, Unsupported
from snapshot_mcp.contract.text import clean_text
from snapshot_mcp.providers.local.holders import describe_holders
from snapshot_mcp.providers.local.identity import identity_at, identity_of
from snapshot_mcp.providers.local.platform import DiskInUse, ReadLease, WriteHold, clone_beside


def image_path(path: Path) -> Path:
    """Return the real path of a disk image that can be registered.

    Raises BadRequest (it does not exist, or is no regular file) and Unsupported (a block device).
    """
    try:
        real = path.expanduser().resolve(strict=True)
        mode = real.stat().st_mode
    except FileNotFoundError:
        raise BadRequest(
            f"The path {clean_text(path, 400)!r} does not exist.", hint="Give the path of a raw disk image."
        ) from None
    except (OSError, RuntimeError) as error:
        raise BadRequest(f"The path {clean_text(path, 400)!r} cannot be read: {error}.") from None
    if stat.S_ISBLK(mode):
        raise Unsupported(
            f"The path {clean_text(path, 400)!r} is a block device, which the embedded zone does not take yet.",
            hint="Give the path of a raw disk image.",
        )
    if not stat.S_ISREG(mode):
        raise BadRequest(
            f"The path {clean_text(path, 400)!r} is no regular file.", hint="Give the path of a raw disk image."
        )
    return real


class OpenDisk:
    """A disk image, open; `label` names it in messages. Never waits for another program's lease."""

    fd = -1

    def __init__(self, path: str, label: str, flags: int) -> None:
        self.path, self.label = Path(path), label
        try:
            self.fd = os.open(self.path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except BlockingIOError:
            raise ResourceBusy(
                f"{label} is in use: another program holds a lease on its file {clean_text(path, 400)!r}.",
                hint="Stop what uses it and try again.",
            ) from None
        except OSError as error:
            gone = "Bring the file back to that path. Registered elsewhere it is a new disk; these snapshots can be exported."
            raise NotUsable(
                f"The file of {label}, {clean_text(path, 400)!r}, cannot be opened: {error.strerror}.",
                hint=gone if error.errno == errno.ENOENT else "Check the file and its permissions.",
            ) from None
        if not stat.S_ISREG(os.fstat(self.fd).st_mode):
            self.close()
            raise NotUsable(f"The path of {label}, {clean_text(path, 400)!r}, is no regular file any more.")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _not_the_owner(self, otherwise: str = "") -> NotUsable:
        return NotUsable(
            f"Whether a program writes to the file of {self.label}, {clean_text(self.path, 400)!r}, cannot be told: only"
            " its owner may ask the system for that.",
            hint=f"Run snapshot-mcp as the file's owner, or make its user the owner.{otherwise}",
        )


class CaptureSource(OpenDisk):
    """A disk whose content is read as of one moment; `consistency` says what proves that.

    Raises ResourceBusy when it is in use and nothing can prove that what is read is one state, NotUsable when its file
    is gone.
    """

    def __init__(self, path: str, label: str, *, allow_fuzzy: bool = False) -> None:
        self._lease: ReadLease | None = None
        super().__init__(path, label, os.O_RDONLY)
        try:
            copy = clone_beside(self.fd, self.path)
            if copy is not None:
                os.close(self.fd)
                self.fd = copy
                self.consistency = "instant"
            else:
                self._lease = ReadLease(self.fd, self.path, allow_in_use=allow_fuzzy)
                self.consistency = self._lease.kind
        except DiskInUse as error:
            self.close()
            raise ResourceBusy(
                f"{label} is in use, so a copy of it would be a mixture of states: {clean_text(error, 400)}.",
                hint="Stop what writes to it (shut the machine down, unmount, detach the loop device) and try again.",
            ) from None
        except PermissionError:
            self.close()
            raise self._not_the_owner(" Or set `allow_fuzzy`, for copies that may be mixtures.") from None
        except BaseException:
            self.close()
            raise
        self.size_bytes = os.fstat(self.fd).st_size

    def check(self) -> None:
        """Raise ResourceBusy when what was read may be a mixture. Cheap; also to be called after the last read."""
        if self._lease:
            try:
                self._lease.check()
            except DiskInUse as error:
                raise ResourceBusy(
                    f"The backup of {self.label} was given up: {clean_text(error, 400)}.",
                    hint="Stop what writes to it and create the snapshot again.",
                ) from None

    def close(self) -> None:
        if self._lease is not None:
            self._lease.release()
            self._lease = None
        super().close()


class TargetDisk(OpenDisk):
    """A disk that nobody else holds, open for writing; `identity` says which file it is.

    As a source of a capture (`size_bytes`, `consistency`, `check`) it is read under the hold that it is overwritten under.
    Raises ResourceBusy, naming who holds it, and NotUsable when its file is gone or cannot be written.
    """

    consistency = "held"

    def __init__(self, path: str, label: str, *, is_patient: bool = True) -> None:
        self._hold: WriteHold | None = None
        self.path, self.label = Path(path), label
        try:
            with OpenDisk(path, label, os.O_RDONLY) as reader:
                WriteHold.refuse_writers(reader.fd, reader.path)
            super().__init__(path, label, os.O_RDWR)
            self._hold = WriteHold(self.fd, self.path, tries=WriteHold.TRIES if is_patient else 1)
            self.identity = identity_of(self.fd, self.path)
            self.size_bytes = os.fstat(self.fd).st_size
        except DiskInUse as error:
            self.close()
            raise ResourceBusy(
                f"{label} is in use, so it cannot be rolled back: {clean_text(error, 400)}.",
                hint="Stop what uses it (shut the machine down, unmount, detach the loop device) and try again.",
            ) from None
        except PermissionError:
            self.close()
            raise self._not_the_owner() from None
        except BaseException:
            self.close()
            raise

    @property
    def is_alone(self) -> bool:
        """Whether nobody else can write to it meanwhile."""
        return self._hold is not None and self._hold.is_alone

    def refuse_company(self) -> None:
        """Raise ResourceBusy where another program could write between a copy of the disk and its overwriting."""
        if not self.is_alone:
            raise ResourceBusy(
                f"{self.label} is in use, so that a safety snapshot of it could miss what is written meanwhile:"
                f" {clean_text(describe_holders(self.path), 400)}.",
                hint="Stop what has it open and try again, or agree to a roll-back without a safety snapshot.",
            )

    @property
    def is_at_its_path(self) -> bool:
        """Whether its path still leads to it, and it has the names that it had."""
        return identity_at(self.path) == self.identity

    def check(self) -> None:
        """Raise ResourceBusy if another program may have written to it under our hold. Cheap."""
        try:
            if self._hold is not None:
                self._hold.check()
        except DiskInUse as error:
            raise ResourceBusy(
                f"{self.label} was in use while it was being rolled back: {clean_text(error, 400)}.",
                hint="Stop what writes to it and roll back again.",
            ) from None

    def close(self) -> None:
        if self._hold is not None:
            self._hold.release()
            self._hold = None
        super().close()
