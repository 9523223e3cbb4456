"""The tour's disk: a raw image with content like a filesystem's, made without root or tools, and compared to the byte.

It starts with an archive of real files (this Python's library and a letter), so that it shows whether a file is readable;
compressible, random and zeroed regions follow, and the rest are holes.
"""

import io
import os
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count, repeat
from pathlib import Path
from random import Random

MIB = 1 << 20

DISK_BYTES = 256 * MIB
FILES_BYTES = 48 * MIB
"""The archive's region; the part that the library does not fill is a hole."""
MAX_FILES = 4000
TEXT_BYTES = 24 * MIB
RANDOM_BYTES = 48 * MIB
ZERO_BYTES = 24 * MIB
"""Written zeros, which read like a hole but are not one."""

LETTER = "home/ada/letter.txt"
LETTER_TEXT = "Dear Charles, the engine weaves algebraical patterns. Keep this safe. Ada\n"

CHUNK_BYTES = 4 * MIB
Report = Callable[[int, int], None]
"""Called with the bytes done and their total."""


def make_disk(path: Path, report: Report) -> int:
    """Write the image; return the number of files in it."""
    with path.open("wb") as disk:
        disk.truncate(DISK_BYTES)
        files = _write_files(disk, report)
        position, random = FILES_BYTES, iter(partial(os.urandom, MIB), b"")
        for size, blocks in ((TEXT_BYTES, _text()), (RANDOM_BYTES, random), (ZERO_BYTES, repeat(bytes(MIB)))):
            end = position + size
            disk.seek(position)
            while position < end:
                position += disk.write(next(blocks)[: end - position])
                report(position, DISK_BYTES)
            position = end + 8 * MIB
        disk.flush()
        os.fsync(disk.fileno())
    report(DISK_BYTES, DISK_BYTES)
    return files


def change_disk(path: Path) -> int:
    """Damage the disk as a failed upgrade does: overwrite its start and scattered blocks; return the bytes written."""
    random = Random(1815)
    changed = 0
    with path.open("r+b") as disk:
        changed += disk.write(b"UPGRADE FAILED \0" * (2 * MIB // 16))
        for _ in range(120):
            disk.seek(random.randrange(DISK_BYTES // 4096) * 4096)
            changed += disk.write(random.randbytes(4096))
        disk.flush()
        os.fsync(disk.fileno())
    return changed


def read_letter(path: Path) -> str:
    """Return the letter on the disk, "" if it cannot be read."""
    try:
        with tarfile.open(path, "r:") as archive:
            file = archive.extractfile(LETTER)
            return file.read().decode() if file else ""
    except (tarfile.TarError, KeyError, OSError):
        return ""


def copy_sparse(source: Path, target: Path) -> None:
    """Copy an image, leaving holes for zeros."""
    with source.open("rb") as read, target.open("wb") as written:
        while block := read.read(MIB):
            if any(block):
                written.write(block)
            else:
                written.seek(len(block), os.SEEK_CUR)
        written.truncate(read.tell())


def first_difference(one: Path, other: Path, report: Report) -> int | None:
    """Compare two files; return the offset of the first difference, None if they are equal."""
    size = one.stat().st_size
    if size != other.stat().st_size:
        return min(size, other.stat().st_size)
    with one.open("rb") as left, other.open("rb") as right:
        position = 0
        while block := left.read(CHUNK_BYTES):
            against = right.read(len(block))
            if block != against:
                return position + next(at for at, (a, b) in enumerate(zip(block, against, strict=True)) if a != b)
            position += len(block)
            report(position, size)
    return None


def _write_files(disk: io.BufferedWriter, report: Report) -> int:
    """Write the archive: the letter, then files of Python's library until the region is full."""
    library = Path(os.__file__).parent
    files = 0
    with tarfile.open(fileobj=disk, mode="w:") as archive:
        letter = tarfile.TarInfo(LETTER)
        letter.size = len(LETTER_TEXT)
        archive.addfile(letter, io.BytesIO(LETTER_TEXT.encode()))
        for path in sorted(library.rglob("*")):
            if "site-packages" in path.parts or path.is_symlink() or not path.is_file() or not os.access(path, os.R_OK):
                continue
            if disk.tell() + path.stat().st_size + MIB > FILES_BYTES:
                continue
            archive.add(path, f"usr/lib/python/{path.relative_to(library)}", recursive=False)
            files += 1
            if files % 64 == 0:
                report(disk.tell(), DISK_BYTES)
            if files == MAX_FILES:
                break
    return files + 1


def _text() -> Iterator[bytes]:
    """Yield log lines, which compress well but never repeat."""
    for block in count():
        numbers = range(block * 8192, (block + 1) * 8192)
        lines = (f"2026-11-23 web[{one % 977}]: request {one} served in {one * 37 % 1000} ms\n" for one in numbers)
        yield "".join(lines).encode()
