"""What the contract suite is run over: a zone under test, and how to get disks in it.

Each provider brings `tests/NAME/subject.py` with two functions:

- `subject_names(module, is_own_rule)` names the zones to run over, for a module of the suite; `is_own_rule`: for its tests of
  rules that only our own zone keeps;
- `open_subject(name, suite, options)` is an async context manager that yields the `Subject`.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from snapshot_mcp.contract.models import Job
from snapshot_mcp.contract.provider import Provider
from snapshot_mcp.contract.states import ResourceType
from snapshot_mcp.providers import PROVIDERS
from snapshot_mcp.providers.local import LocalZone
from snapshot_mcp.providers.local.worker import LOCK_NAME
from tests.disks import MIB, change, make_image, succeed
from tests.local.test_in_use import holder
from tests.patience import PATIENCE_SECONDS


@dataclass
class Suite:
    """What the subjects of one session share: the folder of one embedded zone, and what is opened once."""

    folder: Path
    stack: ExitStack
    _opened: dict[Any, Any] = field(default_factory=dict)

    def once(self, open_: Callable[[Path], AbstractContextManager[Any]]) -> Any:
        """Return what `open_` yields for the folder; it is closed at the end of the session."""
        if open_ not in self._opened:
            self._opened[open_] = self.stack.enter_context(open_(self.folder))
        return self._opened[open_]


@dataclass
class Subject:
    """A zone under test, and how to get disks in it. `local` is the embedded zone behind it; None at another's."""

    zone: Provider
    local: LocalZone | None
    folder: Path
    paths: dict[str, Path] = field(default_factory=dict)

    @property
    def is_ours(self) -> bool:
        """Whether it is a zone of ours, whose disks the tests may write to."""
        return self.local is not None

    def needs_files(self) -> None:
        """Skip a test of what only files can do."""
        if self.local is None:
            pytest.skip("not configured: the disks of this zone are no files")

    async def volume(self, name: str = "disk", size_bytes: int = 1 * MIB) -> str:
        return await self.resource(ResourceType.VOLUME, name, size_bytes)

    async def instance(self, name: str = "host", size_bytes: int = 1 * MIB) -> str:
        return await self.resource(ResourceType.INSTANCE, name, size_bytes)

    async def resource(self, kind: ResourceType, name: str, size_bytes: int) -> str:
        """Make a disk that can be backed up; return its id."""
        assert self.local is not None
        image = make_image(self.folder / f"{len(self.paths)}.img", size_bytes)
        resource = await self.local.add_resource(image, name, kind)
        self.paths[resource.id] = image
        return resource.id

    def write(self, resource_id: str, seed: int = 2) -> None:
        if self.local is not None:
            change(self.paths[resource_id], 4096, seed=seed, count=1)

    def grow(self, resource_id: str, data: bytes) -> None:
        """Put something behind the end of a disk."""
        with self.paths[resource_id].open("ab") as file:
            file.write(data)

    def lose(self, resource_id: str) -> None:
        """Remove a disk under the zone."""
        self.paths[resource_id].unlink()

    def damage(self, snapshot_id: str) -> None:
        """Break what is stored of a restore point."""
        assert self.local is not None
        path = self.local.folder / "snapshots" / f"{snapshot_id}.snap"
        with path.open("r+b") as file:
            file.seek(600)
            byte = file.read(1)
            file.seek(600)
            file.write(bytes([byte[0] ^ 1]))

    def traces(self) -> set[str]:
        """What is stored, by name."""
        assert self.local is not None
        return {path.name for path in self.local.folder.rglob("*")}

    @contextmanager
    def used(self, resource_id: str) -> Iterator[tuple[str, str]]:
        """Another program has a disk open for writing; how it is told of begins and ends so."""
        with holder(f"f = os.open({str(self.paths[resource_id])!r}, os.O_RDWR)") as process:
            yield f"process {process.pid} (", "has it open for writing"

    def content_at(self, path: str) -> bytes:
        """The content of an exported disk."""
        return Path(path).read_bytes()

    @property
    def worker_lock(self) -> Path:
        """The lock file of the worker."""
        assert self.local is not None
        return self.local.folder / LOCK_NAME

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The zone's worker stands still: jobs are accepted and not begun."""
        worker = int(self.worker_lock.read_text())
        os.kill(worker, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(worker, signal.SIGCONT)

    def content(self, resource_id: str) -> bytes:
        return self.paths[resource_id].read_bytes()

    async def done(self, job: Job) -> Job:
        return await succeed(self.zone, job, timeout_seconds=PATIENCE_SECONDS if self.is_ours else 1800)

    async def back_up(self, resource_id: str, name: str = "", *, is_full: bool = False) -> str:
        """Create a snapshot of one resource and return its id."""
        job = await self.done(await self.zone.create_snapshots([resource_id], name, is_full=is_full))
        return job.resource_ids[0]


def subject_modules() -> dict[str, ModuleType]:
    """Return each provider's module of subjects."""
    return {provider: import_module(f"tests.{provider}.subject") for provider in PROVIDERS}
