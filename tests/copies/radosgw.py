"""A real S3 server on loopback: Ceph's object gateway over a cluster of `tests/ceph` without a manager."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Final

import httpx
import pytest

from snapshot_mcp.copies.settings import StoreSettings
from snapshot_mcp.copies.stores.lock import sign
from tests.ceph.cluster import ceph, cluster
from tests.patience import PATIENCE_SECONDS

PACKAGES: Final = "radosgw, ceph-mon, ceph-osd and ceph-common"
POOLS: Final = (
    ".rgw.root",
    *(f"default.rgw.{one}" for one in ("log", "control", "meta", "buckets.index", "buckets.data", "buckets.non-ec")),
)
ACCESS, SECRET = "AKIATEST", "canary-of-the-secret-key"


def has_radosgw() -> bool:
    """Return whether the gateway is installed."""
    return all(map(shutil.which, ("radosgw", "radosgw-admin", "ceph-mon", "ceph-osd", "rbd")))


def refuse_without_radosgw() -> None:
    """Skip where the gateway is not installed."""
    if not has_radosgw():
        pytest.skip(f"Ceph's object gateway is not installed ({PACKAGES})")


@contextmanager
def object_gateway(size_gib: int = 8) -> Iterator[str]:
    """Start one; yield its URL. `bucket_in` makes buckets there."""
    refuse_without_radosgw()
    with cluster(pools="", size_gib=size_gib) as conf:
        acts = ("create {} 1 1 replicated", "application enable {} rgw")
        lines = "".join(f"osd pool {act.format(pool)}\n" for pool in POOLS for act in acts)
        subprocess.run(["ceph", "--conf", conf], input=lines, text=True, capture_output=True, timeout=60, check=True)
        keys = (f"--access-key={ACCESS}", f"--secret-key={SECRET}")
        ceph(conf, "radosgw-admin", "user", "create", "--uid=t", "--display-name=t", *keys)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        words = [
            "--conf",
            conf,
            "-n",
            "client.admin",
            "-f",
            f"--rgw-frontends=beast endpoint=127.0.0.1:{port} tcp_nodelay=1",
        ]
        log = conf.parent / "log" / "radosgw.out"
        with log.open("wb") as out:
            server = subprocess.Popen(["radosgw", *map(str, words)], stdout=out, stderr=out)
        try:
            _wait(f"http://127.0.0.1:{port}", server)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.kill()
            server.wait()


@contextmanager
def imitation() -> Iterator[str]:
    """Start moto, where there is no gateway; yield its URL."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def _wait(url: str, server: "subprocess.Popen[bytes]") -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while server.poll() is None:
        try:
            httpx.get(url)
        except httpx.HTTPError:
            assert time.monotonic() < until, "radosgw does not answer"
            time.sleep(0.05)
        else:
            return
    raise AssertionError(f"radosgw ended with {server.returncode}")


def bucket_in(url: str, name: str) -> dict[str, str]:
    """Make a bucket; return the settings of a copy in it."""
    made = {"to": f"s3://{name}/copies/of-us", "endpoint": url, "access_key_id": ACCESS, "secret_access_key": SECRET}
    settings = StoreSettings.model_validate(made)
    headers = sign(settings, f"{url}/{name}", b"", datetime.now(UTC))
    httpx.put(f"{url}/{name}", headers=headers).raise_for_status()
    return made
