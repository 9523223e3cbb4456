"""A copy that is killed, or whose machine loses its power, goes on: nothing that was whole is sent twice, nothing is listed too
early.

The worker is the product's, killed by its id. Power is lost as far as it can be: home and copy lie on filesystems whose
devices are copied behind their backs, so what was not synced is gone, and mounted anew.
"""

import os
import random
import shutil
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.to_thread
import pytest
from blake3 import blake3

from snapshot_mcp.contract.models import Job
from snapshot_mcp.copies import sending
from snapshot_mcp.copies.fetch import Fetcher
from snapshot_mcp.copies.stores import read_small
from snapshot_mcp.providers.local import LocalZone
from tests.copies.copyist import Copyist, kill, write_settings
from tests.copies.lab import CopyLab
from tests.copies.radosgw import bucket_in, object_gateway
from tests.copies.wire import Wire, wire_to
from tests.disks import MIB, change, make_image
from tests.patience import PATIENCE_SECONDS

pytestmark = [pytest.mark.anyio, pytest.mark.long]

KILLS: Final = 25
"""Of each of four kinds of copies: a hundred."""
POWER_CUTS: Final = 15
"""Of a plain and of a sealed one."""
POINTS_AT_ONCE: Final = 4
"""Of some that are copied in one run, the first are settled when the power goes."""
IMAGE: Final = 24 * MIB
PIECE: Final = 256 << 10
DEVICE: Final = 3072 * MIB

Interrupt = Callable[[int], None]


@pytest.fixture(scope="module")
def copyist() -> Iterator[Copyist]:
    with Copyist() as one:
        yield one


@pytest.fixture(scope="module")
def wire() -> Iterator[Wire]:
    with object_gateway() as url, wire_to(url) as wire:
        yield wire


