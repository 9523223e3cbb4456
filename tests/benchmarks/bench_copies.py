"""What a copy of restore points elsewhere costs, as ratios measured in one run beside the tools that a person would use.

    python -m tests.benchmarks.bench_copies [--size MIB] [--rounds N] [--folder DIR] [--json]

The bars: a first copy to a folder takes at most 1.3 times `cp`, fsync and a read-back of the same snapshot file; to an
object store 1.3 times `rclone copy` and `rclone check --download`; an encrypted one 1.5 times an unencrypted one; a run with
nothing new asks for one list a 1,000 objects and nothing else; `restore-from --to-file` takes at most as long as `restic restore`
from the same store; the worker that copies needs at most 100 MiB. The store is Ceph's object gateway, or moto where it is not
installed; a peer that is not installed is skipped, and the output says so. Our times include the start of the worker, or of
the command.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, aclosing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio

from snapshot_mcp import app
from snapshot_mcp.copies.keys import keep_keys, make_keys
from snapshot_mcp.copies.settings import CopySettings
from snapshot_mcp.copies.stores import BLOCK, open_store
from tests.benchmarks.bench_zone import MIB, Figures, make_disk
from tests.cli.shell import COMMAND, environment
from tests.copies.radosgw import bucket_in, has_radosgw, imitation, object_gateway
from tests.copies.wire import wire_to
from tests.disks import end_process, worker_pid

BARS = {
    "folder / cp": 1.3,
    "s3 / rclone": 1.3,
    "folder age / folder": 1.5,
    "s3 age / s3": 1.5,
    "lists for nothing new / lists needed": 1.0,
    "restore folder / restic": 1.0,
    "restore s3 / restic": 1.0,
    "worker MiB / 100": 1.0,
}
FILLING = 2500
"""Objects that stand beside a copy while a run finds nothing new."""

RESTIC = {"RESTIC_PASSWORD": "benchmark"}


@dataclass
class Bench:
    """A home with one disk and one restore point, and the places that it is copied to, each new."""

    folder: Path
    s3: str
    figures: Figures = field(default_factory=Figures)
    copies: dict[str, dict[str, str]] = field(default_factory=dict)
    snapshot_id: str = ""

    @property
    def zone_folder(self) -> Path:
        return self.folder / "home" / "zones" / "local"

    @property
    def snapshot_file(self) -> Path:
        (path,) = (self.zone_folder / "snapshots").glob("*.snap")
        return path

    @property
    def environ(self) -> dict[str, str]:
        return environment(self.folder / "home", SNAPSHOT_MCP_CONFIG=str(self.folder / "config.toml"))

    def command(self, *words: str, **variables: str) -> str:
        done = subprocess.run(
            [*COMMAND, *words], env=self.environ | variables, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def set_up(self, size_bytes: int) -> None:
        image = self.folder / "disk.img"
        make_disk(image, size_bytes)
        (self.folder / "config.toml").touch(0o600)
        recovery, machine = make_keys()
        keep_keys(self.folder / "home", machine)
        (self.folder / "key").write_text(recovery.text)
        self.command("zone", "add", str(image), "--name", "db")
        self.command("back-up", "db", "--wait")
        self.snapshot_id = self.snapshot_file.stem

    def new_copy(self, name: str, encryption: str, **to: str) -> None:
        """Add a copy to the operator's file."""
        self.copies[name] = {**to, "encryption": encryption}
        tables = [
            f"[copies.{copy}]\n" + "".join(f'{key} = "{value}"\n' for key, value in one.items())
            for copy, one in self.copies.items()
        ]
        (self.folder / "config.toml").write_text("\n".join(tables))
        (self.folder / "config.toml").chmod(0o600)

    def new_folder(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.folder, prefix="to-"))

    def new_bucket(self, kind: str) -> dict[str, str]:
        return bucket_in(self.s3, f"{kind}-{time.monotonic_ns()}")

    def run_copy(self, copy: str) -> tuple[float, float]:
        """Run a copy in a new worker; return its seconds and the MiB that the worker needed at most."""
        end_worker(self.zone_folder)
        os.sync()
        return anyio.run(self._run_copy, copy)

    async def _run_copy(self, copy: str) -> tuple[float, float]:
        with changed_environment(self.environ):
            settings = app.own_settings()
            async with aclosing(app.open_local_zone(settings, "local")) as zone:
                started = time.perf_counter()
                job = await zone.start_copy(copy)
                while not job.is_finished:
                    await anyio.sleep(0.01)
                    job = await zone.get_job(job.job_id)
                seconds = time.perf_counter() - started
                assert job.is_successful, job.reason
        pid = worker_pid(self.zone_folder)
        assert pid
        return seconds, peak_mib(pid)

    def measure_copy(self, what: str, encryption: str, to: Mapping[str, str]) -> str:
        copy = f"c{len(self.copies)}"
        self.new_copy(copy, encryption, **to)
        seconds, mib = self.run_copy(copy)
        self.figures.note(what, seconds)
        self.figures.note(f"{what}: worker MiB", mib)
        return copy

    def measure_restore(self, what: str, copy: str) -> None:
        target, one = self.folder / "restored.img", self.copies[copy]
        keys = {f"AWS_{name.upper()}": one[name] for name in ("access_key_id", "secret_access_key") if name in one}
        keys |= {"AWS_ENDPOINT_URL": one["endpoint"]} if "endpoint" in one else {}
        words = (
            "restore-from",
            one["to"],
            self.snapshot_id,
            "--to-file",
            str(target),
            "--key-file",
            str(self.folder / "key"),
        )
        drop_caches()
        self.figures.time(what, lambda: self.command(*words, SNAPSHOT_MCP_HOME=str(self.folder / "other"), **keys))
        same(target, self.folder / "disk.img")
        target.unlink()


