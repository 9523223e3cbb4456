"""The catalogue in the pool, read as of one state while others change it; newer, broken or gone, it is refused by name."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from snapshot_mcp.catalogue.admission import insert_job
from snapshot_mcp.contract.errors import Damaged, Unsupported
from snapshot_mcp.contract.models import SnapshotFilter, SnapshotUpdate
from snapshot_mcp.contract.states import JobAction
from snapshot_mcp.providers.ceph import pool as pools
from snapshot_mcp.providers.ceph.catalogue import KEYS, PoolCatalogue
from snapshot_mcp.providers.ceph.errors import CommittedFirst
from snapshot_mcp.providers.ceph.names import OBJECT
from snapshot_mcp.providers.ceph.store import PoolStore
from snapshot_mcp.providers.ceph.worker import _PoolWorker
from tests.ceph.bench import Bench
from tests.ceph.subject import POOL
from tests.disks import MIB

pytestmark = pytest.mark.anyio


@contextmanager
def copies(bench: Bench, number: int = 2) -> Iterator[list[PoolCatalogue]]:
    """Copies of the catalogue in this process, each with a pool of its own."""
    opened = [bench.site.client.pool(POOL, bench.namespace) for _ in range(number)]
    made = [PoolCatalogue(pool, PoolStore(pool, pool), f"machine {at}") for at, pool in enumerate(opened)]
    yield made
    for one in (*made, *opened):
        one.close()


def rows(copy: PoolCatalogue) -> dict[str, list[tuple[Any, ...]]]:
    copy.refresh()
    return {
        table: [tuple(row) for row in copy.rows(f"SELECT * FROM {table} ORDER BY {key}")] for table, key in KEYS.items()
    }


def claim(copy: PoolCatalogue) -> str:
    """Enter a job that holds a snapshot."""
    job = insert_job(copy, JobAction.VERIFY, {"verify_ids": []}, [])
    copy.db.execute("INSERT INTO claims VALUES (?, 'snapshot', 'ss-1')", (job["job_id"],))
    return str(job["job_id"])


async def test_a_copy_that_is_loaded_while_others_commit_is_of_one_state(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An OSD gives 1,024 keys at most; after the first ones a row of them is changed, one goes, and a job is entered."""
    with copies(bench) as (one, two):
        with one.transaction():
            for number in range(1100):
                one.add_image(f"img-{number:04}", "a", "x", "ss-1")
        real, pages = pools._keys_of, list[int]()

        def keys_of(iterator: Any) -> dict[str, bytes]:
            page = real(iterator)
            if len(page) > 500:
                pages.append(len(page))
                if len(pages) == 1:
                    with one.transaction() as db:
                        db.execute("UPDATE images SET name = 'b' WHERE image_id = 'img-0001'")
                        db.execute("DELETE FROM images WHERE image_id = 'img-0002'")
                        claim(one)
            return page

        monkeypatch.setattr(pools, "_keys_of", keys_of)
        assert rows(two) == rows(one)
        assert pages, "it is read in more than one answer"
        assert two.revision == one.revision


