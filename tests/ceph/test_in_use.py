"""A disk that QEMU has open: a snapshot does no harm, a roll-back is refused before and after its first write, and who starts
amid a roll-back cannot write."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import anyio
import anyio.lowlevel
import pytest

from snapshot_mcp.contract.errors import ResourceBusy
from snapshot_mcp.contract.models import ResourceFilter
from snapshot_mcp.providers.ceph.cluster import Cluster
from tests.ceph.bench import Bench
from tests.ceph.subject import POOL
from tests.disks import MIB, succeed
from tests.patience import PATIENCE_SECONDS

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not shutil.which("qemu-io"), reason="qemu-io is not installed (qemu-utils, qemu-block-extra)"),
]


class Guest:
    """QEMU's block layer with an image open, as a machine has it; `tell` runs a command of qemu-io."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process

    def tell(self, command: str, lines: int = 1) -> str:
        """Run a command that prints so many lines. One at a time: what comes together it would read only with the next."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()
        return "".join(self.process.stdout.readline() for _ in range(lines))

    def write(self, byte: int) -> None:
        """Write the first 64 KiB, durably."""
        assert "wrote 65536" in self.tell(f"write -f -P {byte} 0 64k", 2)


@contextmanager
def guest(bench: Bench, name: str = "db") -> Iterator[Guest]:
    options = (
        f"driver=raw,file.driver=rbd,file.pool={POOL},file.namespace={bench.namespace},file.image={name},"
        f"file.conf={bench.site.conf}"
    )
    with subprocess.Popen(
        ["stdbuf", "-oL", "qemu-io", "--image-opts", options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        opened = Guest(process)
        try:
            assert "MiB" in opened.tell("length")
            yield opened
        finally:
            assert process.stdin is not None
            process.stdin.write("quit\n")
            process.stdin.close()
            process.wait(PATIENCE_SECONDS)


async def test_a_disk_in_use_is_backed_up_without_harm_and_not_rolled_back(bench: Bench) -> None:
    disk = bench.disk()
    zone = bench.zone()
    first = await bench.back_up(disk, "first")
    with guest(bench) as machine:
        with pytest.raises(ResourceBusy, match=r"in use: client\.\d+ at 127\.0\.0\.1"):
            await zone.apply_snapshots([first])
        machine.write(7)
        with pytest.raises(ResourceBusy):
            await zone.apply_snapshots([first])
        (volume,) = (await zone.list_volumes(ResourceFilter(verbose=1))).items
        assert volume.held_by
        second = await bench.back_up(disk, "while it runs")
        machine.write(8)
    assert bench.content()[:65536] == b"\x08" * 65536
    assert (await bench.points(snapshots=(second,)))[0].consistency == "instant"
    await succeed(zone, await zone.apply_snapshots([second]))
    assert bench.content()[:65536] == b"\x07" * 65536
    await succeed(zone, await zone.apply_snapshots([first]))


@pytest.mark.long
async def test_who_starts_amid_a_roll_back_cannot_write(bench: Bench) -> None:
    disk = bench.disk("big", 512 * MIB)
    zone = bench.zone()
    first = await bench.back_up(disk, "first")
    with bench.site.pool.open_by_name("big") as image:
        for offset in range(0, image.size, 4 * MIB):
            image.write(offset, b"\x01" * 4096)
    was_late = False
    job = await zone.apply_snapshots([first])
    while (await zone.get_job(job.job_id)).status == "pending":
        await anyio.lowlevel.checkpoint()
    with Cluster(bench.site.conf, "admin", None) as client, client.pool(POOL, bench.namespace) as pool:
        began = time.monotonic()
        with pool.open_by_name("big") as image:
            try:
                image.write(0, b"\x09" * 4096)
            except OSError:
                was_late = True
        waited = time.monotonic() - began
    ended = await bench.end_of(job)
    assert ended.is_successful, ended.info
    with bench.site.pool.open_by_name("big") as image:
        start = image.read(0, 4096)
        assert image.read(4 * MIB, 4096) != b"\x01" * 4096
    assert was_late or waited > 0
    assert start != b"\x01" * 4096, "the roll-back is whole"
