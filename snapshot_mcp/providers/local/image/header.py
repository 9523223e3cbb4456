"""Read the header of a qcow2 image (QEMU, docs/interop/qcow2.txt), and refuse one that this program does not serve.

An image is untrusted: a guest cannot write its header, but whoever made the file can. Only the image itself is read here.
"""

import os
import struct
from typing import Final, NamedTuple

MAGIC: Final = b"QFI\xfb"
MAX_CLUSTER_BITS: Final = 21
MAX_VIRTUAL_BYTES: Final = 1 << 50
MAX_NAME_BYTES: Final = 1023
MAX_EXTENSIONS: Final = 64

_FIELDS: Final = struct.Struct(">4sIQIIQIIQQIIQ")
_FEATURES: Final = struct.Struct(">QQQII")
_EXTENSION: Final = struct.Struct(">II")
_BACKING_FORMAT: Final = 0xE2792ACA
_DIRTY, _CORRUPT, _DATA_FILE, _KNOWN_FEATURES = 1, 1 << 1, 1 << 2, 0b11111


class BadImage(Exception):
    """An image that is not served; the message says why, `step` what a person can do (`{image}` stands for its path)."""

    def __init__(self, why: str, step: str = "") -> None:
        super().__init__(why)
        self.step = step or "Check it with `qemu-img check {image}`."


class ImageHeader(NamedTuple):
    """What a qcow2 image says of itself; `backing` names its base as it stands there, "" for none."""

    virtual_bytes: int
    backing: str
    backing_format: str
    snapshot_count: int
    is_dirty: bool
    """Its counts of references are not up to date, since its last user kept them lazily and was killed."""


def read_header(fd: int) -> ImageHeader:
    """Read the header of an open file. Raises BadImage, OSError."""
    start = os.pread(fd, 4096, 0)
    if len(start) < _FIELDS.size or not start.startswith(MAGIC):
        raise BadImage("it is not a qcow2 image", "Register it in the format that it has.")
    fields = _FIELDS.unpack_from(start)
    _, version, name_at, name_length, cluster_bits, virtual_bytes, crypt, l1_size = fields[:8]
    header_length, features = 72, 0
    if version == 3 and len(start) >= 104:
        features, _, _, _, header_length = _FEATURES.unpack_from(start, 72)
    elif version != 2:
        raise BadImage(f"it has version {version} of the qcow2 format; supported are 2 and 3")
    cluster_size = 1 << cluster_bits if 9 <= cluster_bits <= MAX_CLUSTER_BITS else 0
    if not cluster_size or not 72 <= header_length <= cluster_size:
        raise BadImage("its header has impossible sizes")
    if not 0 < virtual_bytes <= MAX_VIRTUAL_BYTES or l1_size > 1 << 22:
        raise BadImage(f"its header says that the disk has {virtual_bytes} bytes")
    if crypt:
        raise BadImage("it is encrypted", "Encrypted qcow2 images are not supported: encrypt inside of the guest.")
    _refuse_features(features)
    backing = _backing_name(fd, name_at, name_length, cluster_size)
    backing_format = _backing_format(fd, header_length, name_at or cluster_size) if backing else ""
    return ImageHeader(virtual_bytes, backing, backing_format, fields[11], bool(features & _DIRTY))


def _refuse_features(features: int) -> None:
    if features & _DATA_FILE:
        raise BadImage(
            "it keeps its data in another file (`data-file`)",
            "Convert it: qemu-img convert -O qcow2 {image} NEW.qcow2",
        )
    if features & _CORRUPT:
        raise BadImage("it is marked as corrupt", "Repair it: qemu-img check -r all {image}")
    if features & ~_KNOWN_FEATURES:
        raise BadImage("it needs features that this version does not know")


def _backing_name(fd: int, at: int, length: int, cluster_size: int) -> str:
    if not at:
        return ""
    if not 0 < length <= MAX_NAME_BYTES or at + length > cluster_size:
        raise BadImage("the name of its base is in an impossible place")
    name = os.pread(fd, length, at)
    if len(name) != length or b"\0" in name:
        raise BadImage("the name of its base cannot be read")
    return os.fsdecode(name)


def _backing_format(fd: int, at: int, end: int) -> str:
    """Return the format that the header's extension gives for the base, "" for none."""
    for _ in range(MAX_EXTENSIONS):
        head = os.pread(fd, _EXTENSION.size, at)
        if at + _EXTENSION.size > end or len(head) < _EXTENSION.size:
            return ""
        kind, length = _EXTENSION.unpack(head)
        at += _EXTENSION.size
        if not kind or length > end - at:
            return ""
        if kind == _BACKING_FORMAT:
            return os.pread(fd, min(length, 16), at).decode("ascii", errors="replace")
        at += -(-length // 8) * 8
    return ""
