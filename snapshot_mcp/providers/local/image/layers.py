"""`Layout`: what a person registered a disk as, and the images that it is based on, frozen by identity.

It is kept in the disk's row as JSON, "" for a raw image. The first image is the one at the disk's path; those below it are never
written to. A base is a regular file on this machine that the person named too. Before each use all are compared with what was
frozen: a base that is missing, replaced or written to is reported, since the disk would read as something else.
"""

import json
import os
import re
import stat
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Self

from snapshot_mcp.contract.errors import BadRequest, NotUsable, ZoneError
from snapshot_mcp.ground.shell import quote
from snapshot_mcp.providers.local.formats import Machine
from snapshot_mcp.providers.local.identity import Identity, identity_of
from snapshot_mcp.providers.local.image.header import BadImage, ImageHeader, read_header
from snapshot_mcp.providers.local.place import shown, why_missing
from snapshot_mcp.providers.local.platform import DiskInUse, ReadLease

RAW: Final = "raw"
QCOW2: Final = "qcow2"
DEVICE: Final = "device"
EXPORT_SUFFIXES: Final = (f".{RAW}", f".{QCOW2}")
"""The endings of the files that an export makes, which say what they are."""
MAX_LAYERS: Final = 32

_URL: Final = re.compile(r"[A-Za-z0-9_+.-]+:")
_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


