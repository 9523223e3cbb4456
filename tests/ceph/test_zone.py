"""A zone on a real Ceph: disks that are found, what is shared, who may do what, and machines that race."""

from collections.abc import Awaitable, Callable
from contextlib import suppress

import anyio
import pytest

from snapshot_mcp.contract.errors import (
    Forbidden,
    NotFound,
    NotUsable,
    ResourceBusy,
    TermsChanged,
    Unavailable,
    ZoneError,
)
from snapshot_mcp.contract.models import Job, ResourceFilter, SnapshotFilter
from snapshot_mcp.contract.terms import Terms
from snapshot_mcp.providers.ceph import catalogue, clib
from snapshot_mcp.providers.ceph import object as catalogue_object
from snapshot_mcp.providers.ceph.catalogue import PoolCatalogue
from snapshot_mcp.providers.ceph.clib import CephError
from snapshot_mcp.providers.ceph.names import KIND, OBJECT, snapshot_name
from snapshot_mcp.providers.ceph.store import PoolStore
from tests.ceph.bench import Bench
from tests.ceph.cluster import ceph
from tests.ceph.subject import POOL
from tests.disks import MIB, get, succeed

pytestmark = pytest.mark.anyio


async def test_disks_are_found_renamed_and_gone(bench: Bench) -> None:
    disk = bench.disk("first")
    zone = bench.zone()
    assert await bench.names() == ["first"]
    snapshot = await bench.back_up(disk, "before")
    bench.site.pool.rename_image("first", "second")
    assert await bench.names() == ["second"]
    (volume,) = (await zone.list_volumes(ResourceFilter(verbose=1))).items
    assert volume.path == f"{POOL}/{bench.namespace}/second"
    other = bench.zone("other")
    assert (await get(other, snapshot)).resource.resource_name == "second"
    with bench.site.pool.open_by_name("second") as image:
        assert image.is_protected(snapshot_name(snapshot))
        image.drop(snapshot_name(snapshot))
    bench.site.pool.remove_image("second")
    assert await bench.names("other") == []
    with pytest.raises(ZoneError):
        await zone.create_snapshots([disk], "of nothing")


async def test_a_marked_image_is_a_machine_and_exports_to_an_image(bench: Bench) -> None:
    bench.disk("web")
    with bench.site.pool.open_by_name("web") as image:
        image.set_metadata(KIND, "instance")
    zone = bench.zone()
    (machine,) = (await zone.list_instances(ResourceFilter())).items
    snapshot = await bench.back_up(machine.id)
    await succeed(zone, await zone.capture_instance(snapshot, "golden"))
    (made,) = (await bench.zone("other").list_images(ResourceFilter())).items
    assert (made.name, made.size_bytes) == ("golden", 16 * MIB)
    assert bench.content("golden") == bench.content("web")
    assert await bench.names("other") == [], "an image is no disk"


async def test_nothing_is_made_before_the_first_change(bench: Bench) -> None:
    bench.disk()
    zone = bench.zone()
    assert (await zone.list_snapshots(SnapshotFilter())).items == ()
    assert await bench.names() == ["db"]
    assert not bench.site.pool.exists(OBJECT)
    assert not bench.home().exists()


async def test_what_one_machine_has_done_another_one_sees_and_goes_on_with(bench: Bench) -> None:
    disk = bench.disk()
    first = await bench.back_up(disk, "first")
    was = bench.content()
    bench.write()
    second = await bench.back_up(disk, "second", "other")
    found = {one.snapshot_id: one for one in await bench.points("other")}
    assert found[second].parent == first
    other = bench.zone("other")
    job = await succeed(other, await other.apply_snapshots([first], safety_snapshot_name="before"))
    assert bench.content() == was
    assert job.details["resources"] == {disk: "applied"}
    assert {one.snapshot_name for one in await bench.points()} == {"first", "second", "before"}


@pytest.mark.parametrize("number", [3])
async def test_many_machines_commit_and_nothing_is_lost(bench: Bench, number: int) -> None:
    """Each commit compares the revision; the rows of all are there."""
    bench.disk()
    pools = [bench.site.client.pool(POOL, bench.namespace) for _ in range(number)]
    copies = [PoolCatalogue(pool, PoolStore(pool, pool), f"machine {at}") for at, pool in enumerate(pools)]

    def write(copy: PoolCatalogue, at: int) -> None:
        for one in range(20):
            with copy.transaction():
                copy.add_image(f"img-{at}-{one}", f"name {one}", "x", "ss-1")

    async with anyio.create_task_group() as tasks:
        for at, copy in enumerate(copies):
            tasks.start_soon(anyio.to_thread.run_sync, write, copy, at)
    fresh = PoolCatalogue(pools[0], PoolStore(pools[0], pools[0]), "fresh")
    fresh.refresh()
    assert fresh.count("SELECT count(*) FROM images") == 20 * number
    for copy in copies:
        copy.refresh()
        assert [tuple(row) for row in copy.rows("SELECT * FROM images ORDER BY image_id")] == [
            tuple(row) for row in fresh.rows("SELECT * FROM images ORDER BY image_id")
        ]
    for one in (*copies, fresh, *pools):
        one.close()


