"""contract.md, "Job": asking for one, those under way, and the stream."""

import uuid
from contextlib import aclosing, nullcontext

import anyio
import pytest

from snapshot_mcp.contract.errors import NotFound
from snapshot_mcp.contract.models import Job
from snapshot_mcp.contract.provider import Feature
from snapshot_mcp.contract.states import JobAction, JobStatus
from tests.contract.subject import Subject

pytestmark = pytest.mark.anyio


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
    with subject.paused() if subject.local else nullcontext():
        job = await subject.zone.create_snapshots([volume], "")
        unfinished = await subject.zone.list_unfinished_jobs()
        assert job.job_id in {one.job_id for one in unfinished}
        assert not any(one.is_finished for one in unfinished)
    await subject.done(job)
    assert job.job_id not in {one.job_id for one in await subject.zone.list_unfinished_jobs()}


async def test_watch_tells_each_change_of_status_to_the_end(subject: Subject) -> None:
    """GET /notifier/stream: "a Job as data at each change of status"."""
    assert Feature.WATCH in subject.zone.features
    volume = await subject.volume()
    told: list[Job] = []
    ready = anyio.Event()
    wanted: set[str] = set()

    async def watch() -> None:
        async with aclosing(subject.zone.watch_jobs()) as jobs:  # type: ignore[type-var]
            async for job in jobs:
                told.append(job)
                ready.set()
                if job.is_finished and job.job_id in wanted:
                    return

    with anyio.fail_after(20 if subject.local else 1800):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            while not ready.is_set():  # jobs, until the first is told: then the watch stands
                await subject.back_up(volume)
                with anyio.move_on_after(0.2):
                    await ready.wait()
            job = await subject.zone.create_snapshots([volume], "watched")
            wanted.add(job.job_id)
    statuses = [one.status for one in told if one.job_id == job.job_id]
    assert statuses[-1] == JobStatus.SUCCESSFUL
    assert statuses.count(JobStatus.SUCCESSFUL) == 1
    order = [JobStatus.PENDING, JobStatus.WORKING, JobStatus.SUCCESSFUL]
    assert [order.index(JobStatus(status)) for status in statuses] == sorted(
        order.index(JobStatus(s)) for s in statuses
    )


async def test_two_watches_are_told_the_same(subject: Subject) -> None:
    """The stream belongs to nobody."""
    volume = await subject.volume()
    ends: dict[int, set[str]] = {0: set(), 1: set()}
    job_ids: set[str] = set()

    async def watch(number: int) -> None:
        async with aclosing(subject.zone.watch_jobs()) as jobs:  # type: ignore[type-var]
            async for job in jobs:
                if job.is_finished:
                    ends[number].add(job.job_id)
                if job_ids and job_ids <= ends[number]:
                    return

    with anyio.fail_after(20 if subject.local else 1800):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch, 0)
            tasks.start_soon(watch, 1)
            while not (ends[0] and ends[1]):
                await subject.back_up(volume)
            job = await subject.zone.create_snapshots([volume], "")
            job_ids.add(job.job_id)
