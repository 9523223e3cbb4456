"""CONTRACT.md, "The six operations" and "Snapshot": what every zone must keep."""

import os
from datetime import UTC, datetime, timedelta

import pytest

from snapshot_mcp.contract.errors import BadRequest, NotFound, WrongResourceType
from snapshot_mcp.contract.models import ResourceFilter, SnapshotFilter, SnapshotUpdate
from snapshot_mcp.contract.states import JobAction, SnapshotStatus
from snapshot_mcp.contract.tree import SnapshotTree
from tests.anchcloud.subject import PROVIDER
from tests.contract.subject import Subject
from tests.disks import get, ids

pytestmark = pytest.mark.anyio


@pytest.mark.skipif(bool(os.environ.get(f"{PROVIDER}URL")), reason="it is")
def test_a_real_provider_is_named() -> None:
    """The same suite runs over a real provider where the environment names one."""
    pytest.skip(
        f"not configured: {PROVIDER}URL is not set: the suite ran over the embedded zone and the REST face only"
    )


async def test_list_needs_no_parameter(subject: Subject) -> None:
    """Every list filter is optional"; the specification's own example sends none."""
    await subject.back_up(await subject.volume())
    page = await subject.zone.list_snapshots(SnapshotFilter())
    assert 1 <= len(page.items) <= 10
    assert page.total_count >= len(page.items)


async def test_list_filters_by_ids(subject: Subject) -> None:
    """Query `snapshots` [ids]; an id that is not there is no error."""
    volume = await subject.volume()
    one, two = await subject.back_up(volume, "one"), await subject.back_up(volume, "two")
    await subject.back_up(volume, "three")
    assert await ids(subject.zone, snapshots=(one, two, "ss-none")) == {one, two}


async def test_list_filters_by_resource(subject: Subject) -> None:
    """Query `resource_id`."""
    volume, instance = await subject.volume(), await subject.instance()
    of_volume, of_instance = await subject.back_up(volume), await subject.back_up(instance)
    assert of_volume in await ids(subject.zone, resource_id=volume)
    assert of_instance not in await ids(subject.zone, resource_id=volume)
    assert await ids(subject.zone, resource_id="vol-none") == set()


async def test_list_filters_by_type_in_both_forms(subject: Subject) -> None:
    """Query `snapshot_type`: 0 incremental, 1 full."""
    volume = await subject.volume()
    full = await subject.back_up(volume, is_full=True)
    incremental = await subject.back_up(volume)
    assert full in await ids(subject.zone, resource_id=volume, snapshot_type=1)
    assert incremental not in await ids(subject.zone, resource_id=volume, snapshot_type=1)
    assert incremental in await ids(subject.zone, resource_id=volume, snapshot_type=0)


async def test_list_filters_by_several_statuses(subject: Subject) -> None:
    """Query `status` [..]: any of them."""
    volume = await subject.volume()
    kept, gone = await subject.back_up(volume, is_full=True), await subject.back_up(volume, is_full=True)
    await subject.done(await subject.zone.delete_snapshot(gone))
    both = await ids(subject.zone, snapshots=(kept, gone), status=("available", "deleted", "ceased"))
    assert {kept} <= both <= {kept, gone}
    assert await ids(subject.zone, snapshots=(kept, gone), status=("available", "suspended")) == {kept}


async def test_search_word_matches_a_part_of_the_id_or_of_the_name(subject: Subject) -> None:
    """`search_word` matches a part of the id or of the name."""
    volume = await subject.volume()
    snapshot = await subject.back_up(volume, "before the Änderung, 100%_done")
    other = await subject.back_up(volume, "another")
    for word in ("Änderung", "100%_", ", 1", snapshot, snapshot[3:]):
        found = await ids(subject.zone, resource_id=volume, search_word=word)
        assert snapshot in found, word
        assert other not in found, word
    assert await ids(subject.zone, resource_id=volume, search_word="%nothing like it%") == set()