async def test_a_commit_on_a_state_that_another_has_changed_is_refused(bench: Bench) -> None:
    pool = bench.site.pool
    with PoolCatalogue(pool, PoolStore(pool, pool), "one") as one:
        with one.transaction():
            one.add_image("img-1", "a", "x", "ss-1")

        def meddle() -> None:
            with one.transaction():
                one.add_image("img-2", "b", "x", "ss-1")
                present = pool.read_keys(OBJECT, ["rev"])["rev"]
                pool.write_keys(OBJECT, {}, {"rev": str(int(present) + 1).encode()})

        with pytest.raises(catalogue.CommittedFirst):
            meddle()
        assert one.count("SELECT count(*) FROM images") == 1


async def test_a_far_copy_is_loaded_anew_and_a_newer_format_is_refused(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = bench.site.pool
    with (
        PoolCatalogue(pool, PoolStore(pool, pool), "one") as one,
        PoolCatalogue(pool, PoolStore(pool, pool), "two") as two,
    ):
        monkeypatch.setattr(catalogue, "LOGGED", 3)
        monkeypatch.setattr(catalogue_object, "LOGGED", 3)
        for number in range(8):
            with one.transaction():
                one.add_image(f"img-{number}", "a", "x", "ss-1")
            if number == 1:
                two.refresh()
        loads = two.loads
        two.refresh()
        assert two.loads == loads + 1
        assert two.count("SELECT count(*) FROM images") == 8
        logs = [key for key in pool.read_all_keys(OBJECT) if key.startswith("log/")]
        assert len(logs) == 3, "the log is bounded"
        pool.write_keys(OBJECT, {}, {"format": b"99", "rev": b"1000"})
        with pytest.raises(ZoneError, match="newer version"):
            two.refresh()


async def test_two_agreed_deletions_that_each_leave_the_other_are_not_both_carried_out(bench: Bench) -> None:
    """Two homes, one disk: each was told that the other's restore point stays as the last good one."""
    disk = bench.disk()
    first = await bench.back_up(disk, "first")
    job = await succeed(bench.zone(), await bench.zone().create_snapshots([disk], "second", is_full=True))
    second = job.resource_ids[0]
    terms = {first: Terms(may_go=(first,), must_stay=(second,)), second: Terms(may_go=(second,), must_stay=(first,))}
    outcomes: list[str] = []

    async def delete(machine: str, snapshot: str) -> None:
        zone = bench.zone(machine)
        try:
            ended = await bench.end_of(await zone.delete_snapshot(snapshot, terms=terms[snapshot]), machine)
            outcomes.append(ended.status if ended.is_successful else ended.error.code if ended.error else "?")
        except (TermsChanged, ResourceBusy, Unavailable) as error:
            outcomes.append(error.code)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(delete, "one", first)
        tasks.start_soon(delete, "two", second)
    assert sorted(outcomes).count("successful") == 1, outcomes
    assert len([one for one in await bench.points() if one.is_available]) == 1


async def test_forget_destroys_all_and_the_image_can_be_removed(bench: Bench) -> None:
    disk = bench.disk()
    zone = bench.zone()
    first = await bench.back_up(disk, "first")
    second = await bench.back_up(disk, "second")
    await succeed(zone, await zone.delete_snapshot(second))
    with pytest.raises(CephError):
        bench.site.pool.remove_image("db")
    with pytest.raises(TermsChanged, match=second):
        await zone.forget(disk, [first])
    assert set(await zone.forget(disk, [first, second])) == {first, second}
    assert {one.status for one in await bench.points(status=("ceased",))} == {"ceased"}
    bench.site.pool.remove_image("db")


async def test_a_removed_restore_point_is_found_damaged_and_not_rolled_back_to(bench: Bench) -> None:
    disk = bench.disk()
    zone = bench.zone()
    snapshot = await bench.back_up(disk)
    content = bench.content()
    with bench.site.pool.open_by_name("db") as image:
        image.drop(snapshot_name(snapshot))
    job = await bench.end_of(await zone.apply_snapshots([snapshot]))
    assert job.error
    assert job.error.code == "damaged"
    assert bench.content() == content
    assert (await get(zone, snapshot)).is_damaged
    report = await zone.check()
    assert [one.subject for one in report.findings] == [snapshot]


async def caps(bench: Bench, name: str, mon: str, osd: str) -> dict[str, str]:
    """Make a user with these caps; return the settings that name it."""
    keyring = bench.site.home / f"{name}.keyring"
    bench.site.home.mkdir(exist_ok=True)
    keyring.write_text(ceph(bench.site.conf, "ceph", "auth", "get-or-create", f"client.{name}", "mon", mon, "osd", osd))
    return {"user": name, "keyring": str(keyring)}


async def test_the_caps_of_readme_suffice_and_no_more(bench: Bench) -> None:
    """One pool, one namespace, to look only."""
    disk = bench.disk()
    full = await caps(
        bench, f"full-{bench.namespace}", "profile rbd", f"profile rbd pool={POOL} namespace={bench.namespace}"
    )
    zone = bench.zone("full", **full)
    snapshot = await bench.back_up(disk, "mine", "full")
    await succeed(zone, await zone.apply_snapshots([snapshot], safety_snapshot_name="safety"))
    await succeed(zone, await zone.create_volume(snapshot, "copy"))
    await succeed(zone, await zone.verify_snapshots([snapshot]))
    await succeed(zone, await zone.create_snapshots([disk], "kept", is_full=True))
    await succeed(zone, await zone.delete_snapshot(snapshot))
    await zone.purge([snapshot])
    outside = bench.zone("outside", **full, namespace="")
    with pytest.raises(Forbidden):
        await outside.list_volumes(ResourceFilter())
    reader = await caps(
        bench,
        f"ro-{bench.namespace}",
        "profile rbd-read-only",
        f"profile rbd-read-only pool={POOL} namespace={bench.namespace}",
    )
    looker = bench.zone("looker", **reader)
    assert {one.name for one in (await looker.list_volumes(ResourceFilter(verbose=1))).items} == {"db", "copy"}
    assert {one.snapshot_name for one in await bench.points("looker")} == {"kept"}
    report = await looker.check()
    assert (report.snapshot_count, [one.is_damage for one in report.findings]) == (3, [False])
    with pytest.raises(Forbidden):
        await looker.create_snapshots([disk], "not allowed")


async def test_what_is_missing_is_named(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotFound, match="no pool 'nowhere/"):
        await bench.zone("a", pool="nowhere").list_volumes(ResourceFilter())
    with pytest.raises(NotFound, match=r"no namespace 'misspelt'.*rbd namespace create rbd/misspelt"):
        await bench.zone("e", namespace="misspelt").list_volumes(ResourceFilter())
    with pytest.raises(ZoneError, match=r"conf"):
        await bench.zone("b", conf="/nowhere/ceph.conf").list_volumes(ResourceFilter())
    with pytest.raises((Forbidden, NotFound)):
        await bench.zone("c", user="nobody").list_volumes(ResourceFilter())
    monkeypatch.setattr(clib, "LIBRARIES", (("libnowhere.so.7", {}),))
    clib.functions.cache_clear()
    try:
        with pytest.raises(ZoneError, match=r"libnowhere\.so\.7 is not installed.*apt install librados2 librbd1"):
            await bench.zone("d").list_volumes(ResourceFilter())
    finally:
        monkeypatch.undo()
        clib.functions.cache_clear()


async def test_a_disk_without_exclusive_lock_is_not_rolled_back(bench: Bench) -> None:
    ceph(
        bench.site.conf, "rbd", "create", "--size", "8", "--image-feature", "layering", f"{POOL}/{bench.namespace}/old"
    )
    zone = bench.zone()
    (volume,) = (await zone.list_volumes(ResourceFilter())).items
    snapshot = await bench.back_up(volume.id)
    with pytest.raises(NotUsable, match="rbd feature enable"):
        await zone.apply_snapshots([snapshot])


async def test_a_job_whose_commit_is_refused_is_run_again(bench: Bench) -> None:
    """Somebody else's commit came first, again and again: the jobs end well all the same."""
    disk = bench.disk()
    zone = bench.zone()
    snapshot = await bench.back_up(disk, "first")
    pool, is_over = bench.site.pool, anyio.Event()

    async def meddle() -> None:
        while not is_over.is_set():
            present = int(pool.read_keys(OBJECT, ["rev"])["rev"])
            log = {f"log/{present + 1:012}": b"[]", "rev": str(present + 1).encode()}
            with suppress(CephError):
                pool.write_keys(OBJECT, {"rev": str(present).encode()}, log)
            await anyio.sleep(0.02)

    async def patiently(start: Callable[[], Awaitable[Job]]) -> Job:
        while True:
            try:
                return await start()
            except Unavailable:
                await anyio.sleep(0.01)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(meddle)
        for start in (
            lambda: zone.create_snapshots([disk], "second"),
            lambda: zone.create_volume(snapshot, "copy"),
            lambda: zone.apply_snapshots([snapshot], safety_snapshot_name="safety"),
        ):
            job = await bench.end_of(await patiently(start), seconds=60)
            assert job.is_successful, job.info
        is_over.set()
    assert bench.content("copy") == bench.content()
