"""What was agreed to is what happens (contract.terms, `Provider.cancel_job`): terms, cancel, and overwriting under one hold.

A zone without the Feature is not asked for it. What needs a disk's file to be looked at runs over our own zone only.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from snapshot_mcp.contract.errors import BadRequest, NotFound, NotUsable, TermsChanged
from snapshot_mcp.contract.models import Job, ResourceFilter, SnapshotFilter, Volume
from snapshot_mcp.contract.provider import Feature
from snapshot_mcp.contract.states import JobStatus, SnapshotStatus
from snapshot_mcp.contract.terms import ResourceTerms, Terms
from tests.contract.subject import Subject
from tests.disks import MIB, change, finish, get, ids
from tests.patience import PATIENCE_SECONDS

pytestmark = pytest.mark.anyio

SAFETY = "before the roll-back"
BRIEF = 0.001


async def needs(subject: Subject, feature: Feature) -> None:
    """Skip a zone without it; a face says with its first answer what it has."""
    await subject.zone.list_snapshots(SnapshotFilter(limit=1))
    if feature not in subject.zone.features:
        pytest.skip(f"not configured: {subject.zone.location} does not declare {feature}")


async def disk(subject: Subject, resource_id: str) -> Volume:
    (found,) = (await subject.zone.list_volumes(ResourceFilter(ids=(resource_id,), verbose=1))).items
    return found


async def terms_of(subject: Subject, resource_id: str, *, seconds: float = 60) -> Terms:
    """What a person sees of a disk that is to be overwritten, agreed to as it is."""
    everything = await subject.zone.list_snapshots(SnapshotFilter(resource_id=resource_id, limit=100))
    head = next((one.snapshot_id for one in everything.items if one.is_head), "")
    agreed = ResourceTerms(identity=(await disk(subject, resource_id)).identity, head_id=head)
    return Terms(resources={resource_id: agreed}, begin_within_seconds=seconds)


async def ended(subject: Subject, job: Job, code: str) -> Job:
    """The job, which ends as failed with this code."""
    job = await finish(subject.zone, job)
    assert job.status == JobStatus.FAILED, job
    assert job.error is not None
    assert job.error.code == code, job.error
    return job


async def all_ids(subject: Subject, resource_id: str) -> dict[str, str]:
    """Every snapshot of the disk that the zone still knows, gone ones too, and its status."""
    statuses = tuple(str(one) for one in SnapshotStatus if one != SnapshotStatus.CEASED)
    page = await subject.zone.list_snapshots(SnapshotFilter(resource_id=resource_id, status=statuses, limit=100))
    return {one.snapshot_id: one.status for one in page.items}


# Terms of a deletion


async def test_a_deletion_takes_what_may_go(subject: Subject) -> None:
    """`may_go`: "the only snapshots that a deletion may take"; it may name more than there is by now."""
    await needs(subject, Feature.TERMS)
    volume = await subject.volume()
    root, leaf = await subject.back_up(volume, "root", is_full=True), await subject.back_up(volume, "leaf")
    job = await subject.zone.delete_snapshot(leaf, terms=Terms(may_go=(leaf, "ss-gone"), must_stay=(root,)))
    await subject.done(job)
    assert leaf not in await ids(subject.zone, resource_id=volume)
    await subject.done(await subject.zone.delete_snapshot(root, terms=Terms()))
    assert root not in await ids(subject.zone, resource_id=volume)


async def test_a_deletion_that_would_take_more_is_refused_and_takes_nothing(subject: Subject) -> None:
    """admitted only if what goes ⊆ may_go"; "mismatch: `terms_changed`, a definite refusal"."""
    await needs(subject, Feature.TERMS)
    volume = await subject.volume()
    root = await subject.back_up(volume, "root", is_full=True)
    agreed = Terms(may_go=(root,))
    leaf = await subject.back_up(volume, "came since")
    with pytest.raises(TermsChanged, match=leaf) as refusal:
        await subject.zone.delete_snapshot(root, terms=agreed)
    assert refusal.value.is_definite
    with pytest.raises(TermsChanged):
        await subject.zone.delete_snapshot(leaf, terms=Terms(may_go=()))
    assert {root, leaf} <= await ids(subject.zone, resource_id=volume)
    assert not any({root, leaf} & set(job.resource_ids) for job in await subject.zone.list_unfinished_jobs())


