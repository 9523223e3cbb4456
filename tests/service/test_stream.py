"""The stream's hub: one upstream for all, nothing missed in the moment of subscribing, slow readers cut off."""

from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import ObjectReceiveStream

from snapshot_mcp.contract.errors import Unavailable
from snapshot_mcp.contract.models import Job
from snapshot_mcp.providers.local import LocalZone
from snapshot_mcp.service.stream import MAX_QUEUED, Hub, events
from tests.disks import make_image
from tests.patience import PATIENCE_SECONDS

pytestmark = pytest.mark.anyio


class Counted(LocalZone):
    """An embedded zone that counts its watchers, and whose watch can break or say nothing."""

    watchers = 0
    most = 0
    is_silent = False
    breaks = 0
    flood = 0

    async def watch_jobs(self) -> AsyncIterator[Job]:
        Counted.watchers += 1
        Counted.most = max(Counted.most, Counted.watchers)
        try:
            if self.breaks:
                self.breaks -= 1
                raise Unavailable("broken")
            for number in range(self.flood):
                yield Job(job_id=str(number), status="working")
            if self.is_silent:
                await anyio.sleep_forever()
            async for job in super().watch_jobs():
                yield job
        finally:
            Counted.watchers -= 1


@pytest.fixture
async def zone(zone_folder: Path) -> AsyncIterator[Counted]:
    Counted.watchers = Counted.most = 0
    zone = Counted(zone_folder)
    yield zone
    await zone.aclose()


async def for_ever() -> bool:
    return True


async def ended(jobs: ObjectReceiveStream[Job], job_id: str = "") -> None:
    """The end of this job, or of any."""
    with anyio.fail_after(PATIENCE_SECONDS):
        async for job in jobs:
            if job.is_finished and job_id in {job.job_id, ""}:
                return


async def test_many_subscribers_share_one_upstream(zone: Counted, tmp_path: Path) -> None:
    """One watch a zone while anybody listens, none when nobody does."""
    volume = (await zone.add_resource(make_image(tmp_path / "disk", 1 << 16))).id
    hub = Hub("ac1", zone)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hub.run)
        async with anyio.create_task_group() as listeners:
            ready = [anyio.Event() for _ in range(20)]

            async def listen(number: int) -> None:
                async with hub.subscribe() as jobs:
                    ready[number].set()
                    await ended(jobs)

            for number in range(20):
                listeners.start_soon(listen, number)
            for event in ready:
                await event.wait()
            job = await zone.create_snapshots([volume], "")
            hub.note(job)
        assert Counted.most == 1
        with anyio.fail_after(PATIENCE_SECONDS):
            while Counted.watchers:
                await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()


async def test_an_end_that_the_upstream_missed_is_told(zone: Counted, tmp_path: Path) -> None:
    """What ends between subscribing and the first look is found by looking again."""
    zone.is_silent = True
    volume = (await zone.add_resource(make_image(tmp_path / "disk", 1 << 16))).id
    hub = Hub("ac1", zone)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hub.run)
        async with hub.subscribe() as jobs:
            job = await zone.create_snapshots([volume], "")
            hub.note(job)
            await ended(jobs, job.job_id)
        tasks.cancel_scope.cancel()


async def test_a_broken_upstream_is_watched_again(
    zone: Counted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A zone that fails for a while does not end the face."""
    monkeypatch.setattr("snapshot_mcp.service.stream.RESTART_SECONDS", 0.01)
    zone.breaks = 2
    volume = (await zone.add_resource(make_image(tmp_path / "disk", 1 << 16))).id
    hub = Hub("ac1", zone)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hub.run)
        async with hub.subscribe() as jobs:
            job = await zone.create_snapshots([volume], "")
            hub.note(job)
            await ended(jobs, job.job_id)
        tasks.cancel_scope.cancel()


async def test_a_reader_that_does_not_read_is_cut_off(zone: Counted) -> None:
    """Its client connects again and looks up what it missed; nobody else waits for it."""
    zone.flood = MAX_QUEUED + 1
    zone.is_silent = True
    hub = Hub("ac1", zone)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hub.run)
        stream = events(hub, heartbeat_seconds=60, may_go_on=for_ever)
        with anyio.fail_after(PATIENCE_SECONDS):
            await anext(stream)
            await anyio.wait_all_tasks_blocked()
            told = [chunk async for chunk in stream]
        assert len(told) == MAX_QUEUED
        tasks.cancel_scope.cancel()


async def test_closing_the_hub_ends_every_stream(zone: Counted) -> None:
    """The server goes down at once."""
    hub = Hub("ac1", zone)
    stream = events(hub, heartbeat_seconds=60, may_go_on=for_ever)
    await anext(stream)
    hub.close()
    with anyio.fail_after(PATIENCE_SECONDS):
        assert [chunk async for chunk in stream] == []
    late = events(hub, heartbeat_seconds=60, may_go_on=for_ever)
    with anyio.fail_after(PATIENCE_SECONDS):
        assert len([chunk async for chunk in late]) == 1
