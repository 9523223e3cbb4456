"""What others do to the images of a zone on Ceph: it never stops the zone."""

import errno
import json
import subprocess

import anyio
import pytest

from snapshot_mcp.catalogue import admission
from snapshot_mcp.catalogue.admission import ZoneRules
from snapshot_mcp.contract.errors import TermsChanged, ZoneError
from snapshot_mcp.contract.keep_free import NOTHING_FREE
from snapshot_mcp.contract.models import ResourceFilter
from snapshot_mcp.contract.terms import Terms
from snapshot_mcp.ground.clock import Moment, SystemClock
from snapshot_mcp.providers.ceph import clock
from snapshot_mcp.providers.ceph.catalogue import PoolCatalogue
from snapshot_mcp.providers.ceph.clib import CephError
from snapshot_mcp.providers.ceph.names import ID, KIND, OBJECT, PARTIAL, label_key, partial_name, snapshot_name
from snapshot_mcp.providers.ceph.store import PoolStore
from snapshot_mcp.providers.ceph.work import carry_out
from tests.ceph.bench import Bench
from tests.ceph.cluster import ceph
from tests.ceph.subject import POOL
from tests.disks import MIB, get, succeed

pytestmark = pytest.mark.anyio


async def test_a_disk_of_size_0_is_backed_up_and_exported(bench: Bench) -> None:
    """librbd ends a process that asks for the differences of nothing."""
    disk = bench.disk(size=0)
    first = await bench.back_up(disk, "empty")
    with bench.site.pool.open_by_name("db") as image:
        image.resize(4 * MIB)
    second = await bench.back_up(disk, "grown")
    zone = bench.zone()
    await succeed(zone, await zone.create_volume(first, "copy"))
    await succeed(zone, await zone.apply_snapshots([first], safety_snapshot_name="safety"))
    await bench.back_up(disk, "empty again")
    await succeed(zone, await zone.verify_snapshots([first, second]))
    assert bench.content("copy") == bench.content() == b""


async def test_a_job_that_has_ended_three_workers_fails(bench: Bench) -> None:
    disk = bench.disk()
    await bench.names()
    pool = bench.site.pool
    with PoolCatalogue(pool, PoolStore(pool, pool), "machine") as catalogue:
        catalogue.discover()
        job = admission.create(catalogue, [disk], "deadly", False, ZoneRules(0, 30, keep_free=NOTHING_FREE))
        with catalogue.transaction():
            catalogue.set_job(job["job_id"], status="working", run_count=4)
        carry_out(catalogue, job["job_id"])
    ended = await bench.zone().get_job(job["job_id"])
    assert "ended 3 times" in ended.info
    await bench.back_up(disk)


async def test_a_copy_of_an_exported_volume_is_another_disk(bench: Bench) -> None:
    """`rbd cp` copies the metadata too, with the id."""
    zone = bench.zone()
    snapshot = await bench.back_up(bench.disk())
    await succeed(zone, await zone.create_volume(snapshot, "copy"))
    place = f"{POOL}/{bench.namespace}"
    ceph(bench.site.conf, "rbd", "cp", f"{place}/copy", f"{place}/copy of it")
    with bench.site.pool.open_by_name("copy of it") as image:
        assert image.metadata(ID)
    for machine in ("one", "other"):
        volumes = (await bench.zone(machine).list_volumes(ResourceFilter())).items
        assert {one.name for one in volumes} == {"db", "copy", "copy of it"}
        assert len({one.id for one in volumes}) == 3
    await bench.back_up(next(one.id for one in volumes if one.name == "copy of it"))


async def test_names_that_are_no_text_are_shown_with_marks(bench: Bench) -> None:
    disk = bench.disk()
    bad = b"bad\xff\xfe"
    for arguments in (["create", "--size", "4M", "--image", bad], ["snap", "create", "--image", "db", "--snap", bad]):
        place = ["--pool", POOL, "--namespace", bench.namespace]
        subprocess.run(["rbd", "--conf", bench.site.conf, *arguments, *place], check=True, timeout=60)
    assert await bench.names() == ["bad\ufffd\ufffd", "db"]
    await bench.back_up(disk)
    (strange,) = (await bench.zone().list_volumes(ResourceFilter(search_word="bad", verbose=1))).items
    assert strange.path == f"{POOL}/{bench.namespace}/bad\ufffd\ufffd"
    await bench.back_up(strange.id)


async def test_a_disk_that_is_marked_later_is_one_disk(bench: Bench) -> None:
    """A server that has seen it as a volume, and one that has not, know it by one id; what is recorded keeps it."""
    bench.disk()
    zone = bench.zone()
    assert await bench.names() == ["db"]
    with bench.site.pool.open_by_name("db") as image:
        image.set_metadata(KIND, "instance")
    (machine,) = (await bench.zone("other").list_instances(ResourceFilter())).items
    await bench.back_up(machine.id, "by the other", "other")
    with anyio.fail_after(5):
        while not (seen := (await zone.list_instances(ResourceFilter())).items):
            await anyio.sleep(0.1)
    assert [one.id for one in seen] == [machine.id]
    assert await bench.names() == []
    with bench.site.pool.open_by_name("db") as image:
        image.set_metadata(KIND, "volume")
    (volume,) = (await bench.zone("later").list_volumes(ResourceFilter())).items
    assert volume.id == machine.id


