"""Waiting for jobs: one upstream a zone, any number of waiters (ARCHITECTURE.md, "Targets")."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, cast

import anyio
import anyio.lowlevel
import pytest
from anyio.streams.memory import MemoryObjectSendStream

from snapshot_mcp.contract.errors import NotFound, Unavailable, UnknownZone, Unsupported
from snapshot_mcp.contract.models import Job
from snapshot_mcp.contract.provider import Feature, Provider
from snapshot_mcp.zones import Zones
from tests.patience import PATIENCE_SECONDS


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class JobsOnly:
    """The jobs' half of a zone, held in memory; it counts what is asked of it."""

    zone = "model"
    location = "memory"
    recovery_seconds = 0

    def __init__(self, *features: Feature) -> None:
        self.features = frozenset(features)
        self.jobs: dict[str, Job] = {}
        self.reads = 0
        self.lists = 0
        self.streams = 0
        self.open_streams: list[MemoryObjectSendStream[Job]] = []
        self.is_reachable = True
        self.is_closed = False
        self.has_list = True
        self.has_subscriber = anyio.Event()
        self.was_read = anyio.Event()
        self.before_watch: Callable[[], Awaitable[None]] = anyio.lowlevel.checkpoint
        self.before_answer: Callable[[], Awaitable[None]] = anyio.lowlevel.checkpoint

    def set(self, job_id: str, status: str, *, announced: bool = True, **fields: Any) -> None:
        self.jobs[job_id] = Job(job_id=job_id, status=status, **fields)
        if announced:
            for stream in self.open_streams:
                stream.send_nowait(self.jobs[job_id])

    def break_streams(self) -> None:
        for stream in self.open_streams:
            stream.close()

    async def get_job(self, job_id: str) -> Job:
        self.reads += 1
        job = self.jobs.get(job_id)
        await self.before_answer()
        self.was_read.set()
        self._reach()
        if job is None:
            raise NotFound(f"There is no job {job_id!r}.")
        return job

    async def list_unfinished_jobs(self) -> tuple[Job, ...]:
        self.lists += 1
        if not self.has_list:
            raise Unsupported("There is no list.")
        jobs = tuple(job for job in self.jobs.values() if not job.is_finished)
        await self.before_answer()
        self.was_read.set()
        self._reach()
        return jobs

    async def watch_jobs(self) -> AsyncGenerator[tuple[Job, ...], None]:
        self.streams += 1
        self._reach()
        await self.before_watch()
        send, receive = anyio.create_memory_object_stream[Job](10_000)
        self.open_streams.append(send)
        self.has_subscriber.set()
        try:
            async with send, receive:
                yield tuple(job for job in self.jobs.values() if not job.is_finished)
                async for job in receive:
                    yield (job,)
            raise Unavailable("The stream ended.")
        finally:
            self.open_streams.remove(send)

    async def aclose(self) -> None:
        self.is_closed = True

    def _reach(self) -> None:
        if not self.is_reachable:
            raise Unavailable("Zone 'model' cannot be reached.")


def zones_of(model: JobsOnly) -> Zones:
    return Zones({"model": lambda: cast(Provider, model)})


@pytest.mark.anyio
@pytest.mark.parametrize("features", [(Feature.WATCH,), ()])
async def test_a_wait_ends_when_its_jobs_have(features: tuple[Feature, ...]) -> None:
    model = JobsOnly(*features)
    model.set("a", "working")
    model.set("b", "successful")
    seen: list[tuple[str, ...]] = []

    async def on_change(jobs: tuple[Job, ...]) -> None:
        seen.append(tuple(job.status for job in jobs))
        if len(seen) == 1:
            model.set("a", "failed")

    with anyio.fail_after(PATIENCE_SECONDS):
        async with zones_of(model) as zones:
            jobs = await zones.get().watcher.wait(["b", "a"], PATIENCE_SECONDS, on_change)
    assert [job.job_id for job in jobs] == ["b", "a"]
    assert seen[0] == ("successful", "working")
    assert seen[-1] == ("successful", "failed")
    assert model.is_closed


