"""Watch a zone's jobs: over its stream while connected, else by polling.

The stream does not start with a list, so after each connect the unfinished jobs are listed, and known unfinished jobs that are
not in the list are read one by one; only then is the stream read. A job that ends between two connections is reported late,
but never lost.
"""

import json
import logging
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import aclosing

import anyio

from snapshot_mcp.contract import errors
from snapshot_mcp.contract.errors import ZoneError
from snapshot_mcp.contract.models import Job
from snapshot_mcp.providers.anchcloud.bounds import bounded
from snapshot_mcp.providers.anchcloud.calls import ApiCall
from snapshot_mcp.providers.anchcloud.events import Event, EventReader
from snapshot_mcp.providers.anchcloud.memory import JobMemory, Reported
from snapshot_mcp.providers.anchcloud.patience import Patience
from snapshot_mcp.providers.anchcloud.replies import Reply, error_of, parsed
from snapshot_mcp.providers.anchcloud.session import Response, Session

logger = logging.getLogger(__name__)

HOPELESS = (errors.Unauthorized, errors.Forbidden, errors.UnknownZone)
"""Errors that retrying does not fix."""


class NoStream(Exception):
    """The provider has no stream, or not at this address: poll, and retry much later."""


class Watch:
    """A subscription to a zone's jobs, as `Provider.watch_jobs` describes it."""

    def __init__(
        self,
        session: Session,
        patience: Patience,
        memory: JobMemory,
        call: ApiCall,
        list_unfinished: Callable[[], Awaitable[tuple[Job, ...]]],
        get_job: Callable[[str], Awaitable[Job]],
    ) -> None:
        self._session = session
        self._patience = patience
        self._reported = Reported(memory)
        self._call = call
        self._list_unfinished = list_unfinished
        self._get_job = get_job
        self._is_first = True
        self._heard_at = time.monotonic()

    async def jobs(self) -> AsyncGenerator[tuple[Job, ...], None]:
        """Yield the unfinished jobs, then all changes. Ends only when closed, or with a ZoneError."""
        failures, streams_again_at = 0, 0.0
        while True:
            error: ZoneError | None = None
            try:
                if time.monotonic() >= streams_again_at:
                    async with aclosing(self._streamed()) as streamed:
                        async for jobs in streamed:
                            failures = 0
                            yield jobs
                else:
                    for jobs in await self._look():
                        yield jobs
            except NoStream:
                streams_again_at = time.monotonic() + self._patience.stream_retry_seconds
                continue
            except ZoneError as raised:
                error = raised
            if error is not None:
                failures += 1
                self._give_up_or_log(error)
                # poll until the stream is back
                try:
                    for jobs in await self._look():
                        yield jobs
                except ZoneError as raised:
                    self._give_up_or_log(raised)
            await anyio.sleep(self._pause(failures))

    async def _streamed(self) -> AsyncGenerator[tuple[Job, ...], None]:
        reader = EventReader()
        async with self._session.stream(self._call) as response:
            await self._check(response)
            for jobs in await self._look():
                yield jobs
            async for chunk in response.aiter_bytes():
                self._heard_at = time.monotonic()
                try:
                    events = list(reader.feed(chunk))
                except ValueError as error:
                    raise errors.Unavailable(f"{self._call.what}: the stream is invalid ({error}).") from None
                if changed := self._changed(job for job in map(self._job_of, events) if job):
                    yield changed
        raise errors.Unavailable(f"{self._call.what}: the stream ended.")

    async def _check(self, response: Response) -> None:
        kind = response.headers.get("content-type", "")
        if response.status_code == 200 and kind.startswith("text/event-stream"):
            return
        reply = Reply(response.status_code, response.headers, await _beginning(response))
        error = error_of(self._session.without_secrets(reply), self._call.what)
        if isinstance(error, HOPELESS):
            raise error
        if response.status_code in {200, 204, 400, 404, 405, 406, 501} or isinstance(
            error, (errors.NotFound, errors.Unsupported)
        ):
            raise NoStream
        raise error

    async def _look(self) -> list[tuple[Job, ...]]:
        """List and read jobs; return the items to yield: the unfinished jobs the first time, and the changes."""
        try:
            unfinished = await self._list_unfinished()
        except (errors.Forbidden, errors.Unsupported):
            unfinished = ()
        self._heard_at = time.monotonic()
        listed = {job.job_id for job in unfinished}
        jobs: list[Job] = []
        for job_id in self._reported.unfinished_ids:
            if job_id in listed:
                continue
            try:
                jobs.append(await self._get_job(job_id))
            except errors.NotFound:
                self._reported.forget(job_id)
        jobs += unfinished
        items = [self._changed(job for job in jobs if not job.is_finished)] if self._is_first else []
        self._is_first = False
        changed = self._changed(jobs)
        return [*items, changed] if changed else items

    def _changed(self, jobs: Iterable[Job]) -> tuple[Job, ...]:
        return tuple(job for job in jobs if self._reported.add(job))

    def _job_of(self, event: Event) -> Job | None:
        if event.name != "message" or not event.data:
            return None
        try:
            return parsed(Job, bounded(json.loads(event.data), self._call.what), self._call.what)
        except (ValueError, RecursionError, errors.Unavailable):
            logger.warning("%s: ignored an event that is not a job", self._call.what)
            return None

    def _give_up_or_log(self, error: ZoneError) -> None:
        if isinstance(error, HOPELESS) or time.monotonic() - self._heard_at > self._patience.outage_seconds:
            raise error
        logger.info("%s: %s", self._call.what, error)

    def _pause(self, failures: int) -> float:
        """Return the polling interval; it is shorter after a few failures, so that a closed stream is reopened soon."""
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
