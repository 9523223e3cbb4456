"""CONTRACT.md, "What surrounds them": volumes, instances, images, quota."""

import pytest

from snapshot_mcp.contract.models import ResourceFilter
from tests.contract.subject import Subject
from tests.disks import MIB

pytestmark = pytest.mark.anyio


async def test_volume_is_listed_with_its_size_in_gb(subject: Subject) -> None:
    """GET /volumes: `volume_id` (`vol-…`), `size` (GB), `status`."""
    volume_id = await subject.volume("a disk of mine", size_bytes=3 * MIB)
    page = await subject.zone.list_volumes(ResourceFilter(ids=(volume_id,)))
    (volume,) = page.items
    assert page.total_count == 1
    assert volume.volume_id == volume_id
    assert volume_id.startswith("vol-")
    assert volume.size >= 1
    assert volume.status in {"available", "in-use"}
    if subject.is_ours:
        assert (volume.name, volume.size, volume.size_bytes) == ("a disk of mine", 1, 3 * MIB)


async def test_instance_is_listed(subject: Subject) -> None:
    """GET /instances: `instance_id` (`ins-…`), `instance_name`, `status`."""
    instance_id = await subject.instance("a host of mine")
    (instance,) = (await subject.zone.list_instances(ResourceFilter(ids=(instance_id,)))).items
    assert instance.instance_id == instance_id
    assert instance_id.startswith("ins-")
    assert instance.status in {"running", "stopped"}


async def test_kinds_are_not_mixed(subject: Subject) -> None:
    """A volume is in no list of instances."""
    volume_id, instance_id = await subject.volume(), await subject.instance()
    assert (await subject.zone.list_instances(ResourceFilter(ids=(volume_id,)))).items == ()
    assert (await subject.zone.list_volumes(ResourceFilter(ids=(instance_id,)))).items == ()
    assert (await subject.zone.list_images(ResourceFilter(ids=(volume_id,)))).items == ()


@pytest.mark.own_rules
async def test_resources_filter_and_page(subject: Subject) -> None:
    """Filters `volumes`, `status`, `search_word`, `offset`, `limit`."""
    made = [await subject.volume(f"rack-7 disk {number}") for number in range(3)]
    zone = subject.zone
    found = await zone.list_volumes(
        ResourceFilter(ids=tuple(made), search_word="rack-7", status=("available",), limit=2)
    )
    assert found.total_count == 3
    assert len(found.items) == 2
    rest = await zone.list_volumes(ResourceFilter(ids=tuple(made), search_word="rack-7", offset=2, limit=2))
    assert {one.id for one in (*found.items, *rest.items)} == set(made)
    assert (await zone.list_volumes(ResourceFilter(ids=tuple(made), status=("suspended",)))).total_count == 0
    assert (await zone.list_volumes(ResourceFilter(search_word=made[0]))).items[0].id == made[0]


@pytest.mark.own_rules
async def test_resource_says_who_has_it(subject: Subject) -> None:
    """`held_by` (CONTRACT.md, "What our own face adds") is sent with `verbose`; "" where nobody has the disk."""
    made = {await subject.volume(): subject.zone.list_volumes, await subject.instance(): subject.zone.list_instances}
    for resource_id, list_some in made.items():
        query = ResourceFilter(ids=(resource_id,), verbose=1)
        assert (await list_some(query)).items[0].held_by == ""
        with subject.used(resource_id) as (begin, end):
            held_by = str((await list_some(query)).items[0].held_by)
            assert begin in held_by
            assert held_by.endswith(end)
            assert (await list_some(ResourceFilter(ids=(resource_id,)))).items[0].held_by is None


async def test_quota_says_what_is_left(subject: Subject) -> None:
    """GET /quota_left → [{`type`, `quantity`, `left`, `name`}]."""
    await subject.back_up(await subject.volume())
    quotas = await subject.zone.list_quota_left()
    assert quotas
    assert all(quota.type and 0 <= quota.left <= quota.quantity for quota in quotas)
