"""What the guard's tests stand on: a real embedded zone with small disks, a person who answers, and a clock to turn."""

import os
import random
import shutil
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from snapshot_mcp.contract.errors import Unsupported
from snapshot_mcp.contract.models import Instance, Job, ResourceFilter, Snapshot, SnapshotFilter, Volume
from snapshot_mcp.contract.provider import Feature, Provider
from snapshot_mcp.contract.states import ResourceType
from snapshot_mcp.ground.clock import Moment, SystemClock
from snapshot_mcp.guard import Guard, Policy, Question, QuestionAnswer, UrlAnswer
from snapshot_mcp.providers.local import LocalZone
from snapshot_mcp.zones import Zone, Zones
from tests.patience import PATIENCE_SECONDS

DISK_BYTES = 1 << 18


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class TurnedClock:
    """The machine's clock, turned by `seconds`; `uptime_seconds` passes as well unless only the wall clock is turned."""

    def __init__(self) -> None:
        self._system = SystemClock()
        self.seconds = 0.0
        self.uptime_seconds = 0.0

    def turn(self, seconds: float, *, wall_only: bool = False) -> None:
        self.seconds += seconds
        if not wall_only:
            self.uptime_seconds += seconds

    def read(self) -> Moment:
        now = self._system.read()
        return Moment(now.wall + self.seconds, now.boot, now.uptime + self.uptime_seconds)


