"""Recognise files that are not raw disk images, by their first and last bytes.

A file is checked once, when it is registered. Refused are images that wrap a disk (qcow2, VMDK, …), compressed files,
archives and databases. Everything that a disk can contain is raw: partition tables, filesystems (also ISO 9660 and
SquashFS), LUKS, LVM, swap, and unknown content.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from snapshot_mcp.ground.shell import quote

SECTOR_BYTES: Final = 512
"""A disk has at least one sector."""

MAX_ARCHIVE_MEMBERS: Final = 10_000
"""Most files of a tar archive that are skipped to find its end; one with more counts as an archive."""
MAX_ARCHIVE_PADDING: Final = 1 << 20
"""A tar archive ends in two blocks of zeros and is padded to its blocking factor."""

GIVE_RAW_IMAGE: Final = "Give the path of a raw disk image."


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine that runs on a disk: the sockets of its monitor and of its guest's agent, or its name in libvirt.

    `is_monitored`: it may be backed up while it runs; for a domain of libvirt a person says so.
    """

    qmp: str = ""
    agent: str = ""
    domain: str = ""
    is_monitored: bool = True


@dataclass(frozen=True, slots=True)
class Form:
    """What a person says that a file is: its format ("" for one that is raw by all signs), its bases, the nearest first, and the
    machine that runs on it."""

    format: str = ""
    bases: tuple[Path, ...] = ()
    machine: Machine | None = None


AS_IT_SEEMS: Final = Form()

Read = Callable[[int, int], bytes]
"""Reads a length at an offset, less at the end of the file."""


@dataclass(frozen=True, slots=True)
class Format:
    """A kind of file that is not a raw disk image, and how to get one from it, with `{source}` and `{target}` as paths."""

    name: str
    step: str = ""

    def next_step(self, path: Path) -> str:
        """Return what a person can do instead of registering it."""
        target = path.with_suffix(".raw")
        if target == path:
            target = path.with_name(f"{path.name}.raw")
        step = self.step.format(source=quote(str(path)), target=quote(str(target)))
        return step or GIVE_RAW_IMAGE


def _image(name: str, driver: str) -> Format:
    return _converted(name, f"qemu-img convert -f {driver} -O raw {{source}} {{target}}")


def _converted(name: str, command: str) -> Format:
    return Format(name, f"Convert it and register the copy: {command}")


def _packed(name: str, command: str) -> Format:
    return Format(name, f"Unpack it and register the result: {command} {{source}} > {{target}}")


def _archive(name: str, command: str) -> Format:
    return Format(name, f"Unpack it and register the raw disk image that it contains: {command}")


_VHD, _VDI, _DMG = _image("a VHD image", "vpc"), _image("a VDI image", "vdi"), _image("an Apple disk image", "dmg")
_VMDK, _PARALLELS = _image("a VMDK image", "vmdk"), _image("a Parallels image", "parallels")
_EXTENT = Format(
    "an extent of a VMDK image",
    "Convert the whole image by its descriptor and register the copy: qemu-img convert -f vmdk -O raw DESCRIPTOR.vmdk {target}",
)
_UML = Format(
    "a COW file of User-Mode Linux",
    "Merge it with its backing disk and register the result: uml_moo {source} {target}",
)
_QCOW2 = Format(
    "a qcow2 image",
    "If that is what it is, add --format qcow2. If it is the raw disk of a guest that wrote this into it, add --format raw.",
)
_ZSTD, _LZ4 = _packed("a zstd file", "zstd -dc"), _packed("an lz4 file", "lz4 -dc")
_ZIP, _TAR = _archive("a zip archive", "unzip {source}"), _archive("a tar archive", "tar -xf {source}")
_OVA = Format(
    "an OVA archive",
    "Unpack it, convert the disk in it, and register the copy: tar -xf {source}; qemu-img convert -O raw DISK {target}",
)