async def test_one_of_what_must_stay_has_to_be_good_afterwards(subject: Subject) -> None:
    """`must_stay`: "restore points of which at least one must still be good afterwards"."""
    await needs(subject, Feature.TERMS)
    volume = await subject.volume()
    first = await subject.back_up(volume, "first", is_full=True)
    second = await subject.back_up(volume, "second", is_full=True)
    third = await subject.back_up(volume, "third", is_full=True)
    await subject.done(await subject.zone.delete_snapshot(second))
    for gone in ((second,), (second, "ss-unknown"), (third,)):
        with pytest.raises(TermsChanged, match="good"):
            await subject.zone.delete_snapshot(third, terms=Terms(must_stay=gone))
    assert await ids(subject.zone, resource_id=volume) == {first, third}
    await subject.done(await subject.zone.delete_snapshot(third, terms=Terms(must_stay=(second, first))))
    await subject.done(await subject.zone.delete_snapshot(first, terms=Terms(may_go=(first,))))


async def test_another_disks_restore_point_keeps_none_of_this_one(subject: Subject) -> None:
    """A last good copy is a disk's: another disk's does not count for it."""
    await needs(subject, Feature.TERMS)
    volume = await subject.volume()
    snapshot = await subject.back_up(volume, is_full=True)
    other = await subject.back_up(await subject.instance(), is_full=True)
    with pytest.raises(TermsChanged):
        await subject.zone.delete_snapshot(snapshot, terms=Terms(must_stay=(other,)))
    assert snapshot in await ids(subject.zone, resource_id=volume)


async def test_no_shorter_grace_than_was_promised(subject: Subject) -> None:
    """`recovery_seconds`: "the least grace that was promised"."""
    await needs(subject, Feature.TERMS)
    snapshot = await subject.back_up(await subject.volume(), is_full=True)
    grace = subject.zone.recovery_seconds
    with pytest.raises(TermsChanged, match=str(grace)):
        await subject.zone.delete_snapshot(snapshot, terms=Terms(recovery_seconds=grace + 1))
    await subject.done(await subject.zone.delete_snapshot(snapshot, terms=Terms(recovery_seconds=grace)))


# Terms of a roll-back


@pytest.mark.own_rules
async def test_identity_is_told_when_it_is_asked_for_and_stays(subject: Subject) -> None:
    """`identity` "says which disk it is"; it stays while the disk is written to, and is another disk's own."""
    await needs(subject, Feature.TERMS)
    volume, other = await subject.volume(), await subject.volume("another")
    (plain,) = (await subject.zone.list_volumes(ResourceFilter(ids=(volume,)))).items
    assert plain.identity is None
    before = await disk(subject, volume)
    assert before.identity
    assert before.hard_links == (1 if subject.local else None)
    subject.write(volume)
    assert (await disk(subject, volume)).identity == before.identity
    assert (await disk(subject, other)).identity != before.identity


@pytest.mark.own_rules
async def test_a_roll_back_overwrites_the_disk_that_was_agreed_to(subject: Subject) -> None:
    """every target in terms.resources has the same identity and the same head"."""
    await needs(subject, Feature.TERMS)
    volume = await subject.volume()
    content = subject.content(volume)
    snapshot = await subject.back_up(volume)
    subject.write(volume)
    await subject.done(await subject.zone.apply_snapshots([snapshot], terms=await terms_of(subject, volume)))
    assert subject.content(volume) == content


def by_rename(path: Path) -> None:
    shutil.copyfile(path, path.with_suffix(".new"))
    path.with_suffix(".new").rename(path)


def by_a_new_file(path: Path) -> None:
    """`rm`, and a new file at once: the inode may be the same."""
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)


