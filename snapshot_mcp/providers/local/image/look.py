"""Look at a registered image for a list: its size and its format, and what is wrong with it or its bases."""

import os
from pathlib import Path

from snapshot_mcp.providers.local.holders import has_foreign_lease
from snapshot_mcp.providers.local.identity import Identity, identity_at
from snapshot_mcp.providers.local.image.header import BadImage, read_header
from snapshot_mcp.providers.local.image.layers import QCOW2, Layout
from snapshot_mcp.providers.local.place import shown


def look_into(path: Path, layout: Layout) -> tuple[int, str, str]:
    """Return the disk's size, what is wrong with it ("" for nothing), and its format. Opens only the image, for its header.

    While a program holds a lease on it, which opening would break, the size is the one that it had when it was registered.
    """
    for base in layout.bases:
        frozen, there = Identity.parse(base.identity), identity_at(Path(base.path))
        if there is None or frozen is None or not there.is_same_file(frozen):
            what = "is missing" if there is None else "was replaced by another file"
            return layout.virtual_bytes, f"its base {shown(base.path)} {what}", layout.format
    if has_foreign_lease(path):
        return layout.virtual_bytes, "", layout.format
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return layout.virtual_bytes, "", layout.format
    try:
        return read_header(fd).virtual_bytes, "", layout.format
    except BadImage as error:
        return layout.virtual_bytes, f"its image cannot be used: {error}", layout.format
    finally:
        os.close(fd)


def layout_of_export(path: Path) -> Layout:
    """Return the layout of a file that this zone exported, by its name; it has no base."""
    if path.suffix != f".{QCOW2}":
        return Layout()
    return Layout(QCOW2, _virtual_bytes(path))


def _virtual_bytes(path: Path) -> int:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return 0
    try:
        return read_header(fd).virtual_bytes
    except BadImage:
        return 0
    finally:
        os.close(fd)
