"""A program that stamps the disk all the time while roll-backs are asked for: whatever was overwritten is in the safety snapshot
to the last stamp, or the roll-back was refused.

Each stamp has a place of its own and is acknowledged once it is on the disk, as a database's commit is. After each try every
acknowledged stamp must be on the disk, or in the safety snapshot of the roll-back that overwrote it.
"""

import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from snapshot_mcp.contract.errors import ZoneError
from tests.guard.conftest import Person, agrees
from tests.patience import PATIENCE_SECONDS
from tests.whole_way import workers
from tests.whole_way.paths import CHUNK, DISK_BYTES
from tests.whole_way.scene import Scene
from tests.whole_way.workers import Nursery, until

pytestmark = pytest.mark.anyio

STAMP_BYTES = 16
STAMPS = DISK_BYTES // 512
"""One stamp a sector."""

WRITER = """
import mmap, os, random, sys, time

path, log, stop, seed, rest = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), float(sys.argv[5])
chance = random.Random(seed)
ledger = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
number = 0

def note(word):
    os.write(ledger, f"{word} {number}\\n".encode())

def stamp(write):
    global number
    note("begins")
    write(number * 512 % os.path.getsize(path), f"stamp {number:9d} ".encode())
    note("acknowledged")
    number += 1

def write(fd):
    def run(at, data):
        os.pwrite(fd, data, at)
        os.fsync(fd)
    return run

def through_memory(memory):
    def run(at, data):
        memory[at : at + len(data)] = data
        memory.flush()
    return run

while not os.path.exists(stop):
    fd = os.open(path, os.O_RDWR)
    kind = chance.random()
    if kind < 0.9:
        stamp(write(fd))
    elif kind < 0.95:
        for _ in range(5):
            stamp(write(fd))
            time.sleep(chance.uniform(0, 0.01))
    else:
        with mmap.mmap(fd, 0) as memory:
            stamp(through_memory(memory))
            time.sleep(chance.uniform(0, 0.02))
    os.close(fd)
    time.sleep(chance.uniform(0, rest))
"""


class Writer:
    """The program; `acknowledged` is what it was told is safe."""

    def __init__(self, folder: Path, path: Path, seed: int, rest_seconds: float) -> None:
        self._log, self._stop = folder / f"ledger-{seed}", folder / f"stop-{seed}"
        arguments = [str(path), str(self._log), str(self._stop), str(seed), str(rest_seconds)]
        self._process = subprocess.Popen([sys.executable, "-c", WRITER, *arguments], stderr=subprocess.PIPE)

    def _said(self, word: str) -> set[int]:
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        return {int(line.split()[1]) for line in lines if line.startswith(word)}

    @property
    def acknowledged(self) -> set[int]:
        return self._said("acknowledged")

    def has_written(self, count: int) -> None:
        """Wait until it has written so many stamps more."""
        before = len(self.acknowledged)
        until(lambda: self._process.poll() is not None or len(self.acknowledged) >= before + count)

    def end(self) -> None:
        self._stop.touch()
        _, errors = self._process.communicate(timeout=PATIENCE_SECONDS)
        assert self._process.returncode == 0, errors
        assert self._said("begins") == self.acknowledged, "it ended in the middle of a stamp"
        assert max(self.acknowledged, default=0) < STAMPS, "the stamps came round"


@contextmanager
def writing(scene: Scene, seed: int, rest_seconds: float) -> Iterator[Writer]:
    writer = Writer(scene.folder, scene.path, seed, rest_seconds)
    try:
        yield writer
    finally:
        writer.end()


def stamps_in(content: bytes) -> set[int]:
    sectors = (content[at : at + STAMP_BYTES] for at in range(0, DISK_BYTES, 512))
    return {int(one.split()[1]) for one in sectors if one.startswith(b"stamp ")}


