"""CONTRACT.md, "The rules of our own zone"."""

import anyio
import pytest

from snapshot_mcp.contract.errors import BadRequest, NotFound, NotUsable, ResourceBusy, ZoneError
from snapshot_mcp.contract.models import MIB, ResourceFilter, SnapshotFilter, SnapshotUpdate
from tests.contract.subject import Subject
from tests.disks import finish, get, ids

pytestmark = [pytest.mark.anyio, pytest.mark.own_rules]


async def heads(subject: Subject, resource_id: str) -> set[str]:
    page = await subject.zone.list_snapshots(
        SnapshotFilter(resource_id=resource_id, status=("available", "deleted", "ceased"), limit=100)
    )
    return {snapshot.snapshot_id for snapshot in page.items if snapshot.is_head}


async def chain(subject: Subject, volume: str, names: str) -> list[str]:
    return [await subject.back_up(volume, name) for name in names]


async def test_gone_snapshots_are_left_out_unless_asked_for(subject: Subject) -> None:
    """Order: "Without `status` and without ids, `deleted` and `ceased` are left out"."""
    volume = await subject.volume()
    (gone,) = await chain(subject, volume, "a")
    await subject.done(await subject.zone.delete_snapshot(gone))
    assert await ids(subject.zone, resource_id=volume) == set()
    assert await ids(subject.zone, resource_id=volume, status=("deleted",)) == {gone}
    assert await ids(subject.zone, snapshots=(gone,)) == {gone}


async def test_head_moves_with_create_and_apply_and_falls_back_on_delete(subject: Subject) -> None:
    """Head: the new one, the applied one, the nearest surviving ancestor; none when the chain is gone."""
    volume = await subject.volume()
    root, middle, leaf = await chain(subject, volume, "abc")
    assert await heads(subject, volume) == {leaf}
    await subject.done(await subject.zone.apply_snapshots([root]))
    assert await heads(subject, volume) == {root}
    await subject.done(await subject.zone.apply_snapshots([leaf]))
    await subject.done(await subject.zone.delete_snapshot(leaf))
    assert await heads(subject, volume) == {middle}
    await subject.done(await subject.zone.delete_snapshot(root))
    assert await heads(subject, volume) == set()
    assert (await get(subject.zone, await subject.back_up(volume))).is_full


async def test_recovery_moves_no_head_unless_there_is_none(subject: Subject) -> None:
    """Head: "A recovery moves no head, unless the resource has none"."""
    volume = await subject.volume()
    root, leaf = await chain(subject, volume, "ab")
    await subject.done(await subject.zone.delete_snapshot(leaf))
    await subject.done(await subject.zone.recover_snapshots([leaf]))
    assert await heads(subject, volume) == {root}
    await subject.done(await subject.zone.delete_snapshot(root))
    await subject.done(await subject.zone.recover_snapshots([root]))
    assert len(await heads(subject, volume)) == 1


async def test_head_chain_marks_every_snapshot_of_the_heads_chain(subject: Subject) -> None:
    """Head: "`head_chain` is 1 on every snapshot of the chain that holds the head"."""
    volume = await subject.volume()
    old = await chain(subject, volume, "ab")
    new = await subject.back_up(volume, "c", is_full=True)
    assert [(await get(subject.zone, one)).head_chain for one in (*old, new)] == [0, 0, 1]
    await subject.done(await subject.zone.apply_snapshots([old[0]]))
    assert [(await get(subject.zone, one)).head_chain for one in (*old, new)] == [1, 1, 0]


@pytest.mark.zone_options(chain_limit=3)
async def test_full_chain_starts_a_new_one(subject: Subject) -> None:
    """Limit: counted over the whole tree, available ones; "the next create starts a new chain with a full one"."""
    volume = await subject.volume()
    root, *_ = await chain(subject, volume, "ab")
    await subject.done(await subject.zone.apply_snapshots([root]))
    await subject.back_up(volume, "branch")
    assert (await get(subject.zone, root)).total_count == 3
    fourth = await get(subject.zone, await subject.back_up(volume, "fourth"))
    assert fourth.is_full