@pytest.mark.anyio
async def test_still_running_is_a_result_and_the_job_is_left_alone() -> None:
    model = JobsOnly(Feature.WATCH)
    model.set("a", "working")
    with anyio.fail_after(PATIENCE_SECONDS):
        async with zones_of(model) as zones:
            (job,) = await zones.get().watcher.wait(["a"], 0)
    assert job.status == "working"


@pytest.mark.anyio
async def test_an_unknown_job_is_not_found_whatever_else_is_waited_for() -> None:
    model = JobsOnly(Feature.WATCH)
    model.set("a", "working")
    with anyio.fail_after(PATIENCE_SECONDS):
        async with zones_of(model) as zones:
            with pytest.raises(NotFound, match="'x'"):
                await zones.get().watcher.wait(["a", "x"], 4)


@pytest.mark.anyio
@pytest.mark.parametrize("features", [(Feature.WATCH,), ()])
async def test_a_job_that_the_zone_forgets_is_told_at_once_and_is_not_done(features: tuple[Feature, ...]) -> None:
    """A provider that was restarted may not know its jobs any more: there is no end to wait for."""
    model = JobsOnly(*features)
    model.set("a", "working")
    model.set("b", "working")

    async def forget(jobs: tuple[Job, ...]) -> None:
        model.jobs.pop("a", None)

    with anyio.fail_after(PATIENCE_SECONDS):
        async with zones_of(model) as zones:
            with pytest.raises(NotFound, match="no longer knows job a, last “working”"):
                await zones.get().watcher.wait(["a", "b"], 60, forget)


@pytest.mark.anyio
async def test_an_unreachable_zone_is_told_and_a_later_wait_works() -> None:
    model = JobsOnly(Feature.WATCH)
    model.set("a", "successful")
    model.is_reachable = False
    with anyio.fail_after(PATIENCE_SECONDS):
        async with zones_of(model) as zones:
            with pytest.raises(Unavailable, match="cannot be reached"):
                await zones.get().watcher.wait(["a"], 4)
            model.is_reachable = True
            (job,) = await zones.get().watcher.wait(["a"], PATIENCE_SECONDS)
    assert job.is_successful


@pytest.mark.anyio
async def test_a_zone_that_goes_away_during_a_wait_is_told_at_its_end() -> None:
    model = JobsOnly()
    model.set("a", "working")

    async def go_away(jobs: tuple[Job, ...]) -> None:
        model.is_reachable = False

    with anyio.fail_after(PATIENCE_SECONDS):
        async with zones_of(model) as zones:
            with pytest.raises(Unavailable):
                await zones.get().watcher.wait(["a"], 1.5, go_away)


@pytest.mark.anyio
async def test_a_broken_stream_is_replaced_by_reading() -> None:
    model = JobsOnly(Feature.WATCH)
    model.set("a", "working")

    async def break_and_finish(jobs: tuple[Job, ...]) -> None:
        if not jobs[0].is_finished:
            await model.has_subscriber.wait()
            model.break_streams()
            model.set("a", "successful", announced=False)

    with anyio.fail_after(PATIENCE_SECONDS):
        async with zones_of(model) as zones:
            (job,) = await zones.get().watcher.wait(["a"], PATIENCE_SECONDS, break_and_finish)
    assert job.is_successful