def by_a_hard_link(path: Path) -> None:
    os.link(path, path.with_suffix(".linked"))


SWAPS = [by_rename, by_a_new_file, by_a_hard_link]


@pytest.mark.own_rules
@pytest.mark.parametrize("swap", SWAPS)
@pytest.mark.parametrize("is_waiting", [False, True])
async def test_another_file_at_the_path_is_not_overwritten(
    subject: Subject, swap: Callable[[Path], None], is_waiting: bool
) -> None:
    """Another file of the same size at the path after the yes": refused at admission, or a failed job, unchanged either way."""
    await needs(subject, Feature.TERMS)
    subject.needs_files()
    volume = await subject.volume()
    snapshot = await subject.back_up(volume)
    terms = await terms_of(subject, volume)
    if is_waiting:
        with subject.paused():
            job = await subject.zone.apply_snapshots([snapshot], terms=terms, safety_snapshot_name=SAFETY)
            swap(subject.paths[volume])
            change(subject.paths[volume], 4096, seed=5, count=1)
            content = subject.content(volume)
        await ended(subject, job, "terms_changed")
    else:
        swap(subject.paths[volume])
        change(subject.paths[volume], 4096, seed=5, count=1)
        content = subject.content(volume)
        with pytest.raises(TermsChanged):
            await subject.zone.apply_snapshots([snapshot], terms=terms, safety_snapshot_name=SAFETY)
    assert subject.content(volume) == content
    assert await all_ids(subject, volume) == {snapshot: "available"}
    await subject.back_up(volume)


@pytest.mark.own_rules
async def test_another_head_is_another_content(subject: Subject) -> None:
    """`head_id`: "the snapshot that its present content grew from", "" for none."""
    await needs(subject, Feature.TERMS)
    volume = await subject.volume()
    first = await subject.back_up(volume)
    agreed = await terms_of(subject, volume)
    second = await subject.back_up(volume)
    subject.write(volume)
    content = subject.content(volume)
    nothing = Terms(resources={volume: ResourceTerms(head_id="")})
    for terms in (agreed, nothing):
        with pytest.raises(TermsChanged, match=second):
            await subject.zone.apply_snapshots([first], terms=terms)
    assert subject.content(volume) == content
    uncompared = Terms(resources={volume: ResourceTerms()})
    await subject.done(await subject.zone.apply_snapshots([first], terms=uncompared))


async def test_a_disk_that_is_not_in_the_terms_is_not_overwritten(subject: Subject) -> None:
    """`resources`: "by id, the disks of a roll-back"."""
    await needs(subject, Feature.TERMS)
    volume = await subject.volume()
    snapshot = await subject.back_up(volume)
    for resources in ({}, {"vol-another": ResourceTerms()}):
        with pytest.raises(TermsChanged, match=volume):
            await subject.zone.apply_snapshots([snapshot], terms=Terms(resources=resources))


# In time


@pytest.mark.own_rules
async def test_a_roll_back_that_did_not_begin_in_time_ends_without_effect(subject: Subject) -> None:
    """`begin_within_seconds`: "the job ends as `failed` with `terms_changed` or `expired`", and a look starts nothing."""
    await needs(subject, Feature.TERMS)
    volume = await subject.volume()
    snapshot = await subject.back_up(volume)
    subject.write(volume)
    content = subject.content(volume)
    with subject.paused():
        terms = await terms_of(subject, volume, seconds=BRIEF)
        job = await subject.zone.apply_snapshots([snapshot], terms=terms, safety_snapshot_name=SAFETY)
        await ended(subject, job, "expired")
    assert (await subject.zone.get_job(job.job_id)).status == JobStatus.FAILED
    assert subject.content(volume) == content
    assert await all_ids(subject, volume) == {snapshot: "available"}
    await subject.back_up(volume)


