"""The stream's hub: one upstream for all, nothing missed in the moment of subscribing, slow readers cut off."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import ObjectReceiveStream

from snapshot_mcp.contract.errors import Unavailable
from snapshot_mcp.contract.models import Job
from snapshot_mcp.providers.local import LocalZone
from snapshot_mcp.service.stream import HEARTBEAT, MAX_QUEUED, Hub, events
from tests.disks import make_image
from tests.patience import PATIENCE_SECONDS

pytestmark = pytest.mark.anyio


class Counted(LocalZone):
    """An embedded zone that counts its watchers, and whose watch can fail to begin, begin late, or break."""

    watchers = 0
    most = 0
    breaks = 0
    flood = 0

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.may_begin = anyio.Event()
        self.may_begin.set()
        self.breaks_off = False

    async def watch_jobs(self) -> AsyncGenerator[tuple[Job, ...], None]:
        Counted.watchers += 1
        Counted.most = max(Counted.most, Counted.watchers)
        try:
            if self.breaks:
                self.breaks -= 1
                raise Unavailable("broken")
            await self.may_begin.wait()
            async with aclosing(super().watch_jobs()) as stream:
                yield await anext(stream)
                if self.flood:
                    yield tuple(Job(job_id=str(number), status="working") for number in range(self.flood))
                    await anyio.sleep_forever()
                async for jobs in stream:
                    yield jobs
                    if self.breaks_off:
                        raise Unavailable("broken off")
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
            await zone.create_snapshots([volume], "")
        assert Counted.most == 1
        with anyio.fail_after(PATIENCE_SECONDS):
            while Counted.watchers:
                await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()


async def test_a_subscription_stands_only_when_the_upstream_does(zone: Counted, tmp_path: Path) -> None:
    """What ends between the subscription and the watch's first item would be lost; a subscriber lists after it."""
    zone.may_begin = anyio.Event()
    volume = (await zone.add_resource(make_image(tmp_path / "disk", 1 << 16))).id
    hub = Hub("ac1", zone)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hub.run)
        is_subscribed = anyio.Event()

        async def listen() -> None:
            async with hub.subscribe() as jobs:
                is_subscribed.set()
                await ended(jobs, (await zone.create_snapshots([volume], "")).job_id)
            tasks.cancel_scope.cancel()

        tasks.start_soon(listen)
        await anyio.wait_all_tasks_blocked()
        assert not is_subscribed.is_set()
        zone.may_begin.set()


async def test_who_comes_as_the_last_one_leaves_waits_for_the_next_watch(zone: Counted, tmp_path: Path) -> None:
    """The watch that ends with its last subscriber tells the next one nothing."""
    volume = (await zone.add_resource(make_image(tmp_path / "disk", 1 << 16))).id
    hub = Hub("ac1", zone)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hub.run)
        for _ in range(20):
            async with hub.subscribe():
                pass
            await anyio.lowlevel.checkpoint()
            async with hub.subscribe() as jobs:
                await ended(jobs, (await zone.create_snapshots([volume], "")).job_id)
        tasks.cancel_scope.cancel()


async def test_an_upstream_that_cannot_be_watched_is_an_error_and_is_tried_again(zone: Counted, tmp_path: Path) -> None:
    """A zone that fails for a while does not end the face; its subscribers are told why, and come again."""
    zone.breaks = 2
    volume = (await zone.add_resource(make_image(tmp_path / "disk", 1 << 16))).id
    hub = Hub("ac1", zone)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hub.run)
        for _ in range(2):
            with pytest.raises(Unavailable, match="broken"), anyio.fail_after(PATIENCE_SECONDS):
                async with hub.subscribe():
                    pass
        async with hub.subscribe() as jobs:
            await ended(jobs, (await zone.create_snapshots([volume], "")).job_id)
        tasks.cancel_scope.cancel()


async def test_an_upstream_that_breaks_ends_the_streams_that_hang_on_it(zone: Counted, tmp_path: Path) -> None:
    """What changes until the next watch begins is seen by nobody: clients connect again and look it up."""
    zone.breaks_off = True
    volume = (await zone.add_resource(make_image(tmp_path / "disk", 1 << 16))).id
    other = (await zone.add_resource(make_image(tmp_path / "other", 1 << 16))).id
    hub = Hub("ac1", zone)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hub.run)
        with anyio.fail_after(PATIENCE_SECONDS):
            async with hub.subscribe() as jobs:
                await zone.create_snapshots([volume], "")
                assert [job async for job in jobs], "what was seen before it broke"
        zone.breaks_off = False
        async with hub.subscribe() as jobs:
            await ended(jobs, (await zone.create_snapshots([other], "")).job_id)
        tasks.cancel_scope.cancel()


async def test_a_reader_that_does_not_read_is_cut_off(zone: Counted) -> None:
    """Its client connects again and looks up what it missed; nobody else waits for it."""
    zone.flood = MAX_QUEUED + 1
    hub = Hub("ac1", zone)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hub.run)
        with anyio.fail_after(PATIENCE_SECONDS):
            async with hub.subscribe() as jobs:
                await anyio.wait_all_tasks_blocked()
                assert len([job async for job in jobs]) == MAX_QUEUED
        tasks.cancel_scope.cancel()


async def test_closing_the_hub_ends_every_stream(zone: Counted) -> None:
    """The server goes down at once, also for who subscribes at that moment."""
    hub = Hub("ac1", zone)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hub.run)
        async with hub.subscribe() as jobs:
            body = events(jobs, "ac1", heartbeat_seconds=60, may_go_on=for_ever)
            assert await anext(body) == HEARTBEAT
            hub.close()
            with anyio.fail_after(PATIENCE_SECONDS):
                assert [chunk async for chunk in body] == []
        tasks.cancel_scope.cancel()
    with anyio.fail_after(PATIENCE_SECONDS):
        async with hub.subscribe() as late:
            assert [job async for job in late] == []
