"""How fast the embedded zone is, as ratios measured in one run: against the physical limit, and against borg and restic.

    python tests/benchmarks/bench_zone.py [--size MIB] [--rounds N] [--folder DIR] [--json] [--no-peers]

The limit is read + BLAKE3 + zstd-1 of the same image on as many threads as the zone uses, with nothing written
(ARCHITECTURE.md, "Targets"): a full snapshot takes at most 1.5 × the limit, and is at least 2.5 × as fast as borg with the same
chunk size and 3.5 × as restic; an incremental after 1 % clustered change at least 2.5 × and 5 ×; after 1 % scattered in
4 KiB writes no more is stored than borg stores. Each tool begins with the same image. A peer that is not installed is
skipped, and the output says so.
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
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio

sys.path.insert(0, str(Path(__file__).parents[2]))

from snapshot_mcp.contract.models import Job
from snapshot_mcp.providers.local import LocalZone
from snapshot_mcp.providers.local.capture import THREADS, in_order
from snapshot_mcp.providers.local.platform import data_extents
from snapshot_mcp.providers.local.snapshot_file.format import compress, hash_of
from tests.disks import MIB, back_up, get, succeed

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


def change(path: Path, piece_size: int) -> None:
    """Overwrite 1 % of the image with random data, in pieces of this size."""
    chance = random.Random(time.monotonic_ns())
    size = path.stat().st_size
    with path.open("r+b") as disk:
        for _ in range(max(1, size // 100 // piece_size)):
            disk.seek(chance.randrange(size // piece_size) * piece_size)
            disk.write(chance.randbytes(piece_size))
    os.sync()


CLUSTERED, SCATTERED = MIB, 4 << 10


class Figures:
    """What was measured, for each thing every round's value."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}

    def note(self, what: str, value: float) -> None:
        self.values.setdefault(what, []).append(value)

    def time(self, what: str, work: Callable[[], object]) -> None:
        started = time.perf_counter()
        work()
        self.note(what, time.perf_counter() - started)

    def medians(self) -> dict[str, float]:
        return {what: statistics.median(values) for what, values in self.values.items()}


@dataclass(frozen=True)
class Peer:
    """Another tool: how it makes a repository, and how it archives the image into it."""

    name: str
    init: tuple[str, ...]
    archive: tuple[str, ...]

    def run(self, command: tuple[str, ...], repository: Path, image: Path) -> None:
        home = str(repository.parent / "peers-home")
        environment = os.environ | {
            "BORG_BASE_DIR": home,
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
            "RESTIC_PASSWORD": "benchmark",
            "RESTIC_CACHE_DIR": home,
        }
        filled = [one.format(repository=repository, image=image.name, moment=time.monotonic_ns()) for one in command]
        subprocess.run(filled, cwd=image.parent, env=environment, check=True)

    def measure(self, folder: Path, image: Path, figures: Figures) -> None:
        repository = folder / self.name
        self.run(self.init, repository, image)
        os.sync()
        figures.time(f"{self.name} full", lambda: self.run(self.archive, repository, image))
        change(image, CLUSTERED)
        figures.time(f"{self.name} incremental", lambda: self.run(self.archive, repository, image))
        change(image, SCATTERED)
        before = size_of(repository)
        self.run(self.archive, repository, image)
        figures.note(f"{self.name} scattered", (size_of(repository) - before) / MIB)
        shutil.rmtree(repository)


PEERS = (
    Peer(
        "borg",  # chunks of the zone's size, zstd 1, not encrypted
        ("borg", "init", "-e", "none", "{repository}"),
        ("borg", "create", "--chunker-params", f"fixed,{CHUNK}", "--compression", "zstd,1", "{repository}::{moment}", "{image}"),
    ),
    Peer(
        "restic",  # as it comes; it cannot leave encryption out
        ("restic", "init", "-q", "-r", "{repository}"),
        ("restic", "backup", "-q", "-r", "{repository}", "{image}"),
    ),
)  # fmt: skip


def size_of(folder: Path) -> int:
    return sum(one.stat().st_size for one in folder.rglob("*") if one.is_file())


async def measure_zone(zone: LocalZone, volume_id: str, image: Path, figures: Figures) -> None:
    async def time_job(what: str, start: Callable[[], Awaitable[Job]]) -> Job:
        started = time.perf_counter()
        job = await succeed(zone, await start())
        figures.note(what, time.perf_counter() - started)
        return job

    job = await time_job("full", lambda: zone.create_snapshots([volume_id], "full", is_full=True))
    full = job.resource_ids[0]
    change(image, CLUSTERED)
    await time_job("incremental", lambda: zone.create_snapshots([volume_id], "clustered"))
    await time_job("roll-back", lambda: zone.apply_snapshots([full]))
    job = await time_job("export", lambda: zone.create_volume(full, "copy"))
    await zone.remove_resource(job.resource_ids[0])
    Path(job.details["path"]).unlink()
    change(image, SCATTERED)
    scattered = await get(zone, await back_up(zone, volume_id))
    figures.note("scattered", scattered.stored_bytes / MIB)
    await succeed(zone, await zone.apply_snapshots([full]))
    await succeed(zone, await zone.delete_snapshot(full))
    await zone.purge()


async def measure(folder: Path, size_bytes: int, rounds: int, peers: Sequence[Peer]) -> dict[str, float]:
    """Median seconds, and MiB of what is stored after scattered writes."""
    figures = Figures()
    image, peers_image = folder / "disk.img", folder / "peers-disk.img"
    make_disk(image, size_bytes)
    zone = LocalZone(folder / "zone", recovery_seconds=0)
    volume = await zone.add_resource(image)
    for _ in range(rounds):
        os.sync()
        figures.time("limit", lambda: limit(image))
        await measure_zone(zone, volume.id, image, figures)
        for peer in peers:  # in the same round, so that what else the machine does falls on all of them
            make_disk(peers_image, size_bytes)
            peer.measure(folder, peers_image, figures)
    await zone.aclose()
    return figures.medians()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=2048, metavar="MIB")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--no-peers", action="store_true", help="do not measure borg and restic though they are there")
    args = parser.parse_args()
    peers = [peer for peer in PEERS if shutil.which(peer.name) and not args.no_peers]
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="bench-zone-") as name:
        found = anyio.run(measure, Path(name), args.size * MIB, args.rounds, peers)
    ratios = {"full / limit": found["full"] / found["limit"]}
    for peer in peers:
        for what in ("full", "incremental", "scattered"):
            ratios[f"{peer.name} {what} / {what}"] = found[f"{peer.name} {what}"] / found[what]
    skipped = [peer.name for peer in PEERS if peer not in peers]
    if args.json:
        json.dump({"figures": found, "ratios": ratios, "skipped": skipped}, sys.stdout)
        return
    print(f"{args.size} MiB image, {THREADS} threads, medians of {args.rounds}")
    for what, value in found.items():
        print(f"  {what:<20} {value:7.2f} {'MiB' if what.endswith('scattered') else 's'}")
    for what, value in ratios.items():
        print(f"  {what:<36} {value:5.2f}")
    for one in skipped:
        print(f"  {one} was not measured: {'--no-peers' if args.no_peers else 'it is not installed'}")


if __name__ == "__main__":
    main()
