"""The safety snapshot before a roll-back (GUARD.md, "Safety snapshot")."""

from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest

from snapshot_mcp.contract.errors import OutcomeUnknown, ResourceBusy, StorageFull
from snapshot_mcp.contract.models import Job, Snapshot, SnapshotUpdate, Volume
from snapshot_mcp.contract.provider import Feature
from snapshot_mcp.guard import GuardedOutcome
from tests.guard.conftest import OLD_ZONE, Bench, Person, agrees, nobody, scribble
from tests.patience import PATIENCE_SECONDS

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True, params=[OLD_ZONE, {Feature.ONE_HOLD}], ids=["an old zone", "a zone with terms"])
def without_one_hold(bench: Bench, request: pytest.FixtureRequest) -> None:
    """A zone with one hold takes the safety snapshot itself (test_one_hold.py)."""
    bench.provider.without = frozenset(request.param)


async def prepared(bench: Bench) -> tuple[Any, Snapshot]:
    disk = await bench.add_disk("pg-data")
    full = await bench.back_up(disk, "full")
    scribble(Path(disk.path or ""))
    return disk, full


def content(disk: Any) -> bytes:
    return Path(disk.path).read_bytes()


async def safeties(bench: Bench) -> list[Snapshot]:
    return [one for one in await bench.snapshots() if one.snapshot_name.startswith("before roll-back")]


def replace_create(bench: Bench, create: Any) -> Any:
    """Let the zone's create be another one; returns the real one."""
    real = bench.provider._provider.create_snapshots
    bench.provider.create_snapshots = create
    return real


async def interrupted(bench: Bench, full: Snapshot, person: Person) -> GuardedOutcome:
    """A call whose safety snapshot took longer than the call."""
    bench.provider.is_slow = True
    outcome = await bench.guard(safety_wait_seconds=0).rollback_to_snapshots(bench.zone, [full.snapshot_id], person)
    bench.provider.is_slow = False
    assert outcome.status == "safety_running"
    return outcome


async def leads_back(bench: Bench, outcome: GuardedOutcome, disk: Any, present: bytes) -> bool:
    """Whether the way back that a roll-back names leads to what the disk held."""
    await bench.finish(outcome.job_id)
    assert content(disk) != present
    again = await bench.guard().rollback_to_snapshots(bench.zone, outcome.safety_snapshot_ids, Person([agrees]))
    await bench.finish(again.job_id)
    return content(disk) == present


@pytest.mark.long
async def test_the_result_names_the_way_back_and_it_leads_back(bench: Bench) -> None:
    disk, full = await prepared(bench)
    present = content(disk)
    outcome = await bench.guard().rollback_to_snapshots(bench.zone, [full.snapshot_id], Person([agrees]))
    assert outcome.status == "started"
    (way_back,) = outcome.safety_snapshot_ids
    assert way_back in outcome.message
    assert await leads_back(bench, outcome, disk, present)


async def test_a_safety_snapshot_that_takes_long_is_gone_on_with_by_another_process(bench: Bench) -> None:
    """not done within 20 s → safety_running, and the repeated call goes on under the same approval, after a restart too."""
    _, full = await prepared(bench)
    person = Person([agrees])
    first = await interrupted(bench, full, person)
    assert first.status == "safety_running"
    assert first.safety_job_id
    assert bench.destroyed == []
    await bench.finish(first.safety_job_id)
    bench.clock.turn(20)
    second = await bench.guard().rollback_to_snapshots(bench.zone, [full.snapshot_id], person)
    assert (second.status, second.approval_id) == ("started", first.approval_id)
    assert second.safety_job_id == first.safety_job_id
    assert len(await safeties(bench)) == 1
    assert len(person.questions) == 1


async def test_what_was_written_after_a_slow_safety_snapshot_has_a_way_back_too(bench: Bench) -> None:
    """ "A safety snapshot of the present content is taken first": another one, under the same yes."""
    disk, full = await prepared(bench)
    person = Person([agrees])
    first = await interrupted(bench, full, person)
    await bench.finish(first.safety_job_id)
    scribble(Path(disk.path or ""))
    present = content(disk)
    bench.clock.turn(10 * 60)
    second = await bench.guard().rollback_to_snapshots(bench.zone, [full.snapshot_id], person)
    assert (second.status, second.approval_id) == ("started", first.approval_id)
    assert len(person.questions) == 1
    assert await leads_back(bench, second, disk, present)