async def try_once(scene: Scene, target: str, seed: int) -> str:
    """Ask for a roll-back while the writer stamps, and account for every stamp; how the roll-back ended."""
    before = scene.path.read_bytes()
    safety, end = "", ""
    with writing(scene, seed, random.Random(seed).choice([0.02, 0.05, 0.2])) as writer:
        writer.has_written(2)
        try:
            person = Person([agrees])
            outcome = await scene.guard().rollback_to_snapshots(scene.zone, [target], person)
            end = outcome.status
            if outcome.job_id:
                job = await scene.finish(outcome.job_id)
                end = "carried out" if job.is_successful else job.error.code if job.error else job.status
                safety = outcome.safety_snapshot_ids[0]
        except ZoneError as error:
            end = error.code
        writer.has_written(2)
    await scene.settle()
    on_disk = stamps_in(scene.path.read_bytes())
    if end == "carried out":
        saved = stamps_in(scene.content_of(safety))
        assert writer.acknowledged <= saved | on_disk, "a stamp was overwritten that is in no snapshot"
        assert max(saved, default=-1) < min(on_disk, default=STAMPS), "the safety snapshot is a mixture"
    else:
        assert writer.acknowledged <= on_disk, "a refused roll-back has overwritten a stamp"
        assert set(range(len(before) // 512)) >= on_disk
    return end


async def tries(scene: Scene, count: int, first: int = 0) -> Counter[str]:
    ends: Counter[str] = Counter()
    base = scene.path.read_bytes()
    target = await scene.back_up("before the stamps", is_full=True)
    for number in range(first, first + count):  # each writer has files of its own
        ends[await try_once(scene, target, number)] += 1
        for approval in await scene.guard().list_approvals():
            if approval.expires_at:
                await scene.guard().deny(approval.id)
        scene.clock.turn(3600)
        await scene.finish((await scene.provider.apply_snapshots([target])).job_id, "successful")
        assert scene.path.read_bytes() == base
    await scene.verify(scene.guard())
    assert ends.keys() <= {"carried out", "resource_busy", "needs_approval", "refused"}, ends
    return ends


async def test_no_acknowledged_write_is_lost_by_a_roll_back(scene: Scene) -> None:
    """82 synced writes by another program were accepted in between and overwritten, and the safety snapshot lacked them."""
    ends = Counter[str]()
    while not ends["carried out"] and ends.total() < 80:  # a writer that leaves no gap proves nothing
        ends += await tries(scene, 4, ends.total())
    assert ends["carried out"], ends


@pytest.mark.long
async def test_no_acknowledged_write_is_lost_by_two_hundred_roll_backs(scene: Scene) -> None:
    ends = await tries(scene, 200)
    print(ends)
    assert ends["carried out"] >= 20, ends


@pytest.mark.long
@pytest.mark.parametrize("step", [1, 2, 3])
async def test_a_worker_that_hangs_while_it_overwrites_goes_on_over_nothing_that_was_let_in(
    scene: Scene, nursery: Nursery, step: int
) -> None:
    """The kernel lets a waiting writer in after 45 s (`lease-break-time`), whatever became of who holds the disk off."""
    target = await scene.back_up("friday")
    content = scene.scribble(2)
    workers.kill(scene.zone_folder)
    nursery.start(scene.zone_folder, step=step, kind="write", how=signal.SIGSTOP)
    outcome = await scene.guard().rollback_to_snapshots(scene.zone, [target], Person([agrees]))
    until(lambda: workers.is_frozen(scene.zone_folder))
    command = [sys.executable, "-c", LATE_WRITER, str(scene.path), str(3 * CHUNK + 512)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=2 * PATIENCE_SECONDS, check=True).stdout
    assert said == "acknowledged\n"
    workers.thaw(scene.zone_folder)
    job = await scene.finish(outcome.job_id, "failed")
    assert "in use" in job.info
    for _ in range(2):
        workers.kill(scene.zone_folder)
        nursery.start(scene.zone_folder)
        await scene.settle()
        assert b"precious" in scene.path.read_bytes()
    assert scene.content_of(outcome.safety_snapshot_ids[0]) == content
    assert (await scene.disk()).problem
    await scene.verify(scene.guard())


LATE_WRITER = """
import os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
os.pwrite(fd, b"precious", int(sys.argv[2]))
os.fsync(fd)
print("acknowledged")
"""
