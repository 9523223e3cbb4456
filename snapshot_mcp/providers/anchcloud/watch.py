"""Watching a zone's jobs: the stream while it stands, polling while it does not, and nothing lost in between.

After every connect, what is unfinished is listed, and jobs last seen unfinished that the list no longer has are looked
up one by one; only then the stream is read on. So an end that fell into a gap is told late, but told.
"""

import json
import logging
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

import anyio

from snapshot_mcp.contract.errors import (
    Forbidden,
    NotFound,
    Unauthorized,
    Unavailable,
    UnknownZone,
    Unsupported,
    ZoneError,
)
from snapshot_mcp.contract.models import Job
from snapshot_mcp.providers.anchcloud.bounds import bounded
from snapshot_mcp.providers.anchcloud.calls import Call
from snapshot_mcp.providers.anchcloud.events import Event, EventReader
from snapshot_mcp.providers.anchcloud.memory import JobMemory, News
from snapshot_mcp.providers.anchcloud.patience import Patience
from snapshot_mcp.providers.anchcloud.replies import Reply, error_of, parsed
from snapshot_mcp.providers.anchcloud.session import Response, Session

logger = logging.getLogger(__name__)

HOPELESS = (Unauthorized, Forbidden, UnknownZone)
"""Waiting does not help."""


class NoStream(Exception):
    """The provider has none, or not under this address: poll, and ask again much later."""


class Watch:
    """One watcher of a zone. `jobs()` ends only by being closed or by an error of the tree."""

    def __init__(
        self,
        session: Session,
        patience: Patience,
        memory: JobMemory,
        call: Call,
        list_unfinished: Callable[[], Awaitable[tuple[Job, ...]]],
        get_job: Callable[[str], Awaitable[Job]],
    ) -> None:
        self._session = session
        self._patience = patience
        self._news = News(memory)
        self._call = call
        self._list_unfinished = list_unfinished
        self._get_job = get_job
        self._is_first = True
        self._heard_at = time.monotonic()

    async def jobs(self) -> AsyncGenerator[Job, None]:
        failures, streams_again_at = 0, 0.0
        while True:
            error: ZoneError | None = None
            try:
                if time.monotonic() >= streams_again_at:
                    async with aclosing(self._streamed()) as streamed:
                        async for job in streamed:
                            failures = 0
                            yield job
                else:
                    for job in await self._missed():
                        yield job
            except NoStream:
                streams_again_at = time.monotonic() + self._patience.stream_retry_seconds
                continue
            except ZoneError as raised:
                error = raised
            if error is not None:
                failures += 1
                self._give_up_or_log(error)
                # what changes meanwhile is found by asking, where that works
                try:
                    for job in await self._missed():
                        yield job
                except ZoneError as raised:
                    self._give_up_or_log(raised)
            await anyio.sleep(self._pause(failures))

    async def _streamed(self) -> AsyncGenerator[Job, None]:
        reader = EventReader()
        async with self._session.stream(self._call) as response:
            await self._check(response)
            for job in await self._missed():
                yield job
            async for chunk in response.aiter_bytes():
                self._heard_at = time.monotonic()
                try:
                    events = list(reader.feed(chunk))
                except ValueError as error:
                    raise Unavailable(f"{self._call.what}: the stream makes no sense ({error}).") from None
                for event in events:
                    told = self._job_of(event)
                    if told is not None and self._news.is_news(told):
                        yield told
        raise Unavailable(f"{self._call.what}: the stream ended.")

    async def _check(self, response: Response) -> None:
        kind = response.headers.get("content-type", "")
        if response.status_code == 200 and kind.startswith("text/event-stream"):
            return
        reply = Reply(response.status_code, response.headers, await _beginning(response))
        error = error_of(self._session.without_secrets(reply), self._call.what)
        if isinstance(error, HOPELESS):
            raise error
        if response.status_code in {200, 204, 400, 404, 405, 406, 501} or isinstance(error, (NotFound, Unsupported)):
            raise NoStream
        raise error

    async def _missed(self) -> list[Job]:
        """What changed while nobody listened; on the first connect only what other calls had seen unfinished."""
        try:
            unfinished = await self._list_unfinished()
        except (Forbidden, Unsupported):
            unfinished = ()
        self._heard_at = time.monotonic()
        listed = {job.job_id for job in unfinished}
        missed: list[Job] = []
        for job_id in self._news.open_ids:
            if job_id in listed:
                continue
            try:
                job = await self._get_job(job_id)
            except NotFound:
                self._news.drop(job_id)
                continue
            if self._news.is_news(job):
                missed.append(job)
        for job in unfinished:
            if self._is_first and not self._news.has(job.job_id):
                self._news.skip(job)
            elif self._news.is_news(job):
                missed.append(job)
        self._is_first = False
        return missed

    def _job_of(self, event: Event) -> Job | None:
        if event.name != "message" or not event.data:
            return None
        try:
            return parsed(Job, bounded(json.loads(event.data), self._call.what), self._call.what)
        except (ValueError, RecursionError, Unavailable):
            logger.warning("%s: an event was no job and is passed over", self._call.what)
            return None

    def _give_up_or_log(self, error: ZoneError) -> None:
        if isinstance(error, HOPELESS) or time.monotonic() - self._heard_at > self._patience.outage_seconds:
            raise error
        logger.info("%s: %s", self._call.what, error)

    def _pause(self, failures: int) -> float:
        """The polling interval; shorter just after a break, so that a stream that only ended is soon there again."""
        longest = self._patience.poll_seconds
        if failures:
            longest = min(longest, self._patience.first_pause_seconds * 2 ** min(failures, 10))
        return longest * random.uniform(0.75, 1.25)


async def _beginning(response: Response) -> bytes:
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > 65_536:
            break
    return bytes(body)