async def test_a_clone_of_a_restore_point_keeps_that_one_alone(bench: Bench) -> None:
    """The others are purged, and destroyed; it is named, and goes once the clone is gone."""
    conf, place = bench.site.conf, f"{POOL}/{bench.namespace}"
    zone = bench.zone(recovery_hours=0)
    first, second = bench.disk("first"), bench.disk("second", seed=2)
    held, free, other = [await bench.back_up(one, "point") for one in (first, first, second)]
    ceph(conf, "rbd", "clone", f"{place}/first@{snapshot_name(held)}", f"{place}/child")
    for one in (other, held):
        await succeed(zone, await zone.delete_snapshot(one))
    await zone.purge()
    assert f"The RBD snapshot of {held} cannot be removed" in zone.obstacles[0]
    assert f"rbd children {place}/first@" in zone.obstacles[0]
    assert ours(bench, "second") == []
    assert ours(bench, "first") == [snapshot_name(held)], free
    assert [one.subject for one in (await zone.check()).findings] == [held]
    newer = await bench.back_up(first, "newer")
    assert await zone.forget(first, [newer]) == (newer,)
    assert [held in one for one in zone.obstacles] == [True]
    ceph(conf, "rbd", "rm", f"{place}/child")
    assert await zone.forget(first, []) == (held,)
    assert (zone.obstacles, ours(bench, "first"), (await zone.check()).findings) == ((), [], ())
    with bench.site.pool.open_by_name("first") as image:
        assert [image.metadata(label_key(one)) for one in (held, free, newer)] == ["", "", ""]
    bench.site.pool.remove_image("first")


def ours(bench: Bench, name: str) -> list[str]:
    with bench.site.pool.open_by_name(name) as image:
        return sorted(image.snapshots())


@pytest.mark.parametrize("number", [errno.ETIMEDOUT, errno.ENOSPC])
async def test_without_the_clusters_time_nothing_is_purged(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A machine whose own clock is three hours ahead, and which the cluster does not tell the time at first."""

    class Ahead(SystemClock):
        def read(self) -> Moment:
            now = super().read()
            return Moment(now.wall + 10_800, "another boot", now.uptime)

    def refuse(name: str, *arguments: object) -> None:
        raise CephError(number, "no answer", name)

    snapshot = await bench.back_up(bench.disk())
    await succeed(bench.zone(), await bench.zone().delete_snapshot(snapshot))
    ahead = bench.zone("ahead")
    with monkeypatch.context() as patches:
        patches.setattr(clock, "SystemClock", Ahead)
        patches.setattr(clock.ClusterClock, "_asked", {})
        with patches.context() as silence:
            silence.setattr(clock, "call", refuse)
            with pytest.raises(ZoneError):
                await ahead.purge(())
        assert await ahead.purge(()) == ()
        assert (await bench.points("ahead", status=("deleted",)))[0].snapshot_id == snapshot


async def test_a_restore_point_that_is_gone_is_not_what_a_deletion_leaves(bench: Bench) -> None:
    """Its RBD snapshot was removed by hand, after it was agreed that it stays."""
    disk = bench.disk()
    zone = bench.zone()
    gone = await bench.back_up(disk, "gone")
    job = await succeed(zone, await zone.create_snapshots([disk], "there", is_full=True))
    there = job.resource_ids[0]
    with bench.site.pool.open_by_name("db") as image:
        image.drop(snapshot_name(gone))
    for terms in (Terms(may_go=(there,), must_stay=(gone,)), Terms(may_go=(there,), must_exist=(gone,))):
        ended = await bench.end_of(await zone.delete_snapshot(there, terms=terms))
        assert ended.error
        assert ended.error.code == TermsChanged.code
    assert {one.snapshot_id: one.is_damaged for one in await bench.points()} == {gone: True, there: False}
    with bench.site.pool.open_by_name("db") as image:
        image.drop(snapshot_name(there))
    newest = await bench.back_up(disk, "newest")
    found = {one.snapshot_id: one.is_damaged for one in await bench.points()}
    assert found == {gone: True, there: True, newest: False}
    assert (await get(zone, newest)).parent is None


async def test_only_what_a_job_of_the_zone_has_left_is_removed(bench: Bench) -> None:
    zone = bench.zone()
    snapshot = await bench.back_up(bench.disk())
    await succeed(zone, await zone.create_volume(snapshot, "mine"))
    bench.kill()
    for name in (f"{PARTIAL}.mine", f"{PARTIAL}.vol-abc"):
        bench.site.pool.create_image(name, MIB)
    (volume,) = [one for one in (await zone.list_volumes(ResourceFilter())).items if one.name == "mine"]
    bench.site.pool.create_image(partial_name(volume.id), MIB)
    await bench.back_up(volume.id)
    with anyio.fail_after(5):
        while partial_name(volume.id) in bench.site.pool.list_images().values():
            await anyio.sleep(0.1)
    assert {f"{PARTIAL}.mine", f"{PARTIAL}.vol-abc"} <= set(bench.site.pool.list_images().values())


async def test_a_disk_that_comes_back_from_the_trash_is_rolled_back(bench: Bench) -> None:
    """The worker that runs has seen it gone."""
    disk, other = bench.disk(), bench.disk("other")
    zone = bench.zone()
    snapshot = await bench.back_up(disk)
    was = bench.content()
    bench.write()
    bench.kill()
    place = f"{POOL}/{bench.namespace}"
    ceph(bench.site.conf, "rbd", "trash", "mv", f"{place}/db")
    assert await bench.names() == ["other"]
    await bench.back_up(other, "while it is in the trash")
    ceph(bench.site.conf, "rbd", "trash", "restore", f"{place}/{disk.partition('-')[2]}")
    assert await bench.names() == ["db", "other"]
    await succeed(zone, await zone.apply_snapshots([snapshot]))
    assert bench.content() == was
    written = json.loads(bench.site.pool.read_keys(OBJECT, [f"resources/{disk}"])[f"resources/{disk}"])
    assert written["removed_at"] is None
