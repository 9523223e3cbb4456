"""Ceph's libraries through ctypes: each function of the tables does on a real cluster what its signature says."""

import errno
import os
import time
from typing import Any

import pytest

from snapshot_mcp.providers.ceph import clib
from snapshot_mcp.providers.ceph.clib import CephError
from snapshot_mcp.providers.ceph.clock import ClusterClock
from snapshot_mcp.providers.ceph.cluster import Cluster
from tests.ceph.cluster import ceph
from tests.ceph.subject import POOL, Site
from tests.disks import MIB

DATA = f"data-{os.getpid()}"
NAMESPACE = f"clib-{os.getpid()}"


def test_every_function_is_called_and_answers(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    real, called = clib.functions(), set[str]()

    class Noted(dict[str, Any]):
        def __getitem__(self, name: str) -> Any:
            called.add(name)
            return super().__getitem__(name)

    noted = Noted(real)
    monkeypatch.setattr(clib, "functions", lambda: noted)
    ceph(site.conf, "ceph", "osd", "pool", "create", DATA, "8", "8")
    ceph(site.conf, "rbd", "pool", "init", DATA)
    with Cluster(site.conf, "admin", None) as cluster, cluster.pool(POOL) as outside:
        assert not outside.has_namespace(NAMESPACE)
        outside.add_namespace(NAMESPACE)
        assert outside.has_namespace(NAMESPACE)
        assert len(cluster.id) == 36
        assert cluster.client > 0
        assert cluster.capacity() >= (0, 0)
        assert cluster.pool_name(outside.number) == POOL
        with cluster.pool(POOL, NAMESPACE) as pool:
            keys(pool)
            ceph(site.conf, "rbd", "create", "--size", "8", "--data-pool", DATA, f"{POOL}/{NAMESPACE}/apart")
            images(pool)
        outside.remove_namespace(NAMESPACE)
    assert called == set(clib.RADOS) | set(clib.RBD)


def keys(pool: Any) -> None:
    """The keys of an object: written at once or not at all, read by name and all."""
    assert not pool.exists("o")
    pool.write_keys("o", {}, {"a": b"1", "b": b"\0two"}, is_new=True)
    assert pool.exists("o")
    assert pool.read_all_keys("o") == {"a": b"1", "b": b"\0two"}
    assert pool.read_keys("o", ["b", "missing"]) == {"b": b"\0two"}
    pool.write_keys("o", {"a": b"1", "missing": b""}, {"a": b"2"}, ["b"])
    for equal, kwargs, number in (({"a": b"1"}, {}, errno.ECANCELED), ({}, {"is_new": True}, errno.EEXIST)):
        with pytest.raises(CephError) as caught:
            pool.write_keys("o", equal, {"a": b"3"}, **kwargs)
        assert caught.value.errno == number
    assert pool.read_all_keys("o") == {"a": b"2"}
    many = {f"key {number:06}": os.urandom(10) for number in range(12_000)}
    pool.write_keys("o", {}, many)
    assert pool.read_all_keys("o") == {"a": b"2"} | many
    assert pool.read_keys("o", list(many)) == many
    assert abs(ClusterClock(pool)._ask() - time.time()) < 30
    assert pool.lock("o", "name", "mine", 5)
    assert not pool.lock("o", "name", "other", 5)
    pool.unlock("o", "name", "mine")
    assert pool.lock("o", "name", "other", 5)
    pool.remove_object("o")


def images(pool: Any) -> None:
    pool.create_image("one", 8 * MIB)
    with pool.open_by_name("one") as image:
        assert (image.size, image.order, image.name, image.data_pool) == (8 * MIB, 22, "one", "")
        assert pool.list_images() | {image.id: "one"} == pool.list_images()
        assert image.features & clib.FEATURE_EXCLUSIVE_LOCK
        image.set_metadata("snapshot-mcp.kind", "instance")
        assert image.metadata("snapshot-mcp.kind") == "instance"
        assert image.metadata("nothing") == ""
        image.set_metadata("gone", "soon")
        image.drop_metadata("gone")
        image.drop_metadata("gone")
        assert image.metadata("gone") == ""
        assert pool.read_metadata(image.id, "snapshot-mcp.kind", "nothing") == {
            "snapshot-mcp.kind": "instance",
            "nothing": "",
        }
        image.write(MIB, b"before")
        image.flush()
        image.take("a")
        image.take("a")
        assert image.snapshots() == {"a": 8 * MIB}
        assert image.is_protected("a")
        image.write(MIB, b"after!")
        assert 0 < image.changed_bytes("a") <= 4 * MIB
        image.resize(12 * MIB)
        assert image.clients() == []
        image.lock()
        seen: list[tuple[int, int]] = []
        image.roll_back("a", lambda done, total: seen.append((done, total)))
        assert seen
        assert (image.read(MIB, 6), image.size) == (b"before", 8 * MIB)
        assert image.lock_owner()
        image.unlock()
        assert image.lock_owner() == ""
        with pool.open_image(image.id, snapshot="a") as taken:
            assert taken.read(MIB, 6) == b"before"
        pool.create_image("like", MIB, like=image)
        (apart,) = [one for one, name in pool.list_images().items() if name == "apart"]
        with pool.open_image(apart, is_read_only=False) as other:
            assert other.data_pool == DATA
            pool.create_image("apart too", MIB, like=other)
        image.drop("a")
        image.drop("a")
    pool.rename_image("one", "two")
    for name in ("two", "like", "apart", "apart too"):
        pool.remove_image(name)
    with pytest.raises(CephError) as caught:
        pool.open_image("nothing")
    assert caught.value.errno == errno.ENOENT