def end_worker(folder: Path) -> None:
    pid = worker_pid(folder)
    end_process(folder / "worker.lock")
    while pid and worker_pid(folder) == pid:
        time.sleep(0.01)


def peak_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


@contextmanager
def changed_environment(environ: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def drop_caches() -> None:
    """Forget what was read and written, for all alike, where that is allowed."""
    os.sync()
    if os.geteuid() == 0:
        Path("/proc/sys/vm/drop_caches").write_text("1\n")


def run(words: Sequence[str], environ: Mapping[str, str] | None = None, cwd: Path | None = None) -> None:
    done = subprocess.run(words, env=environ, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (words[:2], done.stdout[-1000:], done.stderr[-1000:])


def same(one: Path, other: Path) -> None:
    run(["cmp", str(one), str(other)])


def cp(source: Path, folder: Path) -> None:
    """`cp`, fsync, and a read-back from the disk."""
    target = folder / source.name
    run(["cp", "--sparse=never", "--reflink=never", str(source), str(target)])
    descriptor = os.open(target, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    while os.read(descriptor, BLOCK):
        pass
    os.close(descriptor)


def rclone(bench: Bench) -> None:
    to = bench.new_bucket("rclone")
    environ = {name: value for name, value in os.environ.items() if name != "AWS_CA_BUNDLE"} | {
        "RCLONE_CONFIG": os.devnull,
        "RCLONE_CONFIG_S_TYPE": "s3",
        "RCLONE_CONFIG_S_PROVIDER": "Ceph",
        "RCLONE_CONFIG_S_ENDPOINT": to["endpoint"],
        "RCLONE_CONFIG_S_ACCESS_KEY_ID": to["access_key_id"],
        "RCLONE_CONFIG_S_SECRET_ACCESS_KEY": to["secret_access_key"],
    }
    source, target = str(bench.snapshot_file.parent), f"s:{to['to'].removeprefix('s3://')}"
    for words in (["copy"], ["check", "--download"]):
        run(["rclone", *words, source, target], environ)


def restic(bench: Bench, what: str, repository: str, environ: Mapping[str, str]) -> None:
    env = (
        os.environ
        | RESTIC
        | {"RESTIC_CACHE_DIR": str(bench.folder / "restic-cache"), "RESTIC_REPOSITORY": repository}
        | environ
    )
    target = bench.folder / "restic-restored"
    for words in (["init"], ["backup", "disk.img"]):
        run(["restic", "-q", *words], env, bench.folder)
    drop_caches()
    words = ["restic", "-q", "restore", "latest", "--target", str(target)]
    bench.figures.time(what, lambda: run(words, env))
    same(next(target.rglob("disk.img")), bench.folder / "disk.img")
    shutil.rmtree(target)


def nothing_new(bench: Bench) -> None:
    """Run a copy that is up to date beside many objects, and see what it asks for."""
    with wire_to(bench.s3) as wire:
        to = bench.new_bucket("counted") | {"endpoint": wire.url}
        bench.new_copy("counted", "none", **to)
        bench.run_copy("counted")
        store = open_store(CopySettings.model_validate(to))
        writer = next(iter(store.list(""))).name.partition("/")[0]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda at: store.put(f"{writer}/parts/ss-filling/{at:06d}", b"x"), range(FILLING)))
        held = sum(1 for _ in store.list(""))
        wire.asked.clear()
        bench.run_copy("counted")
        asked = wire.count()
    assert asked.keys() == {"LIST"}, f"a run with nothing new asked for {asked}"
    bench.figures.note("lists for nothing new", asked["LIST"])
    bench.figures.note("lists needed", -(-held // 1000))


def measure(bench: Bench, rounds: int, peers: Collection[str]) -> None:
    figures, source = bench.figures, bench.snapshot_file
    for _ in range(rounds):  # in one round all, so that what else the machine does falls on all of them
        drop_caches()
        to = bench.new_folder()
        figures.time("cp", lambda: cp(source, to))  # noqa: B023
        shutil.rmtree(to)
        drop_caches()
        plain = bench.measure_copy("folder", "none", {"to": str(bench.new_folder())})
        drop_caches()
        bench.measure_copy("folder age", "age", {"to": str(bench.new_folder())})
        bench.measure_restore("restore folder", plain)
        if "restic" in peers:
            restic(bench, "restic folder", str(bench.new_folder()), {})
        for one in bench.folder.glob("to-*"):
            shutil.rmtree(one)
        if "rclone" in peers:
            drop_caches()
            figures.time("rclone", lambda: rclone(bench))
        drop_caches()
        sealed = bench.measure_copy("s3 age", "age", bench.new_bucket("sealed"))
        drop_caches()
        bench.measure_copy("s3", "none", bench.new_bucket("plain"))
        bench.measure_restore("restore s3", sealed)
        if "restic" in peers:
            to_s3 = bench.new_bucket("restic")
            keys = {name.upper(): to_s3[name.lower()[4:]] for name in ("aws_access_key_id", "aws_secret_access_key")}
            restic(bench, "restic s3", f"s3:{bench.s3}/{to_s3['to'].removeprefix('s3://')}", keys)
    nothing_new(bench)


def ratios_of(found: Mapping[str, float]) -> dict[str, float]:
    most = max(value for what, value in found.items() if what.endswith("MiB"))
    pairs = {
        "folder / cp": ("folder", "cp"),
        "s3 / rclone": ("s3", "rclone"),
        "folder age / folder": ("folder age", "folder"),
        "s3 age / s3": ("s3 age", "s3"),
        "lists for nothing new / lists needed": ("lists for nothing new", "lists needed"),
        "restore folder / restic": ("restore folder", "restic folder"),
        "restore s3 / restic": ("restore s3", "restic s3"),
    }
    ratios = {what: found[one] / found[other] for what, (one, other) in pairs.items() if other in found}
    return ratios | {"worker MiB / 100": most / 100}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=2048, metavar="MIB")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--moto", action="store_true", help="use moto though the gateway is there")
    parser.add_argument(
        "--no-peers", action="store_true", help="do not measure rclone and restic though they are there"
    )
    args = parser.parse_args()
    is_real = has_radosgw() and not args.moto
    peers = {one for one in ("rclone", "restic") if shutil.which(one) and not args.no_peers}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=args.folder, prefix="bench-copies-")))
        s3 = stack.enter_context(object_gateway(size_gib=24) if is_real else imitation())
        bench = Bench(folder, s3)
        bench.set_up(args.size * MIB)
        stack.callback(end_worker, bench.zone_folder)
        measure(bench, args.rounds, peers)
        stored = bench.snapshot_file.stat().st_size / MIB
    found = bench.figures.medians()
    ratios = ratios_of(found)
    if args.json:
        json.dump({"figures": found, "ratios": ratios, "store": "radosgw" if is_real else "moto"}, sys.stdout)
        return
    print(f"{args.size} MiB, as a file {stored:.0f} MiB; {'radosgw' if is_real else 'moto'}; medians of {args.rounds}")
    for what, value in found.items():
        print(f"  {what:<26} {value:8.2f}")
    for what, bar in BARS.items():
        said = f"{ratios[what]:5.2f}{'' if ratios[what] <= bar else '   OVER'}" if what in ratios else "not measured"
        print(f"  {what:<38} {said}   (bar {bar})")


if __name__ == "__main__":
    main()