@pytest.mark.zone_options(chain_limit=3)
async def test_deleted_ones_do_not_count_and_a_recovery_may_exceed(subject: Subject) -> None:
    """Limit: "30 available snapshots … A recovery may exceed it"."""
    volume = await subject.volume()
    root, _, leaf = await chain(subject, volume, "abc")
    await subject.done(await subject.zone.delete_snapshot(leaf))
    assert (await get(subject.zone, root)).total_count == 2
    third = await get(subject.zone, await subject.back_up(volume, "d"))
    assert third.root_id == root
    await subject.done(await subject.zone.recover_snapshots([leaf]))
    assert (await get(subject.zone, root)).total_count == 4


async def test_create_is_all_or_nothing(subject: Subject) -> None:
    """All or nothing: unknown or repeated ids."""
    volume = await subject.volume()
    with pytest.raises(NotFound, match="vol-nothere0"):
        await subject.zone.create_snapshots([volume, "vol-nothere0"], "x")
    with pytest.raises(BadRequest, match=volume):
        await subject.zone.create_snapshots([volume, volume], "x")
    with pytest.raises(BadRequest):
        await subject.zone.create_snapshots([], "x")
    assert await ids(subject.zone, resource_id=volume, status=("pending", "available", "ceased")) == set()


async def test_apply_is_all_or_nothing(subject: Subject) -> None:
    """All or nothing: "Two snapshots of one resource in one apply are refused", unknown, repeated and unusable ones too."""
    volume = await subject.volume()
    one, two = await chain(subject, volume, "ab")
    gone = await subject.back_up(await subject.volume(), "gone")
    await subject.done(await subject.zone.delete_snapshot(gone))
    before = subject.content(volume)
    for refused, error in (
        ([one, two], BadRequest),
        ([one, one], BadRequest),
        ([one, "ss-nothere0"], NotFound),
        ([one, gone], NotUsable),
        ([], BadRequest),
    ):
        with pytest.raises(error):
            await subject.zone.apply_snapshots(refused)
    assert subject.content(volume) == before
    assert await heads(subject, volume) == {two}


async def test_second_job_on_a_resource_is_refused_with_the_one_in_the_way(subject: Subject) -> None:
    """Busy: "a second is refused with `resource_busy` (409) and the job that is in the way"."""
    volume = await subject.volume()
    snapshot = await subject.back_up(volume)
    with subject.paused():
        job = await subject.zone.create_snapshots([volume], "first")
        for second in (
            lambda: subject.zone.create_snapshots([volume], "second"),
            lambda: subject.zone.delete_snapshot(snapshot),
            lambda: subject.zone.apply_snapshots([snapshot]),
        ):
            with pytest.raises(ResourceBusy, match=job.job_id) as refusal:
                await second()
            assert refusal.value.job_id == job.job_id
    await subject.done(job)


async def test_readers_share_and_block_a_delete(subject: Subject) -> None:
    """Busy: "Reading jobs (export) share, and block a delete of what they read"."""
    volume = await subject.volume()
    snapshot = await subject.back_up(volume)
    with subject.paused():
        exports = [await subject.zone.create_volume(snapshot, name) for name in "ab"]
        with pytest.raises(ResourceBusy) as refusal:
            await subject.zone.delete_snapshot(snapshot)
        assert refusal.value.job_id in {job.job_id for job in exports}
    for job in exports:
        await subject.done(job)
    await subject.done(await subject.zone.delete_snapshot(snapshot))


async def test_only_available_snapshots_are_usable(subject: Subject) -> None:
    """Usable: "Apply and export take `available` snapshots only"."""
    volume = await subject.volume()
    (gone,) = await chain(subject, volume, "a")
    await subject.done(await subject.zone.delete_snapshot(gone))
    for use in (
        lambda: subject.zone.apply_snapshots([gone]),
        lambda: subject.zone.create_volume(gone, "x"),
        lambda: subject.zone.delete_snapshot(gone),
    ):
        with pytest.raises(NotUsable, match=gone):
            await use()


