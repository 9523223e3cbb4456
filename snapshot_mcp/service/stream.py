"""`notifier/stream`: server-sent events with heartbeats, from one upstream watch per zone to any number of subscribers.

A subscriber that reads too slowly is disconnected, as are all when the watch breaks: a client reconnects and lists the jobs
it missed. A stream ends with the token that opened it, or with its key pair.
"""

import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from snapshot_mcp.contract.errors import Unavailable, ZoneError
from snapshot_mcp.contract.models import Job
from snapshot_mcp.contract.provider import Provider
from snapshot_mcp.service.answers import job_to_wire

logger = logging.getLogger(__name__)

MAX_QUEUED = 1000
"""Per subscriber; one that is further behind is disconnected."""

CHECK_SECONDS = 1.0
"""How often a quiet stream checks whether its token is still valid."""


@dataclass(eq=False, slots=True)
class _Subscriber:
    queue: MemoryObjectSendStream[Job]
    is_settled: anyio.Event = field(default_factory=anyio.Event)
    """Set once the subscription is active or has failed."""
    error: ZoneError | None = None


class Hub:
    """A provider's `watch_jobs` distributed to subscribers; the provider is watched only while there are any."""

    def __init__(self, zone_id: str, provider: Provider) -> None:
        self.zone_id = zone_id
        self._provider = provider
        self._subscribers: set[_Subscriber] = set()
        self._changed = anyio.Event()
        self._is_watching = False
        self._is_closed = False

    async def run(self) -> None:
        """Watch while there are subscribers, until cancelled."""
        while True:
            if not self._subscribers:
                await self._changed.wait()
                continue
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._watch, tasks.cancel_scope)
                while self._subscribers:
                    await self._changed.wait()
                self._is_watching = False  # later subscribers wait for the next watch
                tasks.cancel_scope.cancel()

    @asynccontextmanager
    async def subscribe(self) -> AsyncIterator[MemoryObjectReceiveStream[Job]]:
        """Yield a stream of all further changes, until the subscriber is disconnected or the hub closes.

        Raises the provider's error if the zone cannot be watched.
        """
        queue, changes = anyio.create_memory_object_stream[Job](MAX_QUEUED)
        subscriber = _Subscriber(queue)
        self._set(self._subscribers | {subscriber})
        if self._is_closed:
            self._disconnect(subscriber)
        elif self._is_watching:
            subscriber.is_settled.set()
        try:
            with changes:
                await subscriber.is_settled.wait()
                if subscriber.error is not None:
                    raise subscriber.error
                yield changes
        finally:
            self._disconnect(subscriber)

    def close(self) -> None:
        """End every stream: the server is shutting down."""
        self._is_closed = True
        self._disconnect(*self._subscribers)

    def _set(self, subscribers: set[_Subscriber]) -> None:
        self._subscribers = subscribers
        self._changed.set()
        self._changed = anyio.Event()

    def _disconnect(self, *subscribers: _Subscriber, error: ZoneError | None = None) -> None:
        for subscriber in subscribers:
            subscriber.error = error
            subscriber.queue.close()
            subscriber.is_settled.set()
        self._set(self._subscribers - set(subscribers))

    def _publish(self, job: Job) -> None:
        for subscriber in tuple(self._subscribers):
            try:
                subscriber.queue.send_nowait(job)
            except (anyio.WouldBlock, anyio.BrokenResourceError, anyio.ClosedResourceError):
                self._disconnect(subscriber)

    async def _watch(self, scope: anyio.CancelScope) -> None:
        """Watch until the watch breaks; then disconnect all subscribers, which would miss changes before the next watch."""
        error: ZoneError = Unavailable(f"The watch on the jobs of zone {self._provider.zone!r} ended.")
        try:
            async with aclosing(self._provider.watch_jobs()) as items:
                async for jobs in items:
                    if scope.cancel_called:
                        return  # the last subscriber has left; later ones wait for the next watch
                    if self._is_watching:
                        for job in jobs:
                            self._publish(job)
                    else:
                        self._begin()
        except ZoneError as raised:
            error = raised
        logger.warning("The zone %r cannot be watched: %s", self._provider.zone, error)
        self._is_watching = False
        self._disconnect(*self._subscribers, error=error)
        scope.cancel()

    def _begin(self) -> None:
        """Activate the subscriptions; the first item is dropped, as clients list the unfinished jobs themselves."""
        self._is_watching = True
        for subscriber in self._subscribers:
            subscriber.is_settled.set()


def event(job: Job, zone_id: str) -> bytes:
    """Encode a job as a server-sent event."""
    return b"event: message\ndata: " + json.dumps(job_to_wire(job, zone_id), separators=(",", ":")).encode() + b"\n\n"


HEARTBEAT = b"event: hb\ndata: {}\n\n"


async def events(
    jobs: MemoryObjectReceiveStream[Job],
    zone_id: str,
    *,
    heartbeat_seconds: float,
    may_go_on: Callable[[], Awaitable[bool]],
) -> AsyncGenerator[bytes, None]:
    """Yield a subscription's events, a heartbeat first, until it ends or `may_go_on` returns false."""
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
            yield event(job, zone_id)
        elif anyio.current_time() >= beat_at:
            yield HEARTBEAT
        else:
            continue
        beat_at = anyio.current_time() + heartbeat_seconds
