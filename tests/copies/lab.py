"""A home with disks and a copy elsewhere; the zone's worker runs in this process, with real files and requests."""

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from snapshot_mcp.contract.models import Job, Snapshot, SnapshotFilter
from snapshot_mcp.contract.parts import Ledger
from snapshot_mcp.copies.copier import HomeCopier
from snapshot_mcp.copies.keys import RecoveryKey, keep_keys, make_keys, read_keys
from snapshot_mcp.copies.library import Library, read_library
from snapshot_mcp.copies.send import recipient_of
from snapshot_mcp.copies.settings import CopySettings
from snapshot_mcp.copies.stores import CopyStore, open_store
from snapshot_mcp.providers.local import LocalZone
from snapshot_mcp.providers.local import worker as workers
from tests.cli.commands import Shell
from tests.disks import make_image
from tests.patience import PATIENCE_SECONDS

DAY = 86_400


class QuietZone(LocalZone):
    """A zone that starts no worker: the test is the worker."""

    def _ensure_worker(self) -> None:
        pass


@dataclass
class CopyLab:
    """A zone in `home` whose copy is `nas`; `clock` is added to the time that the copier sees."""

    home: Path
    to: Mapping[str, Any]
    is_sealed: bool
    ahead: float = 0.0
    key: RecoveryKey | None = None
    settings: CopySettings = field(init=False)
    zone: LocalZone = field(init=False)

    def __post_init__(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        self.settings = CopySettings.model_validate({**self.to, "encryption": "age" if self.is_sealed else "none"})
        if self.key is None:
            self.key, machine = make_keys()
            keep_keys(self.home, machine)
        self.zone = QuietZone(self.home / "zones" / "local", home=self.home)

    def change_settings(self, **fields: Any) -> None:
        self.settings = CopySettings.model_validate(self.settings.model_dump() | fields)

    @property
    def store(self) -> CopyStore:
        return open_store(self.settings)

    def library(self, key: RecoveryKey | None = None) -> Library:
        return read_library(self.store, key or self.key)

    async def add_disk(self, path: Path, name: str, seed: int = 1) -> str:
        return (await self.zone.add_resource(make_image(path, seed=seed), name)).id

    async def back_up(self, disk: str, name: str, *, is_full: bool = False) -> str:
        """Take a restore point; the copy that follows it waits."""
        job = await self.zone.create_snapshots([disk], name, is_full=is_full)
        await self.work(copies=False)
        await self.ended(job)
        return str(job.resource_ids[0])

    async def copy(self, *, ends_well: bool = True) -> Job:
        """Run the copy to its end."""
        job = await self.zone.start_copy("nas")
        await self.work()
        done = await self.zone.get_job(job.job_id)
        assert done.is_finished, done
        assert not ends_well or done.is_successful, done.reason
        return done

    async def delete(self, snapshot_id: str, *, is_purged: bool = True) -> None:
        job = await self.zone.delete_snapshot(snapshot_id)
        await self.work(copies=False)
        await self.ended(job)
        if is_purged:
            await self.zone.purge()

    async def work(self, *, copies: bool = True) -> None:
        """Be the worker until there is nothing left to do."""
        copier = HomeCopier(lambda: (self.home, {"nas": self.settings}), lambda: time.time() + self.ahead)
        with anyio.fail_after(PATIENCE_SECONDS):
            await anyio.to_thread.run_sync(
                lambda: workers.run(self.zone.folder, 0.0, copier=copier if copies else None)
            )

    async def ended(self, job: Job) -> Job:
        done = await self.zone.get_job(job.job_id)
        assert done.is_successful, done.reason
        return done

    async def points(self) -> dict[str, Snapshot]:
        page = await self.zone.list_snapshots(SnapshotFilter(verbose=1, limit=100))
        return {one.snapshot_id: one for one in page.items}

    async def content(self, snapshot_id: str, path: Path, zone: LocalZone | None = None) -> bytes:
        """The bytes of a restore point."""
        with path.open("xb+") as file:
            await (zone or self.zone).read_out(snapshot_id, file.fileno())
            file.seek(0)
            found = file.read()
        path.unlink()
        return found

    def copy_id(self, ledger: Ledger) -> int:
        """What the ledger knows the copy by."""
        found = ledger.find("nas", self.settings.place, recipient_of("nas", self.settings, read_keys(self.home)))
        assert found
        return found.copy_id

    def shell(self, home: Path, *, in_process: bool = True) -> Shell:
        """Commands on another machine: a new home, without settings."""
        keys = {
            "AWS_ACCESS_KEY_ID": _secret(self.settings.access_key_id),
            "AWS_SECRET_ACCESS_KEY": _secret(self.settings.secret_access_key),
            "AWS_ENDPOINT_URL": self.settings.endpoint,
        }
        return Shell(home, in_process=in_process, **{name: value for name, value in keys.items() if value})

    def key_file(self) -> str:
        assert self.key
        path = self.home / "key"
        path.write_text(self.key.text)
        return str(path)

    async def restore_all(self, home: Path, *more: str, status: int = 0) -> Any:
        """`restore-from` into the empty home of a new machine."""
        words = ("restore-from", self.settings.to, "--new-zone", "local", "--key-file", self.key_file(), *more)
        return await self.shell(home).json(*words, status=status)

    async def lose_the_zone(self) -> None:
        """The disk with the zone's folder dies; the home is as it was, and a new zone begins."""
        await self.zone.aclose()
        shutil.rmtree(self.zone.folder)
        self.zone = QuietZone(self.home / "zones" / "local", home=self.home)


def _secret(value: Any) -> str:
    return value.get_secret_value() if value else ""


def objects(folder: Path) -> dict[str, bytes]:
    """All files of a folder, by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def inodes(folder: Path) -> dict[str, int]:
    """Which file each object is: another number, and it was written anew."""
    return {str(path.relative_to(folder)): path.stat().st_ino for path in folder.rglob("*") if path.is_file()}