async def test_what_was_written_while_a_roll_back_was_held_up_has_a_way_back_too(bench: Bench) -> None:
    """Whoever shuts down the machine that was in the way writes to its disk."""
    disk, full = await prepared(bench)
    person = Person([agrees])

    async def in_the_way() -> None:
        raise ResourceBusy("The disk is in use.", hint="Stop what uses it.")

    bench.provider.on_change = in_the_way
    with pytest.raises(ResourceBusy, match="The approval is valid until"):
        await bench.guard().rollback_to_snapshots(bench.zone, [full.snapshot_id], person)
    bench.provider.on_change = None
    scribble(Path(disk.path or ""))
    present = content(disk)
    outcome = await bench.guard().rollback_to_snapshots(bench.zone, [full.snapshot_id], person)
    assert (outcome.status, len(person.questions)) == ("started", 1)
    assert await leads_back(bench, outcome, disk, present)


async def test_a_host_that_is_about_to_give_up_is_not_kept_waiting_for_it(bench: Bench) -> None:
    """A slow person leaves little of a call's minute: the answer is where the roll-back stands, not the host's timeout."""
    _, full = await prepared(bench)
    bench.provider.is_slow = True
    person = Person([agrees], seconds_left=0)
    with anyio.fail_after(PATIENCE_SECONDS):
        outcome = await bench.guard().rollback_to_snapshots(bench.zone, [full.snapshot_id], person)
    assert outcome.status == "safety_running"
    bench.provider.is_slow = False
    assert bench.destroyed == []


async def test_a_safety_snapshot_may_take_longer_than_a_grant_but_not_grow_old(bench: Bench) -> None:
    _, full = await prepared(bench)
    first = await interrupted(bench, full, Person([agrees]))
    await bench.finish(first.safety_job_id)
    bench.clock.turn(16 * 60)
    outcome = await bench.guard().rollback_to_snapshots(bench.zone, [full.snapshot_id], nobody())
    assert outcome.status == "refused"
    assert "too old" in outcome.message
    assert bench.destroyed == []
    later = await bench.guard().rollback_to_snapshots(bench.zone, [full.snapshot_id], nobody())
    assert later.status == "needs_approval"


@pytest.mark.parametrize("hours", [-1, 1])
async def test_the_zones_clock_makes_a_safety_snapshot_neither_old_nor_fresh(bench: Bench, hours: int) -> None:
    """How old it is counts by the guard's own clock; a zone's clock may be wrong."""
    _, full = await prepared(bench)
    real = bench.provider._provider.get_job

    async def get_job(job_id: str) -> Job:
        job = await real(job_id)
        times = {name: getattr(job, name) for name in ("create_time", "begin_time", "finished_time")}
        turned = {name: time + timedelta(hours=hours) for name, time in times.items() if time}
        return job.model_copy(update=turned | ({"status": "working"} if bench.provider.is_slow else {}))

    async def watch_jobs() -> AsyncIterator[tuple[Job, ...]]:
        yield ()
        await anyio.sleep_forever()

    bench.provider.get_job, bench.provider.watch_jobs = get_job, watch_jobs
    first = await interrupted(bench, full, Person([agrees]))
    await bench.finish(first.safety_job_id)
    if hours > 0:
        bench.clock.turn(16 * 60)
    outcome = await bench.guard().rollback_to_snapshots(bench.zone, [full.snapshot_id], nobody())
    assert outcome.status == ("refused" if hours > 0 else "started"), outcome.message


@pytest.mark.parametrize("error", [StorageFull("no room"), ResourceBusy("a job runs")])
async def test_when_it_cannot_be_taken_nothing_is_rolled_back_and_the_yes_is_kept(
    bench: Bench, error: Exception
) -> None:
    _, full = await prepared(bench)

    async def create(*args: Any, **options: Any) -> Job:
        raise error

    real = replace_create(bench, create)
    person = Person([agrees])
    with pytest.raises(type(error), match="not started"):
        await bench.guard().rollback_to_snapshots(bench.zone, [full.snapshot_id], person)
    assert bench.destroyed == []
    bench.provider.create_snapshots = real
    outcome = await bench.guard().rollback_to_snapshots(bench.zone, [full.snapshot_id], person)
    assert outcome.status == "started"
    assert len(person.questions) == 1