async def test_failed_create_leaves_a_ceased_snapshot_and_a_reason(subject: Subject) -> None:
    """Failed create: "Its snapshots become `ceased`, the job `failed` with the reason"."""
    await subject.back_up(await subject.volume())
    volume = await subject.volume()
    with subject.paused():
        job = await subject.zone.create_snapshots([volume], "doomed")
        subject.lose(volume)
    failed = await finish(subject.zone, job)
    assert failed.status == "failed"
    assert failed.reason
    assert {(await get(subject.zone, one)).status for one in job.resource_ids} == {"ceased"}
    assert await ids(subject.zone, resource_id=volume) == set()


async def test_a_deletion_is_one_act_and_comes_back_as_one(subject: Subject) -> None:
    """Deletion: "Recovering any of them within the grace brings back the whole act"."""
    volume = await subject.volume()
    root, middle, leaf = await chain(subject, volume, "abc")
    await subject.done(await subject.zone.delete_snapshot(middle))
    await subject.done(await subject.zone.recover_snapshots([leaf]))
    assert await ids(subject.zone, resource_id=volume) == {root, middle, leaf}


async def test_parents_of_another_act_come_back_first(subject: Subject) -> None:
    """Deletion: "if their parent was deleted since by another act, that one must come back first, and the error says so"."""
    volume = await subject.volume()
    root, leaf = await chain(subject, volume, "ab")
    await subject.done(await subject.zone.delete_snapshot(leaf))
    await subject.done(await subject.zone.delete_snapshot(root))
    with pytest.raises(ZoneError, match=root):
        await subject.zone.recover_snapshots([leaf])
    await subject.done(await subject.zone.recover_snapshots([root]))
    await subject.done(await subject.zone.recover_snapshots([leaf]))
    assert await ids(subject.zone, resource_id=volume) == {root, leaf}


async def test_what_is_there_cannot_be_recovered(subject: Subject) -> None:
    """Deletion."""
    (there,) = await chain(subject, await subject.volume(), "a")
    with pytest.raises(NotUsable, match=there):
        await subject.zone.recover_snapshots([there])


async def test_deletion_says_when_the_space_comes_free(subject: Subject) -> None:
    """Deletion: "a deletion's answer says when"."""
    (one,) = await chain(subject, await subject.volume(), "a")
    job = await subject.zone.delete_snapshot(one)
    assert any("free" in key for key in job.details), job.details
    await subject.done(job)


async def test_snapshot_knows_the_size_at_its_time(subject: Subject) -> None:
    """Size: "A volume may grow or shrink between snapshots"; "A roll-back gives an image file the snapshot's size again"."""
    volume = await subject.volume(size_bytes=2 * MIB)
    small = await subject.back_up(volume)
    was = subject.content(volume)
    subject.grow(volume, b"more" * MIB)
    large = await subject.back_up(volume)
    assert (await get(subject.zone, small)).virtual_size_bytes == 2 * MIB
    assert (await get(subject.zone, large)).virtual_size_bytes == 6 * MIB
    await subject.done(await subject.zone.apply_snapshots([small]))
    assert subject.content(volume) == was


