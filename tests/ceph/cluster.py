"""A real, small Ceph cluster: a monitor and an OSD on loopback, in a folder of its own (`ceph_up.sh`)."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PACKAGES = "ceph-mon, ceph-osd and ceph-common"


def refuse_without_ceph() -> None:
    """Skip where Ceph is not installed; `.ci/run` installs it."""
    if not all(map(shutil.which, ("ceph-mon", "ceph-osd", "rbd"))):
        pytest.skip(f"Ceph is not installed ({PACKAGES})")


@contextmanager
def cluster(*, has_manager: bool = False, size_gib: int = 8, pools: str = "rbd") -> Iterator[Path]:
    """Start a cluster, which has no quotas without a manager; yield its configuration. Nothing is left of it afterwards."""
    refuse_without_ceph()
    with tempfile.TemporaryDirectory(prefix="ceph-") as folder:
        place = Path(folder) / "cluster"
        environ = os.environ | {"MGR": str(int(has_manager)), "OSD_GIB": str(size_gib), "POOLS": pools, "PAXOS": "0.01"}
        done = subprocess.run(
            [HERE / "ceph_up.sh", place], env=environ, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, f"{done.stderr}\n{(place / 'log' / 'up.out').read_text()[-2000:]}"
        try:
            yield place / "ceph.conf"
        finally:
            subprocess.run([HERE / "ceph_down.sh", place], check=True, timeout=60)


def ceph(conf: Path, *arguments: str) -> str:
    """Run Ceph's own command (`ceph`, `rbd`, …) on a cluster; return what it prints."""
    command = [arguments[0], "--conf", str(conf), *arguments[1:]]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