async def test_when_its_job_fails_nothing_is_rolled_back(bench: Bench) -> None:
    _, full = await prepared(bench)
    failed = Job(job_id="j-1", status="failed", info="the disk\nis full")

    async def create(*args: Any, **options: Any) -> Job:
        return failed

    async def get_job(job_id: str) -> Job:
        return failed

    real = replace_create(bench, create)
    real_get = bench.provider._provider.get_job
    bench.provider.get_job = get_job
    person = Person([agrees])
    outcome = await bench.guard().rollback_to_snapshots(bench.zone, [full.snapshot_id], person)
    assert outcome.status == "refused"
    assert "the disk is full" in outcome.message
    assert "valid until" in outcome.message
    assert bench.destroyed == []
    bench.provider.create_snapshots, bench.provider.get_job = real, real_get
    assert (await bench.guard().rollback_to_snapshots(bench.zone, [full.snapshot_id], person)).status == "started"


async def test_a_lost_answer_is_looked_up_and_not_repeated(bench: Bench) -> None:
    """An unknown outcome is looked up."""
    _, full = await prepared(bench)
    real = bench.provider._provider.create_snapshots

    async def create(resource_ids: Sequence[str], name: str, **options: Any) -> Job:
        await real(resource_ids, name, **options)
        raise OutcomeUnknown("the answer was lost")

    replace_create(bench, create)
    outcome = await bench.guard().rollback_to_snapshots(bench.zone, [full.snapshot_id], Person([agrees]))
    assert outcome.status == "started"
    assert len(await safeties(bench)) == 1


async def test_what_a_killed_process_began_is_adopted(bench: Bench) -> None:
    """Killed at any point, it goes on under the same approval; not before the dead one's claim is over, and then what was
    begun is too old to be the way back to the present content, unless it is being taken still."""
    _, full = await prepared(bench)
    real = bench.provider._provider.create_snapshots

    class Killed(BaseException):
        pass

    async def create(resource_ids: Sequence[str], name: str, **options: Any) -> Job:
        await real(resource_ids, name, **options)
        raise Killed

    replace_create(bench, create)
    with pytest.raises(Killed):
        await bench.guard().rollback_to_snapshots(bench.zone, [full.snapshot_id], Person([agrees]))
    bench.provider.create_snapshots = real
    early = await bench.guard().rollback_to_snapshots(bench.zone, [full.snapshot_id], nobody())
    assert (early.status, early.safety_job_id) == ("safety_running", "")
    (begun,) = await safeties(bench)
    bench.clock.turn(3 * 60)
    outcome = await bench.guard().rollback_to_snapshots(bench.zone, [full.snapshot_id], nobody())
    assert outcome.status == "started"
    (newer,) = {one.snapshot_id for one in await safeties(bench)} - {begun.snapshot_id}
    assert outcome.safety_snapshot_ids == (newer,)


async def test_one_that_was_deleted_meanwhile_is_no_way_back(bench: Bench) -> None:
    _, full = await prepared(bench)
    first = await interrupted(bench, full, Person([agrees]))
    await bench.finish(first.safety_job_id)
    (safety,) = await safeties(bench)
    await bench.finish(await bench.provider._provider.delete_snapshot(safety.snapshot_id))
    outcome = await bench.guard().rollback_to_snapshots(bench.zone, [full.snapshot_id], nobody())
    assert outcome.status != "started"
    assert bench.destroyed == []


async def test_calls_that_race_take_one_safety_snapshot_and_roll_back_once(bench: Bench) -> None:
    _, full = await prepared(bench)
    pending = await bench.guard().rollback_to_snapshots(bench.zone, [full.snapshot_id], nobody())
    await bench.guard().approve(pending.approval_id, None)
    statuses: list[str] = []

    async def call() -> None:
        outcome = await bench.guard().rollback_to_snapshots(bench.zone, [full.snapshot_id], nobody())
        statuses.append(outcome.status)

    async with anyio.create_task_group() as tasks:
        for _ in range(6):
            tasks.start_soon(call)
    assert statuses.count("started") == 1, statuses
    assert len(bench.destroyed) == 1
    assert len(await safeties(bench)) == 1


async def test_two_disks_are_rolled_back_under_one_yes_with_one_safety_each(bench: Bench) -> None:
    first, second = await bench.add_disk("one"), await bench.add_disk("two")
    targets = [(await bench.back_up(disk, "full")).snapshot_id for disk in (first, second)]
    person = Person([agrees])
    outcome = await bench.guard().rollback_to_snapshots(bench.zone, targets, person)
    assert outcome.status == "started"
    assert len(outcome.safety_snapshot_ids) == 2
    assert "“one”" in person.questions[0].message
    assert "“two”" in person.questions[0].message


