"""One zone with one disk, the guards of any number of homes over it, and what is to be true of them afterwards."""

import json
import os
import random
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import anyio

from snapshot_mcp.contract.models import Job, ResourceFilter, Snapshot, SnapshotFilter, Volume
from snapshot_mcp.guard import Guard, Policy
from snapshot_mcp.providers.local import LocalZone
from snapshot_mcp.providers.local.restore import content_at
from snapshot_mcp.providers.local.snapshot_file.reader import Chain
from snapshot_mcp.zones import Zone, Zones
from tests.guard.conftest import TurnedClock
from tests.whole_way.paths import CHUNK, DISK_BYTES, quiet_folder

WAIT_SECONDS = 60.0


class Scene:
    """The disk lies at `path`; `home` is the folder of the settings, which the embedded zone lies in."""

    def __init__(self, folder: Path, zone: Zone, clock: TurnedClock, size_bytes: int) -> None:
        self.folder, self.zone, self.clock, self.size_bytes = folder, zone, clock, size_bytes
        self.home = folder / "home"
        self.path = quiet_folder(folder) / "disk.img"
        self.disk_id = ""
        self.provider: LocalZone = zone.provider  # type: ignore[assignment]

    @property
    def zone_folder(self) -> Path:
        return self.provider.folder

    @property
    def environ(self) -> dict[str, str]:
        """What a process of the product needs to have this home."""
        config = self.folder / "config.toml"
        config.touch(mode=0o600)
        return {**os.environ, "SNAPSHOT_MCP_HOME": str(self.home), "SNAPSHOT_MCP_CONFIG": str(config)}

    def guard(self, home: str = "home", policy: Policy | None = None, **options: Any) -> Guard:
        """A guard as another process with that home would have."""
        options.setdefault("open_zone", lambda name: LocalZone(self.zone_folder))
        return Guard(self.folder / home, policy or Policy(), clock=self.clock, **options)

    async def disk(self) -> Volume:
        (found,) = (await self.provider.list_volumes(ResourceFilter(ids=(self.disk_id,), verbose=1))).items
        return found

    async def back_up(self, name: str = "backup", *, is_full: bool = False) -> str:
        """Take a snapshot of the disk as it is."""
        job = await self.provider.create_snapshots([self.disk_id], name, is_full=is_full)
        return (await self.finish(job.job_id, "successful")).resource_ids[0]

    async def finish(self, job_id: str, status: str = "") -> Job:
        """The job at its end; its status, where one is expected."""
        with anyio.fail_after(WAIT_SECONDS):
            while not (job := await self.provider.get_job(job_id)).is_finished:
                await anyio.sleep(0.005)
        assert not status or job.status == status, job
        return job

    async def settle(self) -> None:
        """Wait until nothing is under way."""
        with anyio.fail_after(WAIT_SECONDS):
            while await self.provider.list_unfinished_jobs():
                await anyio.sleep(0.005)

    async def snapshots(self, *statuses: str) -> tuple[Snapshot, ...]:
        """The disk's, newest first."""
        query = SnapshotFilter(resource_id=self.disk_id, status=statuses or ("available",), limit=100, verbose=1)
        return (await self.provider.list_snapshots(query)).items

    def scribble(self, seed: int | None = None) -> bytes:
        """Write to the disk as its user would, in place; return what it holds then."""
        chance = random.Random(seed)
        with self.path.open("r+b") as file:
            for chunk in range(self.size_bytes // CHUNK):
                file.seek(chunk * CHUNK + chance.randrange(CHUNK - 64))
                file.write(chance.randbytes(64))
            file.flush()
            os.fsync(file.fileno())
        return self.path.read_bytes()

    def content_of(self, snapshot_id: str) -> bytes:
        """What the snapshot holds, every byte of it verified."""
        with Chain(self.zone_folder / "snapshots", snapshot_id) as chain:
            return content_at(chain, 0, chain.header.virtual_size_bytes)

    def rows(self, query: str, *values: object) -> list[dict[str, Any]]:
        """What the catalogue says, read without starting a worker or moving a job on."""
        with closing(sqlite3.connect(self.zone_folder / "catalogue.sqlite", timeout=WAIT_SECONDS)) as db:
            db.row_factory = sqlite3.Row
            return [dict(row) for row in db.execute(query, values)]

    def acts(self, action: str = "") -> list[dict[str, Any]]:
        """The jobs that destroy, oldest first, without those that go on with an interrupted one."""
        actions = (action,) if action else ("DeleteSnapshots", "ApplySnapshots")
        marks = ", ".join("?" * len(actions))
        found = self.rows(f"SELECT * FROM jobs WHERE action IN ({marks}) ORDER BY change", *actions)
        return [one for one in found if not _is_resumption(one)]

    def resumptions(self, status: str) -> list[dict[str, Any]]:
        """The jobs that went on with an interrupted roll-back and have this status."""
        return [one for one in self.rows("SELECT * FROM jobs WHERE status = ?", status) if _is_resumption(one)]

    def effects(self) -> list[dict[str, Any]]:
        """Of these, the jobs that changed something."""
        return [one for one in self.acts() if one["has_effect"] or one["status"] == "successful"]

    def unfinished(self) -> list[dict[str, Any]]:
        """The jobs that have not ended, without a look that would start a worker."""
        return self.rows("SELECT * FROM jobs WHERE status IN ('pending', 'working')")

    def pass_time(self, seconds: float) -> None:
        """Let time pass, for the guards and for the jobs that have to begin within some."""
        self.clock.turn(seconds)
        self._inject("begin_until = begin_until - ?", seconds)

    def reboot(self) -> None:
        """Let another run of the system begin, as far as the zone has noted which one it was."""
        self._inject("begin_boot = ?", "another run")

    def _inject(self, change: str, value: object) -> None:
        with closing(sqlite3.connect(self.zone_folder / "catalogue.sqlite", timeout=WAIT_SECONDS)) as db, db:
            db.execute(f"UPDATE jobs SET {change} WHERE begin_until > 0 AND status IN ('pending', 'working')", (value,))

    async def verify(self, *guards: Guard) -> None:
        """No snapshot is damaged or lost, nothing lies about, and no record was changed."""
        report = await self.provider.check()
        left = [one for one in report.findings if one.is_damage or "does not know" in one.text]
        assert not left, left
        for guard in guards:
            verdict = await anyio.to_thread.run_sync(guard.audit.verify)
            assert verdict.problem == "", verdict


def _is_resumption(job: dict[str, Any]) -> bool:
    return bool(json.loads(job["extra"]).get("resumed"))


@asynccontextmanager
async def open_scene(folder: Path, *, seed: int = 1, size_bytes: int = DISK_BYTES) -> AsyncIterator[Scene]:
    """A scene with a disk of random content."""
    zone_folder = folder / "home" / "zones" / "local"
    zone_folder.mkdir(parents=True, exist_ok=True)
    provider = LocalZone(zone_folder)
    async with Zones({"local": lambda: provider}) as zones:
        scene = Scene(folder, zones.get(), TurnedClock(), size_bytes)
        scene.path.write_bytes(random.Random(seed).randbytes(size_bytes))
        scene.disk_id = (await provider.add_resource(scene.path, "pg-data")).id
        yield scene