class HandClock:
    """Turns the clock of every guard that is built from now on, the wall's alone, as somebody who may set it."""

    def install(self, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
        real = SystemClock.read

        def read(clock: SystemClock) -> Moment:
            now = real(clock)
            return Moment(now.wall + seconds, now.boot, now.uptime)

        monkeypatch.undo()
        if seconds:
            monkeypatch.setattr(SystemClock, "read", read)


HAND_CLOCK = HandClock()


Reply = str | QuestionAnswer | Callable[[Question], QuestionAnswer | str]


@dataclass
class Person:
    """A client with somebody behind it who gives the replies in turn; `can_ask=False` for a host without elicitation."""

    replies: list[Reply] = field(default_factory=list)
    can_ask: bool = True
    principal: str = "local"
    name: str = "test host"
    version: str = "1"
    said_no: bool = False
    seconds_left: float = 55.0
    can_open_url: bool = False
    process: str = ""
    questions: list[Question] = field(default_factory=list)
    before_reply: Callable[[], Any] | None = None
    opens: Callable[[str, str], Any] | None = None
    opened: list[str] = field(default_factory=list)

    async def ask(self, question: Question) -> QuestionAnswer:
        self.questions.append(question)
        if self.before_reply is not None:
            await self.before_reply()
        reply = self.replies.pop(0)
        if callable(reply):
            reply = reply(question)
        return QuestionAnswer("answered", reply) if isinstance(reply, str) else reply

    async def open_url(self, approval_id: str, message: str, url: str) -> UrlAnswer:
        self.opened.append(url)
        if self.opens is None:
            return UrlAnswer("declined")
        await self.opens(approval_id, url)
        return UrlAnswer("accepted")


def agrees(question: Question) -> str:
    """What a person types who agrees."""
    return question.words[0] if question.kind == "word" else question.expected_name


def nobody() -> Person:
    """A host that cannot ask."""
    return Person(can_ask=False)


OLD_ZONE = frozenset({Feature.TERMS, Feature.ONE_HOLD, Feature.CANCEL})
"""What a provider, or an older face of ours, does not have."""


class Wrapped:
    """A provider that is another one but for what a test changes on it; it counts what destroys.

    `holders`: who has a disk open, by its id. `asked`: what went with each change that destroys, its terms above all.
    """

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self.destroyed: list[tuple[str, ...]] = []
        self.on_change: Callable[[], Any] | None = None
        self.running: set[str] = set()
        self.is_slow = False
        self.without: frozenset[Feature] = frozenset()
        self.holders: dict[str, str] = {}
        self.asked: list[dict[str, Any]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._provider, name)

    @property
    def features(self) -> frozenset[Feature]:
        """What the zone can, but for what a test takes from it."""
        return self._provider.features - self.without

    async def delete_snapshot(self, snapshot_id: str, **terms: Any) -> Job:
        self.asked.append(terms)
        if self.on_change:
            await self.on_change()
        job: Job = await self._provider.delete_snapshot(snapshot_id, **terms)
        self.destroyed.append(("delete", snapshot_id))
        return job

    async def cancel_job(self, job_id: str) -> Job:
        if Feature.CANCEL in self.without:
            raise Unsupported("It cancels no jobs.")
        job: Job = await self._provider.cancel_job(job_id)
        return job

    async def apply_snapshots(self, snapshot_ids: Sequence[str], **terms: Any) -> Job:
        self.asked.append(terms)
        if self.on_change:
            await self.on_change()
        job: Job = await self._provider.apply_snapshots(snapshot_ids, **terms)
        self.destroyed.append(("apply", *snapshot_ids))
        return job

    async def get_job(self, job_id: str) -> Job:
        """While it is slow, no job has ended yet."""
        job = await self._provider.get_job(job_id)
        return job.model_copy(update={"status": "working"}) if self.is_slow else job

    async def watch_jobs(self) -> AsyncIterator[tuple[Job, ...]]:
        """While it is slow, it does not push either."""
        async with aclosing(self._provider.watch_jobs()) as stream:
            yield await anext(stream)
            async for jobs in stream:
                if not self.is_slow:
                    yield jobs

    async def list_instances(self, query: ResourceFilter) -> Any:
        page = await self._provider.list_instances(query)
        return type(page)(tuple(self._told(one, query) for one in page.items), page.total_count)

    async def list_volumes(self, query: ResourceFilter) -> Any:
        page = await self._provider.list_volumes(query)
        return type(page)(tuple(self._told(one, query) for one in page.items), page.total_count)

    def _told(self, one: Any, query: ResourceFilter) -> Any:
        update: dict[str, Any] = {"status": "running"} if one.id in self.running else {}
        if query.verbose and one.id in self.holders:
            update["held_by"] = self.holders[one.id]
        return one.model_copy(update=update)


def scribble(path: Path) -> None:
    """Change a disk a little."""
    with path.open("r+b") as file:
        file.seek(random.randrange(DISK_BYTES - 64))
        file.write(random.randbytes(64))


def resize(path: Path, factor: int) -> None:
    os.truncate(path, path.stat().st_size * factor)


class Bench:
    """A zone with disks, and the guard over it."""

    def __init__(self, folder: Path, zone: Zone, clock: TurnedClock) -> None:
        self.folder = folder
        self.zone = zone
        self.clock = clock
        self.home = folder / "home"
        self.provider: Any = zone.provider
        self.disks: list[Volume | Instance] = []

    def guard(self, policy: Policy | None = None, **options: Any) -> Guard:
        """A guard as another process on the same home would have."""
        return Guard(self.home, policy or Policy(), clock=self.clock, **options)

    async def add_disk(
        self, name: str = "pg-data", resource_type: ResourceType = ResourceType.VOLUME
    ) -> Volume | Instance:
        path = self.folder / f"{random.randrange(1 << 32):08x}.img"
        path.write_bytes(random.randbytes(DISK_BYTES))
        resource: Volume | Instance = await self.provider.add_resource(path, name, resource_type)
        self.disks.append(resource)
        return resource

    async def finish(self, job: Job | str) -> Job:
        job_id = job if isinstance(job, str) else job.job_id
        (done,) = await self.zone.watcher.wait([job_id], PATIENCE_SECONDS)
        assert done.is_successful, done
        return done

    async def back_up(self, resource: Volume | Instance, name: str = "backup", *, is_full: bool = False) -> Snapshot:
        """Change the disk a little and take a snapshot of it."""
        scribble(Path(resource.path or ""))
        await self.finish(await self.provider.create_snapshots([resource.id], name, is_full=is_full))
        page = await self.provider.list_snapshots(SnapshotFilter(resource_id=resource.id, limit=100))
        return next(one for one in page.items if one.is_head)

    async def snapshots(self) -> tuple[Snapshot, ...]:
        """Those of this test's disks."""
        pages = [
            await self.provider.list_snapshots(SnapshotFilter(resource_id=disk.id, limit=100)) for disk in self.disks
        ]
        return tuple(one for page in pages for one in page.items)

    async def every_snapshot(self) -> tuple[Snapshot, ...]:
        """Those that are gone, too."""
        statuses = ("pending", "available", "suspended", "deleted", "ceased")
        pages = [
            await self.provider.list_snapshots(SnapshotFilter(resource_id=disk.id, status=statuses, limit=100))
            for disk in self.disks
        ]
        return tuple(one for page in pages for one in page.items)

    @property
    def destroyed(self) -> list[tuple[str, ...]]:
        found: list[tuple[str, ...]] = self.provider.destroyed
        return found


@pytest.fixture(scope="session")
def zone_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One zone for all tests, so that its worker stays; each has disks of its own in it."""
    folder = tmp_path_factory.mktemp("zone") / "zone"
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@asynccontextmanager
async def open_bench(folder: Path, zone_folder: Path) -> AsyncIterator[Bench]:
    provider: Any = Wrapped(LocalZone(zone_folder))
    async with Zones({"local": lambda: provider}) as zones:
        yield Bench(folder, zones.get(), TurnedClock())


@pytest.fixture
async def bench(tmp_path: Path, zone_folder: Path, anyio_backend: str) -> AsyncIterator[Bench]:
    async with open_bench(tmp_path, zone_folder) as bench:
        yield bench
