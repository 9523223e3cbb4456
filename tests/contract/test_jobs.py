"""CONTRACT.md, "Job": asking for one, those under way, and the stream."""

import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, nullcontext
from dataclasses import dataclass, field

import anyio
import pytest

from snapshot_mcp.contract.errors import NotFound
from snapshot_mcp.contract.models import Job
from snapshot_mcp.contract.provider import Feature
from snapshot_mcp.contract.states import JobAction, JobStatus
from tests.contract.subject import Subject
from tests.patience import PATIENCE_SECONDS

pytestmark = pytest.mark.anyio

ORDER = [JobStatus.PENDING, JobStatus.WORKING, JobStatus.SUCCESSFUL]


@dataclass
class Watch:
    """What one watch of a zone has reported: its first item, and the jobs of all later ones."""

    first: tuple[Job, ...] = ()
    changes: list[Job] = field(default_factory=list)
    has_changed: anyio.Event = field(default_factory=anyio.Event)

    async def follow(self, stream: AsyncIterator[tuple[Job, ...]]) -> None:
        async for jobs in stream:
            self.changes += jobs
            self.has_changed.set()
            self.has_changed = anyio.Event()

    def statuses(self, job: Job) -> list[JobStatus]:
        return [JobStatus(one.status) for one in self.changes if one.job_id == job.job_id]

    async def end_of(self, job: Job, status: JobStatus = JobStatus.SUCCESSFUL) -> None:
        while status not in self.statuses(job):
            await self.has_changed.wait()


async def test_job_goes_from_pending_to_successful(subject: Subject) -> None:
    """GET /job/{job_id}; `status`: `pending` → `working` → `successful`; the times of it."""
    job = await subject.zone.create_snapshots([await subject.volume()], "")
    assert uuid.UUID(job.job_id)
    assert job.status in {JobStatus.PENDING, JobStatus.WORKING}
    assert job.create_time is not None
    done = await subject.done(job)
    assert done.job_id == job.job_id
    assert done.action == JobAction.CREATE
    assert done.status == JobStatus.SUCCESSFUL
    assert done.begin_time is not None
    assert done.finished_time is not None
    assert job.create_time <= done.begin_time <= done.finished_time


async def test_unknown_job_is_not_found(subject: Subject) -> None:
    """GET /job/{job_id}, code `not_found`."""
    unknown = str(uuid.uuid4())
    with pytest.raises(NotFound, match=unknown):
        await subject.zone.get_job(unknown)


async def test_unfinished_jobs_are_those_under_way(subject: Subject) -> None:
    """GET /unfinished_jobs → [Job…]."""
    volume = await subject.volume()
    await subject.back_up(volume)
    with subject.paused() if subject.is_ours else nullcontext():
        job = await subject.zone.create_snapshots([volume], "")
        unfinished = await subject.zone.list_unfinished_jobs()
        assert job.job_id in {one.job_id for one in unfinished}
        assert not any(one.is_finished for one in unfinished)
    await subject.done(job)
    assert job.job_id not in {one.job_id for one in await subject.zone.list_unfinished_jobs()}


@asynccontextmanager
async def watching(subject: Subject) -> AsyncIterator[Watch]:
    """A watch that stands: its first item is there."""
    assert Feature.WATCH in subject.zone.features
    watch = Watch()
    with anyio.fail_after(PATIENCE_SECONDS if subject.is_ours else 1800):
        async with aclosing(subject.zone.watch_jobs()) as stream, anyio.create_task_group() as tasks:
            watch.first = await anext(stream)
            tasks.start_soon(watch.follow, stream)
            yield watch
            tasks.cancel_scope.cancel()


async def test_a_watch_begins_with_the_unfinished_jobs(subject: Subject) -> None:
    """`Provider.watch_jobs`: "The first item holds the unfinished jobs"; a change after it is reported, and only once."""
    volume = await subject.volume()
    before = await subject.done(await subject.zone.create_snapshots([volume], "ended before the watch"))
    async with AsyncExitStack() as stack:
        with subject.paused() if subject.is_ours else nullcontext():
            job = await subject.zone.create_snapshots([volume], "unfinished")
            watch = await stack.enter_async_context(watching(subject))
        listed = {one.job_id: one for one in watch.first}
        assert job.job_id in listed
        assert not any(one.is_finished for one in watch.first)
        assert before.job_id not in listed
        await watch.end_of(job)
    statuses = [listed[job.job_id].status, *watch.statuses(job)]
    assert statuses == sorted(statuses, key=ORDER.index)
    assert statuses.count(JobStatus.SUCCESSFUL) == 1
    assert watch.statuses(before) == []


async def test_no_change_is_lost_between_the_first_item_and_the_next(subject: Subject) -> None:
    """`Provider.watch_jobs`: "none is missed", whenever a job ends after the watch began."""
    volume = await subject.volume()
    for _ in range(5):
        async with watching(subject) as watch:
            job = await subject.zone.create_snapshots([volume], "at once")
            assert job.job_id not in {one.job_id for one in watch.first}
            await watch.end_of(job)
        assert watch.statuses(job).count(JobStatus.SUCCESSFUL) == 1


async def test_a_watch_of_a_zone_without_work_begins_all_the_same(subject: Subject) -> None:
    """`Provider.watch_jobs`: the first item is sent when there are no jobs too."""
    volume = await subject.volume()
    job = await subject.done(await subject.zone.create_snapshots([volume], ""))
    async with watching(subject) as watch:
        assert job.job_id not in {one.job_id for one in watch.first}


@pytest.mark.own_rules
async def test_a_watch_reports_the_end_of_a_cancelled_job(subject: Subject) -> None:
    """`Provider.cancel_job`: "The job fails"; whoever watches is told of it as of any other end."""
    volume = await subject.volume()
    await subject.back_up(volume)
    with subject.paused():
        async with watching(subject) as watch:
            job = await subject.zone.create_snapshots([volume], "cancelled")
            while JobStatus.PENDING not in watch.statuses(job):
                await watch.has_changed.wait()
            await subject.zone.cancel_job(job.job_id)
            await watch.end_of(job, JobStatus.FAILED)
    (end,) = [one for one in watch.changes if one.job_id == job.job_id and one.is_finished]
    assert end.error is not None
    assert end.error.code == "cancelled"


async def test_watch_tells_each_change_of_status_to_the_end(subject: Subject) -> None:
    """GET /notifier/stream: "a Job as data at each change of status"."""
    volume = await subject.volume()
    async with watching(subject) as watch:
        job = await subject.zone.create_snapshots([volume], "watched")
        await watch.end_of(job)
    statuses = watch.statuses(job)
    assert statuses[-1] == JobStatus.SUCCESSFUL
    assert statuses.count(JobStatus.SUCCESSFUL) == 1
    assert statuses == sorted(statuses, key=ORDER.index)


async def test_two_watches_are_told_the_same(subject: Subject) -> None:
    """The stream belongs to nobody."""
    volume = await subject.volume()
    async with watching(subject) as one, watching(subject) as other:
        job = await subject.zone.create_snapshots([volume], "")
        await one.end_of(job)
        await other.end_of(job)
    assert one.statuses(job)[-1] == other.statuses(job)[-1] == JobStatus.SUCCESSFUL