@dataclass
class Copying:
    """A home whose copy is interrupted again and again; a copy that ends is followed by a new restore point."""

    lab: CopyLab
    copyist: Copyist
    wire: Wire | None
    image: Path
    disk: str = ""
    content: dict[str, str] = field(default_factory=dict)
    whole: dict[str, Any] = field(default_factory=dict)
    """The pieces that were whole at an interruption: what tells each from one that is sent again."""
    interruptions: int = 0
    ended: int = 0
    seconds: float = 1.0
    """How long a copy lasts that nobody interrupts, with the start of its worker."""

    async def begin(self) -> None:
        self.disk = (await self.lab.zone.add_resource(self.image, "db")).id
        await self.new_point()
        started = anyio.current_time()
        job = await self.lab.zone.start_copy("nas")
        pid = await self._start()
        with anyio.fail_after(PATIENCE_SECONDS):
            while not (job := await self.lab.zone.get_job(job.job_id)).is_finished:
                await anyio.sleep(0.01)
        self.seconds = anyio.current_time() - started
        assert job.is_successful, job.reason
        await anyio.to_thread.run_sync(kill, self.lab.home, pid)

    async def new_point(self) -> None:
        change(self.image, 8 * MIB, seed=len(self.content))
        one = await self.lab.back_up(self.disk, f"point {len(self.content)}", is_full=len(self.content) % 3 == 0)
        self.content[one] = blake3(self.image.read_bytes()).hexdigest()

    async def _start(self) -> int:
        return await anyio.to_thread.run_sync(self.copyist.start, self.lab.home, PIECE)

    async def interrupted(self, job: Job, chance: random.Random, interrupt: Interrupt) -> Job:
        """Interrupt a copy at a random moment; return its job, which the next worker goes on with."""
        pid = await self._start()
        await anyio.sleep(chance.uniform(0, self.seconds * 1.1))
        await anyio.to_thread.run_sync(interrupt, pid)
        job = await self.lab.zone.get_job(job.job_id)
        if job.is_finished:
            assert job.is_successful, job.reason
            self.ended += 1
        else:
            self.interruptions += 1
        await anyio.to_thread.run_sync(self.look)
        return job

    def look(self) -> None:
        """See that what was whole was not sent again, and note what is whole now."""
        found = self._marks()
        again = {name: (mark, found.get(name)) for name, mark in self.whole.items() if found.get(name) != mark}
        assert not again, f"sent again, though it was whole: {again}"
        self.whole = found

    def _marks(self) -> dict[str, Any]:
        names = [
            one.name for one in self.lab.store.list("") if "/parts/" in one.name and not one.name.endswith("index")
        ]
        if self.wire:
            puts = Counter(target.partition("?")[0] for method, target in self.wire.asked if method == "PUT")
            counts = {target.partition("/of-us/")[2]: count for target, count in puts.items()}
            return {name: counts[name] for name in names}
        stats = {name: (self.lab.settings.folder / name).stat() for name in names}
        return {name: (one.st_ino, one.st_mtime_ns) for name, one in stats.items()}

    async def is_as_recorded(self) -> None:
        """What is recorded as read back is there to the byte, and all that is listed is whole."""
        pieces = await self.lab.zone.with_parts(
            lambda parts, ledger: {
                one.part_id: ledger.pieces(self.lab.copy_id(ledger), one.part_id) for one in parts.list_parts()
            }
        )
        await anyio.to_thread.run_sync(self._compare, pieces)

    def _compare(self, pieces: dict[str, Any]) -> None:
        store = self.lab.store
        for name in self._marks():
            _, _, part_id, number = name.split("/")
            piece = pieces[part_id][int(number[:6])]
            assert blake3(read_small(store, name, 2 * PIECE)).hexdigest() == piece.stored_hash, name
        fetcher = Fetcher(store, self.lab.key)
        for one, *_ in self.lab.library().found().values():
            fetcher.read_through(one)

    async def comes_back(self, new: Path) -> None:
        """All of it, after the last run has gone on; then too nothing was sent twice."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sending, "PIECE", PIECE)
            await self.lab.copy()
        await anyio.to_thread.run_sync(self.look)
        back = await self.lab.restore_all(new)
        assert (back["missing"], back["damaged"]) == ({}, [])
        zone = LocalZone(new / "zones" / "local")
        for one, content in self.content.items():
            assert blake3(await self.lab.content(one, new / "content", zone)).hexdigest() == content
        await zone.aclose()


@asynccontextmanager
async def copying(
    folder: Path, to: dict[str, Any], copyist: Copyist, wire: Wire | None, *, is_sealed: bool
) -> AsyncIterator[Copying]:
    folder.mkdir(exist_ok=True)
    lab = CopyLab(folder / "home", to, is_sealed)
    write_settings(lab.home, to, is_sealed=is_sealed)
    one = Copying(lab, copyist, wire, make_image(folder / "db.img", IMAGE))
    await one.begin()
    try:
        yield one
    finally:
        await lab.zone.aclose()


@pytest.mark.parametrize("is_sealed", [False, True], ids=["plain", "age"])
@pytest.mark.parametrize("kind", ["folder", "s3"])
async def test_a_copy_that_is_killed_goes_on_and_sends_nothing_twice(
    request: pytest.FixtureRequest, tmp_path: Path, copyist: Copyist, kind: str, is_sealed: bool
) -> None:
    chance = random.Random(f"{kind} {is_sealed}")
    wire = request.getfixturevalue("wire") if kind == "s3" else None
    (tmp_path / "nas").mkdir()
    to = bucket_in(wire.url, f"killed-{is_sealed}".lower()) if wire else {"to": str(tmp_path / "nas")}
    async with copying(tmp_path, to, copyist, wire, is_sealed=is_sealed) as one:
        while one.interruptions < KILLS:
            await one.new_point()
            job = await one.lab.zone.start_copy("nas")
            while one.interruptions < KILLS and not job.is_finished:
                job = await one.interrupted(job, chance, lambda pid: kill(one.lab.home, pid))
                if one.interruptions % 5 == 0:
                    await one.is_as_recorded()
        await one.comes_back(tmp_path / "new")


@dataclass
class Device:
    """A filesystem on a file, mounted at `at`."""

    backing: Path
    at: Path

    def mount(self) -> None:
        # the journal and the kernel write by themselves only after minutes: what stays is what was synced
        subprocess.run(["mount", "-o", "loop,commit=300", str(self.backing), str(self.at)], check=True)

    def lose_power(self) -> None:
        """Go on with what the device has at this moment."""
        kept = self.backing.with_name("kept")
        subprocess.run(["cp", "--sparse=always", str(self.backing), str(kept)], check=True)
        subprocess.run(["umount", str(self.at)], check=True)
        kept.replace(self.backing)
        self.mount()


@contextmanager
def device(folder: Path) -> Iterator[Device]:
    if os.geteuid() != 0 or shutil.which("mkfs.ext4") is None:
        pytest.skip("a device that loses its power needs root and mkfs.ext4")
    one = Device(folder / "backing", folder / "at")
    one.at.mkdir(parents=True)
    with one.backing.open("wb") as file:
        file.truncate(DEVICE)
    subprocess.run(["mkfs.ext4", "-q", str(one.backing)], check=True)
    one.mount()
    try:
        yield one
    finally:
        subprocess.run(["umount", str(one.at)], check=True)


@pytest.mark.parametrize("is_sealed", [False, True], ids=["plain", "age"])
async def test_a_machine_that_loses_its_power_lists_nothing_that_is_not_there_and_goes_on(
    tmp_path: Path, copyist: Copyist, is_sealed: bool
) -> None:
    chance = random.Random(is_sealed)
    with device(tmp_path / "own") as own, device(tmp_path / "other") as other:
        nas = other.at / "nas"
        nas.mkdir()
        async with copying(own.at / "machine", {"to": str(nas)}, copyist, None, is_sealed=is_sealed) as one:
            os.sync()  # the settings file is the test's own

            def cut(pid: int) -> None:
                kill(one.lab.home, pid)
                other.lose_power()
                own.lose_power()

            while one.interruptions < POWER_CUTS:
                for _ in range(POINTS_AT_ONCE):
                    await one.new_point()
                job = await one.lab.zone.start_copy("nas")
                while one.interruptions < POWER_CUTS and not job.is_finished:
                    await one.lab.zone.aclose()
                    one.whole = {}  # what is whole is what the device has: seen after the cut
                    job = await one.interrupted(job, chance, cut)
                    await one.is_as_recorded()
                    job = await _until_it_went_on(one, job)
            await one.comes_back(tmp_path / "new")


async def _until_it_went_on(one: Copying, job: Job) -> Job:
    """Let the next worker go on for a moment: what the device had whole is not sent again."""
    if job.is_finished:
        return job
    pid = await one._start()
    await anyio.sleep(one.seconds / 2)
    await anyio.to_thread.run_sync(kill, one.lab.home, pid)
    await anyio.to_thread.run_sync(one.look)
    return await one.lab.zone.get_job(job.job_id)
