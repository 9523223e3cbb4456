"""`notifier/stream`: one upstream watch a zone, any number of subscribers, as server-sent events with heartbeats.

A subscriber that reads too slowly is cut off and connects again: its client looks up what it missed. A stream does not
outlive the token that opened it, nor its key pair.
"""

import json
import logging
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from snapshot_mcp.contract.errors import NotFound, ZoneError
from snapshot_mcp.contract.models import Job
from snapshot_mcp.contract.provider import Provider
from snapshot_mcp.service.answers import job_to_wire

logger = logging.getLogger(__name__)

MAX_QUEUED = 1000
"""Jobs that wait for one subscriber; who is further behind is cut off."""

RECONCILE_SECONDS = 1.0
"""Between two looks at jobs last seen unfinished: a change in the moment of subscribing is told then at the latest."""

RESTART_SECONDS = 2.0
"""Before a broken upstream is tried again."""

CHECK_SECONDS = 1.0
"""Between two looks at whether a quiet stream may go on."""


class Hub:
    """Fans a provider's `watch_jobs` out. It watches only while somebody is subscribed."""

    def __init__(self, zone_id: str, provider: Provider) -> None:
        self.zone_id = zone_id
        self._provider = provider
        self._subscribers: set[MemoryObjectSendStream[Job]] = set()
        self._unfinished: dict[str, Job] = {}
        self._changed = anyio.Event()
        self._closed = False

    async def run(self) -> None:
        """Watch for as long as there are subscribers, for ever."""
        while True:
            if not self._subscribers:
                await self._changed.wait()
                continue
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._guarded, self._pump)
                tasks.start_soon(self._guarded, self._reconcile)
                while self._subscribers:
                    await self._changed.wait()
                tasks.cancel_scope.cancel()
            self._unfinished.clear()

    @asynccontextmanager
    async def subscribe(self) -> AsyncIterator[MemoryObjectReceiveStream[Job]]:
        """Return what changes from now on; the stream ends when the hub closes or the subscriber is too slow."""
        send, receive = anyio.create_memory_object_stream[Job](MAX_QUEUED)
        if self._closed:
            send.close()
        else:
            self._set(self._subscribers | {send})
        try:
            with receive:
                for job in await self._provider.list_unfinished_jobs():
                    self._unfinished.setdefault(job.job_id, job)
                yield receive
        finally:
            send.close()
            self._set(self._subscribers - {send})

    def note(self, job: Job) -> None:
        """Remember a job that was just started: its end is looked for even if the upstream was not yet watching."""
        if self._subscribers and not job.is_finished:
            self._unfinished.setdefault(job.job_id, job)

    def close(self) -> None:
        """End every stream: the server is going down."""
        self._closed = True
        for subscriber in self._subscribers:
            subscriber.close()
        self._set(set())

    def _set(self, subscribers: set[MemoryObjectSendStream[Job]]) -> None:
        self._subscribers = subscribers
        self._changed.set()
        self._changed = anyio.Event()

    def _publish(self, job: Job) -> None:
        if job.is_finished:
            self._unfinished.pop(job.job_id, None)
        else:
            self._unfinished[job.job_id] = job
        for subscriber in tuple(self._subscribers):
            try:
                subscriber.send_nowait(job)
            except (anyio.WouldBlock, anyio.BrokenResourceError, anyio.ClosedResourceError):
                subscriber.close()
                self._set(self._subscribers - {subscriber})

    async def _guarded(self, work: Callable[[], object]) -> None:
        """A zone that fails for a while must not end the face."""
        while True:
            try:
                await work()  # type: ignore[misc]
            except ZoneError as error:
                logger.warning("The zone %r cannot be watched: %s", self._provider.zone, error)
            await anyio.sleep(RESTART_SECONDS * random.uniform(0.75, 1.25))

    async def _pump(self) -> None:
        async with aclosing(self._provider.watch_jobs()) as jobs:  # type: ignore[type-var]
            async for job in jobs:
                self._publish(job)

    async def _reconcile(self) -> None:
        while True:
            await anyio.sleep(RECONCILE_SECONDS)
            if not self._unfinished:
                continue
            listed = {job.job_id for job in await self._provider.list_unfinished_jobs()}
            for job_id in self._unfinished.keys() - listed:
                try:
                    job = await self._provider.get_job(job_id)
                except NotFound:
                    self._unfinished.pop(job_id, None)
                    continue
                if job_id in self._unfinished:  # else the pump was faster
                    self._publish(job)


def event(job: Job, zone_id: str) -> bytes:
    return b"event: message\ndata: " + json.dumps(job_to_wire(job, zone_id), separators=(",", ":")).encode() + b"\n\n"


HEARTBEAT = b"event: hb\ndata: {}\n\n"


async def events(
    hub: Hub, *, heartbeat_seconds: float, may_go_on: Callable[[], Awaitable[bool]]
) -> AsyncGenerator[bytes, None]:
    """Yield the stream's bytes for as long as it may go on; the first bytes say that the subscription stands."""
    async with hub.subscribe() as jobs:
        yield HEARTBEAT
        beat_at = anyio.current_time() + heartbeat_seconds
        while await may_go_on():
            job: Job | None = None
            with anyio.move_on_after(min(beat_at - anyio.current_time(), CHECK_SECONDS)):
                try:
                    job = await jobs.receive()
                except (anyio.EndOfStream, anyio.ClosedResourceError):
                    return
            if job is not None:
                if not await may_go_on():
                    return
                yield event(job, hub.zone_id)
            elif anyio.current_time() >= beat_at:
                yield HEARTBEAT
            else:
                continue
            beat_at = anyio.current_time() + heartbeat_seconds