async def test_sizes_are_mb_rounded_up_and_bytes_with_verbose(subject: Subject) -> None:
    """Sizes: "the sum of bytes rounded up"; `verbose=1` adds `size_bytes`, `virtual_size_bytes`, `consistency`."""
    snapshot_id = await subject.back_up(await subject.volume(size_bytes=3 * MIB))
    plain = (await subject.zone.list_snapshots(SnapshotFilter(snapshots=(snapshot_id,)))).items[0]
    verbose = await get(subject.zone, snapshot_id)
    assert (plain.size_bytes, plain.virtual_size_bytes, plain.consistency) == (None, None, None)
    assert verbose.size_bytes is not None
    assert verbose.size == plain.size == -(-verbose.size_bytes // MIB)
    assert verbose.virtual_size_bytes == 3 * MIB
    assert verbose.consistency


async def test_image_sizes_are_mb(subject: Subject) -> None:
    """Sizes: "MB (images too), of volumes GB"."""
    snapshot_id = await subject.back_up(await subject.instance(size_bytes=3 * MIB))
    job = await subject.done(await subject.zone.capture_instance(snapshot_id, "three"))
    (image,) = (await subject.zone.list_images(ResourceFilter(ids=job.resource_ids))).items
    assert (image.size, image.size_bytes) == (3, 3 * MIB)


async def test_resource_is_always_sent(subject: Subject) -> None:
    """`resource`: "is always sent by our face"."""
    instance = await subject.instance("web-1")
    snapshot = await get(subject.zone, await subject.back_up(instance))
    assert snapshot.resource.resource_id == instance
    assert snapshot.resource.resource_name == "web-1"
    assert snapshot.resource.resource_type == "instance"


async def test_tags_are_set_with_the_put_and_any_matches(subject: Subject) -> None:
    """Tags: "set with the PUT; several in a filter mean any of them"."""
    volume = await subject.volume()
    one, two, three = await chain(subject, volume, "abc")
    await subject.zone.update_snapshot(one, SnapshotUpdate(tags=("gold", "weekly")))
    await subject.zone.update_snapshot(two, SnapshotUpdate(tags=("silver",)))
    assert await ids(subject.zone, resource_id=volume, tags=("gold",)) == {one}
    assert await ids(subject.zone, resource_id=volume, tags=("gold", "silver")) == {one, two}
    assert set((await get(subject.zone, one)).tags) == {"gold", "weekly"}
    await subject.zone.update_snapshot(one, SnapshotUpdate(snapshot_name="a2"))
    assert set((await get(subject.zone, one)).tags) == {"gold", "weekly"}
    await subject.zone.update_snapshot(one, SnapshotUpdate(tags=()))
    assert await ids(subject.zone, resource_id=volume, tags=("gold", "weekly")) == set()
    assert three not in await ids(subject.zone, resource_id=volume, tags=("gold", "silver"))


@pytest.mark.parametrize("name", ["", "x" * 255, "a\nb\u202e\x00", "“quotes” & <tags> 日本 🗄", "1,2;3=4&5"])
async def test_names_are_any_text(subject: Subject, name: str) -> None:
    """Names: "any text up to 255 characters and need not be unique"."""
    volume = await subject.volume()
    one, two = await subject.back_up(volume, name), await subject.back_up(volume, name)
    assert one != two
    assert (await get(subject.zone, one)).snapshot_name == name


async def test_longer_names_are_refused(subject: Subject) -> None:
    """Names: up to 255 characters."""
    volume = await subject.volume()
    snapshot = await subject.back_up(volume)
    with pytest.raises(BadRequest):
        await subject.zone.create_snapshots([volume], "x" * 256)
    with pytest.raises(BadRequest):
        await subject.zone.create_volume(snapshot, "x" * 256)


async def test_apply_of_several_names_each_resource(subject: Subject) -> None:
    """Apply of several: "`extra` names each resource as applied, unchanged or incomplete"."""
    volumes = [await subject.volume(), await subject.volume()]
    contents = [subject.content(volume) for volume in volumes]
    snapshots = [await subject.back_up(volume) for volume in volumes]
    for volume in volumes:
        subject.write(volume)
    job = await subject.done(await subject.zone.apply_snapshots(snapshots))
    assert [subject.content(volume) for volume in volumes] == contents
    assert all(volume in str(job.details) for volume in volumes)


async def test_lists_stay_whole_while_snapshots_are_made(subject: Subject) -> None:
    """While snapshots are being created, none that was there at the start is missing."""
    volume, other = await subject.volume(), await subject.volume()
    there = set(await chain(subject, volume, "abcdef"))
    is_over = anyio.Event()

    async def make() -> None:
        for number in range(6):
            await subject.back_up(other, f"new {number}")
        is_over.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(make)
        while not is_over.is_set():
            seen: set[str] = set()
            offset = 0
            while True:
                page = await subject.zone.list_snapshots(SnapshotFilter(offset=offset, limit=3))
                seen |= {snapshot.snapshot_id for snapshot in page.items}
                offset += 3
                if there <= seen or offset > page.total_count + 30:
                    break
            assert there <= seen
