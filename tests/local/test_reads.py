"""Reads of the embedded zone that wait at the same time share one trip to a thread; each gets an answer of its own."""

import anyio
import anyio.to_thread
import pytest

from snapshot_mcp.contract.errors import NotFound
from snapshot_mcp.contract.models import Job
from snapshot_mcp.providers.local import LocalZone
from tests.patience import PATIENCE_SECONDS

pytestmark = pytest.mark.anyio


async def test_reads_that_wait_at_once_share_a_trip_and_none_is_lost(
    unused_zone: LocalZone, monkeypatch: pytest.MonkeyPatch
) -> None:
    trips, run_sync = 0, anyio.to_thread.run_sync

    async def counted(*arguments: object, **options: object) -> object:
        nonlocal trips
        trips += 1
        return await run_sync(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(anyio.to_thread, "run_sync", counted)
    answers: list[tuple[Job, ...]] = []
    refused: list[str] = []

    async def list_jobs() -> None:
        answers.append(await unused_zone.list_unfinished_jobs())

    async def get_job(job_id: str) -> None:
        try:
            await unused_zone.get_job(job_id)
        except NotFound as error:
            refused.append(error.message)

    with anyio.fail_after(PATIENCE_SECONDS):
        async with anyio.create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(list_jobs)
                tasks.start_soon(get_job, f"j-{number}")
    assert answers == [()] * 20
    assert all(any(f"'j-{number}'" in one for one in refused) for number in range(20))
    assert trips <= 2


async def test_a_reader_that_gives_up_takes_no_other_read_along(unused_zone: LocalZone) -> None:
    answers: list[tuple[Job, ...]] = []
    first = anyio.CancelScope()

    async def read() -> None:
        answers.append(await unused_zone.list_unfinished_jobs())

    async def give_up() -> None:
        with first:
            await read()

    with anyio.fail_after(PATIENCE_SECONDS):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(give_up)
            for _ in range(5):
                tasks.start_soon(read)
            await anyio.lowlevel.checkpoint()
            first.cancel()
    assert answers == [()] * 5
    assert await unused_zone.list_unfinished_jobs() == ()
