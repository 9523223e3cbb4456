"""A namespace of a real pool, with disks, zones of several machines over it, and their workers."""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio

from snapshot_mcp.contract.models import Job, ResourceFilter, Snapshot, SnapshotFilter
from snapshot_mcp.providers.ceph.settings import CephZoneSettings
from snapshot_mcp.providers.ceph.worker import LOCK_NAME
from snapshot_mcp.providers.ceph.zone import CephZone
from tests.ceph.cluster import ceph
from tests.ceph.held import PAUSED
from tests.ceph.subject import POOL, Site
from tests.disks import MIB, finish, holder_of, succeed
from tests.patience import PATIENCE_SECONDS


@dataclass
class Bench:
    """`zone()` is the zone as a machine sees it; each machine has a home."""

    site: Site
    namespace: str
    zones: dict[str, CephZone] = field(default_factory=dict)
    held: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def settings(self, **more: Any) -> CephZoneSettings:
        given = {"provider": "ceph", "pool": POOL, "namespace": self.namespace, "conf": self.site.conf}
        return CephZoneSettings.model_validate(given | more)

    def zone(self, machine: str = "one", **more: Any) -> CephZone:
        if machine not in self.zones:
            self.zones[machine] = CephZone("ceph", self.settings(**more), self.home(machine))
        return self.zones[machine]

    def home(self, machine: str = "one") -> Path:
        return self.site.home / machine

    def worker(self, machine: str = "one") -> int | None:
        return holder_of(self.home(machine) / "zones" / "ceph" / LOCK_NAME)

    def kill(self, machine: str = "one", sign: int = signal.SIGKILL) -> None:
        """Signal a machine's worker, which must run."""
        pid = self.worker(machine)
        assert pid is not None
        os.kill(pid, sign)

    async def hold(self, where: str = "", when: str = "before", number: int = 1, machine: str = "one") -> None:
        """Start a machine's worker, which stands still at such a call of a method (`held`)."""
        folder = self.home(machine) / "zones" / "ceph"
        folder.mkdir(parents=True, exist_ok=True)
        stop = [where, when, str(number)] if where else []
        with (folder / "worker.log").open("ab") as log:
            arguments = [sys.executable, "-m", "tests.ceph.held", str(folder), self.settings().model_dump_json(), *stop]
            self.held.append(subprocess.Popen(arguments, stdout=log, stderr=log, cwd=Path(__file__).parents[2]))
        await self.until(lambda: self.worker(machine) is not None)

    async def paused(self, machine: str = "one") -> None:
        """Wait until a machine's worker stands still."""
        await self.until((self.home(machine) / "zones" / "ceph" / PAUSED).exists)

    def go_on(self, machine: str = "one") -> None:
        """Let a machine's worker go on."""
        (self.home(machine) / "zones" / "ceph" / PAUSED).unlink()

    async def until(self, is_so: Callable[[], bool]) -> None:
        with anyio.fail_after(PATIENCE_SECONDS):
            while not is_so():
                await anyio.sleep(0.01)

    def bury(self, name: str, machine: str = "one") -> None:
        """Kill a machine's worker, and have Ceph let go of it at once; it takes half a minute by itself."""
        with self.site.pool.open_image(
            next(id_ for id_, one in self.site.pool.list_images().items() if one == name)
        ) as image:
            (client,) = image.clients()
        self.kill(machine)
        ceph(self.site.conf, "ceph", "osd", "blocklist", "add", client.address)

    def disk(self, name: str = "db", size: int = 16 * MIB, seed: int = 1) -> str:
        """Make a disk with random content; return its id."""
        self.site.pool.create_image(name, size)
        with self.site.pool.open_by_name(name) as image:
            for offset in range(0, size, 4 * MIB):
                image.write(offset, random.Random(seed + offset).randbytes(min(4 * MIB, size - offset)))
            return f"vol-{image.id}"

    def write(self, name: str = "db", seed: int = 2, size: int = 65536) -> None:
        with self.site.pool.open_by_name(name) as image:
            chance = random.Random(seed)
            image.write(chance.randrange(0, image.size - size), chance.randbytes(size))

    def content(self, name: str = "db") -> bytes:
        with self.site.pool.open_by_name(name) as image:
            return image.read(0, image.size)

    async def back_up(self, disk: str, name: str = "", machine: str = "one") -> str:
        job = await succeed(self.zone(machine), await self.zone(machine).create_snapshots([disk], name))
        return job.resource_ids[0]

    async def end_of(self, job: Job, machine: str = "one", seconds: float = 120.0) -> Job:
        return await finish(self.zone(machine), job, seconds)

    async def points(self, machine: str = "one", **query: Any) -> tuple[Snapshot, ...]:
        return (await self.zone(machine).list_snapshots(SnapshotFilter(verbose=1, **query))).items

    async def names(self, machine: str = "one") -> list[str]:
        return sorted(one.name for one in (await self.zone(machine).list_volumes(ResourceFilter())).items)

    async def aclose(self) -> None:
        for machine in list(self.zones):
            if pid := self.worker(machine):
                os.kill(pid, signal.SIGCONT)
                os.kill(pid, signal.SIGTERM)
        for process in self.held:
            process.kill()
            process.wait()
        for zone in self.zones.values():
            await zone.aclose()