async def test_list_filters_by_root(subject: Subject) -> None:
    """Query `root_id`: a chain, its full snapshot included."""
    volume = await subject.volume()
    root = await subject.back_up(volume, is_full=True)
    child = await subject.back_up(volume)
    await subject.back_up(volume, is_full=True)
    assert await ids(subject.zone, root_id=root) == {root, child}


async def test_filters_combine_to_those_that_match_all(subject: Subject) -> None:
    """The filters of the list, together."""
    volume = await subject.volume()
    root = await subject.back_up(volume, "monday full", is_full=True)
    wanted = await subject.back_up(volume, "monday evening")
    await subject.back_up(volume, "tuesday")
    query = {
        "resource_id": volume,
        "snapshot_type": 0,
        "status": ("available",),
        "search_word": "monday",
        "root_id": root,
    }
    assert await ids(subject.zone, **query) == {wanted}


async def test_pages_join_to_the_whole_list(subject: Subject) -> None:
    """`offset`, `limit` and `total_count`."""
    volume = await subject.volume()
    made = [await subject.back_up(volume, f"number {number}") for number in range(5)]
    seen: list[str] = []
    for offset in range(0, 6, 2):
        page = await subject.zone.list_snapshots(
            SnapshotFilter(resource_id=volume, search_word="number", offset=offset, limit=2)
        )
        assert page.total_count == 5
        seen += [snapshot.snapshot_id for snapshot in page.items]
    assert sorted(seen) == sorted(made)
    beyond = await subject.zone.list_snapshots(SnapshotFilter(resource_id=volume, offset=50))
    assert beyond.items == ()


async def test_create_answers_its_job_and_the_snapshot_has_the_contracts_fields(subject: Subject) -> None:
    """POST /volume_snapshots → Job (`CreateSnapshots`); "Snapshot."""
    volume = await subject.volume("the disk")
    earliest = datetime.now(UTC) - timedelta(seconds=2)
    job = await subject.zone.create_snapshots([volume], "first", is_full=True)
    assert job.action == JobAction.CREATE
    assert not job.is_finished
    job = await subject.done(job)
    assert job.finished_time is not None
    (snapshot_id,) = job.resource_ids
    snapshot = await get(subject.zone, snapshot_id)
    assert snapshot.snapshot_name == "first"
    assert snapshot.status == SnapshotStatus.AVAILABLE
    assert snapshot.transition_status == ""
    assert snapshot.is_full
    assert snapshot.is_taken == 1
    assert snapshot.is_head == 1
    assert snapshot.head_chain == 1
    assert snapshot.root_id == snapshot_id
    assert snapshot.parent_id == "self"
    assert snapshot.size > 0
    assert snapshot.total_count == 1
    assert snapshot.total_size >= snapshot.size
    assert snapshot.lastest_snapshot_time == snapshot.snapshot_time
    assert snapshot.create_time is not None
    assert snapshot.create_time >= earliest
    assert snapshot.snapshot_time is not None
    assert snapshot.resource.resource_id in {volume, ""}


async def test_first_snapshot_is_full_and_the_next_is_its_child(subject: Subject) -> None:
    """The first snapshot of a resource is always full; `is_head`: the next incremental becomes its child."""
    volume = await subject.volume()
    first = await subject.back_up(volume, is_full=not subject.is_ours)
    subject.write(volume)
    second = await subject.back_up(volume)
    root, child = await get(subject.zone, first), await get(subject.zone, second)
    assert root.is_full
    assert not child.is_full
    assert child.parent == first
    assert child.root_id == first
    assert (root.is_head, child.is_head) == (0, 1)
    assert (root.head_chain, child.head_chain) == (1, 1)
    assert root.total_count == 2


async def test_is_full_makes_a_new_chain(subject: Subject) -> None:
    """Body `is_full` 1 (`IS_FULL` in the later revision)."""
    volume = await subject.volume()
    first = await subject.back_up(volume, is_full=True)
    second = await subject.back_up(volume, is_full=True)
    assert (await get(subject.zone, second)).root_id == second
    assert (await get(subject.zone, first)).head_chain == 0