@pytest.mark.own_rules
async def test_a_deletion_that_did_not_begin_in_time_ends_without_effect(subject: Subject) -> None:
    """The same of the marking transaction."""
    await needs(subject, Feature.TERMS)
    volume = await subject.volume()
    snapshot = await subject.back_up(volume)
    with subject.paused():
        job = await subject.zone.delete_snapshot(snapshot, terms=Terms(begin_within_seconds=BRIEF))
        await ended(subject, job, "expired")
    await subject.back_up(volume)
    assert snapshot in await ids(subject.zone, resource_id=volume)


# Cancel


@pytest.mark.own_rules
@pytest.mark.parametrize("kind", ["create", "delete", "roll back", "export"])
async def test_a_waiting_job_is_cancelled_at_once_and_leaves_nothing(subject: Subject, kind: str) -> None:
    """pending → failed/cancelled at once", "leaving nothing behind"; twice is answered as it is."""
    await needs(subject, Feature.CANCEL)
    volume = await subject.volume()
    snapshot = await subject.back_up(volume)
    subject.write(volume)
    content = subject.content(volume)
    zone = subject.zone
    with subject.paused():
        job = await {
            "create": lambda: zone.create_snapshots([volume], "never"),
            "delete": lambda: zone.delete_snapshot(snapshot),
            "roll back": lambda: zone.apply_snapshots([snapshot], safety_snapshot_name=SAFETY),
            "export": lambda: zone.create_volume(snapshot, "never"),
        }[kind]()
        assert not job.is_finished
        cancelled = await zone.cancel_job(job.job_id)
        assert (cancelled.job_id, cancelled.status) == (job.job_id, JobStatus.FAILED)
        again = await zone.cancel_job(job.job_id)
        assert (again.status, again.error) == (JobStatus.FAILED, cancelled.error)
        assert job.job_id not in {one.job_id for one in await zone.list_unfinished_jobs()}
    await ended(subject, job, "cancelled")
    assert subject.content(volume) == content
    assert await all_ids(subject, volume) == {snapshot: "available"}
    assert (await zone.list_volumes(ResourceFilter(search_word="never"))).total_count == 0
    await subject.back_up(volume)


@pytest.mark.own_rules
@pytest.mark.parametrize("kind", ["create", "export"])
async def test_a_running_job_is_cancelled_and_leaves_nothing(subject: Subject, kind: str) -> None:
    """any running create, export": flagged, it ends soon, and nothing of it is left. A try that came too late is made again."""
    await needs(subject, Feature.CANCEL)
    volume = await subject.volume(size_bytes=64 * MIB)
    snapshot = await subject.back_up(volume)
    if kind == "create":
        subject.needs_files()  # elsewhere a backup takes no time
    before = subject.traces()
    with anyio.fail_after(PATIENCE_SECONDS):
        while True:
            job = await (
                subject.zone.create_snapshots([volume], "too late", is_full=True)
                if kind == "create"
                else subject.zone.create_volume(snapshot, "too late")
            )
            if await _cancelled_while_it_runs(subject, job):
                break
    job = await ended(subject, job, "cancelled")
    assert job.begin_time is not None, "it had begun"
    made = job.resource_ids[0]
    if kind == "create":
        assert (await all_ids(subject, volume)).get(made) is None
    else:
        assert (await subject.zone.list_volumes(ResourceFilter(ids=(made,)))).total_count == 0
    assert not [name for name in subject.traces() - before if made in name]
    await subject.back_up(volume)


async def _cancelled_while_it_runs(subject: Subject, job: Job) -> bool:
    while (job := await subject.zone.get_job(job.job_id)).status == JobStatus.PENDING:
        await anyio.lowlevel.checkpoint()
    try:
        await subject.zone.cancel_job(job.job_id)
    except NotUsable:
        return False
    return (await finish(subject.zone, job)).status == JobStatus.FAILED