async def test_a_copy_that_catches_up_while_others_commit_is_of_one_state(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row that it reads by the log of changes is a newer one, of a job that this log does not name."""
    with copies(bench) as (one, two):
        with one.transaction():
            job = claim(one)
        two.refresh()
        with one.transaction() as db:
            db.execute("DELETE FROM claims")
            db.execute("DELETE FROM jobs WHERE job_id = ?", (job,))
        real, met = two.pool.read_keys, list[str]()

        def read_keys(name: str, keys: Any) -> dict[str, bytes]:
            if "claims/1" in keys and not met:
                met.append(name)
                with one.transaction():
                    claim(one)
            return real(name, keys)

        monkeypatch.setattr(two.pool, "read_keys", read_keys)
        assert rows(two) == rows(one)
        assert met
        assert two.loads == 1, "it was not loaded anew"


async def test_a_server_that_runs_leaves_a_newer_catalogue_alone(bench: Bench) -> None:
    zone, pool = bench.zone(), bench.site.pool
    first = await bench.back_up(bench.disk(size=MIB), "first")
    present = int(pool.read_keys(OBJECT, ["rev"])["rev"]) + 1
    pool.write_keys(OBJECT, {}, {"format": b"99", "rev": str(present).encode(), f"log/{present:012}": b"[]"})
    with pytest.raises(Unsupported, match=r"newer version.*format 99.*Update this installation"):
        await zone.update_snapshot(first, SnapshotUpdate(description="mine"))
    with pytest.raises(Unsupported):
        await zone.list_snapshots(SnapshotFilter())
    assert pool.read_keys(OBJECT, ["rev", "format"]) == {"rev": str(present).encode(), "format": b"99"}


async def test_a_catalogue_that_is_gone_or_broken_is_named(bench: Bench) -> None:
    """A server that runs, one that starts, and the check say what it is and that the restore points are there."""
    disk = bench.disk(size=MIB)
    first = await bench.back_up(disk, "first")
    pool, number = bench.site.pool, 0
    bench.kill()
    await bench.until(lambda: bench.worker() is None)
    saved = pool.read_all_keys(OBJECT)

    async def refused(what: str) -> None:
        nonlocal number
        number += 1
        for zone in (bench.zone(), bench.zone(f"new {number}")):
            for act in (
                lambda zone=zone: zone.list_snapshots(SnapshotFilter()),
                lambda zone=zone: zone.create_snapshots([disk], "second"),
                lambda zone=zone: zone.check(),
            ):
                with pytest.raises(Damaged, match=what) as caught:
                    await act()
                assert f"{OBJECT} in pool {POOL}/{bench.namespace}" in str(caught.value)
                assert "rbd snap ls" in caught.value.hint

    pool.remove_object(OBJECT)
    await refused("is gone or empty, but image 'db' has restore points")
    pool.write_keys(OBJECT, {}, {key: value for key, value in saved.items() if key != "rev"})
    await refused("has no revision|is gone or empty")
    for key, value, what in (
        ("rev", b"abc", "its key 'rev' is no number"),
        (f"snapshots/{first}", b"{broken", f"its row 'snapshots/{first}' cannot be read"),
        (f"snapshots/{first}", b'{"nowhere": 1}', f"its row 'snapshots/{first}' cannot be read"),
        ("claims/7", b'{"rowid": 7, "job_id": "none", "kind": "snapshot", "id": "x"}', "rows do not fit together"),
    ):
        present = int(saved["rev"]) + 1
        log = {} if key == "rev" else {"rev": str(present).encode(), f"log/{present:012}": f'["{key}"]'.encode()}
        pool.remove_object(OBJECT)
        pool.write_keys(OBJECT, {}, saved | {key: value} | log)
        await refused(what)
    pool.remove_object(OBJECT)
    pool.write_keys(OBJECT, {}, saved)
    assert [one.snapshot_id for one in await bench.points()] == [first]
    assert [one.snapshot_id for one in await bench.points("new 1")] == [first]
    pool.remove_object(OBJECT)
    with pool.open_by_name("db") as image:
        image.drop(f"snapshot-mcp.{first}")
    assert await bench.names() == await bench.names("afresh") == ["db"]
    assert await bench.points() == (), "it begins anew"


async def test_what_is_done_after_a_commit_is_its_own_threads(bench: Bench) -> None:
    done, answers = list[str](), list[bool]()
    with copies(bench, 1) as (one,), one.transaction():
        one.add_image("img-1", "a", "x", "ss-1")
        other = threading.Thread(target=lambda: answers.append(one.after_commit(lambda: done.append("another's"))))
        other.start()
        other.join()
        assert one.after_commit(lambda: done.append("mine"))
    assert (answers, done) == ([False], ["mine"])


async def test_a_job_that_could_not_be_taken_is_not_the_workers(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    with copies(bench, 1) as (one,):
        with one.transaction():
            claim(one)
        worker = _PoolWorker(one, bench.home(), 1.0)

        def refuse() -> None:
            raise CommittedFirst("another one came first")

        monkeypatch.setattr(one, "_commit", refuse)
        with pytest.raises(CommittedFirst):
            worker._take(only_urgent=False)
        assert not worker._mine
        assert one.count("SELECT count(*) FROM jobs WHERE status = 'working'") == 0