async def test_resources_of_one_create_share_one_point_in_time(subject: Subject) -> None:
    """`snapshot_time`: "the same for all resources of one create call."""
    resources = [await subject.volume(), await subject.instance()]
    job = await subject.done(await subject.zone.create_snapshots(resources, "together"))
    snapshots = [await get(subject.zone, one) for one in job.resource_ids]
    assert len(snapshots) == 2
    assert len({snapshot.snapshot_time for snapshot in snapshots}) == 1
    assert {snapshot.snapshot_name for snapshot in snapshots} == {"together"}


async def test_delete_takes_everything_that_was_built_on_it(subject: Subject) -> None:
    """DELETE → Job (`DeleteSnapshots`); "Deleting an incremental deletes everything that was built on it."""
    volume = await subject.volume()
    root, middle, leaf = [await subject.back_up(volume, name, is_full=name == "a") for name in "abc"]
    job = await subject.zone.delete_snapshot(middle)
    assert job.action == JobAction.DELETE
    await subject.done(job)
    assert await ids(subject.zone, root_id=root) == {root}
    listed = await subject.zone.list_snapshots(SnapshotFilter(snapshots=(middle, leaf)))
    assert all(snapshot.status in {"deleted", "ceased"} for snapshot in listed.items)


async def test_deleting_the_full_snapshot_deletes_the_chain(subject: Subject) -> None:
    """Deleting the full one deletes the whole chain."""
    volume = await subject.volume()
    root = await subject.back_up(volume, is_full=True)
    await subject.back_up(volume)
    await subject.done(await subject.zone.delete_snapshot(root))
    assert await ids(subject.zone, root_id=root) == set()


async def test_apply_brings_the_content_back(subject: Subject) -> None:
    """POST /volume_snapshots/apply → Job (`ApplySnapshots`)."""
    if not subject.is_ours:
        pytest.skip("a real volume's content is left alone")
    volume = await subject.volume()
    was = subject.content(volume)
    first = await subject.back_up(volume)
    subject.write(volume)
    assert subject.content(volume) != was
    job = await subject.zone.apply_snapshots([first])
    assert job.action == JobAction.APPLY
    await subject.done(job)
    assert subject.content(volume) == was


async def test_after_a_roll_back_new_incrementals_branch_off(subject: Subject) -> None:
    """A chain is a tree … After a roll-back new incrementals branch off the applied one."""
    if not subject.is_ours:
        pytest.skip("a real volume's content is left alone")
    volume = await subject.volume()
    root, trunk = await subject.back_up(volume, "root"), await subject.back_up(volume, "trunk")
    await subject.done(await subject.zone.apply_snapshots([root]))
    assert (await get(subject.zone, root)).is_head == 1
    assert (await get(subject.zone, trunk)).is_head == 0
    branch = await get(subject.zone, await subject.back_up(volume, "branch"))
    assert branch.parent == root
    assert branch.root_id == root
    assert (await get(subject.zone, trunk)).parent == root


async def test_capture_instance_makes_an_image(subject: Subject) -> None:
    """POST /volume_snapshots/capture_instance → Job (`CaptureInstanceFromSnapshot`); images, `provider` self."""
    instance = await subject.instance()
    snapshot = await subject.back_up(instance)
    job = await subject.zone.capture_instance(snapshot, "golden image")
    assert job.action == JobAction.CAPTURE_INSTANCE
    await subject.done(job)
    page = await subject.zone.list_images(ResourceFilter(search_word="golden image"))
    assert page.total_count >= 1
    assert page.items[0].image_id.startswith("img-")
    assert page.items[0].provider == "self"
    assert page.items[0].status == "available"