@dataclass(frozen=True, slots=True)
class Base:
    """An image below the disk's own; `named` and its format are how the one above it names it."""

    path: str
    format: str
    named: str
    identity: str
    size_bytes: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Layout:
    """What a disk is, and its bases, the nearest first; `virtual_bytes`: the disk's size when it was registered."""

    format: str = RAW
    virtual_bytes: int = 0
    bases: tuple[Base, ...] = ()
    identity: str = ""
    """Which block device it is, if that is known by more than its number."""
    machine: Machine | None = None

    def __str__(self) -> str:
        return "" if self == Layout() else json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse what `str` wrote into the catalogue."""
        if not text:
            return cls()
        known = json.loads(text)
        machine = known.get("machine")
        return cls(
            known["format"],
            known["virtual_bytes"],
            tuple(Base(**one) for one in known["bases"]),
            known["identity"],
            Machine(**machine) if machine else None,
        )


@dataclass(frozen=True, slots=True)
class OpenBase:
    """A base, open for reading and compared with what was frozen."""

    base: Base
    fd: int
    lease: ReadLease | None

    def check(self) -> None:
        """Raise DiskInUse if it was written to since it was opened."""
        if self.lease:
            self.lease.check()
        found = os.fstat(self.fd)
        if (found.st_size, found.st_mtime_ns) != (self.base.size_bytes, self.base.mtime_ns):
            raise DiskInUse(f"its base {shown(self.base.path)} was written to")


def freeze(path: Path, fd: int, bases: Sequence[Path]) -> Layout:
    """Return the layout of a qcow2 image, whose bases a person has named, the nearest first. Reads no file that nobody named.

    Raises BadRequest, NotUsable.
    """
    header = header_of(path, fd)
    frozen: list[Base] = []
    seen = {_inode(fd)}
    above, says = path, header
    with ExitStack() as stack:
        while says.backing:
            named = _named_base(above, says, bases, len(frozen))
            below = _open(named, stack)
            if _inode(below) in seen or len(frozen) >= MAX_LAYERS:
                raise BadRequest(f"The bases of {shown(path)} lead in a circle, or there are too many.", hint=_HINT)
            seen.add(_inode(below))
            found = os.fstat(below)
            identity = str(identity_of(below, named))
            frozen.append(
                Base(str(named), says.backing_format, says.backing, identity, found.st_size, found.st_mtime_ns)
            )
            if says.backing_format == RAW:
                break
            above, says = named, header_of(named, below)
    if len(bases) > len(frozen):
        raise BadRequest(f"{shown(bases[len(frozen)])} is not a base of {shown(path)}.", hint=_HINT)
    return Layout(QCOW2, header.virtual_bytes, tuple(frozen))


_HINT: Final = "`qemu-img info IMAGE` shows the base of an image."


def _named_base(above: Path, says: ImageHeader, bases: Sequence[Path], index: int) -> Path:
    """Return the base of an image, if a person named that very file."""
    if _URL.match(says.backing):
        raise BadRequest(
            f"The image {shown(above)} is based on {shown(says.backing)}, which is not a file of this machine.",
            hint=f"Copy everything into one image and register that: qemu-img convert -O qcow2 {quote(str(above))} NEW.qcow2",
        )
    if says.backing_format not in (RAW, QCOW2):
        form = f"the format {shown(says.backing_format)}" if says.backing_format else "no format"
        raise BadRequest(
            f"The image {shown(above)} is based on {shown(says.backing)} and gives {form} for it, so what the disk holds is not"
            " certain.",
            hint=f"Say which it is: qemu-img rebase -u -F FORMAT -b {quote(says.backing)} {quote(str(above))}",
        )
    base = above.parent / says.backing
    if index >= len(bases):
        raise BadRequest(
            f"The image {shown(above)} is based on {shown(base)} ({says.backing_format}), which was not read.",
            hint=f"If that is right, name it too: add --base {quote(str(base))}",
        )
    real = bases[index].resolve()
    if real != base.resolve():
        raise BadRequest(
            f"The image {shown(above)} is based on {shown(base)}, not on {shown(bases[index])}.",
            hint="Give --base for each of its bases, the nearest first.",
        )
    return real


def open_bases(layout: Layout, label: str, stack: ExitStack) -> list[OpenBase]:
    """Open the bases until the stack ends, and compare them with what was frozen. Raises NotUsable, DiskInUse."""
    opened = []
    for base in layout.bases:
        path = Path(base.path)
        try:
            fd = _open(path, stack)
        except ZoneError as error:
            raise NotUsable(
                f"The base of {label} is missing: {error.message}", hint="Put it back, unchanged, to its path."
            ) from None
        frozen, present = Identity.parse(base.identity), identity_of(fd, path)
        found = os.fstat(fd)
        is_same = frozen is not None and present.is_same_file(frozen)
        if not is_same or (found.st_size, found.st_mtime_ns) != (base.size_bytes, base.mtime_ns):
            what = "was written to" if is_same else "was replaced by another file"
            raise NotUsable(
                f"The base of {label}, {shown(path)}, {what} since it was registered, so the disk may read as something else.",
                hint="If the machine is right with it, register what is there: `zone move ID PATH --base BASE …`.",
            )
        opened.append(OpenBase(base, fd, _lease(fd, path, stack)))
    return opened


def _lease(fd: int, path: Path, stack: ExitStack) -> ReadLease | None:
    """Lease a base, which often belongs to another user; then its times alone show a change. Raises DiskInUse."""
    try:
        return stack.enter_context(ReadLease(fd, path))
    except PermissionError:
        return None


def check_chain(path: Path, fd: int, layout: Layout, bases: Sequence[OpenBase], label: str) -> ImageHeader:
    """Compare what each image says of the one below it with what was frozen. Returns the first header. Raises NotUsable."""
    header = says = header_of(path, fd)
    above = path
    for index, base in enumerate((*layout.bases, None)):
        expected = (base.named, base.format) if base else ("", "")
        if (says.backing, says.backing_format if base else "") != expected:
            now = f"on {shown(says.backing)} now" if says.backing else "on nothing now"
            raise NotUsable(
                f"{label} has changed: {shown(above)} is based {now}, and was on {shown(expected[0] or 'nothing')} when it was"
                " registered.",
                hint="If that is right, register what is there: `zone move ID PATH`, with --base for each base.",
            )
        if base is None or base.format == RAW:
            break
        above = Path(base.path)
        says = header_of(above, bases[index].fd)
    return header


def header_of(path: Path, fd: int) -> ImageHeader:
    """Read the header of an image. Raises NotUsable for one that is not served."""
    try:
        return read_header(fd)
    except BadImage as error:
        hint = error.step.format(image=quote(str(path)))
        raise NotUsable(f"The image {shown(path)} cannot be used: {error}.", hint=hint) from None


def _open(path: Path, stack: ExitStack) -> int:
    """Open a base: a regular file, never anything whose opening has effects."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise BadRequest(f"The base {shown(path)} is not a regular file.", hint=_HINT)
        fd = os.open(path, _FLAGS)
    except OSError as error:
        raise NotUsable(f"The base {shown(path)} cannot be read: {why_missing(path, error)}.", hint=_HINT) from None
    stack.callback(os.close, fd)
    return fd


def _inode(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino
