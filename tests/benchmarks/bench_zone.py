"""How fast the embedded zone is, as ratios measured in one run: against the physical limit, and against borg if it is there.

    python tests/benchmarks/bench_zone.py [--size MIB] [--rounds N] [--folder DIR]

The limit is read + BLAKE3 + zstd-1 of the same image on as many threads as the zone uses, with nothing written. design.md,
"What it must reach": a full snapshot takes at most 1.6 × the limit and is at least 2.5 × as fast as borg with the same
chunk size; an incremental after 1 % clustered change is at least 2.5 × as fast as borg.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import anyio

sys.path.insert(0, str(Path(__file__).parents[2]))

from snapshot_mcp.providers.local import LocalZone
from snapshot_mcp.providers.local.capture import THREADS, in_order
from snapshot_mcp.providers.local.platform import data_extents
from snapshot_mcp.providers.local.snapshot_file.format import compress, hash_of
from tests.disks import MIB, back_up, succeed

CHUNK = 64 << 10


def make_disk(path: Path, size_bytes: int) -> None:
    """An image like a disk: the files of this Python, random data, and holes, about 60 % full."""
    chance = random.Random(1)
    files = [one for one in Path(os.__file__).parent.rglob("*") if one.is_file() and not one.is_symlink()]
    with path.open("wb") as disk:
        disk.truncate(size_bytes)
        at = 0
        while at < size_bytes * 45 // 100:
            content = chance.choice(files).read_bytes()[: size_bytes // 100]
            disk.seek(at)
            disk.write(content)
            at += -(-len(content) // 4096) * 4096
        disk.seek(at)
        for _ in range(size_bytes * 15 // 100 // MIB):
            disk.write(chance.randbytes(MIB))


def limit(path: Path) -> float:
    """Seconds to read, hash and compress the image's data, and nothing else."""
    fd = os.open(path, os.O_RDONLY)

    def work(window: tuple[int, int]) -> None:
        zeros = bytes(CHUNK)
        for offset in range(*window, CHUNK):
            data = os.pread(fd, CHUNK, offset)
            if data != zeros:
                hash_of(data)
                compress(data)

    size = path.stat().st_size
    windows = [
        (at, min(at + 2 * MIB, end)) for start, end in data_extents(fd, 0, size) for at in range(start, end, 2 * MIB)
    ]
    started = time.perf_counter()
    for _ in in_order(work, windows):
        pass
    os.close(fd)
    return time.perf_counter() - started


def change_clustered(path: Path, size_bytes: int) -> None:
    chance = random.Random(time.monotonic_ns())
    with path.open("r+b") as disk:
        for _ in range(max(1, size_bytes // 100 // MIB)):
            disk.seek(chance.randrange(size_bytes // MIB) * MIB)
            disk.write(chance.randbytes(MIB))


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def borg(folder: Path, image: Path, rounds: int) -> dict[str, float]:
    """Seconds of borg's full and incremental archive, fixed chunks of the same size, zstd 1, no encryption."""
    environment = {
        **os.environ,
        "BORG_BASE_DIR": str(folder / "borg-home"),
        "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
    }
    create = ["borg", "create", "--chunker-params", f"fixed,{CHUNK}", "--compression", "zstd,1"]

    def archive(repository: Path, name: str) -> float:
        command = [*create, f"{repository}::{name}", image.name]
        return timed(lambda: subprocess.run(command, cwd=image.parent, env=environment, check=True))

    full, incremental = [], []
    for number in range(rounds):
        repository = folder / f"borg-{number}"
        subprocess.run(["borg", "init", "-e", "none", str(repository)], env=environment, check=True)
        os.sync()
        full.append(archive(repository, "full"))
        change_clustered(image, image.stat().st_size)
        os.sync()
        incremental.append(archive(repository, "incremental"))
        shutil.rmtree(repository)
    return {"borg full": statistics.median(full), "borg incremental": statistics.median(incremental)}


async def measure(folder: Path, size_bytes: int, rounds: int, with_borg: bool) -> dict[str, float]:
    image = folder / "disk.img"
    make_disk(image, size_bytes)
    zone = LocalZone(folder / "zone", recovery_seconds=0)
    volume = await zone.add_resource(image)
    times: dict[str, list[float]] = {}

    def note(what: str, started: float) -> None:
        times.setdefault(what, []).append(time.perf_counter() - started)

    for _ in range(rounds):
        os.sync()
        times.setdefault("limit", []).append(limit(image))
        started = time.perf_counter()
        full = await back_up(zone, volume.id, is_full=True)
        note("full", started)
        change_clustered(image, size_bytes)
        os.sync()
        started = time.perf_counter()
        await back_up(zone, volume.id)
        note("incremental", started)
        started = time.perf_counter()
        await succeed(zone, await zone.apply_snapshots([full]))
        note("roll-back", started)
        started = time.perf_counter()
        job = await succeed(zone, await zone.create_volume(full, "copy"))
        note("export", started)
        await zone.remove_resource(job.resource_ids[0])
        Path(job.details["path"]).unlink()
        await succeed(zone, await zone.delete_snapshot(full))
        await zone.purge()
    await zone.aclose()
    found = {what: statistics.median(values) for what, values in times.items()}
    if with_borg and shutil.which("borg"):
        found |= borg(folder, image, rounds)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=2048, metavar="MIB")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--no-borg", action="store_true", help="do not measure borg though it is there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="bench-zone-") as name:
        seconds = anyio.run(measure, Path(name), args.size * MIB, args.rounds, not args.no_borg)
    ratios = {"full / limit": seconds["full"] / seconds["limit"]}
    if "borg full" in seconds:
        ratios["borg full / full"] = seconds["borg full"] / seconds["full"]
        ratios["borg incremental / incremental"] = seconds["borg incremental"] / seconds["incremental"]
    if args.json:
        json.dump({"seconds": seconds, "ratios": ratios}, sys.stdout)
        return
    print(f"{args.size} MiB image, {THREADS} threads, medians of {args.rounds}")
    for what, value in seconds.items():
        print(f"  {what:<20} {value:7.2f} s")
    for what, value in ratios.items():
        print(f"  {what:<32} {value:5.2f}")


if __name__ == "__main__":
    main()