async def test_create_volume_makes_a_volume_of_the_same_content(subject: Subject) -> None:
    """POST /volume_snapshots/create_volume → Job (`CreateVolumeFromSnapshot`)."""
    volume = await subject.volume()
    snapshot = await subject.back_up(volume)
    job = await subject.zone.create_volume(snapshot, "copy of it")
    assert job.action == JobAction.CREATE_VOLUME
    job = await subject.done(job)
    page = await subject.zone.list_volumes(ResourceFilter(search_word="copy of it"))
    copy = next(one for one in page.items if one.volume_id in job.resource_ids)
    if subject.is_ours and copy.path is not None:
        assert subject.content_at(copy.path) == subject.content(volume)


async def test_exports_need_the_right_kind(subject: Subject) -> None:
    """`capture_instance` needs a snapshot of an instance; `create_volume` one of a volume."""
    of_volume = await subject.back_up(await subject.volume())
    of_instance = await subject.back_up(await subject.instance())
    with pytest.raises((WrongResourceType, BadRequest)):
        await subject.zone.capture_instance(of_volume, "image")
    with pytest.raises((WrongResourceType, BadRequest)):
        await subject.zone.create_volume(of_instance, "volume")


async def test_put_renames_and_describes(subject: Subject) -> None:
    """PUT /volume_snapshots/{snapshot_id}: `snapshot_name`, `description`; empty answer."""
    snapshot = await subject.back_up(await subject.volume(), "old")
    await subject.zone.update_snapshot(snapshot, SnapshotUpdate(snapshot_name="new ✓", description="why"))
    now = await get(subject.zone, snapshot)
    assert (now.snapshot_name, now.description) == ("new ✓", "why")
    await subject.zone.update_snapshot(snapshot, SnapshotUpdate(description=""))
    now = await get(subject.zone, snapshot)
    assert (now.snapshot_name, now.description) == ("new ✓", "")


async def test_unknown_ids_are_not_found(subject: Subject) -> None:
    """Codes of errors: `not_found`."""
    zone = subject.zone
    for change in (
        lambda: zone.delete_snapshot("ss-nothere0"),
        lambda: zone.apply_snapshots(["ss-nothere0"]),
        lambda: zone.capture_instance("ss-nothere0", "image"),
        lambda: zone.create_volume("ss-nothere0", "volume"),
        lambda: zone.create_snapshots(["vol-nothere0"], "name"),
        lambda: zone.update_snapshot("ss-nothere0", SnapshotUpdate(snapshot_name="x")),
    ):
        with pytest.raises(NotFound, match="nothere0"):
            await change()


async def test_recovered_chain_is_available_again(subject: Subject) -> None:
    """POST /lease → Job (`Lease`); "A deleted full chain can be recovered for two hours on the provider's platform."""
    volume = await subject.volume()
    root = await subject.back_up(volume, is_full=True)
    await subject.done(await subject.zone.delete_snapshot(root))
    job = await subject.zone.recover_snapshots([root])
    assert job.action == JobAction.LEASE
    await subject.done(job)
    assert (await get(subject.zone, root)).status == SnapshotStatus.AVAILABLE
    assert subject.zone.recovery_seconds == 7200


async def test_what_was_made_within_one_second_is_listed_in_the_order_of_making(subject: Subject) -> None:
    """ "Within one second newest first is chance": the newest is the newest, on every page and in every list."""
    disk = await subject.volume()
    made = [await subject.back_up(disk, is_full=number % 2 == 0) for number in range(5)]
    newest_first = made[::-1]
    for query in (SnapshotFilter(resource_id=disk), SnapshotFilter(snapshots=tuple(made)), SnapshotFilter()):
        wanted = query.model_copy(update={"verbose": 1, "limit": 2})
        pages = [
            await subject.zone.list_snapshots(wanted.model_copy(update={"offset": offset})) for offset in (0, 2, 4)
        ]
        assert [one.snapshot_id for page in pages for one in page.items if one.snapshot_id in made] == newest_first
    listed = (await subject.zone.list_snapshots(SnapshotFilter(resource_id=disk, verbose=1))).items
    assert [one.snapshot_id for one in SnapshotTree(listed).points] == made
