"""CONTRACT.md, "What our own face adds": verification, finished jobs, times of a deletion, and what protects a disk."""

from datetime import timedelta

import pytest

from snapshot_mcp.contract.errors import BadRequest, NotFound, NotUsable
from snapshot_mcp.contract.models import ResourceFilter, SnapshotFilter
from snapshot_mcp.contract.provider import Feature
from snapshot_mcp.contract.states import JobAction
from tests.contract.subject import Subject
from tests.contract.test_terms import disk, needs
from tests.disks import finish, get

pytestmark = [pytest.mark.anyio, pytest.mark.own_rules]


async def test_a_sound_chain_is_verified_whole(subject: Subject) -> None:
    """`verified_at` of the snapshot and of all that it builds on; the job names what it verified."""
    await needs(subject, Feature.VERIFY)
    volume = await subject.volume()
    full = await subject.back_up(volume)
    subject.write(volume)
    tip = await subject.back_up(volume)
    assert (await get(subject.zone, tip)).verified_at is None
    job = await subject.done(await subject.zone.verify_snapshots([tip]))
    assert job.action == JobAction.VERIFY
    assert job.resource_ids == (tip,)
    assert job.details["verified"] == [tip]
    for one in (full, tip):
        verified_at = (await get(subject.zone, one)).verified_at
        assert verified_at is not None
        assert job.begin_time is not None
        assert verified_at >= job.begin_time


async def test_damage_is_found_marked_and_named(subject: Subject) -> None:
    """The job fails as `damaged`, names what cannot be restored, and leaves every other snapshot as it was."""
    await needs(subject, Feature.VERIFY)
    volume = await subject.volume()
    full = await subject.back_up(volume)
    subject.write(volume)
    tip = await subject.back_up(volume)
    other = await subject.back_up(volume, is_full=True)
    subject.damage(full)
    job = await finish(subject.zone, await subject.zone.verify_snapshots([tip, other]))
    assert job.error
    assert job.error.code == "damaged"
    assert full in job.reason
    assert tip in job.reason
    assert other not in job.reason
    assert job.details["verified"] == [other]
    assert [(await get(subject.zone, one)).is_damaged for one in (full, other)] == [1, 0]
    assert (await get(subject.zone, tip)).verified_at is None
    assert (await get(subject.zone, other)).verified_at is not None


@pytest.mark.parametrize(
    ("ids", "error"), [(["ss-nope0000"], NotFound), ([], BadRequest), (["twice", "twice"], BadRequest)]
)
async def test_what_cannot_be_verified_is_refused(subject: Subject, ids: list[str], error: type[Exception]) -> None:
    await needs(subject, Feature.VERIFY)
    with pytest.raises(error):
        await subject.zone.verify_snapshots(ids)


async def test_a_deleted_one_is_not_verified_and_says_until_when_it_can_be_recovered(subject: Subject) -> None:
    """`deleted_at` and `recoverable_until`; a list of deleted ones begins with the newest deletion."""
    await needs(subject, Feature.VERIFY)
    volume = await subject.volume()
    made = [await subject.back_up(volume, is_full=True) for _ in range(3)]
    assert (await get(subject.zone, made[0])).deleted_at is None
    for one in (made[2], made[0]):
        await subject.done(await subject.zone.delete_snapshot(one))
    query = SnapshotFilter(resource_id=volume, status=("deleted",), verbose=1)
    listed = (await subject.zone.list_snapshots(query)).items
    assert {one.snapshot_id for one in listed} == {made[0], made[2]}
    times = [one.deleted_at for one in listed if one.deleted_at]
    assert times == sorted(times, reverse=True)
    assert len(times) == 2
    first = listed[0]
    assert first.recoverable_until is not None
    assert first.recoverable_until - times[0] == timedelta(seconds=subject.zone.recovery_seconds)
    assert (first.total_count, first.total_size > 0) == (1, True)
    with pytest.raises(NotUsable):
        await subject.zone.verify_snapshots([made[0]])


async def test_finished_jobs_are_listed_the_newest_end_first(subject: Subject) -> None:
    """GET /finished_jobs: `since`, `limit`; unfinished jobs are not in it."""
    await needs(subject, Feature.HISTORY)
    volume = await subject.volume()
    first = await subject.done(await subject.zone.create_snapshots([volume], "first"))
    second = await subject.done(await subject.zone.create_snapshots([volume], "second", is_full=True))
    assert first.begin_time
    page = await subject.zone.list_finished_jobs(first.begin_time, 100)
    ids = [job.job_id for job in page.items]
    assert ids.index(second.job_id) < ids.index(first.job_id)
    assert all(job.is_finished for job in page.items)
    newest = await subject.zone.list_finished_jobs(first.begin_time, 1)
    assert len(newest.items) == 1
    assert newest.total_count >= 2
    assert second.finished_time
    later = await subject.zone.list_finished_jobs(second.finished_time + timedelta(seconds=1), 10)
    assert first.job_id not in {job.job_id for job in later.items}


async def test_a_disk_says_what_protects_it(subject: Subject) -> None:
    """`coverage` with `verbose=1`: the newest good restore point, how many are good, and what they store."""
    await needs(subject, Feature.COVERAGE)
    volume = await subject.volume()
    bare = (await disk(subject, volume)).coverage
    assert bare
    assert (bare.newest_good_id, bare.newest_good_time, bare.good_count) == ("", None, 0)
    full = await subject.back_up(volume)
    subject.write(volume)
    tip = await subject.back_up(volume)
    found = (await disk(subject, volume)).coverage
    assert found
    newest = (await subject.zone.list_snapshots(SnapshotFilter(resource_id=volume))).items[0]
    assert (found.newest_good_id, found.good_count, found.verified_at) == (newest.snapshot_id, 2, None)
    assert found.newest_good_time == newest.snapshot_time
    assert found.stored_bytes == sum([(await get(subject.zone, one)).stored_bytes for one in (full, tip)])
    await subject.done(await subject.zone.verify_snapshots([tip]))
    verified = (await disk(subject, volume)).coverage
    assert verified
    assert verified.verified_at is not None
    plain = (await subject.zone.list_volumes(ResourceFilter(ids=(volume,)))).items[0]
    assert plain.coverage is None
