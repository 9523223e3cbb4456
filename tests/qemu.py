"""Images made and compared by QEMU's own tools, for the tests that need them."""

import random
import shutil
import subprocess
from pathlib import Path

import pytest

TOOLS = ("qemu-img", "qemu-io", "qemu-storage-daemon")
MISSING = [one for one in TOOLS if not shutil.which(one)]

needs_qemu = pytest.mark.skipif(
    bool(MISSING), reason=f"{', '.join(MISSING)} not installed (Debian: qemu-utils and qemu-system-common)"
)


def qemu_img(*words: object) -> str:
    return subprocess.run(["qemu-img", *map(str, words)], check=True, capture_output=True, text=True).stdout


def create(path: Path, size_bytes: int | None = None, base: Path | None = None, base_format: str = "qcow2") -> Path:
    backing = ["-b", base, "-F", base_format] if base else []
    qemu_img("create", "-q", "-f", "qcow2", *backing, path, *([size_bytes] if size_bytes else []))
    return path


def write(path: Path, *commands: str) -> None:
    """Write into a qcow2 image as a machine does: `write -P 5 0 64k`, `write -c …` (compressed), `write -z …`, `discard …`."""
    words = [word for one in commands for word in ("-c", one)]
    subprocess.run(["qemu-io", "-f", "qcow2", *words, str(path)], check=True, capture_output=True)


def write_randomly(path: Path, size_bytes: int, chance: random.Random, count: int = 12) -> None:
    commands = []
    for _ in range(count):
        length = chance.choice([512, 4096, 65536, 200_704])
        at = chance.randrange(0, (size_bytes - length) // 512) * 512
        commands.append(
            chance.choice([f"write -P {chance.randrange(1, 256)} {at} {length}", f"write -z {at} {length}"])
        )
    write(path, *commands)


def content_of(path: Path) -> bytes:
    """What a machine would read, by `qemu-img convert`."""
    raw = path.with_name(f"{path.name}.converted")
    qemu_img("convert", "-f", "qcow2", "-O", "raw", path, raw)
    content = raw.read_bytes()
    raw.unlink()
    return content


def is_clean(path: Path) -> bool:
    return subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", str(path)], check=False).returncode == 0