async def test_the_order_of_the_ids_is_the_same_call(bench: Bench) -> None:
    first, second = await bench.add_disk("one"), await bench.add_disk("two")
    targets = [(await bench.back_up(disk, "full")).snapshot_id for disk in (first, second)]
    one = await bench.guard().rollback_to_snapshots(bench.zone, targets, nobody())
    two = await bench.guard().rollback_to_snapshots(bench.zone, targets[::-1], nobody())
    assert one.approval_id == two.approval_id


async def test_the_person_hears_how_far_it_is(bench: Bench) -> None:
    _, full = await prepared(bench)
    heard: list[Job] = []

    async def tell(jobs: tuple[Job, ...]) -> None:
        heard.extend(jobs)

    await bench.guard().rollback_to_snapshots(bench.zone, [full.snapshot_id], Person([agrees]), on_progress=tell)
    assert heard
    assert isinstance(await bench.add_disk("another"), Volume)


def names_the_disk_alone(bench: Bench, disk: Any) -> None:
    """A zone whose jobs do not say which snapshots they made."""
    wrapped = bench.provider.get_job

    async def get_job(job_id: str) -> Job:
        job: Job = await wrapped(job_id)
        return job.model_copy(update={"resource_ids": (disk.id,)})

    async def watch_jobs() -> AsyncIterator[Job]:
        await anyio.sleep_forever()
        yield await get_job("")

    bench.provider.get_job, bench.provider.watch_jobs = get_job, watch_jobs


@pytest.mark.parametrize("which", ["older", "newer", "older, and the job names its disk alone"])
async def test_another_snapshot_given_its_name_meanwhile_is_no_way_back(bench: Bench, which: str) -> None:
    """Anybody may rename; while it is taken its name is there to read."""
    disk, full = await prepared(bench)
    if which.endswith("alone"):
        names_the_disk_alone(bench, disk)
    guard = bench.guard(safety_wait_seconds=0.05)
    pending = await guard.rollback_to_snapshots(bench.zone, [full.snapshot_id], nobody())
    await guard.approve(pending.approval_id, None)
    bench.provider.is_slow = True
    running = await guard.rollback_to_snapshots(bench.zone, [full.snapshot_id], nobody())
    assert running.status == "safety_running"
    bench.provider.is_slow = False
    await bench.finish(running.safety_job_id)
    (taken,) = await safeties(bench)
    other = await bench.back_up(disk, "newer") if which == "newer" else full
    await bench.provider.update_snapshot(taken.snapshot_id, SnapshotUpdate(snapshot_name="junk"))
    await bench.provider.update_snapshot(other.snapshot_id, SnapshotUpdate(snapshot_name=taken.snapshot_name))
    outcome = await guard.rollback_to_snapshots(bench.zone, [full.snapshot_id], nobody())
    assert (outcome.status, "another snapshot has its name" in outcome.message) == ("refused", True)
    assert bench.destroyed == []


async def test_one_that_was_there_before_the_question_is_no_way_back_where_jobs_name_nothing(bench: Bench) -> None:
    """Guards that a snapshot known before the question never passes for the safety snapshot.

    The specification's Job has no `resource_ids`, so what the job made cannot be compared, and anybody may rename.
    """
    _, full = await prepared(bench)
    real = bench.provider._provider.get_job

    async def get_job(job_id: str) -> Job:
        job = await real(job_id)
        return job.model_copy(update={"resource_ids": (), **({"status": "working"} if bench.provider.is_slow else {})})

    async def watch_jobs() -> AsyncIterator[tuple[Job, ...]]:
        yield ()
        await anyio.sleep_forever()

    bench.provider.get_job, bench.provider.watch_jobs = get_job, watch_jobs
    first = await interrupted(bench, full, Person([agrees]))
    await bench.finish(first.safety_job_id)
    (taken,) = await safeties(bench)
    await bench.provider.update_snapshot(taken.snapshot_id, SnapshotUpdate(snapshot_name="junk"))
    await bench.provider.update_snapshot(full.snapshot_id, SnapshotUpdate(snapshot_name=taken.snapshot_name))
    outcome = await bench.guard().rollback_to_snapshots(bench.zone, [full.snapshot_id], nobody())
    assert (outcome.status, "another snapshot has its name" in outcome.message) == ("refused", True)
    assert bench.destroyed == []