@pytest.fixture
def reads_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No reading at intervals: what is found later is found by the stream, or because it began."""
    monkeypatch.setattr("snapshot_mcp.zones.watcher.POLL_SECONDS", 3600.0)
    monkeypatch.setattr("snapshot_mcp.zones.watcher.PROGRESS_SECONDS", 3600.0)
    monkeypatch.setattr("snapshot_mcp.zones.watcher.STREAM_RETRY_SECONDS", (0.01,))


@pytest.mark.anyio
@pytest.mark.usefixtures("reads_once")
async def test_an_end_between_the_first_read_and_the_stream_is_found_when_the_stream_begins() -> None:
    model = JobsOnly(Feature.WATCH)
    model.set("a", "working")

    async def finish_unannounced() -> None:
        await model.was_read.wait()
        model.set("a", "successful", announced=False)

    model.before_watch = finish_unannounced
    with anyio.fail_after(PATIENCE_SECONDS):
        async with zones_of(model) as zones:
            (job,) = await zones.get().watcher.wait(["a"], 60)
    assert job.is_successful


@pytest.mark.anyio
@pytest.mark.usefixtures("reads_once")
async def test_an_end_between_two_streams_is_found_when_the_second_begins() -> None:
    """Guards that a job missing from a stream's first item is read at once each time a stream begins, not the first alone."""
    model = JobsOnly(Feature.WATCH)
    model.set("a", "working")
    model.set("b", "working")
    ended: list[Job] = []

    async def finish_unannounced() -> None:
        model.set("a", "successful", announced=False)
        model.set("b", "failed", announced=False)

    async def break_the_first(jobs: tuple[Job, ...]) -> None:
        await model.has_subscriber.wait()
        model.before_watch = finish_unannounced
        model.break_streams()

    with anyio.fail_after(PATIENCE_SECONDS):
        async with zones_of(model) as zones:
            with zones.get().watcher.observing(ended.append):
                (job,) = await zones.get().watcher.wait(["a"], 60, break_the_first)
                while not any(one.job_id == "b" and one.is_finished for one in ended):
                    await anyio.lowlevel.checkpoint()
    assert job.is_successful
    assert model.streams == 2


@pytest.mark.anyio
async def test_an_observer_hears_each_change_once_and_in_order() -> None:
    """A stream and the reads of a wait report the same job; an answer may be older than what the stream reported meanwhile."""
    model = JobsOnly(Feature.WATCH)
    model.set("a", "working")
    heard: list[str] = []

    async def overtaken() -> None:
        await model.has_subscriber.wait()
        await anyio.wait_all_tasks_blocked()
        model.set("a", "successful")
        await anyio.wait_all_tasks_blocked()

    model.before_answer = overtaken
    with anyio.fail_after(PATIENCE_SECONDS):
        async with zones_of(model) as zones:
            watcher = zones.get().watcher
            with watcher.observing(lambda job: heard.append(job.status)):
                await watcher.wait(["a"], 60)
                model.before_answer = anyio.lowlevel.checkpoint
                (job,) = await watcher.wait(["a"], 60)
                await anyio.wait_all_tasks_blocked()
    assert job.is_successful
    assert heard == ["working", "successful"]


@pytest.mark.anyio
@pytest.mark.usefixtures("reads_once")
async def test_a_finished_job_does_not_turn_back_into_a_working_one() -> None:
    """Guards that a read whose answer is older than what the stream reported meanwhile changes nothing."""
    model = JobsOnly(Feature.WATCH)
    model.set("a", "working")
    model.set("b", "working")
    seen: list[str] = []

    async def overtaken() -> None:
        await model.has_subscriber.wait()
        await anyio.wait_all_tasks_blocked()
        model.set("a", "successful")
        await anyio.wait_all_tasks_blocked()

    async def finish_the_other() -> None:
        await model.was_read.wait()
        await anyio.wait_all_tasks_blocked()
        model.set("b", "successful")

    async def note(jobs: tuple[Job, ...]) -> None:
        seen.append(jobs[0].status)

    model.before_answer = overtaken
    with anyio.fail_after(PATIENCE_SECONDS):
        async with zones_of(model) as zones, anyio.create_task_group() as tasks:
            tasks.start_soon(finish_the_other)
            jobs = await zones.get().watcher.wait(["a", "b"], 60, note)
    assert seen == sorted(seen, key=["working", "successful"].index)
    assert all(job.is_successful for job in jobs)


@pytest.mark.anyio
async def test_a_cancelled_wait_leaves_the_other_waiters_alone() -> None:
    model = JobsOnly(Feature.WATCH)
    model.set("a", "working")
    with anyio.fail_after(PATIENCE_SECONDS):
        async with zones_of(model) as zones, anyio.create_task_group() as tasks:

            async def short(scope: anyio.CancelScope) -> None:
                with scope:
                    await zones.get().watcher.wait(["a"], 60)

            scope = anyio.CancelScope()
            tasks.start_soon(short, scope)
            await model.was_read.wait()

            async def then_finish(jobs: tuple[Job, ...]) -> None:
                scope.cancel()
                if not jobs[0].is_finished:
                    model.set("a", "successful")

            (job,) = await zones.get().watcher.wait(["a"], 4, then_finish)
            assert job.is_successful


