"""The stream: supervised, connected again, replaced by polling, and no change lost."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import anyio
import pytest

from snapshot_mcp.contract.errors import Forbidden, Unavailable
from snapshot_mcp.contract.models import Job
from snapshot_mcp.contract.states import JobStatus
from snapshot_mcp.providers.anchcloud.events import MAX_EVENT_BYTES, Event, EventReader
from snapshot_mcp.providers.anchcloud.memory import JobMemory, Reported
from snapshot_mcp.providers.anchcloud.zone import AnchCloudZone
from tests.anchcloud.conftest import Wire
from tests.faulty_proxy import Canned, Fault
from tests.patience import PATIENCE_SECONDS
from tests.rest_face import HASTY, client_of

pytestmark = pytest.mark.anyio


@dataclass
class Watcher:
    """What a watch has told."""

    told: list[Job] = field(default_factory=list)
    changed: anyio.Event = field(default_factory=anyio.Event)

    async def run(self, client: AnchCloudZone) -> None:
        async for jobs in client.watch_jobs():
            self.told += jobs
            self.changed.set()
            self.changed = anyio.Event()

    def statuses(self, job_id: str) -> list[str]:
        return [job.status for job in self.told if job.job_id == job_id]

    async def end_of(self, job_id: str) -> None:
        with anyio.fail_after(PATIENCE_SECONDS):
            while not any(job.job_id == job_id and job.is_finished for job in self.told):
                await self.changed.wait()


@asynccontextmanager
async def watching(client: AnchCloudZone) -> AsyncIterator[Watcher]:
    watcher = Watcher()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watcher.run, client)
        yield watcher
        tasks.cancel_scope.cancel()


FAULTS = [Fault.STALLED, Fault.RESET_AFTER, Fault.RESET_BEFORE, Fault.GATEWAY_BEFORE, Fault.THROTTLED]


@pytest.mark.parametrize("fault", FAULTS)
async def test_ends_are_told_while_the_stream_breaks(fault: Fault, wire: Wire) -> None:
    """watch_jobs never loses a change": each stream breaks, some connect; jobs end all the same."""
    wire.proxy.decide = lambda seen: fault if seen.is_stream else Fault.NONE
    async with watching(wire.client) as watcher:
        for _ in range(3):
            job = await wire.client.create_snapshots([wire.volume], "")
            await watcher.end_of(job.job_id)
            assert watcher.statuses(job.job_id).count(JobStatus.SUCCESSFUL) == 1


async def test_a_stream_with_an_expired_token_is_opened_again(wire: Wire) -> None:
    """A 401 means: fetch a new token, once."""
    left = [Fault.EXPIRED]
    wire.proxy.decide = lambda seen: left.pop() if left and seen.is_stream else Fault.NONE
    async with watching(wire.client) as watcher:
        await watcher.end_of((await wire.client.create_snapshots([wire.volume], "")).job_id)
    assert left == []


async def test_a_job_that_began_and_ended_in_a_gap_is_told(wire: Wire) -> None:
    """after reconnect, unfinished jobs and those last seen unfinished are looked up"."""
    async with watching(wire.client) as watcher:
        job = await wire.client.create_snapshots([wire.volume], "")
        await watcher.end_of(job.job_id)
        wire.proxy.is_down = True
        other = await wire.local.create_snapshots([wire.volume], "made by another, seen by nobody")
        await wire.done(other)
        wire.proxy.is_down = False
        job = await wire.client.create_snapshots([wire.volume], "")
        await watcher.end_of(job.job_id)


@pytest.mark.parametrize(
    "answer",
    [
        Canned(404, b"<h1>Not Found</h1>", ("Content-Type: text/html",)),
        Canned(501, b'{"code": "unsupported", "message": "no stream"}'),
        Canned(200, b'{"stream": "none"}'),
    ],
)
async def test_polling_stands_in_where_there_is_no_stream(answer: Canned, wire: Wire) -> None:
    """falling back to polling with jitter"."""
    wire.proxy.decide = lambda seen: answer if seen.is_stream else Fault.NONE
    async with watching(wire.client) as watcher:
        job = await wire.client.create_snapshots([wire.volume], "")
        await watcher.end_of(job.job_id)
    assert len([seen for seen, _ in wire.proxy.seen if seen.is_stream]) <= 3


