"""What a disk of another kind or size costs, as ratios measured in one run (ARCHITECTURE.md, "Targets").

    python tests/benchmarks/bench_disks.py [--size MIB] [--times N] [--rounds N] [--folder DIR] [--json]

On btrfs and XFS, each on a loop device (needs root): an incremental of a disk N times as large with the same change takes at
most 1.5 times as long. An export with every chunk verified takes at most 1.15 times as long as `qemu-img convert` of the same
disk, a full at most 1.5 times as long as the limit (`bench_zone`). The worker needs at most 80 MiB for a sparse disk of 1 TiB.
What is not installed is skipped, and the output says so. Another measurement is a function of `MEASURES` that notes figures.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio

sys.path.insert(0, str(Path(__file__).parents[2]))

from snapshot_mcp.providers.local import LocalZone
from tests.benchmarks.bench_zone import Figures, limit, make_disk
from tests.disks import MIB, back_up, succeed, worker_pid

PEAK_MIB = 80


@dataclass(frozen=True)
class Bench:
    """One run: where, how large the small disk is, how many times as large the other one, how often."""

    folder: Path
    size_bytes: int
    times: int
    rounds: int
    figures: Figures


@contextmanager
def mounted(kind: str, folder: Path, size_bytes: int) -> Iterator[Path]:
    """A filesystem of its own on a loop device."""
    backing, mount_point = folder / f"{kind}.backing", folder / kind
    with backing.open("wb") as file:
        file.truncate(size_bytes)
    mount_point.mkdir()
    subprocess.run([f"mkfs.{kind}", "-q", backing], check=True, stdout=sys.stderr, stderr=subprocess.DEVNULL)
    subprocess.run(["mount", "-o", "loop", backing, mount_point], check=True)
    try:
        yield mount_point
    finally:
        subprocess.run(["umount", "--lazy", mount_point], check=True)
        backing.unlink()


def change(path: Path, size_bytes: int) -> None:
    """Overwrite as much in pieces of 1 MiB (less of a small disk), anywhere on the disk."""
    piece = min(MIB, max(4096, size_bytes // 8))
    chance = random.Random(path.stat().st_mtime_ns)
    with path.open("r+b") as disk:
        for _ in range(max(1, size_bytes // piece)):
            disk.seek(chance.randrange(path.stat().st_size // piece) * piece)
            disk.write(chance.randbytes(piece))
    os.sync()


async def timed(bench: Bench, what: str, act: Callable[[], Awaitable[object]]) -> None:
    started = anyio.current_time()
    await act()
    bench.figures.note(what, anyio.current_time() - started)


async def measure_clones(bench: Bench, kind: str) -> None:
    """Incrementals of a small and of a large disk, the same change in each."""
    changed = bench.size_bytes * bench.times // 100
    with mounted(kind, bench.folder, 4 * bench.size_bytes * (bench.times + 1) + 512 * MIB) as folder:
        zone = LocalZone(folder / "zone")
        disks = []
        for name, size in (("small", bench.size_bytes), ("large", bench.size_bytes * bench.times)):
            make_disk(folder / name, size)
            volume = await zone.add_resource(folder / name)
            await back_up(zone, volume.id)
            disks.append((name, volume.id))
        for _ in range(bench.rounds):
            for name, volume_id in disks:
                change(folder / name, changed)
                await timed(bench, f"{kind} {name}", lambda volume_id=volume_id: back_up(zone, volume_id))
        await zone.aclose()
        shutil.rmtree(zone.folder)


async def measure_rest(bench: Bench) -> None:
    """A full against the limit, and an export against qemu-img, of the same disk."""
    image = bench.folder / "disk"
    make_disk(image, bench.size_bytes)
    zone = LocalZone(bench.folder / "zone")
    volume = await zone.add_resource(image)
    for _ in range(bench.rounds):
        os.sync()
        bench.figures.time("limit", lambda: limit(image))
        await timed(bench, "full", lambda: back_up(zone, volume.id, is_full=True))
    snapshot_id = await back_up(zone, volume.id, is_full=True)
    for number in range(bench.rounds):
        os.sync()
        made = []

        async def export(number: int = number, made: list[str] = made) -> None:
            made += (await succeed(zone, await zone.create_volume(snapshot_id, f"copy-{number}"))).resource_ids

        await timed(bench, "export", export)
        if shutil.which("qemu-img"):
            copy = bench.folder / "converted"
            command = f"qemu-img convert -f raw -O raw {image} {copy} && sync {copy}"
            bench.figures.time("qemu-img", lambda command=command: subprocess.run(command, shell=True, check=True))
            copy.unlink()
    await zone.aclose()
    shutil.rmtree(zone.folder)


async def measure_memory(bench: Bench) -> None:
    """The worker's peak over a full, an incremental, an export and a roll-back of a sparse disk of 1 TiB."""
    image = bench.folder / "sparse"
    image.touch()
    os.truncate(image, 1 << 40)
    change(image, 64 * MIB)
    zone = LocalZone(bench.folder / "sparse-zone")
    volume = await zone.add_resource(image)
    full = await back_up(zone, volume.id)
    change(image, 64 * MIB)
    await back_up(zone, volume.id)
    await succeed(zone, await zone.create_volume(full, "copy"))
    await succeed(zone, await zone.apply_snapshots([full]))
    status = Path(f"/proc/{worker_pid(zone.folder)}/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    bench.figures.note("peak memory", int(peak.split()[1]) / 1024)
    await zone.aclose()
    shutil.rmtree(zone.folder)
    image.unlink()


MEASURES: dict[str, Callable[[Bench], Awaitable[None]]] = {
    "btrfs": lambda bench: measure_clones(bench, "btrfs"),
    "xfs": lambda bench: measure_clones(bench, "xfs"),
    "rest": measure_rest,
    "memory": measure_memory,
}
RATIOS = {
    "btrfs large / small": ("btrfs large", "btrfs small", 1.5),
    "xfs large / small": ("xfs large", "xfs small", 1.5),
    "full / limit": ("full", "limit", 1.5),
    "export / qemu-img": ("export", "qemu-img", 1.15),
}


def is_possible(name: str) -> bool:
    return name not in {"btrfs", "xfs"} or (os.geteuid() == 0 and shutil.which(f"mkfs.{name}") is not None)


async def measure(bench: Bench) -> None:
    for name, work in MEASURES.items():
        if is_possible(name):
            await work(bench)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=1024, metavar="MIB")
    parser.add_argument("--times", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    figures = Figures()
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="bench-disks-", ignore_cleanup_errors=True) as name:
        anyio.run(measure, Bench(Path(name), args.size * MIB, args.times, args.rounds, figures))
    found = figures.medians()
    ratios = {
        what: (found[one] / found[other], bar) for what, (one, other, bar) in RATIOS.items() if {one, other} <= {*found}
    }
    if args.json:
        skipped = [what for what in RATIOS if what not in ratios]
        json.dump(
            {"figures": found, "ratios": {what: one for what, (one, _) in ratios.items()}, "skipped": skipped},
            sys.stdout,
        )
        return
    for what, value in found.items():
        print(f"  {what:<22} {value:7.2f} {'MiB' if what == 'peak memory' else 's'}")
    for what, (value, bar) in ratios.items():
        print(f"  {what:<22} {value:7.2f} (at most {bar})")
    print(f"  {'peak memory':<22} {found['peak memory']:7.1f} MiB (at most {PEAK_MIB})")
    for what in RATIOS.keys() - ratios.keys():
        print(f"  {what} was not measured: something is not installed, or it needs root")


if __name__ == "__main__":
    main()