@pytest.mark.anyio
async def test_a_thousand_waits_share_one_stream_and_a_handful_of_reads() -> None:
    """One stream or one poller upstream (ARCHITECTURE.md, "Targets")."""
    model = JobsOnly(Feature.WATCH)
    names = [f"job-{number}" for number in range(1000)]
    for name in names:
        model.set(name, "working")
    ended: set[str] = set()
    with anyio.fail_after(PATIENCE_SECONDS):
        async with zones_of(model) as zones, anyio.create_task_group() as tasks:
            started = anyio.Event()
            known: set[str] = set()

            async def one(name: str) -> None:
                async def on_change(jobs: tuple[Job, ...]) -> None:
                    known.add(name)
                    if len(known) == len(names):
                        started.set()

                (job,) = await zones.get().watcher.wait([name], 15, on_change)
                assert job.is_successful
                ended.add(name)

            for name in names:
                tasks.start_soon(one, name)
            await started.wait()
            for name in names:
                model.set(name, "successful")
    assert ended == set(names)
    assert model.streams == 1
    assert model.reads + model.lists < 20


@pytest.mark.anyio
async def test_new_waits_do_not_keep_the_poller_from_the_older_ones() -> None:
    model = JobsOnly()
    model.set("old", "working")
    with anyio.fail_after(PATIENCE_SECONDS):
        async with zones_of(model) as zones, anyio.create_task_group() as tasks:

            async def keep_arriving() -> None:
                for number in range(10_000):
                    model.set(f"new-{number}", "successful")
                    await zones.get().watcher.wait([f"new-{number}"], 5)

            async def then_end(jobs: tuple[Job, ...]) -> None:
                if not jobs[0].is_finished:
                    tasks.start_soon(keep_arriving)
                    model.set("old", "successful")

            (job,) = await zones.get().watcher.wait(["old"], 8, then_end)
            assert job.is_successful
            tasks.cancel_scope.cancel()


@pytest.mark.anyio
async def test_zones_are_built_when_asked_for_and_an_unknown_one_names_the_known() -> None:
    built: list[str] = []

    def build(name: str) -> Provider:
        built.append(name)
        return cast(Provider, JobsOnly())

    async with Zones({"a": lambda: build("a"), "b": lambda: build("b")}, default="b", production=["b"]) as zones:
        assert built == []
        assert zones.get().name == "b"
        assert zones.get("b") is zones.get()
        assert zones.get().is_production
        assert built == ["b"]
        with pytest.raises(UnknownZone, match=r"“c”\. Zones: a, b\."):
            zones.get("c")


@pytest.mark.anyio
async def test_waits_that_are_given_up_leave_nothing_open() -> None:
    """A leak test: open and close fifty times, and fifty at once."""
    model = JobsOnly(Feature.WATCH)
    model.set("a", "working")
    with anyio.fail_after(PATIENCE_SECONDS):
        for _ in range(50):
            async with zones_of(model) as zones, anyio.create_task_group() as tasks:
                tasks.start_soon(zones.get().watcher.wait, ["a"], 60)
                await model.was_read.wait()
                tasks.cancel_scope.cancel()
            assert model.open_streams == []
            assert model.is_closed
        async with zones_of(model) as zones:
            async with anyio.create_task_group() as tasks:
                for _ in range(50):
                    tasks.start_soon(zones.get().watcher.wait, ["a"], 60)
                await model.has_subscriber.wait()
                tasks.cancel_scope.cancel()
            model.set("a", "successful")
            (job,) = await zones.get().watcher.wait(["a"], 5)
            assert job.is_successful
            assert len(model.open_streams) <= 1
        assert model.open_streams == []


@pytest.mark.anyio
async def test_without_a_list_the_known_jobs_are_asked_for_one_by_one() -> None:
    model = JobsOnly()
    model.set("runs", "working")
    model.set("ended", "successful")
    async with Zones({"model": lambda: cast(Provider, model)}) as zones:
        zone = zones.get()
        listed = await zone.list_unfinished_jobs()
        model.has_list = False
        asked = await zone.list_unfinished_jobs(["ended", "forgotten", "runs"])
    assert [job.job_id for job in listed] == [job.job_id for job in asked] == ["runs"]