async def test_a_watch_ends_with_an_error_when_waiting_does_not_help(wire: Wire) -> None:
    """Ends only by being closed, or by an error of the tree"."""
    refusal = Canned(403, b'{"code": "forbidden", "message": "not yours"}')
    wire.proxy.decide = lambda seen: refusal if seen.is_stream else Fault.NONE
    with anyio.fail_after(PATIENCE_SECONDS), pytest.raises(Forbidden, match="not yours"):
        await anext(aiter(wire.client.watch_jobs()))
    wire.proxy.is_down = True
    client = client_of(wire.proxy.url, patience=replace(HASTY, outage_seconds=0.3, total_seconds=0.3))
    with anyio.fail_after(PATIENCE_SECONDS), pytest.raises(Unavailable):
        await anext(aiter(client.watch_jobs()))
    await client.aclose()


@pytest.mark.long
async def test_a_quiet_stream_is_kept_by_its_heartbeats(wire: Wire) -> None:
    """heartbeat supervision": silence breaks a stream, quiet does not."""
    async with watching(wire.client) as watcher:
        await watcher.end_of((await wire.client.create_snapshots([wire.volume], "")).job_id)
        before = wire.proxy.streams
        with anyio.move_on_after(2 * HASTY.silence_seconds):
            await anyio.sleep_forever()
        assert wire.proxy.streams == before


async def test_closing_many_watches_leaves_no_connection(wire: Wire) -> None:
    """A leak test: open and close."""
    for _ in range(20):
        jobs = wire.client.watch_jobs()
        with anyio.move_on_after(0.03):
            await anext(aiter(jobs))
        await jobs.aclose()
    await wire.client.list_unfinished_jobs()


def test_events_are_read_however_they_are_cut() -> None:
    """Server-sent events: line ends, comments, several data lines, chunks of any size."""
    text = (
        b'event: message\r\ndata: {"a":\r\ndata: 1}\r\n\r\n: still here\n\nevent: hb\ndata:\n\nid: 7\rdata: x\r\rrest'
    )
    expected = [Event("message", '{"a":\n1}'), Event("hb", "still here"), Event("hb", ""), Event("message", "x")]
    for size in range(1, len(text)):
        reader = EventReader()
        events = [event for start in range(0, len(text), size) for event in reader.feed(text[start : start + size])]
        assert events == expected, size


def test_an_event_is_told_when_it_ends_and_not_with_the_next_chunk() -> None:
    """Lines may end with CR alone, and the stream may begin with a byte order mark (the standard's "parsing")."""
    reader = EventReader()
    assert list(reader.feed(b"\xef\xbb\xbfdata: x\r\r")) == [Event("message", "x")]
    assert list(reader.feed(b"\ndata: y\r\n")) == []
    assert list(reader.feed(b"\r")) == [Event("message", "y")]
    assert list(reader.feed(b"\n\xef\xbb\xbfdata: z\n\n")) == []


def test_an_endless_event_is_refused() -> None:
    reader = EventReader()
    assert list(reader.feed(b"data: " + b"x" * (MAX_EVENT_BYTES - 6))) == []
    with pytest.raises(ValueError, match="an event has more than"):
        list(reader.feed(b"x"))


def test_a_change_is_reported_once_and_never_backwards() -> None:
    """A stream's late event does not undo what a look has shown."""
    memory = JobMemory()
    pending, working, done = (Job(job_id="j", status=status) for status in ("pending", "working", "successful"))
    memory.remember(pending)
    reported = Reported(memory)
    assert reported.unfinished_ids == ["j"]
    assert [reported.add(job) for job in (working, working, pending, done, working, pending, done)] == [
        True,
        False,
        False,
        True,
        False,
        False,
        False,
    ]
    assert reported.unfinished_ids == []
    assert memory.jobs["j"] is done


def test_memory_is_bounded() -> None:
    memory = JobMemory()
    for number in range(20_000):
        memory.remember(Job(job_id=str(number), status="successful" if number % 2 else "working"))
    assert len(memory.jobs) <= 5_000