async def test_what_has_ended_cannot_be_cancelled(subject: Subject) -> None:
    """Raises: "NotUsable (it has ended, or its effect has begun)", NotFound."""
    await needs(subject, Feature.CANCEL)
    job = await subject.done(await subject.zone.create_snapshots([await subject.volume()], ""))
    with pytest.raises(NotUsable, match=job.job_id):
        await subject.zone.cancel_job(job.job_id)
    assert (await subject.zone.get_job(job.job_id)).is_successful
    with pytest.raises(NotFound):
        await subject.zone.cancel_job("00000000-0000-0000-0000-000000000000")


# One hold


@pytest.mark.own_rules
async def test_a_roll_back_takes_its_safety_snapshot_and_names_it_from_the_start(subject: Subject) -> None:
    """the job's `extra` names them (`safety_snapshots`: resource id → snapshot id) from the start"."""
    await needs(subject, Feature.ONE_HOLD)
    volume, host = await subject.volume(), await subject.instance()
    before = {one: subject.content(one) for one in (volume, host)}
    snapshots = [await subject.back_up(one) for one in before]
    for one in before:
        subject.write(one)
    overwritten = {one: subject.content(one) for one in before}
    job = await subject.zone.apply_snapshots(snapshots, safety_snapshot_name=SAFETY)
    safety = job.details["safety_snapshots"]
    assert set(safety) == {volume, host}
    assert (await subject.done(job)).details["safety_snapshots"] == safety
    assert {one: subject.content(one) for one in before} == before
    for resource_id, snapshot_id in safety.items():
        snapshot = await get(subject.zone, snapshot_id)
        assert snapshot.is_available
        assert (snapshot.snapshot_name, snapshot.consistency) == (SAFETY, "held")
        assert snapshot.resource.resource_id == resource_id
    await subject.done(await subject.zone.apply_snapshots(list(safety.values())))
    assert {one: subject.content(one) for one in before} == overwritten


@pytest.mark.own_rules
async def test_the_safety_snapshot_holds_the_last_content_before_the_overwrite(subject: Subject) -> None:
    """captured and verified first, under the hold that it is overwritten under": what is written while it waits is in it."""
    await needs(subject, Feature.ONE_HOLD)
    volume = await subject.volume()
    snapshot = await subject.back_up(volume)
    terms = await terms_of(subject, volume)
    with subject.paused():
        job = await subject.zone.apply_snapshots([snapshot], terms=terms, safety_snapshot_name=SAFETY)
        subject.write(volume, seed=9)
        last = subject.content(volume)
    safety = (await subject.done(job)).details["safety_snapshots"][volume]
    assert subject.content(volume) != last
    exported = await subject.done(await subject.zone.create_volume(safety, "what was overwritten"))
    (copy,) = (await subject.zone.list_volumes(ResourceFilter(ids=exported.resource_ids))).items
    assert copy.path is not None
    assert subject.content_at(copy.path) == last


@pytest.mark.own_rules
async def test_a_refused_roll_back_leaves_no_safety_snapshot(subject: Subject) -> None:
    """A failure before that leaves no safety snapshot": refused at admission, for whatever reason."""
    await needs(subject, Feature.ONE_HOLD)
    volume = await subject.volume()
    snapshot = await subject.back_up(volume)
    with pytest.raises(TermsChanged):
        await subject.zone.apply_snapshots([snapshot], terms=Terms(resources={}), safety_snapshot_name=SAFETY)
    with pytest.raises(NotFound):
        await subject.zone.apply_snapshots([snapshot, "ss-unknown"], safety_snapshot_name=SAFETY)
    with pytest.raises(BadRequest):
        await subject.zone.apply_snapshots([snapshot], safety_snapshot_name="x" * 256)
    assert await all_ids(subject, volume) == {snapshot: "available"}


@pytest.mark.own_rules
async def test_without_a_name_no_safety_snapshot_is_taken(subject: Subject) -> None:
    """It was agreed to go without."""
    await needs(subject, Feature.ONE_HOLD)
    volume = await subject.volume()
    snapshot = await subject.back_up(volume)
    job = await subject.done(await subject.zone.apply_snapshots([snapshot]))
    assert "safety_snapshots" not in job.details
    assert await all_ids(subject, volume) == {snapshot: "available"}