HEADS: Final[tuple[tuple[bytes, Format], ...]] = (
    (b"QFI\xfb\0\0\0\x01", _image("a qcow image", "qcow")),
    (b"QFI\xfb", _QCOW2),
    (b"QED\0", _image("a QED image", "qed")),
    (b"COWD", _EXTENT),  # ESX, sparse
    (b"\xbe\xba\xfe\xca\0\0\0\0", _EXTENT),  # ESX, space-efficient
    (b"# Disk DescriptorFile", _image("a VMDK descriptor", "vmdk")),
    (b"conectix", _VHD),  # a dynamic one repeats its footer at the start
    (b"vhdxfile", _image("a VHDX image", "vhdx")),
    (b"OOOM", _UML),
    (b"MOOO\1\0\0\0", _UML),  # version 1 has the byte order of its machine
    (b"WithoutFreeSpace", _PARALLELS),
    (b"WithouFreSpacExt", _PARALLELS),
    (b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop", _image("a cloop image", "cloop")),
    (b"Bochs Virtual HD Image", _image("a Bochs image", "bochs")),
    (b"\x3a\xff\x26\xed", _converted("an Android sparse image", "simg2img {source} {target}")),
    (b"partclone-image", _converted("a partclone image", "partclone.restore -C -s {source} -O {target}")),
    (b"VMA\0", _archive("a Proxmox backup", "vma extract {source} FOLDER")),
    (b"MSWIM\0\0\0", Format("a Windows imaging archive")),
    (b"SNAPMCP", Format("a snapshot file of snapshot-mcp", "Export the snapshot instead.")),
    (b"SQLite format 3\0", Format("an SQLite database")),
    (b"\x1f\x8b\x08", _packed("a gzip file", "gzip -dc")),
    (b"\x1f\x9d\x90", _packed("a compress (.Z) file", "gzip -dc")),
    (b"\xfd7zXZ\0", _packed("an xz file", "xz -dc")),
    (b"\x28\xb5\x2f\xfd", _ZSTD),
    (b"\x04\x22\x4d\x18", _LZ4),
    (b"\x02\x21\x4c\x18", _LZ4),  # the legacy frame
    (b"LZIP", _packed("an lzip file", "lzip -dc")),
    (b"\x89LZO\0\r\n\x1a\n", _packed("an lzop file", "lzop -dc")),
    (b"PK\x03\x04", _ZIP),
    (b"PK\x05\x06", _ZIP),  # an empty one
    (b"PK\x07\x08", _ZIP),  # one in parts
    (b"7z\xbc\xaf\x27\x1c", _archive("a 7z archive", "7z x {source}")),
    (b"Rar!\x1a\x07", _archive("a RAR archive", "unrar x {source}")),
    (b"070701", _archive("a cpio archive", "cpio -id < {source}")),
)
"""First bytes of files; the first match counts."""


def recognise(fd: int, size_bytes: int) -> Format | None:
    """Return what the file is, None if it may be a raw disk image. Reads a few sectors."""

    def read(length: int, offset: int) -> bytes:
        return os.pread(fd, length, offset)

    start = read(SECTOR_BYTES, 0)
    by_head = next((form for magic, form in HEADS if start.startswith(magic)), None)
    return by_head or _by_structure(start) or _by_tail(read, size_bytes) or _by_members(read, size_bytes)


def _by_structure(start: bytes) -> Format | None:
    """Recognise what needs more than its first bytes."""
    if start.startswith(b"KDMV"):
        return _VMDK if any(start[28:36]) else _EXTENT  # the offset of its embedded descriptor, if it has one
    if start.startswith(b"BZh") and start[4:10] in {b"1AY&SY", b"\x17\x72\x45\x38\x50\x90"}:
        return _packed("a bzip2 file", "bzip2 -dc")
    if start[1:4] == b"\x2a\x4d\x18" and start[0] & 0xF0 == 0x50:
        return _ZSTD  # a skippable frame comes first, as pzstd writes it
    if start[64:68] == b"\x7f\x10\xda\xbe" and start[70:72] in {b"\0\0", b"\x01\0"}:
        return _VDI
    return None


def _by_tail(read: Read, size_bytes: int) -> Format | None:
    """Recognise what has its header at the end, behind what could be raw content."""
    tail = read(SECTOR_BYTES, max(0, size_bytes - SECTOR_BYTES))
    if tail.startswith(b"koly"):  # even if the rest of its footer is damaged
        return _DMG
    for footer in (tail, tail[1:]):  # the earliest versions wrote 511 bytes
        if footer.startswith(b"conectix"):
            checksum = ~(sum(footer) - sum(footer[64:68])) & 0xFFFFFFFF
            return _VHD if int.from_bytes(footer[64:68]) == checksum else _damaged_vhd(len(footer))
    return None


def _damaged_vhd(footer_bytes: int) -> Format:
    """Return one that qemu-img cannot open; its kind is unknown, and a fixed one is a raw image with a footer."""
    return Format(
        "a VHD image with a damaged footer",
        f"If it is a fixed-size VHD, copy everything before the footer and register the copy: head -c -{footer_bytes}"
        " {source} > {target}",
    )


def _by_members(read: Read, size_bytes: int) -> Format | None:
    """Recognise a tar archive that reaches to the end of the file; a disk that one was written to continues behind it."""
    at, count = 0, 0
    name = b""
    while count < MAX_ARCHIVE_MEMBERS and at < size_bytes:
        header = read(SECTOR_BYTES, at)
        length = _member_length(header)
        if length is None:
            break
        name = name or header[:100].rstrip(b"\0")
        at += SECTOR_BYTES + -(-length // SECTOR_BYTES) * SECTOR_BYTES
        count += 1
    if not count or (count < MAX_ARCHIVE_MEMBERS and size_bytes - at > MAX_ARCHIVE_PADDING):
        return None
    return _OVA if name.endswith(b".ovf") else _TAR


def _member_length(header: bytes) -> int | None:
    """Return the size of a tar archive's member, None if that is not a member's header."""
    if header[257:262] != b"ustar":
        return None
    field = header[124:136]
    if field[0] & 0x80:  # 8 GiB or more, in base 256
        return int.from_bytes(field) & ((1 << 95) - 1)
    try:
        return int(field.rstrip(b"\0 ") or b"0", 8)
    except ValueError:
        return None
